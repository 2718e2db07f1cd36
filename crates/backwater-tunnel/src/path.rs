//! The sockets, one for each family of addresses.
