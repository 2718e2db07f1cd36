use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{
    Policy, UdpSocket,
    decision::{Verdict, decide},
    stats::{DropReason, Report},
    sys::{Outgoing, Registration, errno},
    transmit::{Chunk, Scratch, Transmit},
};

/// Sends on a [`UdpSocket`]; one for each task that sends.
///
/// It is small, and has no descriptor and no timer of its own until the system refuses a datagram for the first time.
#[derive(Debug)]
pub struct Sender {
    socket: UdpSocket,
    /// Datagrams accepted from a transmit that is not done.
    held: usize,
    wait: Option<Box<Wait>>,
}

/// What it takes to wait.
struct Wait {
    registration: Registration,
    timer: Pin<Box<Sleep>>,
    /// When what is held now is dropped; set by the first refusal.
    deadline: Option<Instant>,
}

/// The longest time between two attempts: a lost wake-up costs this much and no more.
const BACKSTOP: Duration = Duration::from_millis(25);

/// Calls in a row that may end in `EINTR` or in somebody else's error.
const MAX_AGAIN: usize = 16;

/// How an attempt ended that did not finish.
enum Failure {
    Blocked,
    Fatal(io::Error),
}

impl Sender {
    pub(crate) fn new(socket: UdpSocket) -> Self {
        Self { socket, held: 0, wait: None }
    }

