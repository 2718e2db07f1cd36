//! What the local host is told about packets that cannot go (RFC 792, RFC 4443).
