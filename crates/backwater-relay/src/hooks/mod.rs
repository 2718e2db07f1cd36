//! HTTP requests that the relay makes: events for a webhook, and questions about users. They have a thread of their own, for which no other waits.

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
mod lookup;

pub(crate) use client::HookUrl;
pub(crate) use events::EventSender;
use events::HookEvent;
pub(crate) use lookup::Lookups;
use lookup::Questions;

use crate::{config::Config, health::Health};

/// How long events that wait may take to leave when the relay stops.
const FLUSH: Duration = Duration::from_secs(2);

/// What has become of requests.
#[derive(Debug, Default)]
pub(crate) struct HookCounters {
    events: AtomicU64,
    sent: AtomicU64,
    dropped: AtomicU64,
    lookups: AtomicU64,
    failed_lookups: AtomicU64,
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
    questions: Option<Questions>,
}

/// The ends that the relay's threads have.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) events: Option<EventSender>,
    pub(crate) lookups: Option<Lookups>,
}

impl HookCounters {
    /// Returns what was counted, by name.
    pub(crate) fn by_name(&self) -> Vec<(&'static str, u64)> {
        let Self { events: _, sent, dropped, lookups, failed_lookups } = self;
        let all = [
            ("events_sent", sent),
            ("events_dropped", dropped),
            ("lookups", lookups),
            ("failed_lookups", failed_lookups),
        ];
        all.map(|(name, counter)| (name, counter.load(Relaxed))).into()
    }

    fn count_dropped(&self, events: usize) {
        self.dropped.fetch_add(events as u64, Relaxed);
    }
}

impl Queues {
    /// Makes a queue for each hook that there is.
    pub(crate) fn new(config: &Config, counters: &Arc<HookCounters>) -> (Self, Ends) {
        let events = config.event_hook.clone().map(|url| {
            let (sender, receiver) = events::queue(counters.clone());
            ((url, receiver), sender)
        });
        let questions = config.auth_hook.clone().map(|url| lookup::queue(url, config.credentials.realm()));
        let ((events, sender), (questions, lookups)) = (events.unzip(), questions.unzip());
        (Self { events, questions }, Ends { events: sender, lookups })
    }
}

impl Hooks {
    /// Starts the thread if there is anything for it to do.
    pub(crate) fn start(queues: Queues, counters: Arc<HookCounters>, health: Health) -> io::Result<Option<Self>> {
        let Queues { events, questions } = queues;
        if events.is_none() && questions.is_none() {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("relay-hooks".to_owned()).spawn(move || {
            let _guard = health.guard();
            runtime.block_on(async {
                if let Some(questions) = questions {
                    tokio::spawn(lookup::ask_all(questions, counters.clone(), health.clone()));
                }
                // A stop is also that the other end is gone.
                let Some((url, events)) = events else { return drop(stopped.await) };
                let delivery = events::deliver(&url, events, &counters);
                tokio::pin!(delivery);
                tokio::select! {
                    () = &mut delivery => {}
                    _ = stopped => drop(tokio::time::timeout(FLUSH, &mut delivery).await),
                }
            });
            let HookCounters { events, sent, dropped, .. } = &*counters;
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
