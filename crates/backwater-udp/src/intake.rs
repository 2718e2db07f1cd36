//! What a socket's receiver reads: what earlier sockets at its place had received, and then the socket.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use socket2::{SockRef, Socket};

use crate::{
    receiver::{RecvMeta, Room},
    sys,
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
    meta: RecvMeta,
    payload: Box<[u8]>,
}

impl Intake {
    pub(crate) fn new(reader: sys::Reader) -> Self {
        Self(Mutex::new(Reading { reader, waker: None, caught: VecDeque::new() }))
    }

    /// Fills `room` with what was caught, or else calls `receive` when there may be something. How many slots are filled.
    pub(crate) fn poll_receive(
        &self,
        io: &sys::Io,
        cx: &mut Context<'_>,
        room: &mut Room<'_, '_>,
        mut receive: impl FnMut(&mut Room<'_, '_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut reading = self.lock();
        let Reading { reader, waker, caught } = &mut *reading;
        if !caught.is_empty() {
            return Poll::Ready(Ok(hand_on(caught, room)));
        }
        let polled = reader.poll_receive(io, cx, || receive(room));
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

/// What is in a socket's receive buffer.
fn read_all(socket: &Socket, state: &sys::State) -> Vec<Caught> {
    let (mut buffers, mut caught, mut bytes) = (sys::Buffers::new(8), Vec::new(), 0);
    for _ in 0..MAX_CAUGHT_CALLS {
        if bytes >= MAX_CAUGHT_BYTES {
            break;
        }
        let Ok(slots) = buffers.receive(SockRef::from(socket), state) else { break };
        for (meta, payload) in (0..slots).filter_map(|slot| buffers.train(slot)) {
            bytes += payload.len();
            caught.push(Caught { meta: *meta, payload: payload.into() });
        }
    }
    caught
}

fn hand_on(caught: &mut VecDeque<Caught>, room: &mut Room<'_, '_>) -> usize {
    let slots = room.slots().min(caught.len());
    for (slot, Caught { meta, payload }) in caught.drain(..slots).enumerate() {
        room.put(slot, &meta, &payload);
    }
    if caught.is_empty() {
        *caught = VecDeque::new();
    }
    slots
}
