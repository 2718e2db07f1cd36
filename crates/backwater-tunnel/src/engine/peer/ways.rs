//! The ways to a peer: direct and by the relay. Which one is used, and when the other one is tried.
//!
//! Only messages of WireGuard's own are sent to find out, so the peer needs nothing but roaming. An initiation is the one message that is
//! answered at once: it shows whether a way works in both directions.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tracing::info;

use super::{Peer, name_of};
use crate::{
    config::Mode,
    engine::{messages::Messages, route::Route},
};

/// Data was sent for so long, and nothing has come by the way in use: an initiation shows whether the way works. A peer that only
/// receives answers at least every ten seconds (`KEEPALIVE_TIMEOUT`).
const SILENCE: Duration = Duration::from_secs(4);

/// How long the peer has to answer an initiation that shows whether a way works.
const PATIENCE: Duration = Duration::from_secs(1);

/// The time between two tries of the direct way while the relay is in use and there is traffic: it doubles from the first to the last.
const FIRST_INTERVAL: Duration = Duration::from_secs(2);
const LAST_INTERVAL: Duration = Duration::from_secs(32);

/// What is known of the ways to a peer.
#[derive(Debug)]
pub(crate) struct Ways {
    pub(super) mode: Mode,
    /// The peer's address, as the relay is to reach it.
    wanted: Option<SocketAddr>,
    /// The driver has not been told of `wanted` yet.
    is_new: bool,
    /// By the relay, while it has a channel to `wanted`.
    relayed: Option<Route>,
    /// Initiations without an answer, one after the other.
    failed: u32,
    /// The direct way is in use since there is no other one, and the peer has not been heard by it.
    is_stopgap: bool,
    /// Since when the way in use has taken data and brought nothing.
    silent_since: Option<Instant>,
    /// When an initiation was sent by the direct way alone, which has had no answer yet.
    probe: Option<Instant>,
    probe_at: Option<Instant>,
    interval: Duration,
    /// Bytes that had been sent and received at the last probe.
    bytes: u64,
    /// Between an initiation and its response, by the direct way and by the relay.
    rtts: [Option<Duration>; 2],
    /// Datagrams that have come, and that are missing, by the direct way and by the relay.
    traffic: [Traffic; 2],
    /// What had been counted when the way in use was taken.
    mark: Traffic,
    reason: &'static str,
}

/// Datagrams of the peer's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Those that have come.
    pub(crate) received: u64,
    /// Those that the peer has numbered, and that have not.
    pub(crate) missing: u64,
}

/// How a datagram came from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Direct,
    Relayed,
}

/// A message that shows more than that the peer has our session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    None,
    Initiation,
    /// Both directions work.
    Response,
}

impl Ways {
    pub(super) fn new(mode: Mode) -> Self {
        Self {
            mode,
            wanted: None,
            is_new: false,
            relayed: None,
            failed: 0,
            is_stopgap: false,
            silent_since: None,
            probe: None,
            probe_at: None,
            interval: FIRST_INTERVAL,
            bytes: 0,
            rtts: [None; 2],
            traffic: [Traffic::default(); 2],
            mark: Traffic::default(),
            reason: "it was the first to answer",
        }
    }

    /// The address that the relay is to reach, if any.
    pub(crate) fn wanted(&self) -> Option<SocketAddr> {
        self.wanted
    }

    /// Whether `wanted` is another one than the driver was told.
    pub(crate) fn take_new(&mut self) -> bool {
        std::mem::take(&mut self.is_new)
    }

    /// Whether the direct way is never used.
    pub(crate) fn is_relayed_only(&self) -> bool {
        self.mode == Mode::Always
    }

    /// The way by the relay, while there is one.
    pub(crate) fn relayed(&self) -> Option<Route> {
        self.relayed
    }

    /// Why the way in use is used.
    pub(crate) fn reason(&self) -> &'static str {
        match self.mode {
            Mode::Auto => self.reason,
            Mode::Always | Mode::Never => "no other one is allowed",
        }
    }

    /// The round-trip time of the last handshake by the direct way, or by the relay.
    pub(crate) fn rtt(&self, is_relayed: bool) -> Option<Duration> {
        let [direct, relayed] = self.rtts;
        if is_relayed { relayed } else { direct }
    }

    /// When a way is to be looked at. (While the relay is in use, the direct way is tried only with traffic, which is looked at anyway.)
    pub(super) fn due(&self) -> Option<Instant> {
        let answer = self.probe.map(|since| since + PATIENCE);
        answer.or(self.silent_since.map(|since| since + SILENCE))
    }

    /// An initiation has had no answer.
    pub(super) fn handshake_failed(&mut self) {
        self.failed = self.failed.wrapping_add(1);
    }

    pub(super) fn measured(&mut self, origin: Origin, rtt: Duration) {
        let [direct, relayed] = &mut self.rtts;
        *(if origin == Origin::Relayed { relayed } else { direct }) = Some(rtt);
    }

    /// Data was given to the way in use.
    #[inline]
    pub(super) fn on_sent(&mut self, now: Instant) {
        if self.relayed.is_some() {
            self.silent_since.get_or_insert(now);
        }
    }

    /// The way in use is left. `counted`: what has been counted by all ways.
    pub(super) fn leave(&mut self, is_relayed: bool, counted: Traffic) {
        let [direct, relayed] = &mut self.traffic;
        let traffic = if is_relayed { relayed } else { direct };
        *traffic = traffic.and(counted.since(self.mark));
        self.mark = counted;
    }

    fn probe_in(&mut self, now: Instant, interval: Duration) {
        (self.interval, self.probe_at, self.probe) = (interval, Some(now + interval), None);
    }

    fn settle(&mut self) {
        (self.silent_since, self.probe) = (None, None);
    }
}

