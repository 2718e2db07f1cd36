//! A peer: its session, its queue and what of it waits for room.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arrayvec::ArrayVec;
use backwater_udp::{DropReason, Ecn, SendReport, Transmit, gso::Batch};
use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};

use tracing::{debug, warn};

use crate::{
    config::{self, Key},
    engine::{
        counters::{Numbers, PeerCounters},
        endpoints::Endpoints,
        lengths::{LONGEST_PACKET, MAX_DATAGRAM, OVERHEAD},
        packet::{coalesce::Coalescer, ecn, header::Packet, segment::Segments, virtio},
        path_mtu::PathMtu,
        queue::{fair::Fair, rate::Rate},
    },
    io::path::{MAX_URGENT, Path},
    notices::Notices,
};

/// A peer that has sent data hears something within this time (`KEEPALIVE_TIMEOUT`; WireGuard, section 6.5).
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Packets that one turn of the loop takes from a peer's queue.
const BUDGET: usize = 64;

mod receive;
mod settings;

/// The first byte of a WireGuard message.
pub(crate) mod kind {
    pub(crate) const INITIATION: u8 = 1;
    pub(crate) const RESPONSE: u8 = 2;
    pub(crate) const COOKIE: u8 = 3;
    pub(crate) const DATA: u8 = 4;
}

/// A peer.
pub(crate) struct Peer {
    /// Its number, which is its key in the send queues.
    number: usize,
    pub(crate) public_key: PublicKey,
    pub(crate) endpoints: Endpoints,
    pub(crate) counters: PeerCounters,
    numbers: Numbers,
    pub(crate) queue: Fair,
    pub(crate) rate: Rate,
    /// Between an initiation and its response, in the last handshake that this side began.
    pub(crate) rtt: Option<Duration>,
    pub(crate) last_handshake: Option<SystemTime>,
    tunn: Tunn,
    /// What the indices of its sessions begin with.
    session_number: u32,
    preshared_key: Option<Key>,
    endpoint: Option<SocketAddr>,
    /// The address of this host that the peer sends to, and so expects to hear from; `None`: whichever the system picks.
    local_ip: Option<IpAddr>,
    /// The address that the system picked when it was last looked at.
    source: Option<IpAddr>,
    /// Its datagrams that wait in a send queue: encrypted, but refused so far. Never more than what one packet of the device makes.
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
    pub(crate) path_mtu: PathMtu,
    pub(crate) told: Told,
    /// The endpoint is another one than when the event loop looked up the route to it.
    pub(crate) needs_route: bool,
}

/// What the operator has been told of a peer.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) unresolved: bool,
    unanswered: bool,
}

/// What all peers work with.
pub(crate) struct Tools {
    /// Encrypted datagrams that leave in one call, and their ECN field.
    pub(crate) batch: Batch<Option<Ecn>>,
    pub(crate) coalescer: Coalescer,
    /// Messages to send before any data.
    pub(crate) urgent: Vec<(SocketAddr, ArrayVec<u8, MAX_URGENT>)>,
    /// The MTU of the device in bytes, and whether it is from the configuration.
    pub(crate) mtu: usize,
    pub(crate) mtu_is_configured: bool,
    pub(crate) notices: Notices,
    segment: Box<[u8]>,
    message: Box<[u8]>,
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

/// What a datagram was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A message of the protocol, or data, that the peer has sent.
    Good,
    /// A handshake came while there are too many: a cookie was sent.
    Cookie,
    Handshake,
    Bad,
}

impl Tools {
    pub(crate) fn new(mtu: usize, mtu_is_configured: bool, coalescer: Coalescer, notices: Notices) -> Self {
        Self {
            batch: Batch::new(MAX_DATAGRAM),
            coalescer,
            urgent: Vec::new(),
            mtu,
            mtu_is_configured,
            notices,
            segment: vec![0; 65_536 + 16].into(),
            message: vec![0; 65_536 + OVERHEAD].into(),
        }
    }

    /// Sends a message before any data.
    pub(crate) fn answer(&mut self, to: SocketAddr, message: &[u8]) {
        push(&mut self.urgent, Some(to), message);
    }
}

