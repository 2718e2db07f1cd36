//! What can be changed of a peer while it is one.

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    time::{Duration, Instant},
};

use x25519_dalek::StaticSecret;

use super::Peer;
use crate::{
    config::{Endpoint, Key},
    engine::{endpoints::Endpoints, messages::Messages},
};

pub(super) fn interval(persistent_keepalive: Option<NonZeroU16>) -> Duration {
    Duration::from_secs(persistent_keepalive.map_or(0, NonZeroU16::get).into())
}

impl Peer {
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) fn preshared_key(&self) -> Option<&Key> {
        self.preshared_key.as_ref()
    }

    pub(crate) fn persistent_keepalive(&self) -> Option<NonZeroU16> {
        self.persistent_keepalive
    }

    /// Ends the session. The next one is made with these keys: at once, if there is a reason to.
    pub(crate) fn change_keys(
        &mut self,
        now: Instant,
        private_key: &StaticSecret,
        preshared_key: Option<Key>,
        messages: &mut Messages,
    ) {
        self.tunnel.change_keys(private_key, preshared_key.as_ref().map(|key| key.0), &mut messages.indices);
        self.preshared_key = preshared_key;
        let had_session = std::mem::take(&mut self.established);
        (self.initiated, self.heard) = (None, None);
        if had_session || self.is_persistent() || self.is_waiting() {
            self.call(now, messages);
        }
    }

    /// Frees the indices of its sessions: it is removed.
    pub(crate) fn remove(&mut self, messages: &mut Messages) {
        self.tunnel.clear(&mut messages.indices);
    }

    /// Sends to this address from now on, until the peer is heard from another one.
    pub(crate) fn set_endpoint(&mut self, now: Instant, endpoint: SocketAddr, messages: &mut Messages) {
        // One of a configured name: the name stays.
        if !self.endpoints.contains(endpoint) {
            self.endpoints = Endpoints::new(Some(Endpoint::Address(endpoint)));
        }
        if self.endpoint() != Some(endpoint) {
            self.found(now, endpoint, messages);
        }
    }

    /// Sets the interval of persistent keepalives. One is sent at once if there were none before.
    pub(crate) fn set_persistent_keepalive(
        &mut self,
        now: Instant,
        interval: Option<NonZeroU16>,
        messages: &mut Messages,
    ) {
        let before = std::mem::replace(&mut self.persistent_keepalive, interval);
        if before != interval {
            self.keepalive_at = if before.is_none() { now } else { now + self::interval(interval) };
            self.keep_alive_if_due(now, messages);
        }
    }

    /// Sends a persistent keepalive if it is time to.
    pub(super) fn keep_alive_if_due(&mut self, now: Instant, messages: &mut Messages) {
        if self.persistent_keepalive.is_none() || self.endpoint().is_none() || now < self.keepalive_at {
            return;
        }
        self.keepalive_at = now + interval(self.persistent_keepalive);
        if self.established {
            self.keep_alive(now, messages);
        } else {
            self.call(now, messages);
        }
    }
}
