//! What `wg` sets (`uapi`) of keys and peers.

use std::{collections::HashSet, num::NonZeroU16, time::Instant};

use rustix::io::Errno;
use tracing::info;
use x25519_dalek::{PublicKey, StaticSecret};

use super::{
    Engine, Event,
    allowed::Last,
    peer::{Peer, name_of},
    wireguard,
};
use crate::{
    config::{self, Key, MAX_PEERS},
    uapi::{self, Answer, PeerSet, Set},
};

/// Prefixes after which no more are added: far more than the longest configuration file has.
const MAX_PREFIXES: usize = 1 << 18;

/// A key that is none.
const ZEROS: [u8; 32] = [0; 32];

/// A request that can be done.
pub(crate) struct Checked {
    /// The new private key, and whether it is the operator's.
    private_key: Option<(StaticSecret, bool)>,
    set: Set,
}

impl Engine {
    /// Returns what `wg` shows, but for the sockets, which are there already.
    pub(crate) fn configuration(&self, port: u16, mark: u32) -> Answer {
        let mut answer = Answer::new(self.peers.iter().count(), self.allowed.len());
        let private_key = self.has_private_key.then(|| Key(self.private_key.to_bytes()));
        answer.interface(private_key.as_ref().map(|key| &key.0), port, mark);
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

    /// Looks whether a request can be done.
    ///
    /// # Errors
    /// `ENOSPC`: too many peers or prefixes; `EIO`: the system has no random numbers.
    pub(crate) fn check(&self, set: Set) -> Result<Checked, Errno> {
        let private_key = match &set.private_key {
            Some(key) if key.0 == ZEROS && !self.has_private_key => None,
            Some(key) if self.has_private_key && key.0 == self.private_key.to_bytes() => None,
            Some(key) => Some((wireguard::private_key(key).map_err(|_| Errno::IO)?, key.0 != ZEROS)),
            None => None,
        };
        let own = private_key.as_ref().map_or(self.public_key, |(key, _)| PublicKey::from(key));
        self.has_room_for(&set, own)?;
        Ok(Checked { private_key, set })
    }

    /// Does all of a request. Returns the numbers of the peers that are gone: the driver gives up what it holds for them before it does
    /// anything else, since the numbers may be others' now.
    pub(crate) fn configure(&mut self, now: Instant, Checked { private_key, set }: Checked) -> Vec<usize> {
        let mut removed = Vec::new();
        if let Some((private_key, has_private_key)) = private_key {
            let own = PublicKey::from(&private_key);
            (self.private_key, self.public_key, self.has_private_key) = (private_key, own, has_private_key);
            self.guard.change_key(&own);
            removed.extend(self.remove_peer(own.as_bytes()));
            for peer in self.peers.iter_mut() {
                let preshared_key = peer.preshared_key().cloned();
                peer.change_keys(now, &self.private_key, preshared_key, &mut self.messages);
            }
        }
        if set.replace_peers {
            let keys: Vec<_> = self.by_key.keys().copied().collect();
            removed.extend(keys.iter().filter_map(|key| self.remove_peer(key)));
        }
        set.peers.into_iter().for_each(|peer| self.set_peer(now, peer, &mut removed));
        (self.last_destination, self.last_source) = (Last::default(), Last::default());
        removed
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

    fn set_peer(&mut self, now: Instant, set: PeerSet, removed: &mut Vec<usize>) {
        // As in the kernel and in wireguard-go, a section with this side's own key is ignored.
        if set.public_key.0 == self.public_key.to_bytes() {
            return;
        }
        if set.remove {
            removed.extend(self.remove_peer(&set.public_key.0));
            return;
        }
        let preshared_key = set.preshared_key.map(|key| Some(key).filter(|key| key.0 != ZEROS));
        let number = match self.by_key.get(&set.public_key.0) {
            Some(&number) => number,
            None if set.update_only => return,
            None => self.add_peer(now, set.public_key, preshared_key.clone().flatten()),
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
        let Some(peer) = self.peers.get_mut(number) else { return };
        if let Some(key) = preshared_key.filter(|key| key.as_ref() != peer.preshared_key()) {
            peer.change_keys(now, &self.private_key, key, &mut self.messages);
        }
        if let Some(endpoint) = set.endpoint {
            peer.set_endpoint(now, endpoint, &mut self.messages);
        }
        if let Some(seconds) = set.persistent_keepalive {
            peer.set_persistent_keepalive(now, NonZeroU16::new(seconds), &mut self.messages);
        }
    }

    fn add_peer(&mut self, now: Instant, public_key: Key, preshared_key: Option<Key>) -> usize {
        let number = self.peers.next();
        self.by_key.insert(public_key.0, number);
        let peer = config::Peer {
            public_key,
            preshared_key,
            endpoint: None,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
        };
        self.peers.insert(Peer::new(now, number, &peer, &self.private_key, self.clock, self.mode));
        number
    }

    fn remove_peer(&mut self, key: &[u8; 32]) -> Option<usize> {
        let mut peer = self.peers.remove(self.by_key.remove(key)?)?;
        peer.remove(&mut self.messages);
        self.allowed.remove_all(peer.number());
        if peer.ways.wanted().is_some() {
            self.events.push_back(Event::RelayPeers);
        }
        info!(peer = name_of(&peer.public_key), "removed");
        Some(peer.number())
    }
}
