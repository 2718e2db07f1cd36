//! Views of IP, TCP and UDP headers.
