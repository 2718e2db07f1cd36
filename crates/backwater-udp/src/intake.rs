//! What a socket's receiver reads: what earlier sockets at its place had received, the socket, and the connected sockets at its port.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use socket2::{SockRef, Socket};

use crate::{
    receiver::{RecvMeta, Room},
    socket::Inner,
    sys,
    wait::decision::Errno,
};

/// Bytes of one socket's receive buffer that are handed on, and the calls that read them. The rest is lost with that socket.
const MAX_CAUGHT_BYTES: usize = 4 << 20;
const MAX_CAUGHT_CALLS: usize = 256;

/// Connected sockets that are read at most: those in use, and as many that are to be closed when they are empty.
const MAX_ATTACHED: usize = 32;

/// Receive calls of the socket itself that go before the first of a connected one: what arrived there before is older.
const OLDER_CALLS: u8 = 64;

/// The lock is taken once for each receive call, which may return 64 GRO batches.
pub(crate) struct Intake(Mutex<Reading>);

struct Reading {
    reader: sys::Reader,
    /// Of the task that waits to receive.
    waker: Option<Waker>,
    caught: VecDeque<Caught>,
    attached: Vec<Attached>,
    /// Whose turn it is: 0 is the socket itself, the others are those that are attached.
    turn: usize,
}

/// A connected socket at the same port: the system hands it what its peer sends.
struct Attached {
    socket: Arc<Inner>,
    /// Receive calls of the socket itself that still go first.
    behind: u8,
    /// It is closed when it is empty.
    closing: bool,
    /// Whether it was found so, in an earlier call: the system may have been about to hand it a datagram.
    was_empty: bool,
}

/// A GRO batch, or a datagram, that another socket has received for this one.
struct Caught {
    meta: RecvMeta,
    payload: Box<[u8]>,
}

impl Intake {
    pub(crate) fn new(reader: sys::Reader) -> Self {
        let (caught, attached) = (VecDeque::new(), Vec::new());
        Self(Mutex::new(Reading { reader, waker: None, caught, attached, turn: 0 }))
    }

    /// Fills `room` with what was caught, or else calls `receive` with a socket that may have something. How many slots are filled.
    pub(crate) fn poll_receive(
        &self,
        main: &Inner,
        cx: &mut Context<'_>,
        room: &mut Room<'_, '_>,
        mut receive: impl FnMut(&Inner, &mut Room<'_, '_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut reading = self.lock();
        if !reading.caught.is_empty() {
            return Poll::Ready(Ok(hand_on(&mut reading.caught, room)));
        }
        let polled = if reading.attached.is_empty() {
            reading.reader.poll_receive(&main.io, cx, || receive(main, room))
        } else {
            reading.poll_all(main, cx, room, &mut receive)
        };
        let waker = &mut reading.waker;
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
    pub(crate) fn replace(&self, main: &Inner, new: Socket) -> io::Result<()> {
        let mut reading = self.lock();
        let old = reading.reader.replace(&main.io, new)?;
        reading.caught.extend(read_all(&old, &main.state));
        // They are connected at the former port.
        reading.attached.iter_mut().for_each(Attached::close);
        drop(old);
        wake(reading);
        Ok(())
    }

    /// Whether another connected socket may be attached. Not while many wait to be closed: the receiver is not polled.
    pub(crate) fn has_room(&self) -> bool {
        self.lock().attached.len() < MAX_ATTACHED
    }

    /// Reads a connected socket, too.
    pub(crate) fn attach(&self, socket: Arc<Inner>) {
        let mut reading = self.lock();
        reading.attached.push(Attached { socket, behind: OLDER_CALLS, closing: false, was_empty: false });
        wake(reading);
    }

    /// Nothing is sent on a connected socket any more: it is closed when it is empty.
    pub(crate) fn close(&self, socket: &Inner) {
        let mut reading = self.lock();
        let is_it = |one: &&mut Attached| std::ptr::eq(&*one.socket, socket);
        reading.attached.iter_mut().filter(is_it).for_each(Attached::close);
        wake(reading);
    }

    /// Calls `receive` when the socket itself may have something.
    fn poll_reader(
        &self,
        io: &sys::Io,
        cx: &mut Context<'_>,
        receive: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.lock().reader.poll_receive(io, cx, receive)
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    /// By turns. What is older goes first: a connected socket that is to be closed goes before the socket itself, and one that is
    /// new waits until that was empty.
    #[cold]
    fn poll_all(
        &mut self,
        main: &Inner,
        cx: &mut Context<'_>,
        room: &mut Room<'_, '_>,
        receive: &mut impl FnMut(&Inner, &mut Room<'_, '_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let Self { reader, attached, turn, .. } = self;
        let mut at = 0;
        while let Some(one) = attached.get_mut(at) {
            if !one.closing {
                at += 1;
                continue;
            }
            // Not by its readiness, which depends on tokio's budget.
            let is_gone = match receive(&one.socket, room) {
                Err(error) if is_dead(&error) => true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::mem::replace(&mut one.was_empty, true),
                result => return Poll::Ready(result),
            };
            if is_gone {
                attached.remove(at);
            } else {
                at += 1;
            }
        }
        let sources = attached.len() + 1;
        // In the second round for those that the socket itself went before.
        for round in 0..2 {
            let mut skipped = false;
            for at in (0..sources).map(|after| (*turn + after) % sources) {
                let polled = if let Some(one) = at.checked_sub(1).and_then(|at| attached.get(at)) {
                    skipped |= one.behind > 0;
                    if one.behind > 0 {
                        continue;
                    }
                    one.socket.intake.poll_reader(&one.socket.io, cx, || receive(&one.socket, room))
                } else if round > 0 {
                    continue;
                } else {
                    let polled = reader.poll_receive(&main.io, cx, || receive(main, room));
                    let left = |behind: u8| if polled.is_pending() { 0 } else { behind.saturating_sub(1) };
                    attached.iter_mut().for_each(|one| one.behind = left(one.behind));
                    polled
                };
                match polled {
                    Poll::Pending => {}
                    Poll::Ready(Err(error)) if at > 0 && is_dead(&error) => {
                        attached.remove(at - 1);
                        return Poll::Ready(Err(io::ErrorKind::Interrupted.into()));
                    }
                    Poll::Ready(result) => {
                        *turn = (at + 1) % sources;
                        return Poll::Ready(result);
                    }
                }
            }
            if !skipped {
                break;
            }
        }
        Poll::Pending
    }
}

impl Attached {
    fn close(&mut self) {
        self.closing = true;
        sys::deafen(&self.socket.sock_ref());
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
        for (meta, payload) in (0..slots).filter_map(|slot| buffers.gro_batch(slot)) {
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

fn is_dead(error: &io::Error) -> bool {
    sys::errno(error) == Errno::Socket
}

/// Unlocks, and then wakes the receiver: a waker may poll, and a poll takes the lock.
fn wake(mut reading: MutexGuard<'_, Reading>) {
    let waker = reading.waker.take();
    drop(reading);
    if let Some(waker) = waker {
        waker.wake();
    }
}
