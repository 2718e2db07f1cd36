//! Peers, sessions, routes, allowed IPs, queues and packets: a WireGuard tunnel without a socket, a device or a clock.
//!
//! # The drive contract
//!
//! The driver tells the engine what has happened, and drains what the engine wants done, before it tells the next thing. `now` is the
//! time of the monotonic clock and never goes back.
//!
//! 1. **Mutate.** One of
//!    - [`handle_packet`](Engine::handle_packet): the device has given a packet, which was read into
//!      [`packet_buffer`](Engine::packet_buffer);
//!    - [`handle_datagram`](Engine::handle_datagram): a socket has received a datagram ([`handle_relayed`](Engine::handle_relayed): by a relay);
//!    - [`drain_queues`](Engine::drain_queues): sockets may have room again;
//!    - [`handle_held`](Engine::handle_held): the driver has sent, or dropped, datagrams that it held;
//!    - [`handle_timeout`](Engine::handle_timeout): it is [`poll_timeout`](Engine::poll_timeout) or later;
//!    - [`start`](Engine::start), [`handle_new_network`](Engine::handle_new_network), [`handle_resolved`](Engine::handle_resolved),
//!      [`handle_icmp_mtu`](Engine::handle_icmp_mtu) and [`set_mtu`](Engine::set_mtu), which are rare.
//! 2. **Drain.**
//!    - [`poll_transmit`](Engine::poll_transmit) until `None`: encrypted data, a GSO batch at a time. The driver offers the batch to the
//!      socket and says what became of it ([`handle_sent`](Engine::handle_sent)): each datagram was sent, was dropped, or is *held* by the
//!      driver, which says later what became of it ([`handle_held`](Engine::handle_held)). A batch to which more packets may be added stays
//!      with the engine until [`flush`](Engine::flush).
//!    - [`poll_message`](Engine::poll_message) until `None`: messages that go before data.
//!    - [`poll_device`](Engine::poll_device): packets for the device. Packets of a flow are joined until it is called, so the driver calls
//!      it after the last datagram that it has, and when [`has_space`](Engine::has_space) says that there is no space for the next.
//!    - [`poll_event`](Engine::poll_event) until `None`: what the driver should look up, resolve, or tell.
//!
//! `examples/engine.rs` drives two engines against each other in memory; the event loop (`io/event_loop.rs`) drives one between the device
//! and the sockets.
//!
//! The protocol's own timers (`engine/wireguard`) go by `now`, too: a driver with a clock of its own passes hours in seconds.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSlice},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use backwater_udp::{Ecn, RecvDatagram};
use x25519_dalek::{PublicKey, StaticSecret};

mod allowed;
#[cfg(target_os = "linux")]
mod configure;
pub mod counters;
pub(crate) mod endpoints;
mod events;
mod incoming;
pub(crate) mod lengths;
mod messages;
mod outgoing;
pub mod packet;
mod path_mtu;
pub(crate) mod peer;
pub mod queue;
mod route;
pub(crate) mod session_indices;
mod slots;
pub(crate) mod wireguard;

pub use events::Event;
pub use incoming::Received;
pub use messages::Message;
pub use packet::coalesce::Offload;
pub use route::Route;

use self::{
    allowed::{Allowed, Last},
    counters::{Counters, PeerCounters},
    messages::Messages,
    outgoing::Outgoing,
    packet::{coalesce::Coalescer, icmp, virtio},
    peer::{Origin, Peer, Refused},
    queue::fair,
    slots::Slots,
    wireguard::{Clock, guard::Guard},
};
use crate::config::{Config, Mode};

/// Interval of the timers with traffic, during a handshake, and idle. The runtime wakes up to three times for a timer of seconds.
const TICK: Duration = Duration::from_millis(250);
const CALLING_TICK: Duration = Duration::from_secs(1);
const IDLE_TICK: Duration = Duration::from_secs(5);

