//! The loop over device, sockets, timers and control, around the engine.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use backwater_udp::{RecvBatch, gso::MAX_SEGMENTS};
use tokio::{
    sync::{mpsc, oneshot},
    time::Sleep,
};
use tracing::debug;

#[cfg(target_os = "linux")]
use crate::uapi;
use crate::{
    config::Config,
    device::{Link, Monitor, Suspended},
    engine::{Engine, Offload, packet::virtio},
    io::{
        events,
        receive::SLOTS,
        relay::Relay,
        sockets::{self, Sockets},
        yield_budget::YieldBudget,
    },
    notices::Notices,
    status::Status,
};

/// Packets read from the device in one turn: as many full ones as make a full GSO batch, or as many as a batch holds while all of them
/// are no more than so many bytes.
const READS: usize = 45;
const SHORT_READS: usize = MAX_SEGMENTS;
const SHORT_BYTES: usize = READS * 1000;

/// At the end, what is held is sent for so long.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The tunnel at work.
pub(crate) struct EventLoop {
    pub(super) name: String,
    pub(super) started: Instant,
    pub(super) engine: Engine,
    pub(super) link: Link,
    pub(super) monitor: Monitor,
    pub(super) suspended: Suspended,
    pub(super) sockets: Sockets,
    pub(super) relay: Option<Relay>,
    pub(super) options: sockets::Options,
    pub(super) notices: Notices,
    pub(super) batch: RecvBatch,
    yield_budget: YieldBudget,
    queries: mpsc::Receiver<oneshot::Sender<Status>>,
    #[cfg(target_os = "linux")]
    pub(super) requests: mpsc::Receiver<uapi::Request>,
    pub(super) resolved: (mpsc::Sender<events::Resolved>, mpsc::Receiver<events::Resolved>),
    timer: Pin<Box<Sleep>>,
    pub(super) rebound: Instant,
    /// A socket has failed.
    pub(super) broken: bool,
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
        options: sockets::Options,
        queries: mpsc::Receiver<oneshot::Sender<Status>>,
        #[cfg(target_os = "linux")] requests: mpsc::Receiver<uapi::Request>,
        notices: Notices,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let offload = match (link.has_offload(), link.has_udp_offload()) {
            (false, _) => Offload::None,
            (true, false) => Offload::Tcp,
            (true, true) => Offload::TcpAndUdp,
        };
        let engine = Engine::new(now, SystemTime::now(), config, link.mtu(), offload)?;
        Ok(Self {
            name,
            started: now,
            sockets: Sockets::bind(options.clone())?,
            monitor: link.monitor()?,
            suspended: Suspended::new(),
            timer: Box::pin(tokio::time::sleep_until(engine.poll_timeout().into())),
            engine,
            relay: Relay::new(now, config.relay.as_ref()),
            options,
            notices,
            batch: RecvBatch::new(SLOTS),
            yield_budget: YieldBudget::new(now),
            queries,
            #[cfg(target_os = "linux")]
            requests,
            resolved: mpsc::channel(64),
            rebound: now,
            broken: false,
            link,
        })
    }

    /// Runs until `stop` resolves, then flushes queued datagrams for at most 500 ms. Returns the device to the caller.
    ///
    /// # Errors
    /// When the device cannot be read any more.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) -> (Link, io::Result<()>) {
        self.engine.start(Instant::now());
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
        let Self { relay, sockets, .. } = &mut self;
        relay.iter_mut().for_each(|relay| relay.close(Instant::now(), sockets));
        (self.link, result)
    }

    /// One turn: what came first, what waits next, what is new last.
    fn turn(&mut self, cx: &mut Context<'_>, until: Option<Instant>) -> Poll<io::Result<()>> {
        let now = Instant::now();
        if self.engine.handle_timeout(now) {
            self.check_sockets(now);
        }
        while let Poll::Ready(Some(asker)) = self.queries.poll_recv(cx) {
            // Whoever asked may have gone.
            let _ = asker.send(self.status(now));
        }
        while let Poll::Ready(Some(resolved)) = self.resolved.1.poll_recv(cx) {
            self.engine.handle_resolved(now, resolved.public_key, resolved.result);
        }
        while let Poll::Ready(change) = self.monitor.poll_change(cx) {
            self.follow_network(now, change);
        }
        let mut more = self.receive(cx, now);
        #[cfg(target_os = "linux")]
        {
            more |= self.follow_settings(cx, now);
        }
        self.handle_events(now);
        self.drive_relay(cx, now);
        self.send_messages(cx);
        self.send_held(cx);
        self.engine.drain_queues();
        self.send_data(now);
        match until {
            None => match self.read_device(cx, now) {
                Ok(false) => {}
                Ok(true) => {
                    more = true;
                    self.yield_budget.yield_core();
                }
                Err(error) => return Poll::Ready(Err(error)),
            },
            Some(until) if now >= until || !self.engine.is_waiting() => return Poll::Ready(Ok(())),
            Some(_) => {}
        }
        self.send_messages(cx);
        more |= self.engine.is_ready();
        if until.is_none() {
            let of_relay = self.relay.as_ref().and_then(Relay::poll_timeout);
            let next = of_relay.into_iter().fold(self.engine.poll_timeout(), Instant::min);
            if self.timer.deadline().into_std() != next {
                self.timer.as_mut().reset(next.into());
            }
        }
        if self.timer.as_mut().poll(cx).is_ready() || more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Takes what the local host sends. Returns whether there may be more.
    fn read_device(&mut self, cx: &mut Context<'_>, now: Instant) -> io::Result<bool> {
        let mut has_room = self.engine.has_room(now);
        let (mut packets, mut bytes, mut more) = (0, 0, true);
        // A device without offloads gives no header: the buffer has one then, which says nothing.
        let at = if self.link.has_offload() { 0 } else { virtio::LEN };
        while packets < READS || (packets < SHORT_READS && bytes < SHORT_BYTES) {
            // Nothing is read while nothing could go. The peer whose queue has room again is why the next turn comes.
            if !has_room {
                more = false;
                break;
            }
            let len = match self.link.try_read(self.engine.packet_buffer().get_mut(at..).unwrap_or_default()) {
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
            packets += 1;
            bytes += len;
            has_room = self.engine.handle_packet(now, len);
            self.send_data(now);
        }
        self.engine.flush();
        self.send_data(now);
        // What the local host is told of packets that cannot go.
        write_out(&mut self.engine, &self.link);
        Ok(more)
    }

    /// Sends the batches that are complete.
    #[inline]
    fn send_data(&mut self, now: Instant) {
        while let Some(transmit) = self.engine.poll_transmit(now) {
            let is_accepted = self.relay.as_mut().is_none_or(|relay| relay.accepts(now, transmit.route));
            let outcome = if is_accepted { self.sockets.send(&transmit) } else { sockets::dropped(&transmit) };
            self.engine.handle_sent(Instant::now(), outcome);
        }
    }

    fn send_messages(&mut self, cx: &mut Context<'_>) {
        while let Some(message) = self.engine.poll_message() {
            self.sockets.send_message(message.destination, &message.bytes);
        }
        self.sockets.sides().for_each(|side| side.poll_urgent(cx));
    }

    /// Sends encrypted data that waits, as far as there is room.
    fn send_held(&mut self, cx: &mut Context<'_>) {
        let Self { sockets, engine, .. } = self;
        for peer in engine.peers().filter(|peer| peer.held() > 0) {
            if let Some(destination) = peer.destination() {
                sockets.redirect(peer.number(), destination, peer.path.local_ip);
            }
        }
        sockets.poll_data(cx, |peer, outcome| engine.handle_held(Instant::now(), peer, outcome));
    }
}

pub(super) fn write_out(engine: &mut Engine, link: &Link) {
    if let Some(error) = engine.poll_device(|slices| link.try_write(slices)) {
        debug!(%error, "the device refused packets");
    }
}
