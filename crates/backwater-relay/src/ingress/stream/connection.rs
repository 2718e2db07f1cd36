//! One connection: its socket, what it has not taken yet, and how far its client has got.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, Waker},
    time::Instant,
};

use backwater_turn::{ClientAddr, FiveTuple, server::AllocationId};
use backwater_udp::Policy;
use tokio::net::TcpStream;

use super::{
    Batch, CutOff, StreamId,
    frames::Frames,
    output::{Kind, MAX_HELD, Output},
    tls::{Tls, Written},
};

/// Bytes that may wait for a client before what it sends is left in its socket.
const READ_WHILE_HELD: usize = 64 << 10;

/// Bytes of answers that leave in one write.
const TOGETHER: usize = 32 << 10;

pub(crate) struct Connection {
    pub(crate) id: StreamId,
    pub(super) stream: TcpStream,
    pub(super) five_tuple: Cell<FiveTuple>,
    pub(super) stage: Cell<Stage>,
    /// The bytes before a frame, then the frame, that is not complete.
    pub(super) frames: RefCell<Frames>,
    pub(super) header: RefCell<Vec<u8>>,
    pub(super) tls: RefCell<Option<Box<Tls>>>,
    output: RefCell<Output>,
    /// Why it is to end.
    pub(super) end: Cell<Option<CutOff>>,
    pub(super) allocation: Cell<Option<AllocationId>>,
    /// When it last took something, while something waits.
    progress: Cell<Instant>,
    waker: RefCell<Waker>,
    /// Whether its task handles what the client has sent: the answers leave together after that.
    pub(super) is_handled: Cell<bool>,
    /// Whether its task waits for room in the sockets of its allocation.
    pub(super) is_paused: Cell<bool>,
    /// Datagrams that were sent and are not counted yet.
    sent: Cell<usize>,
}

/// How far the beginning of a connection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The header of the PROXY protocol.
    Proxy,
    /// The byte that tells TLS from TURN.
    First,
    /// TURN, inside of TLS or not.
    Turn,
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) sent: usize,
    /// Since the client takes too little.
    pub(super) dropped: usize,
    /// Since the connection has failed.
    pub(super) gone: usize,
}

impl Connection {
    pub(super) fn new(id: StreamId, stream: TcpStream, client: SocketAddr, stage: Stage) -> io::Result<Self> {
        Ok(Self {
            id,
            five_tuple: Cell::new(FiveTuple::tcp(ClientAddr(client), stream.local_addr()?)),
            stream,
            stage: Cell::new(stage),
            frames: RefCell::default(),
            header: RefCell::default(),
            tls: RefCell::default(),
            output: RefCell::default(),
            end: Cell::new(None),
            allocation: Cell::new(None),
            progress: Cell::new(Instant::now()),
            waker: RefCell::new(Waker::noop().clone()),
            is_handled: Cell::new(false),
            is_paused: Cell::new(false),
            sent: Cell::new(0),
        })
    }

    /// The client's address, as soon as it is known.
    pub(super) fn source(&self) -> Option<IpAddr> {
        (self.stage.get() != Stage::Proxy).then(|| self.five_tuple.get().client.0.ip())
    }

    /// Has the connection's task end it.
    pub(super) fn cut_off(&self, why: CutOff) {
        if self.end.get().is_none() {
            self.end.set(Some(why));
        }
        self.wake();
    }

    /// Has the connection's task run.
    pub(super) fn wake(&self) {
        self.waker.borrow().wake_by_ref();
    }

    /// Remembers whom to wake.
    pub(super) fn set_waker(&self, waker: &Waker) {
        self.waker.borrow_mut().clone_from(waker);
    }

    /// Whether nothing waits for the client.
    pub(super) fn is_idle(&self) -> bool {
        self.output.borrow().is_empty()
    }

    /// Whether so little waits for the client that more of it may be read.
    pub(super) fn may_read(&self) -> bool {
        self.output.borrow().held() <= READ_WHILE_HELD
    }

    /// How many datagrams wait.
    pub(super) fn datagrams(&self) -> usize {
        self.output.borrow().datagrams()
    }

    /// How many held datagrams were sent since the last time.
    pub(super) fn take_sent(&self) -> usize {
        self.sent.take()
    }