/// A WireGuard tunnel without I/O. The [module](self) says how it is driven.
pub struct Engine {
    private_key: StaticSecret,
    /// Whether the private key is the operator's; else it is a random one.
    has_private_key: bool,
    public_key: PublicKey,
    guard: Guard,
    clock: Clock,
    /// When peers are reached by a relay.
    mode: Mode,
    peers: Slots<Peer>,
    by_key: HashMap<[u8; 32], usize>,
    allowed: Allowed,
    /// Of packets from the device, and to it.
    last_destination: Last,
    last_source: Last,
    /// Where the driver puts the device's packets.
    buffer: Box<[u8]>,
    outgoing: Outgoing,
    coalescer: Coalescer,
    messages: Messages,
    events: VecDeque<Event>,
    /// The MTU of the device in bytes, and whether it is from the configuration.
    mtu: usize,
    mtu_is_configured: bool,
    counters: Counters,
    icmp_limit: icmp::Limit,
    ticked: Instant,
    /// Since the last tick.
    traffic: bool,
    /// At the last tick: whether a handshake was under way, and when the protocol has something to do.
    calling: bool,
    due: Option<Instant>,
}

/// A GSO batch of encrypted data to send in one call.
#[derive(Debug)]
pub struct Transmit<'a> {
    /// The number of its peer.
    pub peer: usize,
    /// Where it goes.
    pub route: Route,
    /// The address of this host to send from; `None`: whichever the system picks.
    pub local_ip: Option<IpAddr>,
    /// The ECN field of each datagram.
    pub ecn: Option<Ecn>,
    /// The length of each datagram but the last, which may be shorter, in bytes.
    pub segment_size: usize,
    /// The datagrams, one behind the other.
    pub bytes: &'a [u8],
}

/// What became of datagrams. The driver holds those of a [`Transmit`] that are neither sent nor dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Datagrams that the system took.
    pub sent: usize,
    /// Datagrams that the driver dropped.
    pub dropped: usize,
    /// UDP payload of those that were sent, in bytes.
    pub bytes: usize,
    /// The system said that the address to send from is no longer this host's.
    pub source_is_gone: bool,
}

/// What the engine knows of a peer's way and counts.
#[derive(Debug, Clone, Copy)]
pub struct PeerState {
    /// The route in use.
    pub route: Option<Route>,
    /// Whether there is a session to encrypt with.
    pub is_established: bool,
    /// Datagrams that the driver holds.
    pub held: usize,
    /// Packets in the queue.
    pub queued: usize,
    /// Of its session.
    pub counters: PeerCounters,
    /// Of its queue.
    pub queue: fair::Counters,
}

