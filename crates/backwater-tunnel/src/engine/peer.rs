//! A peer: its session, its queue and the way to it.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};
use tracing::{debug, warn};

use super::{
    counters::{Numbers, PeerCounters},
    endpoints::Endpoints,
    messages::{MAX_MESSAGE, Messages},
    queue::fair::Fair,
    route::{Path, Route},
};
use crate::config::{self, Key};

/// A peer that has sent data hears something within this time (`KEEPALIVE_TIMEOUT`; WireGuard, section 6.5).
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

mod receive;
mod send;
mod settings;

pub(super) use send::{Sealed, Sealer};

/// The first byte of a WireGuard message.
pub(crate) mod kind {
    pub(crate) const INITIATION: u8 = 1;
    pub(crate) const RESPONSE: u8 = 2;
    pub(crate) const COOKIE: u8 = 3;
    pub(crate) const DATA: u8 = 4;
}

/// A peer.
pub(crate) struct Peer {
    /// Its number, by which the engine and its driver know it.
    number: usize,
    pub(crate) public_key: PublicKey,
    pub(crate) endpoints: Endpoints,
    pub(crate) counters: PeerCounters,
    numbers: Numbers,
    pub(crate) queue: Fair,
    pub(crate) path: Path,
    /// Between an initiation and its response, in the last handshake that this side began.
    pub(crate) rtt: Option<Duration>,
    /// By the driver's clock.
    pub(crate) last_handshake: Option<SystemTime>,
    tunn: Tunn,
    /// What the indices of its sessions begin with.
    session_number: u32,
    preshared_key: Option<Key>,
    /// Its datagrams that the driver holds: encrypted, but refused so far. Never more than what one packet of the device makes.
    held: usize,
    /// Whether there is a session to encrypt with.
    established: bool,
    initiated: Option<Instant>,
    /// When data came first since something was sent. The session has a timer for it too, but takes what was sent and what came
    /// between two looks for simultaneous, and then leaves it to the peer to find out that nobody answers.
    unanswered: Option<Instant>,
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
    /// A handshake came while there are too many: a cookie is sent.
    Cookie,
    Handshake,
    Bad,
}

