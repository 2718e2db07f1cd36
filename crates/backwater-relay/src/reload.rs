//! Changes of the configuration that reach the threads while they run.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::{spawn_local, yield_now},
};
use tracing::error;

use crate::{
    config::{Config, Shared},
    ingress::udp::MAX_ADDED,
    worker::Worker,
};

/// How long the threads have for a change before somebody is told that they are late. A thread that is not busy takes microseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Permissions that a thread judges by new rules before it goes on with datagrams: about a tenth of a millisecond.
const REVIEWED_AT_ONCE: usize = 1000;

/// Listeners that a relay has at most after some were added.
const MAX_LISTENERS: usize = MAX_ADDED;

/// What a new configuration changes about where the relay listens.
pub(crate) struct Listeners {
    /// With the ports that the system has picked.
    pub(crate) added: Vec<SocketAddr>,
    /// Whether one is left out: it goes on until a restart.
    pub(crate) is_one_removed: bool,
}

/// A configuration for all threads.
pub(crate) struct Update {
    config: Config,
    shared: Shared,
    /// All of them, with those that are added.
    listeners: Vec<SocketAddr>,
    /// Each thread says here that it has applied it.
    applied: mpsc::Sender<()>,
}

/// Where the threads receive updates. One that comes before the last is applied replaces it.
pub(crate) type UpdateReceiver = watch::Receiver<Option<Arc<Update>>>;

/// The sending side, with the configuration that the threads have.
pub(crate) struct Updates {
    pub(crate) current: Config,
    /// Where the relay listens, with the ports that the system has picked.
    pub(crate) listeners: Vec<SocketAddr>,
    /// The same of connections. None is added.
    pub(crate) tcp_listeners: Vec<SocketAddr>,
    shared: Shared,
    sender: watch::Sender<Option<Arc<Update>>>,
}

impl Updates {
    pub(crate) fn new(current: Config, shared: Shared) -> (Self, UpdateReceiver) {
        let (sender, receiver) = watch::channel(None);
        (Self { current, listeners: vec![], tcp_listeners: vec![], shared, sender }, receiver)
    }

    /// Compares the listeners of a new configuration with those that there are, and gives it the addresses that stay: all of those, and
    /// the relayed ones.
    ///
    /// # Errors
    /// Why one that is added cannot be listened on.
    pub(crate) fn listeners_of(&self, config: &mut Config) -> Result<Listeners, String> {
        let (mut missing, mut added) = (self.current.listen.clone(), Vec::new());
        for &addr in &config.listen {
            match missing.iter().position(|other| *other == addr) {
                Some(place) => drop(missing.remove(place)),
                None => added.push(addr),
            }
        }
        config.listen = [&self.current.listen[..], &added].concat();
        (config.relay_v4, config.relay_v6) = (self.current.relay_v4, self.current.relay_v6);
        if self.listeners.len() + added.len() > MAX_LISTENERS {
            return Err(format!("listen: expected at most {MAX_LISTENERS} without a restart, found more"));
        }
        // Each thread binds it for itself. This one finds out whether another program has it.
        let probe = |&addr: &SocketAddr| {
            let socket = UdpSocket::bind(addr).and_then(|socket| socket.local_addr());
            socket.map_err(|error| format!("listen: cannot listen on {addr}: {error}"))
        };
        let added = added.iter().map(probe).collect::<Result<_, _>>()?;
        Ok(Listeners { added, is_one_removed: !missing.is_empty() })
    }

    /// Sends a configuration to the threads, and waits until they have applied it. Returns false if one is late; it applies it
    /// later. The old configuration is dropped here: a large one takes time.
    pub(crate) async fn send(&mut self, config: Config, added: &[SocketAddr]) -> bool {
        self.listeners.extend(added);
        self.shared.change(&self.current, &config, Instant::now());
        let (applied, mut all) = mpsc::channel(config.threads.max(1));
        let update =
            Update { config: config.clone(), shared: self.shared.clone(), listeners: self.listeners.clone(), applied };
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
    pub(crate) fn start_updates(
        self: &Rc<Self>,
        mut updates: UpdateReceiver,
        listen: impl Fn(SocketAddr) -> io::Result<backwater_udp::UdpSocket> + 'static,
    ) {
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            while updates.changed().await.is_ok() {
                let update = updates.borrow_and_update().clone();
                if let Some(update) = update {
                    worker.apply(&update).await;
                    for &addr in update.listeners.iter().skip(worker.listeners.iter().count()) {
                        match listen(addr) {
                            Ok(socket) => worker.add_listener(socket),
                            Err(error) => {
                                error!(%addr, %error, "a thread cannot listen on an added address: the others serve its clients");
                                break;
                            }
                        }
                    }
                    // There is room for each thread. Nobody waits for an update that another one has replaced.
                    let _ = update.applied.try_send(());
                }
            }
        });
    }

    async fn apply(&self, Update { config, shared, listeners, .. }: &Update) {
        let mut server = config.server(shared, self.number as u16);
        server.peers.listeners.clone_from(listeners);
        self.server.borrow_mut().reconfigure(server);
        self.lines.log_allocations(config.log_allocations);
        while self.server.borrow_mut().review(REVIEWED_AT_ONCE) {
            yield_now().await;
        }
    }
}