impl Traffic {
    fn since(self, before: Self) -> Self {
        // What was missing may have come late.
        Self {
            received: self.received.saturating_sub(before.received),
            missing: self.missing.saturating_sub(before.missing),
        }
    }

    fn and(self, other: Self) -> Self {
        Self { received: self.received + other.received, missing: self.missing + other.missing }
    }
}

impl Peer {
    /// What has come from the peer by the direct way, or by the relay.
    pub(crate) fn traffic(&self, is_relayed: bool) -> Traffic {
        let [direct, relayed] = self.ways.traffic;
        let before = if is_relayed { relayed } else { direct };
        let is_in_use = self.path.route().is_some_and(|route| route.is_relayed() == is_relayed);
        if is_in_use { before.and(self.counted().since(self.ways.mark)) } else { before }
    }

    pub(super) fn counted(&self) -> Traffic {
        Traffic { received: self.counters.datagrams_received, missing: self.counters.datagrams_missing }
    }

    /// The way by which the sender of a datagram is answered; `None`: the relay has no channel there.
    pub(super) fn way_back(&self, origin: Origin, source: SocketAddr) -> Option<Route> {
        match origin {
            Origin::Direct => Some(Route::Direct(source)).filter(|_| self.ways.mode != Mode::Always),
            Origin::Relayed => self.ways.relayed.filter(|route| route.endpoint() == source),
        }
    }

    /// Goes to this address: directly, and by the relay, as the mode says.
    pub(super) fn go_to(&mut self, endpoint: SocketAddr) {
        if self.ways.mode != Mode::Never {
            self.want(endpoint);
        }
        match self.ways.mode {
            // While the relay is in use, the direct way is only tried.
            Mode::Auto if self.path.route().is_some_and(Route::is_relayed) => {}
            Mode::Auto | Mode::Never => self.moved(Route::Direct(endpoint), None),
            Mode::Always => {}
        }
    }

    /// Has the relay reach this address.
    fn want(&mut self, endpoint: SocketAddr) {
        if self.ways.wanted == Some(endpoint) {
            return;
        }
        (self.ways.wanted, self.ways.is_new) = (Some(endpoint), true);
        // The way that is there goes on until the relay has the other one: the peer may hear both.
    }

    /// Takes the way by the relay to the address that is [wanted](Ways::wanted); `None`: there is none any more.
    pub(crate) fn set_relayed(&mut self, now: Instant, route: Option<Route>, messages: &mut Messages) {
        if self.ways.relayed == route {
            return;
        }
        self.ways.relayed = route;
        if route.is_none() {
            self.ways.settle();
        }
        let is_in_use = self.path.route().is_some_and(Route::is_relayed);
        match (self.ways.mode, route) {
            (Mode::Never, _) => return,
            (Mode::Always, None) => {
                self.give_up_held();
                self.path.clear();
                return;
            }
            (Mode::Always, Some(route)) => self.moved(route, None),
            (Mode::Auto, Some(route)) if is_in_use => self.moved(route, None),
            (Mode::Auto, None) if is_in_use => {
                self.ways.is_stopgap = true;
                self.move_to_direct();
            }
            (Mode::Auto, Some(_)) if self.is_calling() || self.ways.is_stopgap => {
                // Nothing shows that the direct way works: an initiation goes both ways.
                self.ways.failed = self.ways.failed.next_multiple_of(2).max(2);
                self.call_again(now, messages);
                return;
            }
            (Mode::Auto, _) => return,
        }
        if self.established && route.is_some() {
            self.keep_alive(now, messages);
        } else if self.established || self.is_calling() || self.is_persistent() || self.is_waiting() {
            self.call_again(now, messages);
        }
    }

    fn move_to_direct(&mut self) {
        self.ways.reason = "there is no allocation at the relay";
        match self.endpoints.first().or(self.ways.wanted) {
            Some(direct) => self.moved(Route::Direct(direct), None),
            None => {
                self.give_up_held();
                self.path.clear();
            }
        }
    }

