//! Sockets that a queue has for some of its keys, beside the socket that it sends on: send-only ones, and connected ones.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering::Relaxed},
    },
};

use socket2::{SockRef, Socket};

use super::{Fragmentation, Inner, Told, UdpSocket, canonical};
use crate::{intake::Intake, lease::Leases, sys, wait::fairness::Contention};

impl UdpSocket {
    /// A socket that sends as this one does, from a send buffer of its own, and receives nothing.
    pub(crate) fn send_only_socket(&self) -> io::Result<Self> {
        let main = &*self.0;
        // Without a runtime there is no reactor for it.
        if main.peer.is_some() || tokio::runtime::Handle::try_current().is_err() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut sides = main.sides();
        let (socket, state) = sys::send_only(&main.sock_ref(), main.local_addr())?;
        state.set_fragmentation(&SockRef::from(&socket), self.fragmentation())?;
        let side = Arc::new(main.beside(socket, state, main.local_addr(), self.fragmentation())?);
        sides.retain(|side| side.strong_count() > 0);
        sides.push(Arc::downgrade(&side));
        Ok(Self(side))
    }

    /// A socket that is connected to a destination, and sends from the same port and, if that is said, from `source`. The receiver of this
    /// socket reads it, too: what it receives, also before it was connected, arrives there.
    pub(crate) fn connected_beside(&self, destination: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let main = &*self.0;
        let mut local = main.local_addr();
        local.set_ip(source.unwrap_or(local.ip()));
        let is_mixed = local.is_ipv4() != main.bound.is_ipv4() || local.is_ipv4() != destination.is_ipv4();
        // Without a runtime there is no reactor for it.
        if is_mixed || main.peer.is_some() || tokio::runtime::Handle::try_current().is_err() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut sides = main.sides();
        // Before it receives anything: that would be lost.
        if !main.intake.has_room() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let anywhere = main.bound.ip().is_unspecified();
        let socket = sys::connected_beside(&main.sock_ref(), local, destination, |new| {
            sys::State::new(new, anywhere)?;
            main.told.ask(&main.state, new)
        })?;
        // Again: a socket that is connected may not do all that others do.
        let state = sys::State::new(&socket, anywhere)?;
        let fragmentation = self.fragmentation();
        if fragmentation != Fragmentation::default() {
            state.set_fragmentation(&SockRef::from(&socket), fragmentation)?;
        }
        let local = socket.local_addr()?.as_socket().unwrap_or(local);
        let side = Arc::new(Inner {
            peer: Some(canonical(destination)),
            told: main.told,
            hop_limit: AtomicU8::new(main.hop_limit.load(Relaxed)),
            attached_to: Arc::downgrade(&self.0),
            ..main.beside(socket, state, local, fragmentation)?
        });
        main.intake.attach(side.clone());
        sides.retain(|side| side.strong_count() > 0);
        sides.push(Arc::downgrade(&side));
        Ok(Self(side))
    }

    /// Nothing is sent on it any more: the receiver that reads it closes it when it is empty.
    pub(crate) fn detach(&self) {
        if let Some(main) = Weak::upgrade(&self.0.attached_to) {
            main.intake.close(&self.0);
        }
    }
}

impl Inner {
    /// Another socket with the counters, the policy and the events of this one, which is connected to nobody.
    fn beside(
        &self,
        socket: Socket,
        state: sys::State,
        bound: SocketAddr,
        fragmentation: Fragmentation,
    ) -> io::Result<Self> {
        Ok(Self {
            intake: Intake::new(sys::Reader::UNREGISTERED),
            io: sys::Io::new(socket.into())?,
            state,
            stats: self.stats.clone(),
            backpressure: self.backpressure.clone(),
            bound,
            port: AtomicU16::new(bound.port()),
            peer: None,
            max_train_bytes: self.max_train_bytes,
            told: Told::default(),
            hop_limit: AtomicU8::new(0),
            fragments: AtomicBool::new(fragmentation == Fragmentation::Allowed),
            receiver_taken: AtomicBool::new(false),
            contention: Contention::default(),
            leases: Leases::default(),
            sides: Mutex::default(),
            attached_to: Weak::new(),
            promotes: false,
            events: self.events.clone(),
        })
    }
}
