//! Changes of the configuration that reach the threads while they run.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::{spawn_local, yield_now},
};

use crate::{
    config::{Config, Shared},
    worker::Worker,
};

/// How long the threads have for a change before somebody is told that they are late. A thread that is not busy takes microseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Permissions that a thread judges by new rules before it goes on with datagrams: about a tenth of a millisecond.
const REVIEWED_AT_ONCE: usize = 1000;

/// A configuration for all threads.
pub(crate) struct Update {
    config: Config,
    shared: Shared,
    /// Each thread says here that it has applied it.
    applied: mpsc::Sender<()>,
}

/// Where the threads receive updates. One that comes before the last is applied replaces it.
pub(crate) type UpdateReceiver = watch::Receiver<Option<Arc<Update>>>;

/// The sending side, with the configuration that the threads have.
pub(crate) struct Updates {
    pub(crate) current: Config,
    shared: Shared,
    sender: watch::Sender<Option<Arc<Update>>>,
}

impl Updates {
    pub(crate) fn new(current: Config, shared: Shared) -> (Self, UpdateReceiver) {
        let (sender, receiver) = watch::channel(None);
        (Self { current, shared, sender }, receiver)
    }

    /// Sends a configuration to the threads, and waits until they have applied it. Returns false if one is late; it applies it
    /// later. The old configuration is dropped here: a large one takes time.
    pub(crate) async fn send(&mut self, config: Config) -> bool {
        self.shared.change(&self.current, &config, Instant::now());
        let (applied, mut all) = mpsc::channel(config.threads.max(1));
        let update = Update { config: config.clone(), shared: self.shared.clone(), applied };
        self.sender.send_replace(Some(Arc::new(update)));
        let all_applied = async {
            for _ in 0..config.threads {
                let _ = all.recv().await;
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, all_applied).await.is_ok();
        self.current = config;
        in_time
    }
}

impl Worker {
    /// Starts the task that applies updates, in the current `LocalSet`.
    pub(crate) fn start_updates(self: &Rc<Self>, mut updates: UpdateReceiver) {
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            while updates.changed().await.is_ok() {
                let update = updates.borrow_and_update().clone();
                if let Some(update) = update {
                    worker.apply(&update).await;
                    // There is room for each thread. Nobody waits for an update that another one has replaced.
                    let _ = update.applied.try_send(());
                }
            }
        });
    }

    async fn apply(&self, Update { config, shared, .. }: &Update) {
        let mut server = config.server(shared, self.number as u16);
        {
            let mut running = self.server.borrow_mut();
            server.peers.listeners = running.listeners().to_vec();
            running.reconfigure(server);
        }
        self.lines.log_allocations(config.log_allocations);
        while self.server.borrow_mut().review(REVIEWED_AT_ONCE) {
            yield_now().await;
        }
    }
}
