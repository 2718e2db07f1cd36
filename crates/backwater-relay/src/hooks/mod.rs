//! HTTP requests that the relay makes: events for a webhook. They have a thread of their own, for which no other waits.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

mod client;
mod events;

pub(crate) use client::HookUrl;
pub(crate) use events::EventSender;
use events::HookEvent;

use crate::health::Health;

/// How long events that wait may take to leave when the relay stops.
const FLUSH: Duration = Duration::from_secs(2);

/// What has become of requests.
#[derive(Debug, Default)]
pub(crate) struct HookCounters {
    events: AtomicU64,
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Hooks {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

/// The ends of the queues that the thread reads.
pub(crate) struct Queues {
    events: Option<(HookUrl, mpsc::Receiver<HookEvent>)>,
}

impl HookCounters {
    /// Returns what was counted, by name.
    pub(crate) fn by_name(&self) -> Vec<(&'static str, u64)> {
        vec![("events_sent", self.sent.load(Relaxed)), ("events_dropped", self.dropped.load(Relaxed))]
    }

    fn count_dropped(&self, events: usize) {
        self.dropped.fetch_add(events as u64, Relaxed);
    }
}

impl Queues {
    /// Makes the queue of events, if there is a webhook, and the end that the relay's threads have.
    pub(crate) fn new(events: Option<HookUrl>, counters: &Arc<HookCounters>) -> (Self, Option<EventSender>) {
        let events = events.map(|url| (url, events::queue(counters.clone())));
        let (events, sender) = events.map(|(url, (sender, receiver))| ((url, receiver), sender)).unzip();
        (Self { events }, sender)
    }
}

impl Hooks {
    /// Starts the thread if there is anything for it to do.
    pub(crate) fn start(queues: Queues, counters: Arc<HookCounters>, health: Health) -> io::Result<Option<Self>> {
        let Some((url, events)) = queues.events else { return Ok(None) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("relay-hooks".to_owned()).spawn(move || {
            let _guard = health.guard();
            runtime.block_on(async {
                let delivery = events::deliver(&url, events, &counters);
                tokio::pin!(delivery);
                tokio::select! {
                    () = &mut delivery => {}
                    // Also when the other end is gone.
                    _ = stopped => drop(tokio::time::timeout(FLUSH, &mut delivery).await),
                }
            });
            let HookCounters { events, sent, dropped } = &*counters;
            let left = events.load(Relaxed) - sent.load(Relaxed) - dropped.load(Relaxed);
            if left > 0 {
                warn!(events = left, "the relay stops before all events are delivered");
            }
            // A look-up of a name may go on for as long as the system's resolver likes.
            runtime.shutdown_background();
        })?;
        Ok(Some(Self { thread, stop }))
    }

    /// Delivers the events that wait, for as long as [`FLUSH`], and ends the thread.
    pub(crate) fn stop(self) {
        // Fails when it has ended by itself, which is as good.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests;
