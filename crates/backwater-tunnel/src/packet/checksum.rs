//! One's complement sums (RFC 1071).
