//! Allocations that follow their client to another thread (RFC 8016).
//!
//! A thread never looks into another's state: it asks for an allocation by mail, and gets it with its sockets, or learns why
//! not. Neither waits. An allocation on its own thread takes the same way.

use std::rc::Rc;

use arrayvec::ArrayVec;
use backwater_stun::Code;
use backwater_turn::server::DetachedAllocation;
use tokio::sync::mpsc;
use tracing::debug;

use super::{sessions::Question, *};

pub(crate) type Mailbox = mpsc::Sender<Mail>;
pub(crate) type Inbox = mpsc::Receiver<Mail>;

/// Mail that may wait for one thread.
const MAX_MAIL: usize = 256;

pub(crate) enum Mail {
    /// Who has sent it would like to have an allocation.
    Ask { from: Mailbox, link: ClientLink, request: Box<HandoverRequest> },
    /// Here it is, or why not.
    Answer { link: ClientLink, request: Box<HandoverRequest>, parcel: Result<Parcel, Code> },
    /// The administration asks something.
    Question(Question),
    /// A test wants to see what becomes of a panic.
    #[cfg(test)]
    Panic,
    /// A test wants to see what becomes of a thread that hangs until it is told to go on.
    #[cfg(test)]
    Hang(std::sync::mpsc::Receiver<()>),
}

/// An allocation with its sockets, registered nowhere.
pub(crate) struct Parcel {
    moved: DetachedAllocation,
    sockets: ArrayVec<(std::net::UdpSocket, Lease), 2>,
}

pub(crate) fn mailbox() -> (Mailbox, Inbox) {
    mpsc::channel(MAX_MAIL)
}

impl Worker {
    /// Starts the task that answers the other threads, in the current `LocalSet`.
    pub(crate) fn start_moving(self: &Rc<Self>, mut inbox: Inbox) {
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            while let Some(mail) = inbox.recv().await {
                match mail {
                    Mail::Ask { from, link, request } => {
                        // The place for the answer comes first: what has been given must not get lost.
                        match from.try_reserve() {
                            Ok(place) => {
                                let parcel = worker.hand_over(&request);
                                place.send(Mail::Answer { link, request, parcel });
                            }
                            Err(_) => worker.counters.count_drop(DropReason::InProgress, 1),
                        }
                    }
                    Mail::Answer { link, request, parcel } => worker.settle(link, &request, parcel),
                    Mail::Question(question) => worker.answer(question),
                    #[cfg(test)]
                    Mail::Panic => panic!("by mail"),
                    #[cfg(test)]
                    Mail::Hang(until) => drop(until.recv()),
                }
            }
        });
    }

    /// Asks the thread that has it for an allocation. When that has too much to do, the client's retransmission asks again.
    pub(super) fn ask(&self, link: ClientLink, request: Box<HandoverRequest>) {
        let from = self.mailboxes.get(self.number).cloned();
        let sent = self
            .mailboxes
            .get(request.thread())
            .zip(from)
            .is_some_and(|(mailbox, from)| mailbox.try_send(Mail::Ask { from, link, request }).is_ok());
        if !sent {
            self.counters.count_drop(DropReason::InProgress, 1);
        }
    }

    fn hand_over(&self, request: &HandoverRequest) -> Result<Parcel, Code> {
        let mut relayed = self.relayed.borrow_mut();
        let place = relayed.get_mut(request.id().index()).ok_or(Code::ALLOCATION_MISMATCH)?;
        let all = || place.iter().filter(|relayed| relayed.id == request.id()).flat_map(Relayed::sockets);
        // What may fail comes before anything is changed.
        let copies: io::Result<ArrayVec<_, 2>> = all().map(|s| s.endpoint.socket.try_clone_std()).collect();
        let copies = copies.map_err(|_| Code::INSUFFICIENT_CAPACITY)?;
        let moved = self.server.borrow_mut().detach(request)?;
        let taken = place.take();
        taken.iter().for_each(|relayed| self.link_released(relayed.link, relayed.id));
        let PerFamily { v4, v6 } = taken.map(|relayed| relayed.sockets).unwrap_or_default();
        let sockets = v4.into_iter().chain(v6).zip(copies).filter_map(|(Socket { relayed, endpoint, task }, copy)| {
            self.by_port.borrow_mut().get_mut(AddressFamily::of(&relayed.0)).remove(&relayed.0.port());
            task.abort();
            Some((copy, Rc::into_inner(endpoint)?.into_lease()?))
        });
        Ok(Parcel { moved, sockets: sockets.collect() })
    }

    fn settle(self: &Rc<Self>, link: ClientLink, request: &HandoverRequest, parcel: Result<Parcel, Code>) {
        let mut reply = [0; MAX_REPLY];
        let now = Instant::now();
        let came = parcel.is_ok();
        let mut opened = ArrayVec::<_, 2>::new();
        let given = parcel.and_then(|Parcel { moved, sockets }| {
            for (socket, lease) in sockets {
                let socket = self.builder.from_std(socket).map_err(|_| Code::INSUFFICIENT_CAPACITY)?;
                opened.push((socket, lease));
            }
            Ok(moved)
        });
        let (id, action) = self.server.borrow_mut().attach(now, request, given, &mut reply);
        match id {
            Some(id) => {
                for (socket, lease) in opened {
                    self.open(link, id, socket, lease);
                }
                if came && request.thread() != self.number {
                    self.counters.moved.add(1);
                }
                debug!(client = %request.to().client, "allocation moved");
            }
            None if came => self.counters.closed.add(1),
            None => {}
        }
        self.act(link, now, request.to(), action, &mut reply);
        // The client's connection may have ended meanwhile.
        if !self.is_link_alive(link) {
            let gone = self.server.borrow_mut().client_gone(request.to());
            gone.into_iter().for_each(|(id, families)| self.close(id, families));
        }
        self.log_events();
    }
}
