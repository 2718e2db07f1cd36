use std::{
    fmt,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use backwater_stun::AddressFamily;

use crate::{PerFamily, RelayedAddr};

/// The ports of all relayed addresses that exist now, by address family. All threads share the table, which takes 16 KiB.
///
/// The server drops a request from one of these ports, since the relay itself has forwarded it.
pub struct RelayedPorts(PerFamily<Box<[AtomicU64; 1024]>>);

impl Default for RelayedPorts {
    fn default() -> Self {
        let none = || Box::new([const { AtomicU64::new(0) }; 1024]);
        Self(PerFamily { v4: none(), v6: none() })
    }
}

impl RelayedPorts {
    /// Adds a port. Call it before a datagram is sent from the port.
    pub fn insert(&self, RelayedAddr(addr): RelayedAddr) {
        if let Some((word, bit)) = self.place(addr) {
            word.fetch_or(bit, Relaxed);
        }
    }

    /// Removes a port, when its socket is closed.
    pub fn remove(&self, RelayedAddr(addr): RelayedAddr) {
        if let Some((word, bit)) = self.place(addr) {
            word.fetch_and(!bit, Relaxed);
        }
    }

    /// Returns whether the table has the port of this address, in the address's family.
    pub fn contains(&self, addr: SocketAddr) -> bool {
        self.place(addr).is_some_and(|(word, bit)| word.load(Relaxed) & bit != 0)
    }

    fn place(&self, addr: SocketAddr) -> Option<(&AtomicU64, u64)> {
        let canonical = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let words = self.0.get(AddressFamily::of(&canonical));
        Some((words.get(usize::from(addr.port() / 64))?, 1 << (addr.port() % 64)))
    }
}

impl fmt::Debug for RelayedPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayedPorts").finish_non_exhaustive()
    }
}
