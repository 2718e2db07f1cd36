//! `/sessions`: the allocations, asked of each thread by mail.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::Response,
};
use serde::Serialize;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tracing::info;

use super::{
    Control,
    http::{json, pairs, refuse},
};
use crate::worker::{
    mobility::Mail,
    sessions::{Question, SessionId, SessionView},
};

/// A request waits no longer for the relay's threads, all together.
const DEADLINE: Duration = Duration::from_secs(2);

/// Sessions of a page: by default, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// A page of the list.
#[derive(Serialize)]
struct List {
    sessions: Vec<SessionView>,
    /// The value of `after` for the next page; `None` at the end.
    next: Option<String>,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// The thread, and the index of its next allocation.
    after: (usize, usize),
    limit: usize,
    user: Option<Arc<str>>,
}

pub(super) async fn list(State(control): State<Arc<Control>>, RawQuery(query): RawQuery) -> Response {
    let Wanted { after: (mut thread, mut from), limit, user } = match Wanted::read(&query.unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(reason) => return refuse(StatusCode::BAD_REQUEST, &reason),
    };
    let (mut sessions, deadline) = (Vec::new(), Instant::now() + DEADLINE);
    while thread < control.threads.len() && sessions.len() < limit {
        let (limit, user) = (limit - sessions.len(), user.clone());
        let question = |answer| Question::Page { from, limit, user, answer };
        let page = match ask(&control, thread, deadline, question).await {
            Ok(page) => page,
            Err(refusal) => return refusal,
        };
        sessions.extend(page.sessions);
        (thread, from) = page.next.map_or((thread + 1, 0), |next| (thread, next));
    }
    let next = (thread < control.threads.len()).then(|| format!("{thread}.{from}"));
    json(&List { sessions, next })
}

pub(super) async fn one(State(control): State<Arc<Control>>, Path(id): Path<String>) -> Response {
    answered(about(&control, &id, |id, answer| Question::Session { id, answer }).await)
}

pub(super) async fn end(State(control): State<Arc<Control>>, Path(id): Path<String>) -> Response {
    let ended = about(&control, &id, |id, answer| Question::End { id, answer }).await;
    if let Ok(Some(SessionView { client, user, .. })) = &ended {
        let user: String = user.escape_debug().take(128).collect();
        info!(%client, user, session = id, by = "an HTTP request", "allocation ended by the operator");
    }
    answered(ended)
}

fn answered(view: Result<Option<SessionView>, Response>) -> Response {
    match view {
        Ok(Some(view)) => json(&view),
        Ok(None) => refuse(StatusCode::NOT_FOUND, "no such session; it may have ended, or moved to another thread"),
        Err(refusal) => refusal,
    }
}

/// Asks the thread of a session about it. `None` if there is none.
async fn about(
    control: &Control,
    id: &str,
    question: impl FnOnce(backwater_turn::server::AllocationId, oneshot::Sender<Option<SessionView>>) -> Question,
) -> Result<Option<SessionView>, Response> {
    let Some(SessionId { thread, id }) = SessionId::read(id).filter(|id| id.thread < control.threads.len()) else {
        return Ok(None);
    };
    ask(control, thread, Instant::now() + DEADLINE, |answer| question(id, answer)).await
}

/// Asks a thread. It does so after what it has to do already; who asks waits, but not for ever.
async fn ask<T>(
    control: &Control,
    thread: usize,
    deadline: Instant,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Result<T, Response> {
    let (answer, answered) = oneshot::channel();
    let sent = control.threads.get(thread).map(|view| view.mailbox.try_send(Mail::Question(question(answer))));
    let answer = match sent {
        Some(Ok(())) => timeout_at(deadline, answered).await.ok().and_then(Result::ok),
        Some(Err(_)) | None => None,
    };
    answer.ok_or_else(|| {
        refuse(StatusCode::SERVICE_UNAVAILABLE, &format!("thread {thread} did not answer within {DEADLINE:?}"))
    })
}

impl Wanted {
    /// Reads a query, such as `limit=10&after=0.10&user=alice`.
    fn read(query: &str) -> Result<Self, String> {
        let mut wanted = Self { after: (0, 0), limit: DEFAULT_LIMIT, user: None };
        for pair in pairs(query) {
            let (name, value) = pair?;
            match name {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                    wanted.limit = limit.ok_or_else(|| format!("limit: expected a number from 1 to {MAX_LIMIT}"))?;
                }
                "after" => {
                    let number = |text: &str| text.parse::<usize>().ok();
                    let place = value.split_once('.').and_then(|(a, b)| Some((number(a)?, number(b)?)));
                    wanted.after = place.ok_or("after: expected what the last page has as next")?;
                }
                "user" => wanted.user = Some(value.into()),
                _ => return Err("expected limit, after or user".to_owned()),
            }
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_has_a_limit_a_place_and_a_user() {
        let wanted = |after, limit, user: Option<&str>| Wanted { after, limit, user: user.map(Arc::from) };
        for (query, expected) in [
            ("", wanted((0, 0), 100, None)),
            ("limit=1000", wanted((0, 0), 1000, None)),
            ("limit=1&after=3.4096&user=a%20b%26c+d", wanted((3, 4096), 1, Some("a b&c d"))),
            ("user=", wanted((0, 0), 100, Some(""))),
        ] {
            assert_eq!(Wanted::read(query), Ok(expected), "{query}");
        }
        for query in
            ["limit=0", "limit=1001", "limit=x", "limit", "after=1", "after=1.x", "after=-1.0", "user=%ff", "x=1"]
        {
            let reason = Wanted::read(query).unwrap_err();
            assert!(reason.contains("expected") && !reason.contains('\n'), "{query}: {reason}");
        }
    }

    #[tokio::test]
    async fn thread_that_has_gone_is_named() {
        // Nobody reads their mail.
        let control = Arc::new(Control::of_threads(2));
        let response = one(State(control.clone()), Path("1-0-1".to_owned())).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let response = list(State(control.clone()), RawQuery(None)).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(one(State(control), Path("2-0-1".to_owned())).await.status(), StatusCode::NOT_FOUND);
    }
}