    /// Sends an initiation: by the way in use while it works, by both ways while it is not known which one does.
    pub(super) fn send_initiation(&self, message: &[u8], messages: &mut Messages) {
        let in_use = self.path.route();
        let Some(relayed) = self.ways.relayed.filter(|_| self.ways.mode == Mode::Auto) else {
            in_use.into_iter().for_each(|route| messages.push(route, message));
            return;
        };
        let direct = in_use.filter(|route| !route.is_relayed()).or(self.endpoints.first().map(Route::Direct));
        if self.ways.probe.is_some() {
            direct.into_iter().for_each(|route| messages.push(route, message));
        } else if self.established && self.ways.failed == 0 {
            in_use.into_iter().for_each(|route| messages.push(route, message));
        } else {
            // The peer answers the first copy of an initiation, whichever way that takes, and ignores the other one. Where the direct
            // way works in one direction only, it would always be the first: every second initiation goes by the relay alone.
            if self.ways.failed.is_multiple_of(2) {
                direct.into_iter().for_each(|route| messages.push(route, message));
            }
            messages.push(relayed, message);
        }
    }

    /// An authenticated message came this way, from this address to this one of the host's: the peer is there.
    pub(super) fn heard(
        &mut self,
        now: Instant,
        origin: Origin,
        source: SocketAddr,
        local_ip: Option<IpAddr>,
        proof: Proof,
    ) {
        self.heard = Some(now);
        self.ways.failed = 0;
        let in_use = self.path.route();
        match origin {
            Origin::Direct => {
                if self.ways.mode == Mode::Always {
                    return;
                }
                self.endpoints.on_answer(source);
                self.ways.is_stopgap = false;
                let is_relayed = in_use.is_some_and(Route::is_relayed);
                if is_relayed && proof != Proof::Response {
                    // Whether the direct way works in the other direction too, an initiation shows.
                    if self.ways.probe.is_none() && self.ways.interval != FIRST_INTERVAL {
                        self.ways.probe_in(now, FIRST_INTERVAL);
                    }
                    return;
                }
                self.ways.settle();
                if is_relayed {
                    self.ways.reason = "the direct way works";
                    info!(peer = name_of(&self.public_key), endpoint = %source, "the direct way works: it is used instead of the relay");
                }
                if self.ways.mode == Mode::Auto && self.endpoints.is_learnt() {
                    self.want(source);
                }
                self.moved(Route::Direct(source), local_ip);
            }
            Origin::Relayed => {
                self.endpoints.on_relayed_answer();
                self.want(source);
                let Some(route) = self.way_back(origin, source) else { return };
                let is_direct = in_use.is_some_and(|route| !route.is_relayed());
                let stays = match proof {
                    Proof::None => true,
                    Proof::Initiation => self.established,
                    Proof::Response => false,
                };
                if is_direct && stays {
                    return;
                }
                self.ways.silent_since = None;
                if is_direct {
                    self.use_relay(now, route);
                } else {
                    self.moved(route, None);
                }
            }
        }
    }

    fn use_relay(&mut self, now: Instant, route: Route) {
        self.ways.is_stopgap = false;
        self.ways.reason = "the direct way does not answer";
        info!(peer = name_of(&self.public_key), relay = %route.destination(), "the relay is used: the direct way does not answer");
        self.ways.bytes = 0;
        self.ways.settle();
        self.ways.probe_in(now, FIRST_INTERVAL);
        self.moved(route, None);
    }

    /// Looks whether the way in use works, and tries the direct way while the relay is in use. Returns whether the relay brings nothing.
    pub(in crate::engine) fn look_at_ways(&mut self, now: Instant, messages: &mut Messages) -> bool {
        let (Some(in_use), Some(relayed)) = (self.path.route(), self.ways.relayed) else { return false };
        let for_long = |since: Option<Instant>, time| since.is_some_and(|at| now.saturating_duration_since(at) >= time);
        let is_silent = for_long(self.ways.silent_since, SILENCE);
        if for_long(self.ways.probe, PATIENCE) {
            if in_use.is_relayed() {
                let interval = (self.ways.interval * 2).min(LAST_INTERVAL);
                self.ways.probe_in(now, interval);
            } else {
                self.use_relay(now, relayed);
            }
            // The peer may have heard the probe, and then sends to where its answer is lost: it learns the way that works.
            self.call_again(now, messages);
            return false;
        }
        if self.ways.probe.is_some() {
            return false;
        }
        if is_silent {
            self.ways.silent_since = None;
            if !self.established {
                return false;
            }
            if !in_use.is_relayed() {
                self.ways.probe = Some(now);
            }
            self.call_again(now, messages);
            return in_use.is_relayed();
        }
        let bytes = self.counters.bytes_sent.wrapping_add(self.counters.bytes_received);
        if self.ways.mode == Mode::Auto
            && in_use.is_relayed()
            && self.established
            && self.ways.probe_at.is_some_and(|at| now >= at)
            && bytes != self.ways.bytes
            && self.endpoints.first().is_some()
        {
            (self.ways.bytes, self.ways.probe) = (bytes, Some(now));
            self.call_again(now, messages);
        }
        false
    }
}
