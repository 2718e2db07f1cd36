//! What a socket's receiver reads: what earlier sockets at its place had received, and then the socket.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use socket2::{SockRef, Socket};

use crate::{
    Ecn,
    sys::{self, RawTrain},
};

/// Bytes of one socket's receive buffer that are handed on, and the calls that read them. The rest is lost with that socket.
const MAX_CAUGHT_BYTES: usize = 4 << 20;
const MAX_CAUGHT_CALLS: usize = 256;

/// The lock is taken once for each receive call, which may return 64 GRO batches.
pub(crate) struct Intake(Mutex<Reading>);

struct Reading {
    reader: sys::Reader,
    /// Of the task that waits to receive.
    waker: Option<Waker>,
    caught: VecDeque<Caught>,
}

/// A GRO batch, or a datagram, that another socket has received for this one.
pub(crate) struct Caught {
    source: SocketAddr,
    local_ip: Option<IpAddr>,
    ecn: Option<Ecn>,
    hop_limit: Option<u8>,
    segment_size: usize,
    payload: Box<[u8]>,
}

impl Intake {
    pub(crate) fn new(reader: sys::Reader) -> Self {
        Self(Mutex::new(Reading { reader, waker: None, caught: VecDeque::new() }))
    }

    /// Fills `buffers` with what was caught, or else calls `receive` when there may be something. How many slots are filled.
    pub(crate) fn poll_receive(
        &self,
        io: &sys::Io,
        cx: &mut Context<'_>,
        buffers: &mut sys::Buffers,
        mut receive: impl FnMut(&mut sys::Buffers) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut reading = self.lock();
        let Reading { reader, waker, caught } = &mut *reading;
        if !caught.is_empty() {
            return Poll::Ready(Ok(hand_on(caught, buffers)));
        }
        let polled = reader.poll_receive(io, cx, || receive(buffers));
        let is_known = || waker.as_ref().is_some_and(|known| known.will_wake(cx.waker()));
        let before = if polled.is_pending() && !is_known() { waker.replace(cx.waker().clone()) } else { None };
        drop(reading);
        // A waker may own a task, and that a receiver.
        drop(before);
        polled
    }

    /// Puts `new` in the place of the socket, whose receive buffer is handed on, and wakes the receiver.
    ///
    /// # Errors
    /// Those of the system. The socket is then in use as before.
    pub(crate) fn replace(&self, io: &sys::Io, state: &sys::State, new: Socket) -> io::Result<()> {
        let mut reading = self.lock();
        let old = reading.reader.replace(io, new)?;
        reading.caught.extend(read_all(&old, state));
        let waker = reading.waker.take();
        drop(old);
        drop(reading);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<RawTrain<'_>> for Caught {
    fn from(train: RawTrain<'_>) -> Self {
        let RawTrain { source, local_ip, ecn, hop_limit, segment_size, payload } = train;
        Self { source, local_ip, ecn, hop_limit, segment_size, payload: payload.into() }
    }
}

impl Caught {
    fn as_train(&self) -> RawTrain<'_> {
        let Self { source, local_ip, ecn, hop_limit, segment_size, ref payload } = *self;
        RawTrain { source, local_ip, ecn, hop_limit, segment_size, payload }
    }
}

/// What is in a socket's receive buffer.
fn read_all(socket: &Socket, state: &sys::State) -> Vec<Caught> {
    let (mut buffers, mut caught, mut bytes) = (sys::Buffers::new(8), Vec::new(), 0);
    for _ in 0..MAX_CAUGHT_CALLS {
        if bytes >= MAX_CAUGHT_BYTES {
            break;
        }
        let Ok(slots) = buffers.receive(SockRef::from(socket), state) else { break };
        for train in (0..slots).filter_map(|slot| buffers.train(slot)) {
            bytes += train.payload.len();
            caught.push(train.into());
        }
    }
    caught
}

fn hand_on(caught: &mut VecDeque<Caught>, buffers: &mut sys::Buffers) -> usize {
    let slots = buffers.slots().min(caught.len());
    for (slot, train) in caught.drain(..slots).enumerate() {
        buffers.put(slot, &train.as_train());
    }
    if caught.is_empty() {
        *caught = VecDeque::new();
    }
    slots
}
