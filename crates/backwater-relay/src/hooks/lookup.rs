//! Users whom a hook knows.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use backwater_turn::{Directory, HashedPassword};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, mpsc};
use tracing::warn;

use super::{
    HookCounters,
    client::{HookUrl, post},
};
use crate::{health::Health, log_limit::LogLimit};

/// Names that may wait to be asked about.
const MAX_WAITING: usize = 1024;

/// Requests at once.
const MAX_REQUESTS: usize = 16;

/// How long an answer is good that does not say so.
const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// The longest that an answer may be good.
const MAX_TTL: Duration = Duration::from_secs(86_400);

/// How long it is good that there is no such user.
const NOBODY_TTL: Duration = Duration::from_secs(10);

/// How long users are refused after the hook has failed to answer about them.
const FAILURE_TTL: Duration = Duration::from_secs(5);

/// What the relay's threads know of users by the hook.
#[derive(Clone, Debug)]
pub(crate) struct Lookups {
    pub(crate) directory: Arc<Directory>,
    /// Notified after each answer.
    pub(crate) answered: Arc<Notify>,
}

/// What the thread of the hooks has of it.
pub(super) struct Questions {
    url: Arc<HookUrl>,
    realm: Arc<str>,
    names: mpsc::Receiver<Box<str>>,
    lookups: Lookups,
}

/// A request in JSON.
#[derive(Serialize)]
struct Question<'a> {
    user: &'a str,
    realm: &'a str,
}

/// An answer in JSON.
#[derive(Deserialize)]
struct Answer {
    password: Option<String>,
    /// As `hash-password` prints them.
    keys: Option<String>,
    /// Seconds.
    ttl: Option<u64>,
}

pub(super) fn queue(url: HookUrl, realm: &str) -> (Questions, Lookups) {
    let (sender, names) = mpsc::channel::<Box<str>>(MAX_WAITING);
    let directory = Directory::new(Instant::now(), move |name| sender.try_send(name.into()).is_ok());
    let lookups = Lookups { directory: Arc::new(directory), answered: Arc::default() };
    (Questions { url: Arc::new(url), realm: realm.into(), names, lookups: lookups.clone() }, lookups)
}

/// Asks the hook about names, a few at once.
pub(super) async fn ask_all(questions: Questions, counters: Arc<HookCounters>, health: Health) {
    let Questions { url, realm, mut names, lookups } = questions;
    let (places, limit) = (Arc::new(Semaphore::new(MAX_REQUESTS)), LogLimit::once_a_minute(Instant::now()));
    let (failed, mut failures) = mpsc::channel::<String>(1);
    loop {
        let name = tokio::select! {
            name = names.recv() => name,
            Some(problem) = failures.recv() => {
                if limit.allows(Instant::now()) {
                    warn!(problem, "auth-hook does not say who users are: they are refused");
                }
                continue;
            }
        };
        // The semaphore is never closed.
        let (Some(name), Ok(place)) = (name, places.clone().acquire_owned().await) else { return };
        let (url, realm, lookups) = (url.clone(), realm.clone(), lookups.clone());
        let (counters, failed, guard) = (counters.clone(), failed.clone(), health.guard());
        tokio::spawn(async move {
            let _guard = guard;
            let answer = ask(&url, &name, &realm).await;
            counters.lookups.fetch_add(1, Relaxed);
            let (keys, ttl) = match answer {
                Ok(Some((keys, ttl))) => (Some(keys), ttl),
                Ok(None) => (None, NOBODY_TTL),
                Err(problem) => {
                    counters.failed_lookups.fetch_add(1, Relaxed);
                    // One that waits already says enough.
                    let _ = failed.try_send(problem);
                    (None, FAILURE_TTL)
                }
            };
            lookups.directory.answer(&name, keys.as_ref(), Instant::now() + ttl);
            lookups.answered.notify_waiters();
            drop(place);
        });
    }
}

/// Asks the hook about a user. `None`: there is no such user.
async fn ask(url: &HookUrl, user: &str, realm: &str) -> Result<Option<(HashedPassword, Duration)>, String> {
    let json = serde_json::to_string(&Question { user, realm }).map_err(|error| error.to_string())?;
    match post(url, json).await? {
        (StatusCode::OK, body) => read(&body, user, realm).map(Some),
        (StatusCode::NOT_FOUND, _) => Ok(None),
        (status, _) => Err(format!("status {status}")),
    }
}

/// Reads the keys of a user, and how long they are good. No error has a part of the answer: it may be a password.
fn read(body: &Bytes, user: &str, realm: &str) -> Result<(HashedPassword, Duration), String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        format!("expected an answer with password or keys in JSON, found something else at {place}")
    })?;
    let keys = match (answer.password, answer.keys) {
        (Some(password), None) => HashedPassword::new(user, realm, &password),
        (None, Some(keys)) => keys.parse(),
        (Some(_), Some(_)) | (None, None) => return Err("expected either password or keys in the answer".to_owned()),
    };
    let ttl = answer.ttl.map_or(DEFAULT_TTL, Duration::from_secs).clamp(Duration::from_secs(1), MAX_TTL);
    Ok((keys.map_err(|error| format!("expected a password or keys, but {error}"))?, ttl))
}
