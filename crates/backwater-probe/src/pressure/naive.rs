//! The naive mapping, for comparison: `ENOBUFS` is `EWOULDBLOCK`, and the reactor says when there is room.
//!
//! It is built as such code is: tokio's socket, and `WouldBlock` returned from within `try_io` for `ENOBUFS` too. The
//! socket's options are those of Backwater's sockets, and what arrives is read in the same way, so that waiting is all that
//! differs. A watchdog, which such code does not have, detects a missing wake-up.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use backwater_udp::stats::BUCKETS;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::Interest,
    net::UdpSocket,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{errno::is_no_buffers, latency::Latencies};

use super::{
    Reading, Treatment, any_like,
    outcome::{Bucket, Class, Holds, NaiveOutcome, Outcome},
};

pub(super) struct Naive {
    socket: UdpSocket,
    to: Option<SocketAddr>,
    watchdog: Interval,
    _reading: Reading,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    offered: u64,
    sent: u64,
    errors: u64,
    unfinished: u64,
    attempts: u64,
    enobufs: u64,
    waits: u64,
    blocked: Duration,
    wakes: u64,
    spurious: u64,
    recovered: u64,
    recovery: [u64; BUCKETS.len() + 1],
    recovery_time: Duration,
    holds: Latencies,
    naive: NaiveOutcome,
    window: Option<Window>,
}

/// A tenth of a second, and the wake-ups in it without room.
struct Window {
    start: Instant,
    wakes: u64,
}

/// A sender without a wake-up for so long hangs.
const HANG: Duration = Duration::from_secs(1);

const WATCH: Duration = Duration::from_millis(100);

/// Wake-ups in a tenth of a second that are a spin: 1,000 per second.
const SPIN: u64 = 100;

enum Call {
    Sent,
    Refused,
    Failed,
}

impl Naive {
    pub(super) fn new(to: SocketAddr, connected: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&any_like(to).into())?;
        if connected {
            socket.connect(&to.into())?;
        }
        // Sets the options of the socket that both are handles to.
        let reading = backwater_udp::UdpSocket::from_std(socket.try_clone()?.into())?;
        let mut watchdog = interval(WATCH);
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            to: (!connected).then_some(to),
            watchdog,
            _reading: Reading::of(&reading),
            counts: Counts::default(),
        })
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        (self.counts.sent, self.counts.enobufs + self.counts.naive.would_block)
    }

    /// Sends a datagram, or gives up at `end`.
    pub(super) async fn send(&mut self, payload: &[u8], end: Instant) -> io::Result<()> {
        let Self { socket, to, watchdog, counts, .. } = self;
        counts.offered += 1;
        let (mut refused_at, mut last_wake) = (None, Instant::now());
        let mut hung = false;
        let ended = poll_fn(|cx| {
            loop {
                if let Poll::Ready(ready) = socket.poll_send_ready(cx) {
                    ready?;
                    let now = Instant::now();
                    last_wake = now;
                    counts.wakes += u64::from(refused_at.is_some());
                    let mut called = None;
                    let _ =
                        socket.try_io(Interest::WRITABLE, || match called.insert(counts.call(socket, *to, payload)) {
                            Call::Refused => Err(io::ErrorKind::WouldBlock.into()),
                            Call::Sent | Call::Failed => Ok(()),
                        });
                    match called {
                        Some(Call::Refused) if now < end => {
                            if refused_at.is_some() {
                                counts.woken_for_nothing(now);
                            }
                            refused_at.get_or_insert(now);
                        }
                        Some(done) => return Poll::Ready(io::Result::Ok(done)),
                        None => {}
                    }
                    continue;
                }
                ready!(watchdog.poll_tick(cx));
                let now = Instant::now();
                if now - last_wake >= HANG {
                    match counts.call(socket, *to, payload) {
                        Call::Sent => {
                            counts.naive.hangs += 1;
                            counts.naive.hung_seconds += (now - last_wake).as_secs_f64();
                            hung = true;
                            return Poll::Ready(Ok(Call::Sent));
                        }
                        Call::Failed => return Poll::Ready(Ok(Call::Failed)),
                        Call::Refused => {}
                    }
                }
                if now >= end {
                    return Poll::Ready(Ok(Call::Refused));
                }
            }
        })
        .await?;
        counts.done(&ended, refused_at, hung);
        if hung {
            let socket: Socket = SockRef::from(&self.socket).try_clone()?;
            self.socket = UdpSocket::from_std(socket.into())?;
        }
        Ok(())
    }

    pub(super) fn into_outcome(self) -> Outcome {
        let Counts { offered, sent, errors, unfinished, mut naive, mut holds, window, .. } = self.counts;
        if let Some(window) = window {
            window.close(&mut naive);
        }
        let bounds = BUCKETS.into_iter().map(Some).chain([None]);
        let recovery = bounds.zip(self.counts.recovery).map(|(le, count)| Bucket { le, count }).collect();
        let mut class = Class { class: "any", enobufs: self.counts.enobufs, recovery, ..Class::default() };
        class.woken.readiness = self.counts.wakes;
        class.recovered.readiness = self.counts.recovered;
        class.recovery_seconds = self.counts.recovery_time.as_secs_f64();
        let dropped = [("error", errors), ("unfinished", unfinished)];
        Outcome {
            offered,
            sent,
            dropped: dropped.into_iter().filter(|&(_, n)| n > 0).collect(),
            unaccounted: offered as i64 - (sent + errors + unfinished) as i64,
            attempts: self.counts.attempts,
            waits: self.counts.waits,
            blocked_seconds: self.counts.blocked.as_secs_f64(),
            holds: Holds::of(&mut holds),
            classes: vec![class],
            spurious_wakes: self.counts.spurious,
            naive: Some(naive),
            ..Outcome::empty(Treatment::Naive)
        }
    }
}

