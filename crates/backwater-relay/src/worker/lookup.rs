//! Requests that wait until it is known who their user is.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashSet,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use backwater_turn::{
    FiveTuple,
    server::{Action, DropReason, MAX_REPLY},
};
use tokio::{sync::Notify, task::spawn_local};

use super::{Worker, now};
use crate::ingress::ClientLink;

/// Requests of a thread that may wait, and bytes of one: 512 KiB together.
const MAX_WAITING: usize = 256;
const MAX_REQUEST: usize = 2048;

/// How long a request waits: a little longer than the hook has for its answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// The requests of a thread that wait. The client may have sent one several times: it waits once.
#[derive(Default)]
pub(crate) struct Waiting {
    requests: RefCell<HashSet<(FiveTuple, Rc<[u8]>)>>,
    /// Notified after each answer.
    answered: OnceCell<Arc<Notify>>,
}

impl Waiting {
    /// Sets who says that there are answers. The first one counts.
    pub(crate) fn set_answered(&self, answered: Arc<Notify>) {
        let _ = self.answered.set(answered);
    }

    /// Returns the request if it may wait.
    fn add(&self, from: FiveTuple, request: &[u8]) -> Option<(Arc<Notify>, Rc<[u8]>)> {
        let answered = self.answered.get()?.clone();
        let mut requests = self.requests.borrow_mut();
        let request: Rc<[u8]> = request.into();
        let has_room = requests.len() < MAX_WAITING && request.len() <= MAX_REQUEST;
        (has_room && requests.insert((from, request.clone()))).then_some((answered, request))
    }
}

impl Worker {
    /// Handles a request again after the next answers about users, until one is about its own. The thread goes on meanwhile.
    pub(crate) fn handle_later(self: &Rc<Self>, link: ClientLink, from: FiveTuple, request: &[u8]) {
        let Some((answered, request)) = self.waiting.add(from, request) else {
            return self.counters.count_drop(DropReason::Lookup, 1);
        };
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            let until_answered = async {
                loop {
                    let next = std::pin::pin!(answered.notified());
                    let mut next = next;
                    // An answer that comes from here on is not missed.
                    next.as_mut().enable();
                    if worker.handle_again(link, from, &request) {
                        break;
                    }
                    next.await;
                }
            };
            if tokio::time::timeout(DEADLINE, until_answered).await.is_err() {
                worker.counters.count_drop(DropReason::Lookup, 1);
            }
            worker.waiting.requests.borrow_mut().remove(&(from, request));
        });
    }

    /// Returns whether nothing more is to be done about the request.
    fn handle_again(self: &Rc<Self>, link: ClientLink, from: FiveTuple, request: &[u8]) -> bool {
        if !self.has_link(link) {
            return true;
        }
        let (now, mut reply) = (now(), [0; MAX_REPLY]);
        let action = self.server.borrow_mut().handle_client(now, from, request, &mut reply);
        if action == Action::Drop(DropReason::Lookup) {
            return false;
        }
        self.act(link, now.instant, from, action, &mut reply);
        self.log_events();
        true
    }
}
