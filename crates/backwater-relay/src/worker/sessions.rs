//! What the administration asks a thread, by mail: its allocations, and the end of one.

use std::fmt;

use serde::Serialize;
use tokio::sync::oneshot;

use super::*;
use crate::counters::DELAY;

/// Places in the table of allocations that one question looks at: they take less than a millisecond.
const MAX_PLACES: usize = 4096;

/// A question of the administration. The thread ignores an asker that waits no longer.
pub(crate) enum Question {
    /// How long the thread takes to come to a new task: since when this one waits.
    Delay(Instant),
    /// The allocations from this index on: at most so many, and of this user alone if one is named.
    Page { from: usize, limit: usize, user: Option<Arc<str>>, answer: oneshot::Sender<Page> },
    /// One allocation.
    Session { id: AllocationId, answer: oneshot::Sender<Option<SessionView>> },
    /// One allocation, which is to end.
    End { id: AllocationId, answer: oneshot::Sender<Option<SessionView>> },
}

/// Some of a thread's allocations.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) sessions: Vec<SessionView>,
    /// The index from which to ask on; `None` at the end.
    pub(crate) next: Option<usize>,
}

/// The id of an allocation in the whole relay. In JSON and as text: `THREAD-INDEX-GENERATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionId {
    pub(crate) thread: usize,
    pub(crate) id: AllocationId,
}

/// An allocation, as `/sessions` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct SessionView {
    id: SessionId,
    pub(crate) user: String,
    pub(crate) client: SocketAddr,
    /// The listener that the client uses.
    server: SocketAddr,
    transport: &'static str,
    /// The relayed addresses, as peers see them.
    relayed: Vec<SocketAddr>,
    age_seconds: f64,
    expires_in_seconds: f64,
    /// Payload, as all bytes here.
    bytes_to_peers: u64,
    bytes_to_client: u64,
    permissions: usize,
    channels: usize,
}

impl Worker {
    pub(super) fn answer(&self, question: Question) {
        // A send fails if the asker has gone.
        match question {
            Question::Delay(since) => {
                self.counters.delays.observe(&DELAY, since.elapsed().as_micros().try_into().unwrap_or(u64::MAX));
            }
            Question::Page { from, limit, user, answer } => {
                drop(answer.send(self.page(from, limit, user.as_deref())));
            }
            Question::Session { id, answer } => {
                drop(answer.send(self.view(id)));
            }
            Question::End { id, answer } => {
                let view = self.view(id);
                let ended = self.server.borrow_mut().end(id);
                if let Some(families) = ended {
                    self.close(id, families);
                    self.log_events();
                }
                drop(answer.send(view));
            }
        }
    }

    fn page(&self, from: usize, limit: usize, user: Option<&str>) -> Page {
        let server = self.server.borrow();
        let end = server.indices().min(from.saturating_add(MAX_PLACES));
        let (mut sessions, mut next) = (Vec::new(), (end < server.indices()).then_some(end));
        for session in server.sessions(from..end).filter(|s| user.is_none_or(|user| s.user == user)) {
            if sessions.len() == limit {
                next = Some(session.id.index());
                break;
            }
            sessions.push(self.shown(&session));
        }
        Page { sessions, next }
    }

    fn view(&self, id: AllocationId) -> Option<SessionView> {
        self.server.borrow().session(id).map(|session| self.shown(&session))
    }

    fn shown(&self, session: &server::Session<'_>) -> SessionView {
        let (PerFamily { v4, v6 }, now) = (session.relayed, Instant::now());
        SessionView {
            id: SessionId { thread: self.number, id: session.id },
            user: session.user.to_owned(),
            client: session.five_tuple.client.0,
            server: session.five_tuple.server,
            transport: session.five_tuple.protocol.name(),
            relayed: v4.into_iter().chain(v6).map(|relayed| relayed.0).collect(),
            age_seconds: now.saturating_duration_since(session.created).as_secs_f64(),
            expires_in_seconds: session.expires.map_or(0.0, |at| at.saturating_duration_since(now).as_secs_f64()),
            bytes_to_peers: session.bytes_to_peers,
            bytes_to_client: session.bytes_to_client,
            permissions: session.permissions,
            channels: session.channels,
        }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.thread, self.id)
    }
}

impl Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl SessionId {
    /// Reads what `Display` writes.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (thread, id) = text.split_once('-')?;
        Some(Self { thread: thread.parse().ok()?, id: id.parse().ok()? })
    }
}