    /// When the client last took something, if something waits for it.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        (!self.is_idle()).then(|| self.progress.get())
    }

    /// Sends an answer, or holds it. A client that leaves too many of them unread is cut off.
    pub(super) fn reply(&self, reply: &[u8], now: Instant) {
        let mut output = self.output.borrow_mut();
        self.hold(&mut output, reply, Kind::Reply, now);
        if (!self.is_handled.get() || output.held() > TOGETHER) && self.write_held(&mut output, now).is_err() {
            return self.cut_off(CutOff::Gone);
        }
        if output.held() > MAX_HELD {
            self.cut_off(CutOff::Stalled);
        }
    }

    /// Sends datagrams; those that it does not take are held where the policy and the room allow it.
    pub(super) fn send(&self, batch: &Batch, policy: Policy, now: Instant) -> Outcome {
        let mut outcome = Outcome { dropped: self.drop_late(policy, now), ..Outcome::default() };
        let mut output = self.output.borrow_mut();
        let written = match output.is_empty() {
            true => self.write(&batch.bytes, batch.frames.iter().copied()).map(|written| written.payload),
            false => Ok(0),
        };
        let Ok(written) = written else {
            self.cut_off(CutOff::Gone);
            outcome.gone += batch.frames.len();
            return outcome;
        };
        // What is sent or encrypted in part cannot be taken back.
        let committed = if output.is_empty() { written + self.in_flight() } else { 0 };
        let mut end = 0;
        for &len in &batch.frames {
            let start = end;
            end += len;
            if end <= written {
                outcome.sent += 1;
            } else if start < committed {
                self.hold(&mut output, &batch.bytes[start.max(written)..end], Kind::Begun, now);
            } else if policy != Policy::Drop && output.has_room(len) {
                self.hold(&mut output, &batch.bytes[start..end], Kind::Data, now);
            } else {
                outcome.dropped += 1;
            }
        }
        outcome
    }

    /// Drops the datagrams that the policy lets wait no longer. Returns how many.
    pub(super) fn drop_late(&self, policy: Policy, now: Instant) -> usize {
        let since = match policy {
            Policy::Wait { deadline } => now.checked_sub(deadline),
            Policy::Drop => Some(now),
        };
        since.map_or(0, |since| self.output.borrow_mut().drop_older(since, self.in_flight()))
    }

    /// Sends what is held and what TLS wants to send. Returns how many datagrams were sent. Registers for more if something is left.
    ///
    /// # Errors
    /// The connection has failed.
    pub(super) fn flush(&self, cx: &mut Context<'_>, now: Instant) -> io::Result<usize> {
        loop {
            let mut output = self.output.borrow_mut();
            let wants_write = self.tls.borrow().as_ref().is_some_and(|tls| tls.wants_write());
            if output.is_empty() && !wants_write {
                return Ok(self.take_sent());
            }
            if !self.write_held(&mut output, now)? {
                match self.stream.poll_write_ready(cx) {
                    Poll::Ready(ready) => ready?,
                    Poll::Pending => return Ok(self.take_sent()),
                }
            }
        }
    }

    /// Writes what is held, as far as the system takes it. Returns whether it took anything.
    fn write_held(&self, output: &mut Output, now: Instant) -> io::Result<bool> {
        let written = self.write(output.unsent(), output.lengths())?;
        self.sent.set(self.sent.get() + output.advance(written.payload));
        if written.any {
            self.progress.set(now);
        }
        Ok(written.any)
    }

    /// Says that nothing more comes, as far as the socket has room.
    pub(super) fn say_goodbye(&self) {
        if let Some(tls) = self.tls.borrow_mut().as_mut() {
            tls.close();
            let _ = tls.write(&self.stream, &[], std::iter::empty());
        }
    }

    /// Sends `payload`, which has frames of these lengths, as far as the system takes it.
    fn write(&self, payload: &[u8], frames: impl Iterator<Item = usize>) -> io::Result<Written> {
        if let Some(tls) = self.tls.borrow_mut().as_mut() {
            return tls.write(&self.stream, payload, frames);
        }
        let mut written = Written::default();
        while written.payload < payload.len() {
            match self.stream.try_write(&payload[written.payload..]) {
                Ok(len) => written = Written { payload: written.payload + len, any: true },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Bytes at the front that are encrypted.
    fn in_flight(&self) -> usize {
        self.tls.borrow().as_ref().map_or(0, |tls| tls.in_flight())
    }

    fn hold(&self, output: &mut Output, frame: &[u8], kind: Kind, now: Instant) {
        if output.is_empty() {
            self.progress.set(now);
            // Its task waits for room, if it does not run just now.
            if !self.is_handled.get() {
                self.wake();
            }
        }
        output.push(frame, kind, now);
    }
}
