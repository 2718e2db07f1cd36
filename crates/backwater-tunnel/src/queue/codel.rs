//! When to mark or drop (RFC 8289).