impl Counts {
    fn call(&mut self, socket: &UdpSocket, to: Option<SocketAddr>, payload: &[u8]) -> Call {
        self.attempts += 1;
        let socket = SockRef::from(socket);
        let result = match to {
            Some(to) => socket.send_to(payload, &to.into()),
            None => socket.send(payload),
        };
        let Err(error) = result else { return Call::Sent };
        if is_no_buffers(&error) {
            self.enobufs += 1;
            return Call::Refused;
        }
        if error.kind() == io::ErrorKind::WouldBlock {
            self.naive.would_block += 1;
            return Call::Refused;
        }
        Call::Failed
    }

    fn woken_for_nothing(&mut self, now: Instant) {
        self.spurious += 1;
        if let Some(window) = self.window.take_if(|window| now - window.start >= WATCH) {
            window.close(&mut self.naive);
        }
        self.window.get_or_insert(Window { start: now, wakes: 0 }).wakes += 1;
    }

    fn done(&mut self, ended: &Call, refused_at: Option<Instant>, hung: bool) {
        match ended {
            Call::Sent => self.sent += 1,
            Call::Failed => self.errors += 1,
            Call::Refused => self.unfinished += 1,
        }
        let Some(after) = refused_at.map(|at| at.elapsed()) else { return };
        self.waits += 1;
        self.blocked += after;
        self.holds.record(after.as_nanos() as u64);
        if matches!(ended, Call::Sent) && !hung {
            let bucket = BUCKETS.iter().position(|&bound| after.as_secs_f64() <= bound).unwrap_or(BUCKETS.len());
            self.recovery[bucket] += 1;
            self.recovery_time += after;
            self.recovered += 1;
        }
    }
}

impl Window {
    fn close(self, naive: &mut NaiveOutcome) {
        naive.worst_wakes_per_second = naive.worst_wakes_per_second.max(self.wakes as f64 / WATCH.as_secs_f64());
        if self.wakes > SPIN {
            naive.spin_seconds += WATCH.as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchdog_detects_a_missing_wake_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(async {
            let sink = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut naive = Naive::new(sink.local_addr().unwrap(), false).unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            // The reactor is told that there is no room, though there is: no event will follow.
            naive.socket.writable().await.unwrap();
            let blocked: io::Error = io::ErrorKind::WouldBlock.into();
            naive.socket.try_io(Interest::WRITABLE, || io::Result::<()>::Err(blocked)).unwrap_err();
            naive.send(b"one", end).await.unwrap();
            naive.send(b"two", end).await.unwrap();
            naive.into_outcome()
        });
        let naive = outcome.naive.unwrap();
        assert_eq!((outcome.sent, naive.hangs, outcome.unaccounted), (2, 1, 0), "{outcome:?}");
        assert!(naive.hung_seconds >= 1.0, "{naive:?}");
    }

    #[test]
    fn a_spin_is_more_than_a_hundred_in_a_tenth_of_a_second() {
        let mut counts = Counts::default();
        let start = Instant::now();
        for (tenth, wakes) in [(0, SPIN), (1, SPIN + 1), (3, 5 * SPIN), (4, 1)] {
            for _ in 0..wakes {
                counts.woken_for_nothing(start + tenth * WATCH);
            }
        }
        assert!((counts.naive.spin_seconds - 0.2).abs() < 1e-9, "{:?}", counts.naive);
        assert_eq!(counts.naive.worst_wakes_per_second, 5000.0);
    }
}