impl Engine {
    /// A tunnel with the peers of a configuration, for a device of this MTU in bytes. Peers have the numbers of their places in it.
    /// `wall`: what the wall clock shows at `now`, for the timestamps of handshakes.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new(now: Instant, wall: SystemTime, config: &Config, mtu: u16, offload: Offload) -> io::Result<Self> {
        let private_key = wireguard::private_key(&config.interface.private_key)?;
        let public_key = PublicKey::from(&private_key);
        let mode = config.relay.as_ref().map_or(Mode::Never, |relay| relay.mode);
        let (guard, clock) = (Guard::new(now, &public_key)?, Clock::new(now, wall));
        let mut allowed = Allowed::new();
        let mut peers = Slots::new();
        for (number, peer) in config.peers.iter().enumerate() {
            peer.allowed_ips.iter().for_each(|net| allowed.insert(net, number));
            peers.insert(Peer::new(now, number, peer, &private_key, clock, mode));
        }
        Ok(Self {
            private_key,
            has_private_key: config.interface.private_key.0 != [0; 32],
            public_key,
            guard,
            clock,
            mode,
            by_key: peers.iter().map(|peer| (peer.public_key.to_bytes(), peer.number())).collect(),
            peers,
            allowed,
            last_destination: Last::default(),
            last_source: Last::default(),
            buffer: vec![0; virtio::LEN + 65_536].into(),
            outgoing: Outgoing::new(),
            coalescer: Coalescer::new(offload),
            messages: Messages::default(),
            events: VecDeque::new(),
            mtu: mtu.into(),
            mtu_is_configured: config.interface.mtu.is_some(),
            counters: Counters::default(),
            icmp_limit: icmp::Limit::default(),
            ticked: now,
            traffic: true,
            calling: false,
            due: None,
        })
    }

    /// Begins: goes to each peer whose endpoint is known, and has the names resolved.
    pub fn start(&mut self, now: Instant) {
        for peer in self.peers.iter_mut() {
            peer.endpoints.resolve_soon(now);
            if peer.endpoint().is_none()
                && let Some(first) = peer.endpoints.first()
            {
                peer.found(now, first, &mut self.messages);
            }
        }
    }

    /// Where a packet of the device is to be read to: a `virtio_net_hdr` of ten bytes (zeros without offloads) and an IP packet.
    #[inline]
    pub fn packet_buffer(&mut self) -> &mut [u8] {
        debug_assert!(self.outgoing.is_finished(), "poll_transmit was not drained");
        &mut self.buffer
    }

    /// Takes the packet of the device whose `len` bytes, the `virtio_net_hdr` included, are in the [`packet_buffer`](Self::packet_buffer).
    /// Returns whether there is room for another: without it nothing is to be read, and what comes waits in the device.
    #[inline]
    pub fn handle_packet(&mut self, now: Instant, len: usize) -> bool {
        self.traffic = true;
        self.counters.device_read += 1;
        self.take_packet(now, len)
    }

    /// Whether any peer could take a packet. Without peers every packet is for nobody, and its sender is told.
    pub fn has_room(&self, now: Instant) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|peer| peer.has_room(now))
    }

    /// Takes a datagram, for which there is [space](Self::has_space).
    #[inline]
    pub fn handle_datagram(&mut self, now: Instant, datagram: RecvDatagram<'_>) -> Received {
        self.handle(now, Origin::Direct, datagram)
    }

    /// Takes a datagram that a relay has received from a peer, for which there is [space](Self::has_space). Its source is the peer's
    /// address, as the relay says it.
    #[inline]
    pub fn handle_relayed(&mut self, now: Instant, datagram: RecvDatagram<'_>) -> Received {
        self.handle(now, Origin::Relayed, datagram)
    }

    #[inline]
    fn handle(&mut self, now: Instant, origin: Origin, datagram: RecvDatagram<'_>) -> Received {
        let received = self.take_datagram(now, origin, datagram);
        self.traffic |= received != Received::Refused;
        received
    }

    /// Returns the next message to send. Messages go before data.
    #[inline]
    pub fn poll_message(&mut self) -> Option<Message> {
        self.messages.pop()
    }

    /// Writes what there is for the device, each packet by one call with all of its slices; the first one is its `virtio_net_hdr` if
    /// the device has offloads. Returns the first error; the packets that it is about are counted as refused.
    pub fn poll_device(&mut self, write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> Option<io::Error> {
        let flushed = self.coalescer.flush(write);
        self.counters.device_written += flushed.packets as u64;
        self.counters.device_refused += flushed.lost as u64;
        flushed.error
    }

    /// Whether there is space for a datagram of so many bytes. If not, [`poll_device`](Self::poll_device) makes some.
    #[inline]
    pub fn has_space(&mut self, len: usize) -> bool {
        self.coalescer.space(len.max(messages::MAX_MESSAGE)).is_some()
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is to be called.
    pub fn poll_timeout(&self) -> Instant {
        let interval = match (self.traffic, self.calling) {
            (true, _) => TICK,
            (false, true) => CALLING_TICK,
            (false, false) => IDLE_TICK,
        };
        let due = self.due.map(|due| due.max(self.ticked + TICK));
        due.into_iter().chain([self.ticked + interval]).min().unwrap_or(self.ticked)
    }

    /// Looks at the timers. May be called at any time: more often than four times a second it does nothing. To be called also before the
    /// first packet after a pause: the session counts its time from the last look, and would call the peer as one that has not answered
    /// for as long as the pause was. Returns whether it looked.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.ticked) < TICK {
            return false;
        }
        self.ticked = now;
        for peer in self.peers.iter_mut() {
            let before = peer.endpoint();
            if peer.tick(now, &mut self.messages)
                && let Some(endpoint) = before
            {
                self.events.push_back(Event::NoAnswer { peer: peer.number(), endpoint });
            }
            if peer.look_at_ways(now, &mut self.messages) {
                self.events.push_back(Event::RelayIsSilent);
            }
        }
        self.traffic = self.peers.iter().any(Peer::is_waiting);
        self.calling = self.peers.iter().any(Peer::is_calling);
        self.due = self.peers.iter().filter_map(Peer::due).min();
        true
    }

    /// Lets the peers know where this side is now: its address or its sockets have changed. `suspended`: for how long the system was
    /// suspended, of which `now` says nothing. Sessions are that much older then, and new ones are made.
    pub fn handle_new_network(&mut self, now: Instant, suspended: Option<Duration>) {
        for peer in self.peers.iter_mut() {
            suspended.iter().for_each(|by| peer.age(*by));
            if suspended.is_some() && peer.is_established() {
                peer.call_again(now, &mut self.messages);
            } else if peer.is_established() {
                peer.keep_alive(now, &mut self.messages);
            } else if peer.is_persistent() {
                peer.call(now, &mut self.messages);
            }
        }
        self.start(now);
    }

    /// The driver's sockets are closed, and what it held is dropped.
    pub fn handle_closed_sockets(&mut self) {
        self.peers.iter_mut().for_each(Peer::give_up_held);
    }

    /// Whether something waits: for room, or for a session.
    pub fn is_waiting(&self) -> bool {
        self.peers.iter().any(Peer::is_waiting)
    }

    /// Whether something that waits could go now, by [`drain_queues`](Self::drain_queues).
    pub fn is_ready(&self) -> bool {
        self.peers.iter().any(Peer::is_ready)
    }

    /// Returns the MTU of the device in bytes.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Takes the MTU of the device in bytes.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu.into();
    }

    /// Returns what is counted of the device and of datagrams that belong to no peer.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns what is known of a peer. `None`: no peer has this number.
    pub fn peer(&self, number: usize) -> Option<PeerState> {
        let peer = self.peers.get(number)?;
        Some(PeerState {
            route: peer.path.route(),
            is_established: peer.is_established(),
            held: peer.held(),
            queued: peer.queue.packets(),
            counters: peer.counters,
            queue: peer.queue.counters(),
        })
    }

    /// Takes the time of the driver's wall clock as that of the peer's last handshake.
    pub fn set_last_handshake(&mut self, number: usize, at: SystemTime) {
        if let Some(peer) = self.peers.get_mut(number) {
            peer.last_handshake = Some(at);
        }
    }

    pub(crate) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    pub(crate) fn peers_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.iter_mut()
    }

    pub(crate) fn mtu_is_configured(&self) -> bool {
        self.mtu_is_configured
    }

    /// Says to the local host why its packet, the one of so many bytes in the packet buffer, does not go.
    fn tell_host(&mut self, now: Instant, len: usize, refused: Refused) {
        let too_big = match refused {
            Refused::Malformed => {
                self.counters.device_malformed += 1;
                return;
            }
            Refused::NoPeer => {
                self.counters.no_peer += 1;
                None
            }
            Refused::NoEndpoint => {
                self.counters.no_endpoint += 1;
                None
            }
            Refused::TooBig(mtu) => {
                self.counters.too_big += 1;
                Some(u16::try_from(mtu).unwrap_or(u16::MAX))
            }
        };
        let Some(packet) = self.buffer.get(virtio::LEN..len) else { return };
        let message = too_big.map_or_else(|| icmp::unreachable(packet), |mtu| icmp::too_big(packet, mtu));
        let Some(message) = message.filter(|_| self.icmp_limit.take(now)) else { return };
        if let Some(space) = self.coalescer.space(message.len()) {
            space.copy_from_slice(&message);
            self.coalescer.push(message.len());
        }
    }
}
