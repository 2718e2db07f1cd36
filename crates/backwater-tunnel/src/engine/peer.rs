//! A peer: its session, its queue and the way to it.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::{Duration, Instant, SystemTime},
};

use tracing::{debug, warn};
use x25519_dalek::{PublicKey, StaticSecret};

use super::{
    counters::PeerCounters,
    endpoints::Endpoints,
    messages::{MAX_MESSAGE, Messages},
    queue::fair::Fair,
    route::{Path, Route},
    wireguard::{Clock, Due, Tunnel, kind},
};
use crate::config::{self, Key, Mode};

mod receive;
mod send;
mod settings;
mod ways;

pub(super) use send::{Sealed, Sealer};
pub(crate) use ways::{Origin, Ways};

/// A peer.
pub(crate) struct Peer {
    /// Its number, by which the engine and its driver know it.
    number: usize,
    pub(crate) public_key: PublicKey,
    pub(crate) endpoints: Endpoints,
    pub(crate) counters: PeerCounters,
    pub(crate) queue: Fair,
    /// The way in use.
    pub(crate) path: Path,
    pub(crate) ways: Ways,
    /// Between an initiation and its response, in the last handshake that this side began.
    pub(crate) rtt: Option<Duration>,
    /// By the driver's clock.
    pub(crate) last_handshake: Option<SystemTime>,
    tunnel: Tunnel,
    preshared_key: Option<Key>,
    /// Its datagrams that the driver holds: encrypted, but refused so far. Never more than what one packet of the device makes.
    held: usize,
    /// Whether there is a session to encrypt with.
    established: bool,
    initiated: Option<Instant>,
    /// When the last authenticated message came.
    heard: Option<Instant>,
    persistent_keepalive: Option<NonZeroU16>,
    /// When the next persistent keepalive is due.
    keepalive_at: Instant,
    told: Told,
}

/// What the operator has been told of a peer.
#[derive(Debug, Default)]
struct Told {
    unresolved: bool,
    unanswered: bool,
}

/// Why a packet of the device did not go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Malformed,
    /// No peer is to have it.
    NoPeer,
    /// Nobody knows where the peer is.
    NoEndpoint,
    /// It is longer than so many bytes.
    TooBig(usize),
}

/// What a datagram was to its peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A message of the protocol, or data, that the peer has sent.
    Good,
    Handshake,
    Bad,
}

impl Peer {
    pub(crate) fn new(
        now: Instant,
        number: usize,
        config: &config::Peer,
        private_key: &StaticSecret,
        clock: Clock,
        mode: Mode,
    ) -> Self {
        let public_key = PublicKey::from(config.public_key.0);
        let preshared_key = config.preshared_key.clone();
        Self {
            number,
            public_key,
            endpoints: Endpoints::new(config.endpoint.clone()),
            counters: PeerCounters::default(),
            queue: Fair::new(fastrand::u64(..)),
            path: Path::default(),
            ways: Ways::new(mode),
            rtt: None,
            last_handshake: None,
            tunnel: Tunnel::new(number, private_key, public_key, preshared_key.as_ref().map(|key| key.0), clock),
            preshared_key,
            held: 0,
            established: false,
            initiated: None,
            heard: None,
            persistent_keepalive: config.persistent_keepalive,
            keepalive_at: now + settings::interval(config.persistent_keepalive),
            told: Told::default(),
        }
    }

