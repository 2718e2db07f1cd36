//! Another socket in the place of one that stays stuck.

use std::{io, sync::atomic::Ordering::Relaxed, time::Duration};

use tracing::debug;

use super::UdpSocket;
use crate::sys;

impl UdpSocket {
    /// Binds anew: a new socket of the system, on `port` of the same address, takes the place of the present one. 0 is for any port.
    ///
    /// For a socket that stays stuck ([`Sender::is_stuck`](crate::Sender::is_stuck)). All handles go on with the new socket: clones,
    /// senders, the receiver, queues. Senders that wait try at once; what they hold stays held, and their deadlines stay. The receiver is
    /// first given up to 4 MiB of what the present socket has received. A datagram that arrives in the moment between may be lost.
    ///
    /// Kept are the counters, the policy, the peer of a connected socket, and these options: the sizes of both buffers, fragmentation, hop
    /// limits, what is told of what is received, type of service and traffic class, `SO_REUSEPORT`, `SO_REUSEADDR`, `SO_BROADCAST`,
    /// `IPV6_V6ONLY`; on Linux also the mark, the priority, the device, `IP_FREEBIND` and `IP_TRANSPARENT`; on Apple's systems the interface. Not kept are multicast memberships, filters
    /// and options that were set past this type. Other sockets at the port, such as those of [`connect`](Self::connect), stay where they are.
    ///
    /// The descriptor's number ([`AsRawFd`](std::os::fd::AsRawFd)) stays. Duplicates of it, such as those of
    /// [`try_clone_std`](Self::try_clone_std), name the former socket, which receives until the last of them is closed.
    ///
    /// # Errors
    /// Those of the system: the port is taken, there is no descriptor left (two are needed for a moment), the address is not this host's any
    /// more. The present socket stays in use then. `Unsupported` on Windows.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O and time drivers enabled. The runtime drives the receiver from now on.
    pub fn rebind(&self, port: u16) -> io::Result<()> {
        // Before anything is changed.
        drop(tokio::time::sleep(Duration::ZERO));
        let inner = &*self.0;
        let mut sides = inner.sides();
        let before = self.header();
        let mut addr = inner.bound;
        addr.set_port(port);
        let new = sys::replacement(&inner.sock_ref(), addr)?;
        // What it returns are the present one's properties.
        sys::State::new(&new, addr.ip().is_unspecified())?;
        inner.told.ask(&inner.state, &new)?;
        if inner.fragments.load(Relaxed) {
            inner.state.set_fragmentation(&new, self.fragmentation())?;
        }
        let addr = new.local_addr()?.as_socket().unwrap_or(addr);
        inner.drain_errors(None, u64::MAX);
        inner.intake.replace(inner, new)?;
        inner.port.store(addr.port(), Relaxed);
        if self.header() != before {
            self.renew_header();
        }
        inner.leases.take_back();
        inner.contention.socket_replaced();
        // Their queues are woken, and close them.
        for side in sides.drain(..).filter_map(|side| side.upgrade()) {
            side.contention.socket_replaced();
        }
        Ok(())
    }

    /// Sets the options that were switched meanwhile, on the former socket.
    #[cold]
    fn renew_header(&self) {
        let inner = &*self.0;
        let hops = Some(inner.hop_limit.load(Relaxed)).filter(|&hops| hops > 0);
        let set = inner.state.set_hop_limit(&inner.sock_ref(), hops);
        if let Err(error) = set.and(inner.state.set_fragmentation(&inner.sock_ref(), self.fragmentation())) {
            debug!(%error, "options stay as they were");
        }
    }
}