    /// The socket it sends on.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Sends what is left of `t`, or drops it for a reason, or holds it: `Pending` until there is room.
    ///
    /// Offer the same `t` again after a wake-up. What was held of another one is given up, and counted as
    /// [`Cancelled`](DropReason::Cancelled). The future is cancel safe in this sense: nothing is lost without being
    /// counted.
    ///
    /// # Errors
    /// Only when the socket has failed; what was left of `t` is then dropped. A destination that cannot be reached is
    /// not an error but a reason in the report.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, t: &mut Transmit<'_>) -> Poll<io::Result<Report>> {
        self.poll_send_batch(cx, std::slice::from_mut(t))
    }

    /// As [`poll_send`](Self::poll_send), for transmits to several destinations. One that is refused or broken does
    /// not stop those after it. The report is of all of them.
    ///
    /// # Errors
    /// As [`poll_send`](Self::poll_send).
    pub fn poll_send_batch(&mut self, cx: &mut Context<'_>, ts: &mut [Transmit<'_>]) -> Poll<io::Result<Report>> {
        self.accept(ts);
        if self.held == 0 {
            return Poll::Ready(Ok(total(ts)));
        }
        if self.wait.as_ref().is_none_or(|wait| wait.deadline.is_none())
            && let result @ (Ok(()) | Err(Failure::Fatal(_))) = self.attempt(ts)
        {
            return Poll::Ready(self.finish(ts, result));
        }
        let now = Instant::now();
        if self.wait.is_none() {
            let registration = Registration::new(&self.socket.0.io)?;
            let timer = Box::pin(tokio::time::sleep_until(now + BACKSTOP));
            self.wait = Some(Box::new(Wait { registration, timer, deadline: None }));
        }
        let Some(mut wait) = self.wait.take() else { return Poll::Pending };
        let result = self.poll_wait(cx, &mut wait, ts, now);
        if result.is_ready() {
            wait.deadline = None;
        }
        self.wait = Some(wait);
        result.map(|result| self.finish(ts, result))
    }

    /// Sends `t`; waits while there is no room.
    ///
    /// A future that is dropped leaves `t` as it is: send it again, or let go of it.
    ///
    /// # Errors
    /// As [`poll_send`](Self::poll_send).
    pub async fn send(&mut self, t: &mut Transmit<'_>) -> io::Result<Report> {
        poll_fn(|cx| self.poll_send(cx, t)).await
    }

    /// Sends as much of `t` as the system takes now. Nothing is held: what is left stays the caller's, and only what
    /// is sent or dropped is counted as accepted.
    ///
    /// # Errors
    /// `WouldBlock` when some of `t` is left; else as [`poll_send`](Self::poll_send).
    pub fn try_send(&mut self, t: &mut Transmit<'_>) -> io::Result<Report> {
        let before = t.remaining();
        let result = self.attempt_one(t);
        if !t.cursor.accepted {
            self.socket.0.stats.accept(before - t.remaining());
        } else {
            self.held -= (before - t.remaining()).min(self.held);
        }
        match result {
            Ok(()) => Ok(t.cursor.report),
            Err(Failure::Blocked) => Err(io::ErrorKind::WouldBlock.into()),
            Err(Failure::Fatal(e)) => Err(e),
        }
    }

    fn accept(&mut self, ts: &mut [Transmit<'_>]) {
        let resumed = ts.iter().any(|t| t.cursor.accepted && !t.is_done());
        if !resumed {
            self.cancel();
        }
        for t in ts.iter_mut().filter(|t| !t.cursor.accepted) {
            t.cursor.accepted = true;
            self.held += t.remaining();
            self.socket.0.stats.accept(t.remaining());
        }
    }

    /// Counts what is held as given up.
    fn cancel(&mut self) {
        if self.held > 0 {
            self.socket.0.stats.drop_held(DropReason::Cancelled, self.held);
            self.held = 0;
        }
        if let Some(wait) = &mut self.wait {
            wait.deadline = None;
        }
    }

    fn finish(&mut self, ts: &mut [Transmit<'_>], result: Result<(), Failure>) -> io::Result<Report> {
        self.held = 0;
        match result {
            Err(Failure::Fatal(e)) => Err(e),
            Ok(()) | Err(Failure::Blocked) => Ok(total(ts)),
        }
    }

    fn poll_wait(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait,
        ts: &mut [Transmit<'_>],
        now: Instant,
    ) -> Poll<Result<(), Failure>> {
        let Wait { registration, timer, deadline } = wait;
        loop {
            let limit = match self.socket.0.backpressure.get() {
                Policy::Drop => Some(DropReason::NoBuffers),
                Policy::Wait { deadline: after } => {
                    let first = deadline.is_none();
                    let until = *deadline.get_or_insert(now + after);
                    if first {
                        self.socket.0.stats.park();
                        timer.as_mut().reset(until.min(now + BACKSTOP));
                    }
                    (now >= until).then_some(DropReason::Deadline)
                }
            };
            if let Some(reason) = limit {
                return Poll::Ready(match self.attempt(ts) {
                    Err(Failure::Blocked) => {
                        self.drop_rest(ts, reason);
                        Ok(())
                    }
                    result => result,
                });
            }
            // The call is made inside the reactor's `try_io`, so that a wake-up which arrives meanwhile is not erased.
            let woken = registration.poll_write(&self.socket.0.io, cx, || match self.attempt(ts) {
                Ok(()) => Ok(Ok(())),
                Err(Failure::Blocked) => Err(io::ErrorKind::WouldBlock.into()),
                Err(Failure::Fatal(e)) => Ok(Err(Failure::Fatal(e))),
            });
            match woken {
                Poll::Ready(Ok(result)) => return Poll::Ready(result),
                Poll::Ready(Err(e)) => {
                    self.drop_rest(ts, DropReason::Socket);
                    return Poll::Ready(Err(Failure::Fatal(e)));
                }
                Poll::Pending => {}
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if let result @ (Ok(()) | Err(Failure::Fatal(_))) = self.attempt(ts) {
                return Poll::Ready(result);
            }
            let backstop = Instant::now() + BACKSTOP;
            timer.as_mut().reset(deadline.map_or(backstop, |deadline| deadline.min(backstop)));
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.drop_rest(ts, DropReason::Deadline);
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Tries each transmit that is not done.
    fn attempt(&self, ts: &mut [Transmit<'_>]) -> Result<(), Failure> {
        let mut blocked = false;
        for i in 0..ts.len() {
            match self.attempt_one(&mut ts[i]) {
                Ok(()) => {}
                Err(Failure::Blocked) => blocked = true,
                Err(fatal) => {
                    self.drop_rest(ts, DropReason::Socket);
                    return Err(fatal);
                }
            }
        }
        if blocked { Err(Failure::Blocked) } else { Ok(()) }
    }

    fn attempt_one(&self, t: &mut Transmit<'_>) -> Result<(), Failure> {
        let before = t.cursor.report;
        let result = self.send_now(t);
        if matches!(result, Err(Failure::Fatal(_))) {
            t.drop_rest(DropReason::Socket);
        }
        self.socket.0.stats.resolve(&before, &t.cursor.report);
        result
    }

    /// The loop of system calls.
    fn send_now(&self, t: &mut Transmit<'_>) -> Result<(), Failure> {
        let inner = &*self.socket.0;
        if t.is_too_scattered() {
            t.drop_rest(DropReason::Invalid);
        }
        let mut again = 0;
        while !t.is_done() {
            let mut scratch = Scratch::new();
            let Chunk { slices, bytes, datagrams, segment_size } =
                t.chunk(inner.state.max_segments(), usize::MAX, &mut scratch);
            let out = Outgoing {
                destination: t.destination,
                source: t.source,
                ecn: t.ecn,
                slices,
                segment_size: if datagrams > 1 { u16::try_from(segment_size).ok() } else { None },
            };
            match inner.state.send(inner.sock_ref(), &out) {
                Ok(()) => {
                    again = 0;
                    t.sent(datagrams, bytes);
                }
                Err(e) => match decide(errno(&e), datagrams > 1) {
                    Verdict::Again if again < MAX_AGAIN => again += 1,
                    Verdict::Again => t.dropped(datagrams, bytes, DropReason::Unreachable),
                    Verdict::Wait => return Err(Failure::Blocked),
                    Verdict::Drop(reason) => t.dropped(datagrams, bytes, reason),
                    Verdict::Split => t.cursor.one_by_one = true,
                    Verdict::SplitAll => inner.state.segmentation_failed(),
                    Verdict::Fatal => return Err(Failure::Fatal(e)),
                },
            }
        }
        Ok(())
    }

    fn drop_rest(&self, ts: &mut [Transmit<'_>], reason: DropReason) {
        for t in ts {
            let before = t.cursor.report;
            t.drop_rest(reason);
            self.socket.0.stats.resolve(&before, &t.cursor.report);
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What has become of all of them.
fn total(ts: &[Transmit<'_>]) -> Report {
    let mut total = Report::default();
    for t in ts {
        total.sent += t.cursor.report.sent;
        for reason in DropReason::ALL {
            total.dropped.add(reason, t.cursor.report.dropped.get(reason));
        }
    }
    total
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
