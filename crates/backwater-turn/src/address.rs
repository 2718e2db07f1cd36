use std::{fmt, net::SocketAddr};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub SocketAddr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address!(
    /// The address that a client's datagrams come from: its server-reflexive transport address.
    ClientAddr
);
address!(
    /// The address of someone whom a client exchanges data with through the relay.
    PeerAddr
);
address!(
    /// A relayed transport address: where peers reach a client.
    RelayedAddr
);

/// What tells a client's allocation from all others (RFC 8656, section 2), its protocol being UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// The client.
    pub client: ClientAddr,
    /// The server's transport address that it uses.
    pub server: SocketAddr,
}
