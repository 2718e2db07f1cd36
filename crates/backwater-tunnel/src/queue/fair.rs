//! Whose turn it is (RFC 8290).
