//! The loop over device, sockets, timers and control.

use std::{
    collections::{HashMap, HashSet},
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use backwater_udp::{RecvBatch, gso::MAX_SEGMENTS};
use boringtun::{
    noise::rate_limiter::RateLimiter,
    x25519::{PublicKey, StaticSecret},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Sleep,
};
use tracing::{debug, info, warn};

#[cfg(target_os = "linux")]
use crate::uapi;
use crate::{
    config::Config,
    device::{Link, Monitor, Suspended},
    engine::{
        allowed::{Allowed, Last},
        counters::Counters,
        packet::{
            coalesce::{Coalescer, Offload},
            icmp, virtio,
        },
        peer::{Peer, Received, Refused, Tools, kind, name_of, parse},
        session_indices::SessionIndices,
        slots::Slots,
    },
    io::{
        path::{self, Path},
        yield_budget::YieldBudget,
    },
    notices::Notices,
    status::Status,
};

#[cfg(target_os = "linux")]
mod configure;
mod initiator;
mod names;
mod routes;
mod show;

use initiator::Initiator;

/// Between two looks at the protocol's timers while there is traffic, while a peer is called, and while there is nothing. The
/// runtime wakes up to three times for a timer of seconds.
const TICK: Duration = Duration::from_millis(250);
const CALLING_TICK: Duration = Duration::from_secs(1);
const IDLE_TICK: Duration = Duration::from_secs(5);

/// Trains that one call receives: half a megabyte of full ones, so that they stay in the cache until they are decrypted.
const SLOTS: usize = 8;

/// Calls to receive on one socket in one turn.
const RECEIVES: usize = 2;

/// Packets read from the device in one turn: as many full ones as make a full train, or as many as a train holds while all of them
/// are no more than so many bytes.
const READS: usize = 45;
const SHORT_READS: usize = MAX_SEGMENTS;
const SHORT_BYTES: usize = READS * 1000;

/// Handshakes a second that are answered without a cookie. Each is counted twice: when its sender is looked for, and by
/// the session.
const HANDSHAKES: u64 = 2 * 50;

/// What is held at the end is sent for so long.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Between two tries to resolve a name, or to bind sockets anew.
const RETRY: Duration = Duration::from_secs(5);

/// The tunnel at work.
pub(crate) struct EventLoop {
    name: String,
    started: Instant,
    link: Link,
    monitor: Monitor,
    suspended: Suspended,
    path: Path,
    options: path::Options,
    private_key: StaticSecret,
    /// Whether the private key is the operator's; else it is a random one.
    has_private_key: bool,
    public_key: PublicKey,
    limiter: Arc<RateLimiter>,
    /// The codes (`mac1`) of initiations since the last tick. Each is sent once; what comes again is a copy, and costs nobody
    /// else his turn.
    calls: HashSet<[u8; 16]>,
    peers: Slots<Peer>,
    by_key: HashMap<[u8; 32], usize>,
    indices: SessionIndices,
    allowed: Allowed,
    /// Of packets from the device, and to it.
    last_destination: Last,
    last_source: Last,
    tools: Tools,
    batch: RecvBatch,
    read: Box<[u8]>,
    counters: Counters,
    messages: icmp::Limit,
    yield_budget: YieldBudget,
    queries: mpsc::Receiver<oneshot::Sender<Status>>,
    #[cfg(target_os = "linux")]
    requests: mpsc::Receiver<uapi::Request>,
    resolved: (mpsc::Sender<names::Resolved>, mpsc::Receiver<names::Resolved>),
    timer: Pin<Box<Sleep>>,
    ticked: Instant,
    /// Since the last tick.
    traffic: bool,
    /// At the last tick.
    calling: bool,
    rebound: Instant,
    /// A socket has failed.
    broken: bool,
}

impl EventLoop {
    /// Binds the sockets.
    ///
    /// # Errors
    /// When the port is taken.
    pub(crate) fn new(
        name: String,
        config: &Config,
        link: Link,
        options: path::Options,
        queries: mpsc::Receiver<oneshot::Sender<Status>>,
        #[cfg(target_os = "linux")] requests: mpsc::Receiver<uapi::Request>,
        notices: Notices,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let private_key = initiator::private_key(&config.interface.private_key)?;
        let public_key = PublicKey::from(&private_key);
        let limiter = Arc::new(RateLimiter::new(&public_key, HANDSHAKES));
        let path = Path::bind(options.clone())?;
        let mut allowed = Allowed::new();
        let (mut peers, mut indices) = (Slots::new(), SessionIndices::default());
        for (index, peer) in config.peers.iter().enumerate() {
            peer.allowed_ips.iter().for_each(|net| allowed.insert(net, index));
            peers.insert(Peer::new(index, peer, &private_key, indices.assign(index)?, &limiter));
        }
        let mtu = usize::from(link.mtu());
        let offload = match (link.has_offload(), link.has_udp_offload()) {
            (false, _) => Offload::None,
            (true, false) => Offload::Tcp,
            (true, true) => Offload::TcpAndUdp,
        };
        Ok(Self {
            name,
            started: now,
            monitor: link.monitor()?,
            suspended: Suspended::new(),
            path,
            options,
            private_key,
            has_private_key: config.interface.private_key.0 != [0; 32],
            public_key,
            limiter,
            calls: HashSet::new(),
            by_key: peers.iter().map(|peer| (peer.public_key.to_bytes(), peer.number())).collect(),
            peers,
            indices,
            allowed,
            last_destination: Last::default(),
            last_source: Last::default(),
            tools: Tools::new(mtu, config.interface.mtu.is_some(), Coalescer::new(offload), notices),
            batch: RecvBatch::new(SLOTS),
            read: vec![0; virtio::LEN + 65_536].into(),
            counters: Counters::default(),
            messages: icmp::Limit::default(),
            yield_budget: YieldBudget::new(now),
            queries,
            #[cfg(target_os = "linux")]
            requests,
            resolved: mpsc::channel(64),
            timer: Box::pin(tokio::time::sleep(TICK)),
            ticked: now,
            traffic: true,
            calling: false,
            rebound: now,
            broken: false,
            link,
        })
    }

    /// Runs until `stop`, and then until what is held has gone, or half a second. The device is whoever's called this then.
    ///
    /// # Errors
    /// When the device cannot be read any more.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) -> (Link, io::Result<()>) {
        self.find_peers(Instant::now());
        let mut stop = std::pin::pin!(stop);
        let mut until = None;
        let result = poll_fn(|cx| {
            if until.is_none() && stop.as_mut().poll(cx).is_ready() {
                until = Some(Instant::now() + LAST_WORDS);
                self.timer.as_mut().reset(tokio::time::Instant::now() + LAST_WORDS);
            }
            self.turn(cx, until)
        })
        .await;
        (self.link, result)
    }

    /// One turn: what came first, what waits next, what is new last.
    fn turn(&mut self, cx: &mut Context<'_>, until: Option<Instant>) -> Poll<io::Result<()>> {
        let now = Instant::now();
        // Also before the first packet after a pause: the session counts its time from the last look, and would call the peer
        // as one that has not answered for as long as the pause was.
        if now.saturating_duration_since(self.ticked) >= TICK {
            self.tick(now);
        }
        while let Poll::Ready(Some(asker)) = self.queries.poll_recv(cx) {
            // Whoever asked may have gone.
            let _ = asker.send(self.status(now));
        }
        while let Poll::Ready(Some(resolved)) = self.resolved.1.poll_recv(cx) {
            self.resolved(now, resolved);
        }
        while let Poll::Ready(change) = self.monitor.poll_change(cx) {
            // Also told of where nothing is different, as by a router that advertises itself again.
            let mut moved = false;
            for peer in self.peers.iter_mut() {
                moved |= peer.source_changed(&self.path);
                peer.check_local_ip(&self.path);
            }
            debug!(?change, moved, "the network has changed");
            if moved {
                info!("this side's address has changed");
                self.rebind(now);
            }
            self.look_up_routes(now, true);
            if moved || change.link {
                self.call_peers(now, false);
            }
        }
        let mut more = self.receive(cx, now);
        #[cfg(target_os = "linux")]
        {
            more |= self.follow_settings(cx, now);
        }
        if self.peers.iter().any(|peer| peer.needs_route) {
            self.look_up_routes(now, false);
        }
        self.send_urgent(cx);
        self.send_held(cx);
        for peer in self.peers.iter_mut() {
            if peer.is_waiting() {
                more |= peer.drain(now, &mut self.path, &mut self.tools);
            }
        }
        match until {
            None => match self.read_device(cx, now) {
                Ok(false) => {}
                Ok(true) => {
                    more = true;
                    self.yield_budget.yield_core();
                }
                Err(error) => return Poll::Ready(Err(error)),
            },
            Some(until) if now >= until || !self.peers.iter().any(Peer::is_waiting) => return Poll::Ready(Ok(())),
            Some(_) => {}
        }
        self.send_urgent(cx);
        more |= self.peers.iter().any(Peer::is_ready);
        if until.is_none() {
            let next = self.ticked + self.interval();
            if self.timer.deadline().into_std() != next {
                self.timer.as_mut().reset(next.into());
            }
        }
        if self.timer.as_mut().poll(cx).is_ready() || more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Takes what has arrived. Returns whether there may be more.
    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut more = false;
        for v6 in [false, true] {
            for turn in 1..=RECEIVES {
                let Some(side) = self.path.side(v6) else { break };
                match side.receiver.poll_recv(cx, &mut self.batch) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        warn!(%error, "a socket has failed");
                        self.broken = true;
                        break;
                    }
                }
                self.take_batch(now);
                // Whether that was all, only a call that waits tells: it registers this task.
                more |= turn == RECEIVES;
            }
            while let Some(error) = self.path.side(v6).and_then(|side| side.socket.next_icmp_error()) {
                self.learn_from(now, &error);
            }
        }
        more
    }

    fn take_batch(&mut self, now: Instant) {
        let Self {
            batch,
            peers,
            tools,
            path,
            allowed,
            last_source,
            counters,
            by_key,
            indices,
            link,
            limiter,
            calls,
            ..
        } = self;
        for train in batch.gro_batches() {
            for datagram in train.datagrams() {
                let index = match *datagram.payload {
                    [kind::DATA | kind::COOKIE, _, _, _, a, b, c, d, ..]
                    | [kind::RESPONSE, _, _, _, _, _, _, _, a, b, c, d, ..] => {
                        indices.peer(u32::from_le_bytes([a, b, c, d]))
                    }
                    [kind::INITIATION, ..] => {
                        match initiator::of(limiter, calls, &self.private_key, &self.public_key, datagram, tools) {
                            Initiator::Known(key) => by_key.get(&key).copied(),
                            Initiator::Doubtful => {
                                counters.cookies_sent += 1;
                                continue;
                            }
                            Initiator::Nobody => None,
                        }
                    }
                    _ => None,
                };
                let Some((index, peer)) = index.and_then(|index| Some((index, peers.get_mut(index)?))) else {
                    match datagram.payload.first() {
                        Some(&kind::INITIATION) => counters.handshakes_refused += 1,
                        _ => counters.strange += 1,
                    }
                    continue;
                };
                if tools.coalescer.space(datagram.payload.len().max(path::MAX_URGENT)).is_none() {
                    write_out(&mut tools.coalescer, link, counters);
                }
                let allows = |from| allowed.owner(from, last_source) == Some(index);
                match peer.receive(now, datagram, path, tools, allows) {
                    Received::Good => {
                        self.traffic = true;
                    }
                    Received::Handshake => {
                        self.traffic = true;
                        info!(peer = %name_of(&peer.public_key), endpoint = %train.source, "session established");
                    }
                    Received::Cookie => counters.cookies_sent += 1,
                    Received::Bad if datagram.payload.first() != Some(&kind::DATA) => counters.handshakes_refused += 1,
                    Received::Bad => {}
                }
            }
            // A train makes one packet; what comes one by one is joined with the rest of its batch.
            if train.datagram_count() > 1 {
                write_out(&mut tools.coalescer, link, counters);
            }
        }
        write_out(&mut tools.coalescer, link, counters);
    }

    /// Takes what the local host sends. Returns whether there may be more.
    fn read_device(&mut self, cx: &mut Context<'_>, now: Instant) -> io::Result<bool> {
        let mut train_of: Option<usize> = None;
        let mut has_room = self.has_room(now);
        let (mut packets, mut bytes, mut more) = (0, 0, true);
        // A device without offloads gives no header: the buffer has one then, which says nothing.
        let at = if self.link.has_offload() { 0 } else { virtio::LEN };
        while packets < READS || (packets < SHORT_READS && bytes < SHORT_BYTES) {
            // Nothing is read while nothing could go. Whoever's queue has room again is why the next turn comes.
            if !has_room {
                more = false;
                break;
            }
            let len = match self.link.try_read(self.read.get_mut(at..).unwrap_or_default()) {
                Ok(len) => at + len,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    match self.link.poll_readable(cx) {
                        Poll::Ready(ready) => ready?,
                        Poll::Pending => more = false,
                    }
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.traffic = true;
            packets += 1;
            bytes += len;
            self.counters.device_read += 1;
            let Some((raw, destination)) =
                self.read.get(..len).and_then(|raw| Some((raw, parse(raw)?.1.destination())))
            else {
                self.counters.device_malformed += 1;
                continue;
            };
            let index = self.allowed.owner(destination, &mut self.last_destination);
            if train_of != index {
                flush(&mut self.peers, &mut self.path, &mut self.tools, train_of.take());
            }
            let refused = match index.and_then(|index| self.peers.get_mut(index)) {
                Some(peer) => {
                    let refused = peer.offer(now, raw, &mut self.path, &mut self.tools).err();
                    train_of = index;
                    if !peer.has_room(now) {
                        has_room = self.peers.iter().any(|peer| peer.has_room(now));
                    }
                    refused
                }
                None => {
                    self.counters.no_peer += 1;
                    Some(Refused::NoPeer)
                }
            };
            if let Some(refused) = refused {
                self.tell_host(now, len, refused);
            }
        }
        flush(&mut self.peers, &mut self.path, &mut self.tools, train_of);
        Ok(more)
    }

    /// Whether any peer could take a packet. Without peers every packet is for nobody, and its sender is told.
    fn has_room(&self, now: Instant) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|peer| peer.has_room(now))
    }

    /// Says to the local host why its packet, the one that was read last, does not go.
    fn tell_host(&mut self, now: Instant, len: usize, refused: Refused) {
        let too_big = match refused {
            Refused::Malformed => {
                self.counters.device_malformed += 1;
                return;
            }
            Refused::NoPeer => None,
            Refused::NoEndpoint => {
                self.counters.no_endpoint += 1;
                None
            }
            Refused::TooBig(mtu) => {
                self.counters.too_big += 1;
                Some(u16::try_from(mtu).unwrap_or(u16::MAX))
            }
        };
        let Some(packet) = self.read.get(virtio::LEN..len) else { return };
        let message = too_big.map_or_else(|| icmp::unreachable(packet), |mtu| icmp::too_big(packet, mtu));
        let Some(message) = message.filter(|_| self.messages.take(now)) else { return };
        let header = virtio::Header::default().to_bytes();
        let slices = [IoSlice::new(&header), IoSlice::new(&message)];
        let slices = if self.link.has_offload() { &slices[..] } else { &slices[1..] };
        match self.link.try_write(slices) {
            Ok(_) => self.counters.device_written += 1,
            Err(_) => self.counters.device_refused += 1,
        }
    }

    fn send_urgent(&mut self, cx: &mut Context<'_>) {
        for (destination, message) in self.tools.urgent.drain(..) {
            self.path.send_urgent(destination, &message);
        }
        self.path.sides().for_each(|side| side.poll_urgent(cx));
    }

    /// Sends encrypted data that waits, as far as there is room.
    fn send_held(&mut self, cx: &mut Context<'_>) {
        let Self { path, peers, .. } = self;
        peers.iter().for_each(|peer| peer.redirect_held(path));
        path.poll_data(cx, |number, report, bytes| {
            if let Some(peer) = peers.get_mut(number) {
                peer.held_are_done(report, bytes);
            }
        });
    }

    fn interval(&self) -> Duration {
        match (self.traffic, self.calling) {
            (true, _) => TICK,
            (false, true) => CALLING_TICK,
            (false, false) => IDLE_TICK,
        }
    }

    fn tick(&mut self, now: Instant) {
        self.ticked = now;
        self.limiter.reset_count();
        self.calls.clear();
        for peer in self.peers.iter_mut() {
            peer.tick(now, &mut self.path, &mut self.tools);
        }
        self.traffic = self.peers.iter().any(Peer::is_waiting);
        self.calling = self.peers.iter().any(Peer::is_calling);
        let waited = now.saturating_duration_since(self.rebound) >= RETRY;
        if self.suspended.check() {
            info!("the system was suspended");
            self.rebind(now);
            self.call_peers(now, true);
        } else if waited && (self.broken || !self.path.is_bound() || self.path.is_stuck()) {
            warn!("the path takes nothing: binding anew");
            self.rebind(now);
            self.call_peers(now, false);
        }
        self.resolve_names(now);
        self.set_fragmentation(now);
        for v6 in [false, true] {
            self.size_send_buffer(now, v6);
        }
    }

    /// What waits in the socket is behind the queue that is managed: as little of it as keeps the path busy.
    fn size_send_buffer(&mut self, now: Instant, v6: bool) {
        let here = self.peers.iter().filter(|peer| peer.endpoint().is_some_and(|endpoint| endpoint.is_ipv6() == v6));
        let rate: u64 = here.filter_map(|peer| peer.rate.bytes_per_second(now)).sum();
        if let Some(side) = self.path.side(v6) {
            side.size_send_buffer(rate);
        }
    }

    /// Lets the peers know where this side is now.
    fn call_peers(&mut self, now: Instant, new_sessions: bool) {
        for peer in self.peers.iter_mut() {
            if new_sessions && peer.is_established() {
                peer.call_again(now, &mut self.tools);
            } else if peer.is_established() {
                peer.keep_alive(now, &mut self.tools);
            } else if peer.is_persistent() {
                peer.call(now, &mut self.tools);
            }
        }
        self.find_peers(now);
    }

    /// Begins with new sockets.
    fn rebind(&mut self, now: Instant) {
        (self.rebound, self.broken) = (now, false);
        // What has arrived already is taken, for a bounded time.
        let waker = std::task::Waker::noop();
        self.receive(&mut Context::from_waker(waker), now);
        let port = self.path.close();
        self.peers.iter_mut().for_each(Peer::give_up_held);
        if let Err(error) = self.path.rebind(port) {
            warn!(%error, "no socket can be bound");
        }
        self.set_fragmentation(now);
    }
}

fn flush(peers: &mut Slots<Peer>, path: &mut Path, tools: &mut Tools, of: Option<usize>) {
    if let Some(peer) = of.and_then(|index| peers.get_mut(index)) {
        peer.flush(path, &mut tools.batch);
    }
}

fn write_out(coalescer: &mut Coalescer, link: &Link, counters: &mut Counters) {
    let flushed = coalescer.flush(|slices| link.try_write(slices));
    counters.device_written += flushed.packets as u64;
    counters.device_refused += flushed.lost as u64;
    if let Some(error) = flushed.error {
        debug!(%error, "the device refused packets");
    }
}