impl Peer {
    pub(crate) fn new(
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
            rate: Rate::default(),
            rtt: None,
            last_handshake: None,
            tunn: settings::tunn(private_key, public_key, preshared_key.as_ref(), session_number, limiter),
            session_number,
            preshared_key,
            endpoint: None,
            local_ip: None,
            source: None,
            held: 0,
            established: false,
            initiated: None,
            unanswered: None,
            heard: None,
            persistent_keepalive: config.persistent_keepalive,
            keepalive_at: Instant::now() + settings::interval(config.persistent_keepalive),
            path_mtu: PathMtu::default(),
            told: Told::default(),
            needs_route: false,
        }
    }

    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
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
    pub(crate) fn is_waiting(&self) -> bool {
        self.held > 0 || !self.queue.is_empty()
    }

    /// Whether the queue may take another packet.
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        self.queue.has_room(now, self.rate.bound(now))
    }

    /// Sends to this address from now on, from this one of the host's. What is held goes there too, unless that takes another socket.
    pub(crate) fn moved(&mut self, endpoint: SocketAddr, local_ip: Option<IpAddr>, path: &mut Path) {
        self.local_ip = local_ip;
        if self.endpoint == Some(endpoint) {
            return;
        }
        if let Some(before) = self.endpoint.filter(|before| before.is_ipv4() != endpoint.is_ipv4()) {
            if let Some(queue) = path.data(before) {
                queue.cancel(self.number);
            }
            self.give_up_held();
        }
        self.path_mtu.reset(endpoint.is_ipv6());
        self.needs_route = true;
        self.rate = Rate::default();
        self.endpoint = Some(endpoint);
        self.source = path.source(endpoint);
    }

    /// Sends to this address of the configured endpoint. Initiates a handshake if there is a reason to.
    pub(crate) fn found(&mut self, now: Instant, endpoint: SocketAddr, path: &mut Path, tools: &mut Tools) {
        self.moved(endpoint, None, path);
        if self.endpoints.is_failing() {
            self.call_again(now, tools);
        } else if self.is_persistent() || self.is_waiting() {
            self.call(now, tools);
        }
    }

    /// A handshake had no answer: tries the next address, if there is one.
    fn handshake_failed(&mut self, now: Instant, path: &mut Path, notices: &mut Notices) {
        let Some(current) = self.endpoint else { return };
        let peer = name_of(&self.public_key);
        if !self.endpoints.is_failing() {
            warn!(peer, endpoint = %current, "no answer to a handshake: UDP is blocked, a key is wrong, or nobody is there");
            if !std::mem::replace(&mut self.told.unanswered, true) {
                notices.tell(&format!(
                    "peer {peer} at {current} does not answer: UDP is blocked, a key is wrong, or nobody is there"
                ));
            }
        }
        if let Some(next) = self.endpoints.handshake_failed(now, current) {
            debug!(peer, endpoint = %next, "trying another address");
            self.moved(next, None, path);
        }
    }

    /// Whether the system sends from another address than when this was last asked.
    pub(crate) fn source_changed(&mut self, path: &Path) -> bool {
        let source = self.endpoint.and_then(|endpoint| path.source(endpoint));
        let changed = std::mem::replace(&mut self.source, source) != source;
        if changed {
            self.local_ip = None;
        }
        changed
    }

    /// The addresses of this host have changed: does not send from one that is gone.
    pub(crate) fn check_local_ip(&mut self, path: &Path) {
        if self.local_ip.is_some_and(|ip| path.is_gone(ip)) {
            self.local_ip = None;
        }
    }

    /// Counts what is held as dropped: its socket is closed, or no longer the peer's.
    pub(crate) fn give_up_held(&mut self) {
        self.counters.datagrams_dropped += std::mem::take(&mut self.held) as u64;
    }

    /// Takes a packet as the device gave it: sends it if nothing waits, else lets it wait. What it makes may stay in
    /// the train for others to follow: [`flush`](Self::flush) when none does.
    pub(crate) fn offer(
        &mut self,
        now: Instant,
        raw: &[u8],
        path: &mut Path,
        tools: &mut Tools,
    ) -> Result<(), Refused> {
        let (header, packet) = parse(raw).ok_or(Refused::Malformed)?;
        if self.endpoint.is_none() {
            return Err(Refused::NoEndpoint);
        }
        let segments = Segments::new(&header, packet.bytes()).map_err(|_| Refused::Malformed)?;
        let longest = self.path_mtu.longest(now, packet.is_v6(), tools.mtu_is_configured).min(LONGEST_PACKET);
        if segments.segment_len() > longest {
            return Err(Refused::TooBig(longest));
        }
        if !self.established {
            self.call(now, tools);
        }
        let longest_train = self.rate.longest_train(now);
        if self.established && !self.is_waiting() && raw.len() <= longest_train {
            self.forward(now, segments, ecn::of(packet.bytes()), path, tools);
        } else if raw.len() <= longest_train {
            self.queue.enqueue(now, raw, self.rate.bound(now));
        } else {
            self.enqueue_apart(now, segments, tools);
        }
        Ok(())
    }

    /// Nothing overtakes a packet: one that would keep the path busy for long waits as the segments it stands for.
    fn enqueue_apart(&mut self, now: Instant, mut segments: Segments<'_>, tools: &mut Tools) {
        let mut bound = self.rate.bound(now);
        tools.message[..virtio::LEN].copy_from_slice(&virtio::Header::default().to_bytes());
        while let Some(len) = tools.message.get_mut(virtio::LEN..).and_then(|space| segments.next(space)) {
            let Some(segment) = tools.message.get(..virtio::LEN + len) else { return };
            self.queue.enqueue(now, segment, bound);
            // It was admitted as one packet.
            bound = usize::MAX;
        }
    }

    fn forward(
        &mut self,
        now: Instant,
        mut segments: Segments<'_>,
        ecn: Option<Ecn>,
        path: &mut Path,
        tools: &mut Tools,
    ) {
        let longest_train = self.rate.longest_train(now);
        let longest_padded = self.path_mtu.fits(now).min(tools.mtu);
        while let Some(len) = segments.next(&mut tools.segment) {
            // To a multiple of sixteen, but not beyond the MTU (WireGuard, section 5.4.6).
            let padded = len.next_multiple_of(16).min(longest_padded.max(len));
            if let Some(padding) = tools.segment.get_mut(len..padded) {
                padding.fill(0);
            }
            let batch = &mut tools.batch;
            let sealed = padded + OVERHEAD;
            if !batch.can_append(&ecn, sealed) || !batch.is_empty() && batch.shape().bytes() + sealed > longest_train {
                self.flush(path, batch);
            }
            let Some(plain) = tools.segment.get(..padded) else { return };
            let sealed = match self.tunn.encapsulate(plain, tools.batch.reserve()) {
                TunnResult::WriteToNetwork(sealed) if sealed.first() == Some(&kind::DATA) => sealed.len(),
                // The session is over; the packet was kept, and goes with the next one.
                TunnResult::WriteToNetwork(message) => {
                    self.initiated.get_or_insert(now);
                    push(&mut tools.urgent, self.endpoint, message);
                    continue;
                }
                TunnResult::Done
                | TunnResult::Err(_)
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..) => continue,
            };
            tools.batch.commit(ecn, sealed);
            self.unanswered = None;
            self.counters.bytes_sent += len as u64;
        }
    }

    /// Sends the batch. What there is no room for waits in the send queue.
    pub(crate) fn flush(&mut self, path: &mut Path, batch: &mut Batch<Option<Ecn>>) {
        let Some(&ecn) = batch.common() else { return };
        let (datagrams, segment_size) = (batch.shape().datagrams(), batch.shape().segment_size());
        let queue = match self.endpoint {
            Some(destination) => path.data(destination).map(|queue| (destination, queue)),
            None => None,
        };
        let Some((destination, queue)) = queue else {
            self.counters.datagrams_dropped += datagrams as u64;
            return batch.clear();
        };
        let slices = [IoSlice::new(batch.bytes())];
        let mut t = Transmit::new(destination, &slices).segment_size(segment_size).source(self.local_ip).ecn(ecn);
        // What a failed socket did not send is in the report.
        let _ = queue.send(self.number, &mut t);
        let report = *t.report();
        let held = datagrams - (report.sent + report.dropped.total()) as usize;
        self.held += held;
        self.counters.held += u64::from(held > 0);
        self.count(&report, report.sent as usize * segment_size);
        self.path_mtu.on_sent(batch.bytes(), datagrams as u64);
        batch.clear();
    }

    /// Takes what has become of datagrams that were held, and the bytes of those that were sent.
    pub(crate) fn held_are_done(&mut self, report: &SendReport, bytes: usize) {
        self.held = self.held.saturating_sub((report.sent + report.dropped.total()) as usize);
        self.count(report, bytes);
    }

    fn count(&mut self, report: &SendReport, bytes: usize) {
        self.counters.datagrams_sent += u64::from(report.sent);
        self.counters.datagrams_dropped += u64::from(report.dropped.total());
        // `EINVAL` and `EADDRNOTAVAIL` may mean that the address to send from is no longer this host's.
        if [DropReason::Invalid, DropReason::Unreachable].iter().any(|&reason| report.dropped.get(reason) > 0) {
            self.local_ip = None;
        }
        self.rate.on_sent(Instant::now(), bytes, self.is_waiting());
    }

    /// Sends what is held to where the peer is now.
    pub(crate) fn redirect_held(&self, path: &mut Path) {
        if self.held > 0
            && let Some(destination) = self.endpoint
            && let Some(queue) = path.data(destination)
        {
            queue.redirect(self.number, destination, self.local_ip);
        }
    }

    /// Sends what waits, as far as there is room. Returns whether there is more to do at once.
    pub(crate) fn drain(&mut self, now: Instant, path: &mut Path, tools: &mut Tools) -> bool {
        if self.held > 0 {
            // The path refuses, which counts as backlogged time.
            self.rate.on_sent(Instant::now(), 0, true);
            return false;
        }
        if !self.established {
            if !self.queue.is_empty() {
                self.call(now, tools);
            }
            return false;
        }
        for _ in 0..BUDGET {
            if self.held > 0 {
                break;
            }
            let Some(next) = self.queue.dequeue(now, self.rate.bound(now), tools.mtu) else { break };
            let Some((header, packet)) = parse(&next.packet) else { continue };
            let Ok(mut segments) = Segments::new(&header, packet.bytes()) else { continue };
            if next.drop_first_segment {
                segments.next(&mut tools.segment);
            }
            self.forward(now, segments, ecn::of(packet.bytes()), path, tools);
        }
        self.flush(path, &mut tools.batch);
        self.is_ready()
    }

    /// Begins a handshake, unless one is under way.
    pub(crate) fn call(&mut self, now: Instant, tools: &mut Tools) {
        let result = self.tunn.format_handshake_initiation(&mut tools.message, false);
        self.answer(now, result_message(result), &mut tools.urgent);
    }

    /// Begins a handshake whatever is under way: the network or the clock is not what it was.
    pub(crate) fn call_again(&mut self, now: Instant, tools: &mut Tools) {
        let result = self.tunn.format_handshake_initiation(&mut tools.message, true);
        self.answer(now, result_message(result), &mut tools.urgent);
    }

    /// Sends an empty packet, so that the peer learns where this side is now.
    pub(crate) fn keep_alive(&mut self, now: Instant, tools: &mut Tools) {
        let result = self.tunn.encapsulate(&[], &mut tools.message);
        self.answer(now, result_message(result), &mut tools.urgent);
    }

    /// To be called four times a second while there is traffic, and every five seconds at least.
    pub(crate) fn tick(&mut self, now: Instant, path: &mut Path, tools: &mut Tools) {
        let has_failed = self.initiated.is_some_and(|since| self.heard.is_none_or(|heard| heard < since));
        match self.tunn.update_timers(&mut tools.message) {
            TunnResult::WriteToNetwork(message) => {
                if has_failed && message.first() == Some(&kind::INITIATION) {
                    self.handshake_failed(now, path, &mut tools.notices);
                }
                self.answer(now, Some(&*message), &mut tools.urgent);
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                if has_failed {
                    self.handshake_failed(now, path, &mut tools.notices);
                }
                self.initiated = None;
                // It has called for a minute and a half in vain. The next packet makes it call again.
                let (peer, packets) = (name_of(&self.public_key), self.queue.packets());
                debug!(
                    peer,
                    endpoint = self.endpoint.map(tracing::field::display),
                    packets,
                    "session expired; waiting packets are dropped"
                );
                self.queue.clear();
                if self.endpoint.is_some() && self.is_persistent() {
                    self.call(now, tools);
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
            self.keep_alive(now, tools);
        }
        self.keep_alive_if_due(now, tools);
    }

    fn answer(
        &mut self,
        now: Instant,
        message: Option<&[u8]>,
        urgent: &mut Vec<(SocketAddr, ArrayVec<u8, MAX_URGENT>)>,
    ) {
        let Some(message) = message else { return };
        match message.first() {
            Some(&kind::INITIATION) => self.initiated = Some(now),
            _ => self.unanswered = None,
        }
        push(urgent, self.endpoint, message);
    }
}

/// A packet as it is read from the device, after the device's header.
pub(crate) fn parse(raw: &[u8]) -> Option<(virtio::Header, Packet<'_>)> {
    let (header, packet) = raw.split_first_chunk()?;
    Some((virtio::Header::parse(header), Packet::parse(packet)?))
}

/// The public key in base64, as operators know it.
pub(crate) fn name_of(key: &PublicKey) -> String {
    Key(key.to_bytes()).to_base64()
}

fn result_message<'a>(result: TunnResult<'a>) -> Option<&'a [u8]> {
    match result {
        TunnResult::WriteToNetwork(message) => Some(message),
        TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
            None
        }
    }
}

fn push(urgent: &mut Vec<(SocketAddr, ArrayVec<u8, MAX_URGENT>)>, to: Option<SocketAddr>, message: &[u8]) {
    if let (Some(to), Ok(message)) = (to, ArrayVec::try_from(message)) {
        urgent.push((to, message));
    }
}