impl Peer {
    pub(crate) fn new(
        now: Instant,
        number: usize,
        config: &config::Peer,
        private_key: &StaticSecret,
        session_number: u32,
        limiter: &Arc<RateLimiter>,
    ) -> Self {
        let public_key = PublicKey::from(config.public_key.0);
        let preshared_key = config.preshared_key.clone();
        Self {
            number,
            public_key,
            endpoints: Endpoints::new(config.endpoint.clone()),
            counters: PeerCounters::default(),
            numbers: Numbers::default(),
            queue: Fair::new(fastrand::u64(..)),
            path: Path::default(),
            rtt: None,
            last_handshake: None,
            tunn: settings::tunn(private_key, public_key, preshared_key.as_ref(), session_number, limiter),
            session_number,
            preshared_key,
            held: 0,
            established: false,
            initiated: None,
            unanswered: None,
            heard: None,
            persistent_keepalive: config.persistent_keepalive,
            keepalive_at: now + settings::interval(config.persistent_keepalive),
            told: Told::default(),
        }
    }

    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
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
        self.initiated.is_some()
    }

    /// Whether what waits could go now.
    pub(crate) fn is_ready(&self) -> bool {
        self.established && self.held == 0 && !self.queue.is_empty()
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

    /// Sends by this route from now on, from this address of the host's. What is held goes there too, unless that takes another socket.
    pub(crate) fn moved(&mut self, route: Route, local_ip: Option<IpAddr>) {
        self.path.local_ip = local_ip;
        if self.path.route() == Some(route) {
            return;
        }
        if self.path.route().is_some_and(|before| before.is_v6() != route.is_v6()) {
            self.give_up_held();
        }
        self.path.change(route);
    }

    /// Sends to this address of the configured endpoint. Initiates a handshake if there is a reason to.
    pub(crate) fn found(&mut self, now: Instant, endpoint: SocketAddr, messages: &mut Messages) {
        self.moved(Route::Direct(endpoint), None);
        if self.endpoints.is_failing() {
            self.call_again(now, messages);
        } else if self.is_persistent() || self.is_waiting() {
            self.call(now, messages);
        }
    }

    /// A handshake had no answer: tries the next address, if there is one. Returns whether the operator is to be told.
    fn handshake_failed(&mut self, now: Instant) -> bool {
        let Some(current) = self.endpoint() else { return false };
        let peer = name_of(&self.public_key);
        let mut is_news = false;
        if !self.endpoints.is_failing() {
            warn!(peer, endpoint = %current, "no answer to a handshake: UDP is blocked, a key is wrong, or nobody is there");
            is_news = !std::mem::replace(&mut self.told.unanswered, true);
        }
        if let Some(next) = self.endpoints.handshake_failed(now, current) {
            debug!(peer, endpoint = %next, "trying another address");
            self.moved(Route::Direct(next), None);
        }
        is_news
    }

    /// The name of its endpoint does not resolve. Returns whether the operator is to be told.
    pub(crate) fn is_unresolved(&mut self) -> bool {
        !std::mem::replace(&mut self.told.unresolved, true)
    }

    /// Begins a handshake, unless one is under way.
    pub(crate) fn call(&mut self, now: Instant, messages: &mut Messages) {
        let mut buffer = [0; MAX_MESSAGE];
        let result = self.tunn.format_handshake_initiation(&mut buffer, false);
        self.answer(now, result, messages);
    }

    /// Begins a handshake whatever is under way: the network or the clock is not what it was.
    pub(crate) fn call_again(&mut self, now: Instant, messages: &mut Messages) {
        let mut buffer = [0; MAX_MESSAGE];
        let result = self.tunn.format_handshake_initiation(&mut buffer, true);
        self.answer(now, result, messages);
    }

    /// Sends an empty packet, so that the peer learns where this side is now.
    pub(crate) fn keep_alive(&mut self, now: Instant, messages: &mut Messages) {
        let mut buffer = [0; MAX_MESSAGE];
        let result = self.tunn.encapsulate(&[], &mut buffer);
        self.answer(now, result, messages);
    }

    /// To be called four times a second while there is traffic, and every five seconds at least. Returns whether the operator is to be
    /// told that the peer does not answer.
    pub(crate) fn tick(&mut self, now: Instant, messages: &mut Messages) -> bool {
        let has_failed = self.initiated.is_some_and(|since| self.heard.is_none_or(|heard| heard < since));
        let mut is_news = false;
        let mut buffer = [0; MAX_MESSAGE];
        match self.tunn.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(message) => {
                if has_failed && message.first() == Some(&kind::INITIATION) {
                    is_news = self.handshake_failed(now);
                }
                let result = TunnResult::WriteToNetwork(message);
                self.answer(now, result, messages);
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                if has_failed {
                    is_news = self.handshake_failed(now);
                }
                self.initiated = None;
                // It has called for a minute and a half in vain. The next packet makes it call again.
                debug!(
                    peer = name_of(&self.public_key),
                    endpoint = self.endpoint().map(tracing::field::display),
                    packets = self.queue.packets(),
                    "session expired; waiting packets are dropped"
                );
                self.queue.clear();
                if self.path.route().is_some() && self.is_persistent() {
                    self.call(now, messages);
                }
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {}
        }
        self.established = self.tunn.time_since_last_handshake().is_some();
        if self.established
            && self.unanswered.is_some_and(|since| now.saturating_duration_since(since) >= ANSWER_WITHIN)
        {
            self.keep_alive(now, messages);
        }
        self.keep_alive_if_due(now, messages);
        is_news
    }

    /// Takes what the session answers: a message to send, or nothing.
    fn answer(&mut self, now: Instant, result: TunnResult<'_>, messages: &mut Messages) {
        let TunnResult::WriteToNetwork(message) = result else { return };
        match message.first() {
            Some(&kind::INITIATION) => self.initiated = Some(now),
            _ => self.unanswered = None,
        }
        if let Some(endpoint) = self.endpoint() {
            messages.push(endpoint, message);
        }
    }
}

/// The public key in base64, as operators know it.
pub(crate) fn name_of(key: &PublicKey) -> String {
    Key(key.to_bytes()).to_base64()
}
