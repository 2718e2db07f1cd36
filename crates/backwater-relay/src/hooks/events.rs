//! What becomes of allocations, for a webhook.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use backwater_turn::server::{Event, EventKind};
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::warn;

use super::{
    HookCounters,
    client::{HookUrl, post},
};
use crate::log_limit::LogLimit;

/// Events that may wait: 4 MiB with the longest user names.
const MAX_WAITING: usize = 4096;

/// Events of one request at most.
const MAX_BATCH: usize = 100;

/// How long to wait before a request is sent again that was not answered with 2xx.
const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// An event in JSON.
#[derive(Debug, Serialize)]
pub(super) struct HookEvent {
    event: &'static str,
    /// Seconds since 1970.
    time: f64,
    user: Box<str>,
    client: SocketAddr,
    transport: &'static str,
    relayed: Vec<SocketAddr>,
    #[serde(flatten)]
    about: About,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum About {
    Lifetime { lifetime_seconds: u64 },
    Closed { why: &'static str, duration_seconds: f64, bytes_to_peers: u64, bytes_to_client: u64 },
}

/// The end of the queue that a thread of the relay has.
#[derive(Clone, Debug)]
pub(crate) struct EventSender {
    queue: mpsc::Sender<HookEvent>,
    counters: Arc<HookCounters>,
}

pub(super) fn queue(counters: Arc<HookCounters>) -> (EventSender, mpsc::Receiver<HookEvent>) {
    let (queue, receiver) = mpsc::channel(MAX_WAITING);
    (EventSender { queue, counters }, receiver)
}

impl EventSender {
    /// Queues an event, or counts it as dropped. Never waits.
    pub(crate) fn send(&self, event: &Event) {
        self.counters.events.fetch_add(1, Relaxed);
        if self.queue.try_send(HookEvent::from(event)).is_err() {
            self.counters.count_dropped(1);
        }
    }
}

impl From<&Event> for HookEvent {
    fn from(event: &Event) -> Self {
        let (name, about) = match event.kind {
            EventKind::Made(lifetime) => ("allocated", About::Lifetime { lifetime_seconds: lifetime.as_secs() }),
            EventKind::Refreshed(lifetime) => ("refreshed", About::Lifetime { lifetime_seconds: lifetime.as_secs() }),
            EventKind::Ended { why, bytes_to_peers, bytes_to_client } => {
                let duration_seconds = event.created.elapsed().as_secs_f64();
                ("closed", About::Closed { why: why.name(), duration_seconds, bytes_to_peers, bytes_to_client })
            }
        };
        Self {
            event: name,
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            user: event.user.clone(),
            client: event.client.0,
            transport: event.protocol.name(),
            relayed: event.relayed.v4.iter().chain(&event.relayed.v6).map(|relayed| relayed.0).collect(),
            about,
        }
    }
}

/// The body of a request.
#[derive(Serialize)]
struct Batch<'a> {
    events: &'a [HookEvent],
}

/// Posts events in their order until all senders are gone and the queue is empty.
pub(super) async fn deliver(url: &HookUrl, mut queue: mpsc::Receiver<HookEvent>, counters: &HookCounters) {
    let (limit, mut dropped) = (LogLimit::once_a_minute(Instant::now()), 0);
    let mut events = Vec::new();
    while queue.recv_many(&mut events, MAX_BATCH).await > 0 {
        let problem = match serde_json::to_string(&Batch { events: &events }) {
            Ok(json) => post_and_retry(url, &json).await.err(),
            Err(error) => Some(error.to_string()),
        };
        match &problem {
            None => drop(counters.sent.fetch_add(events.len() as u64, Relaxed)),
            Some(_) => counters.count_dropped(events.len()),
        }
        events.clear();
        let all = counters.dropped.load(Relaxed);
        if all > dropped && limit.allows(Instant::now()) {
            let problem = problem.unwrap_or_else(|| "the queue was full".to_owned());
            warn!(problem, events = all - dropped, "events are dropped: event-hook does not take them");
            dropped = all;
        }
    }
}

async fn post_and_retry(url: &HookUrl, json: &str) -> Result<(), String> {
    let mut waits = RETRIES.into_iter();
    loop {
        let problem = match post(url, json.to_owned()).await {
            Ok((status, _)) if status.is_success() => return Ok(()),
            Ok((status, _)) => format!("status {status}"),
            Err(problem) => problem,
        };
        match waits.next() {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(problem),
        }
    }
}
