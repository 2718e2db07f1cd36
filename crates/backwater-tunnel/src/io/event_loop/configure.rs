//! What `wg` asks and sets (`uapi`), and what `ip` sets of the device.

use std::{
    collections::HashSet,
    io,
    num::NonZeroU16,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use boringtun::{noise::rate_limiter::RateLimiter, x25519::PublicKey};
use rustix::io::Errno;
use tracing::{info, warn};

use super::{EventLoop, HANDSHAKES, initiator};
use crate::{
    config::{self, Key, MAX_PEERS},
    engine::{
        allowed::Last,
        peer::{Peer, name_of},
    },
    uapi::{self, Answer, PeerSet, Request, Set},
};

/// Prefixes after which no more are added: far more than the longest configuration file has.
const MAX_PREFIXES: usize = 1 << 18;

/// A key that is none.
const ZEROS: [u8; 32] = [0; 32];

impl EventLoop {
    /// Serves one request, and follows an MTU that somebody else gave the device. Returns whether there may be more.
    pub(super) fn follow_settings(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.monitor.own_device_changed() && self.link.refresh_mtu() {
            self.tools.mtu = self.link.mtu().into();
            info!(mtu = self.tools.mtu, "the device has another MTU");
            self.set_fragmentation(now);
        }
        // Whoever asked may have gone.
        match self.requests.poll_recv(cx) {
            Poll::Ready(Some(Request::Get(asker))) => {
                let _ = asker.send(self.configuration());
            }
            Poll::Ready(Some(Request::Set(set, asker))) => {
                let result = self.configure(now, *set);
                match result {
                    Ok(()) => info!(peers = self.peers.iter().count(), "configured by UAPI"),
                    Err(error) => warn!(%error, "a UAPI request was refused"),
                }
                let _ = asker.send(result);
            }
            Poll::Ready(None) | Poll::Pending => return false,
        }
        true
    }

    fn configuration(&self) -> Answer {
        let mut answer = Answer::new(self.peers.iter().count(), self.allowed.len());
        let private_key = self.has_private_key.then(|| Key(self.private_key.to_bytes()));
        answer.interface(private_key.as_ref().map(|key| &key.0), self.path.port(), self.path.mark());
        for peer in self.peers.iter() {
            answer.peer(uapi::Peer {
                public_key: peer.public_key.as_bytes(),
                preshared_key: peer.preshared_key().map_or(&ZEROS, |key| &key.0),
                endpoint: peer.endpoint(),
                last_handshake: peer.last_handshake,
                bytes_sent: peer.counters.bytes_sent,
                bytes_received: peer.counters.bytes_received,
                persistent_keepalive: peer.persistent_keepalive().map_or(0, NonZeroU16::get),
                allowed_ips: self.allowed.of(peer.number()),
            });
        }
        answer
    }

    /// Does all of a request, or nothing.
    ///
    /// # Errors
    /// `ENOSPC`: too many peers or prefixes; `EBUSY`: the program's own rules need another mark; or why there are no such sockets.
    fn configure(&mut self, now: Instant, set: Set) -> Result<(), Errno> {
        let private_key = match &set.private_key {
            Some(key) if key.0 == ZEROS && !self.has_private_key => None,
            Some(key) if self.has_private_key && key.0 == self.private_key.to_bytes() => None,
            Some(key) => Some((initiator::private_key(key).map_err(|_| Errno::IO)?, key.0 != ZEROS)),
            None => None,
        };
        let own = private_key.as_ref().map_or(self.public_key, |(key, _)| PublicKey::from(key));
        self.has_room_for(&set, own)?;
        self.set_sockets(now, set.listen_port, set.fwmark)?;
        // From here on nothing fails: the system's random numbers do not once there were any (`getrandom(2)`), as at the start.
        if let Some((private_key, has_private_key)) = private_key {
            (self.private_key, self.public_key, self.has_private_key) = (private_key, own, has_private_key);
            self.limiter = Arc::new(RateLimiter::new(&own, HANDSHAKES));
            self.calls.clear();
            self.remove_peer(own.as_bytes());
            for peer in self.peers.iter_mut() {
                let preshared_key = peer.preshared_key().cloned();
                peer.change_keys(now, &self.private_key, preshared_key, &self.limiter, &mut self.tools);
            }
        }
        if set.replace_peers {
            let keys: Vec<_> = self.by_key.keys().copied().collect();
            keys.iter().for_each(|key| self.remove_peer(key));
        }
        set.peers.into_iter().try_for_each(|peer| self.set_peer(now, peer))?;
        (self.last_destination, self.last_source) = (Last::default(), Last::default());
        // Of those that are gone, too.
        self.look_up_routes(now, false);
        Ok(())
    }

    fn has_room_for(&self, set: &Set, own: PublicKey) -> Result<(), Errno> {
        let mut keys: HashSet<[u8; 32]> =
            if set.replace_peers { HashSet::new() } else { self.by_key.keys().copied().collect() };
        for peer in set.peers.iter().filter(|peer| peer.public_key.0 != own.to_bytes()) {
            if peer.remove {
                keys.remove(&peer.public_key.0);
            } else if !peer.update_only && keys.insert(peer.public_key.0) && keys.len() > MAX_PEERS {
                return Err(Errno::NOSPC);
            }
        }
        let adds = set.peers.iter().any(|peer| peer.allowed_ips.iter().any(|(_, adds)| *adds));
        if adds && !set.replace_peers && self.allowed.len() > MAX_PREFIXES { Err(Errno::NOSPC) } else { Ok(()) }
    }

    /// Gives the sockets another port or mark. On an error they are what they were.
    fn set_sockets(&mut self, now: Instant, port: Option<u16>, mark: Option<u32>) -> Result<(), Errno> {
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::ADDRINUSE);
        // Without the mark that the rules need, what the tunnel sends would go into the tunnel.
        let mark = match (mark, self.link.fwmark_of_rules()) {
            (Some(0), Some(_)) => None,
            (Some(mark), Some(needed)) if mark != needed => return Err(Errno::BUSY),
            (mark, _) => mark.filter(|&mark| mark != self.path.mark()),
        };
        match port {
            Some(port) if !self.path.has_port(port) => {
                let path = self.path.with_port(port, mark).map_err(errno)?;
                // What has arrived already is taken, for a bounded time.
                self.receive(&mut Context::from_waker(Waker::noop()), now);
                self.path = path;
                self.peers.iter_mut().for_each(Peer::give_up_held);
                self.set_fragmentation(now);
                // Peers answer to where the last message came from.
                self.call_peers(now, false);
            }
            Some(port) => {
                mark.map_or(Ok(()), |mark| self.path.set_mark(mark)).map_err(errno)?;
                self.path.keep_port(port);
            }
            None => mark.map_or(Ok(()), |mark| self.path.set_mark(mark)).map_err(errno)?,
        }
        if let Some(mark) = mark {
            self.link.set_fwmark(mark);
            self.look_up_routes(now, true);
        }
        Ok(())
    }

    fn set_peer(&mut self, now: Instant, set: PeerSet) -> Result<(), Errno> {
        // As in the kernel and in wireguard-go, a section with this side's own key is ignored.
        if set.public_key.0 == self.public_key.to_bytes() {
            return Ok(());
        }
        if set.remove {
            self.remove_peer(&set.public_key.0);
            return Ok(());
        }
        let preshared_key = set.preshared_key.map(|key| Some(key).filter(|key| key.0 != ZEROS));
        let number = match self.by_key.get(&set.public_key.0) {
            Some(&number) => number,
            None if set.update_only => return Ok(()),
            None => self.add_peer(set.public_key, preshared_key.clone().flatten())?,
        };
        if set.replace_allowed_ips {
            self.allowed.remove_all(number);
        }
        for (net, adds) in &set.allowed_ips {
            if *adds {
                self.allowed.insert(net, number);
            } else {
                self.allowed.remove(net, number);
            }
        }
        let Some(peer) = self.peers.get_mut(number) else { return Ok(()) };
        if let Some(key) = preshared_key.filter(|key| key.as_ref() != peer.preshared_key()) {
            peer.change_keys(now, &self.private_key, key, &self.limiter, &mut self.tools);
        }
        if let Some(endpoint) = set.endpoint {
            peer.set_endpoint(now, endpoint, &mut self.path, &mut self.tools);
        }
        if let Some(seconds) = set.persistent_keepalive {
            peer.set_persistent_keepalive(now, NonZeroU16::new(seconds), &mut self.tools);
        }
        Ok(())
    }

    fn add_peer(&mut self, public_key: Key, preshared_key: Option<Key>) -> Result<usize, Errno> {
        let number = self.peers.next();
        let session_number = self.indices.assign(number).map_err(|_| Errno::IO)?;
        self.by_key.insert(public_key.0, number);
        let peer = config::Peer {
            public_key,
            preshared_key,
            endpoint: None,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
        };
        self.peers.insert(Peer::new(number, &peer, &self.private_key, session_number, &self.limiter));
        Ok(number)
    }

    fn remove_peer(&mut self, key: &[u8; 32]) {
        let Some(peer) = self.by_key.remove(key).and_then(|number| self.peers.remove(number)) else { return };
        self.indices.remove(peer.number());
        self.allowed.remove_all(peer.number());
        // The number may be another peer's next.
        if let Some(queue) = peer.endpoint().and_then(|endpoint| self.path.data(endpoint)) {
            queue.cancel(peer.number());
        }
        info!(peer = name_of(&peer.public_key), "removed");
    }
}
