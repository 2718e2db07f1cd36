//! Explicit congestion notification across the tunnel (RFC 6040).