    /// Where the peer is.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.path.route().map(Route::endpoint).or(self.ways.wanted())
    }

    /// Where its datagrams are sent to: to the peer, or to the relay.
    pub(crate) fn destination(&self) -> Option<SocketAddr> {
        self.path.route().map(Route::destination)
    }

    pub(crate) fn is_persistent(&self) -> bool {
        self.persistent_keepalive.is_some()
    }

    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    /// Whether an initiation has had no response yet.
    pub(crate) fn is_calling(&self) -> bool {
        self.tunnel.is_initiating()
    }

    /// When the protocol or a way has something to do, as far as is known now.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.tunnel.due().into_iter().chain(self.ways.due()).min()
    }

    /// Whether what waits could go now.
    pub(crate) fn is_ready(&self) -> bool {
        self.established && self.held == 0 && !self.queue.is_empty() && self.path.route().is_some()
    }

    /// Whether an initiation from this address may well be the peer's.
    pub(crate) fn is_at(&self, ip: IpAddr) -> bool {
        self.endpoint().is_some_and(|endpoint| endpoint.ip() == ip) || self.endpoints.has_ip(ip)
    }

    /// The system was suspended for so long.
    pub(crate) fn age(&mut self, by: Duration) {
        self.tunnel.age(by);
    }

    /// Whether something waits: for room, or for a session.
    #[inline]
    pub(crate) fn is_waiting(&self) -> bool {
        self.held > 0 || !self.queue.is_empty()
    }

    /// Whether the queue may take another packet.
    #[inline]
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        self.queue.has_room(now, self.path.bound(now))
    }

    /// Datagrams that the driver holds.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Sends by this route from now on, from this address of the host's. What is held goes there too, unless that takes another socket or the
    /// header of another channel.
    pub(crate) fn moved(&mut self, route: Route, local_ip: Option<IpAddr>) {
        self.path.local_ip = local_ip;
        if self.path.route() == Some(route) {
            return;
        }
        let differs = |before: Route| before.is_v6() != route.is_v6() || before.channel() != route.channel();
        if let Some(before) = self.path.route()
            && before.is_relayed() != route.is_relayed()
        {
            self.ways.leave(before.is_relayed(), self.counted());
        }
        if self.path.route().is_some_and(differs) {
            self.give_up_held();
        }
        self.path.change(route);
    }

    /// Sends to this address of the configured endpoint. Initiates a handshake if there is a reason to.
    pub(crate) fn found(&mut self, now: Instant, endpoint: SocketAddr, messages: &mut Messages) {
        self.go_to(endpoint);
        if self.endpoints.is_failing() {
            self.call_again(now, messages);
        } else if self.is_persistent() || self.is_waiting() {
            self.call(now, messages);
        }
    }

    /// A handshake had no answer: tries the next address, if there is one. Returns whether the operator is to be told.
    fn handshake_failed(&mut self, now: Instant) -> bool {
        let Some(current) = self.endpoint() else { return false };
        self.ways.handshake_failed();
        let peer = name_of(&self.public_key);
        let mut is_news = false;
        // Without a route nothing was sent: the relay does not reach this address.
        if !self.endpoints.is_failing() && self.path.route().is_some() {
            warn!(peer, endpoint = %current, "no answer to a handshake: UDP is blocked, a key is wrong, or nobody is there");
            is_news = !std::mem::replace(&mut self.told.unanswered, true);
        }
        if let Some(next) = self.endpoints.handshake_failed(now, current) {
            debug!(peer, endpoint = %next, "trying another address");
            self.go_to(next);
        }
        is_news
    }

    /// The name of its endpoint does not resolve. Returns whether the operator is to be told.
    pub(crate) fn is_unresolved(&mut self) -> bool {
        !std::mem::replace(&mut self.told.unresolved, true)
    }

    /// Begins a handshake, unless one is under way.
    pub(crate) fn call(&mut self, now: Instant, messages: &mut Messages) {
        self.initiate(now, false, messages);
    }

    /// Begins a handshake whatever is under way: the network or the clock is not what it was.
    pub(crate) fn call_again(&mut self, now: Instant, messages: &mut Messages) {
        self.initiate(now, true, messages);
    }

    fn initiate(&mut self, now: Instant, force: bool, messages: &mut Messages) {
        let mut buffer = [0; MAX_MESSAGE];
        if let Some(message) = self.tunnel.initiate(now, force, &mut messages.indices, &mut buffer) {
            self.initiated = Some(now);
            self.send_initiation(message, messages);
        }
    }

    /// Sends an empty packet, so that the peer learns where this side is now.
    pub(crate) fn keep_alive(&mut self, now: Instant, messages: &mut Messages) {
        let mut buffer = [0; MAX_MESSAGE];
        match self.tunnel.seal(now, &[], &mut buffer) {
            Some(len) => self.send(buffer.get(..len).unwrap_or_default(), messages),
            None => self.call(now, messages),
        }
    }

    /// To be called four times a second while there is traffic, and every five seconds at least. Returns whether the operator is to be
    /// told that the peer does not answer.
    pub(crate) fn tick(&mut self, now: Instant, messages: &mut Messages) -> bool {
        let has_failed = self.initiated.is_some_and(|since| self.heard.is_none_or(|heard| heard < since));
        let mut is_news = false;
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            match self.tunnel.tick(now, &mut messages.indices, &mut buffer) {
                Due::Nothing => break,
                Due::Send(message) => {
                    if message.first() == Some(&kind::INITIATION) {
                        is_news |= has_failed && self.handshake_failed(now);
                        self.initiated = Some(now);
                        self.send_initiation(message, messages);
                    } else {
                        self.send(message, messages);
                    }
                }
                Due::Expired => {
                    is_news |= has_failed && self.handshake_failed(now);
                    self.expired(now, messages);
                }
            }
        }
        self.established = self.tunnel.is_established(now);
        self.keep_alive_if_due(now, messages);
        is_news
    }

    /// Nobody has answered for a minute and a half. The next packet makes this side initiate a handshake again.
    fn expired(&mut self, now: Instant, messages: &mut Messages) {
        self.initiated = None;
        debug!(
            peer = name_of(&self.public_key),
            endpoint = self.endpoint().map(tracing::field::display),
            packets = self.queue.packets(),
            "no answer for 90 s; waiting packets are dropped"
        );
        self.queue.clear();
        if self.path.route().is_some() && self.is_persistent() {
            self.call(now, messages);
        }
    }

    fn send(&self, message: &[u8], messages: &mut Messages) {
        if let Some(route) = self.path.route() {
            messages.push(route, message);
        }
    }
}

/// The public key in base64, as operators know it.
pub(crate) fn name_of(key: &PublicKey) -> String {
    Key(key.to_bytes()).to_base64()
}
