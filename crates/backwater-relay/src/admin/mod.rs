//! What is done beside the relaying, on a thread of its own: the configuration file and the circuit breaker are looked at
//! once a second, and HTTP requests are answered. The relay's threads never wait for it.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use backwater_ops::{LogFilter, PolicyText, breaker::Breaker};
use backwater_turn::Credentials;
use backwater_udp::{Backpressure, Policy, Stats};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    counters::Counters,
    health::Health,
    hooks::HookCounters,
    ingress::stream::tls::Certificate,
    reload::Updates,
    worker::{
        mobility::{Mail, Mailbox},
        sessions::Question,
    },
};

mod certificate;
mod credentials;
mod http;
mod metrics;
mod policy;
mod process;
pub(crate) mod reload;
mod sessions;
mod snapshot;
mod watch;

use certificate::CertificateWatch;
use reload::ReloadRequest;
use watch::{FileWatch, Outcome};

/// How often the file and the breaker are looked at.
const TICK: Duration = Duration::from_secs(1);

/// What is known of the relay, and what can be switched.
pub(crate) struct Control {
    pub(crate) backpressure: Backpressure,
    pub(crate) threads: Vec<ThreadView>,
    pub(crate) health: Health,
    /// URIs of the relay, for clients.
    pub(crate) uris: Mutex<Vec<String>>,
    pub(crate) hooks: Arc<HookCounters>,
    /// The users and secrets of the configuration in force.
    pub(crate) credentials: Mutex<Arc<Credentials>>,
    /// What a request has to know; `None`: nothing, on loopback.
    pub(crate) token: Option<Box<str>>,
    pub(crate) started: Instant,
    pub(crate) draining: AtomicBool,
    /// The filter of the process's log, where it can be switched.
    pub(crate) log_filter: OnceLock<LogFilter>,
    /// How long the relay waits for its clients at the end, in seconds.
    pub(crate) drain: AtomicU64,
    pub(crate) reload: mpsc::Sender<ReloadRequest>,
}

/// One of the relay's threads.
pub(crate) struct ThreadView {
    pub(crate) counters: Arc<Counters>,
    /// The sockets that clients send to.
    pub(crate) listeners: Arc<Stats>,
    /// The relayed sockets.
    pub(crate) relayed: Arc<Stats>,
    pub(crate) mailbox: Mailbox,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Admin {
    control: Arc<Control>,
    local_addr: Option<SocketAddr>,
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Control {
    /// Switches the policy; says so when that is a change. Called by one thread only.
    fn switch(&self, policy: Policy, by: &str) {
        let before = self.backpressure.get();
        if before != policy {
            self.backpressure.set(policy);
            let (policy, before) = (PolicyText(policy), PolicyText(before));
            info!(%policy, %before, by, "back-pressure policy switched");
        }
    }
}

impl Admin {
    /// Starts the thread if there is anything for it to do.
    pub(crate) fn start(
        (control, mut requests): (Control, mpsc::Receiver<ReloadRequest>),
        listener: Option<TcpListener>,
        certificate: Option<Arc<Certificate>>,
        updates: Updates,
    ) -> io::Result<Option<Self>> {
        let control = Arc::new(control);
        let config = &updates.current;
        let mut ticker = Ticker {
            control: control.clone(),
            file: FileWatch::new(config.clone()),
            certificate: certificate.map(CertificateWatch::new),
            breakers: breakers(config, &control),
            updates,
        };
        let has_work = ticker.file.is_some() || ticker.certificate.is_some() || !ticker.breakers.is_empty();
        if listener.is_none() && !has_work {
            return Ok(None);
        }
        let local_addr = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = listener.map(|listener| into_tokio(&runtime, listener)).transpose()?;
        let (stop, stopped) = oneshot::channel();
        let answering = control.clone();
        let thread = std::thread::Builder::new().name("relay-admin".to_owned()).spawn(move || {
            runtime.block_on(async {
                let (serving, ticking) = (answering.health.guard(), answering.health.guard());
                if let Some(listener) = listener {
                    tokio::spawn(async move {
                        let _guard = serving;
                        http::serve(listener, answering).await;
                    });
                }
                tokio::spawn(async move {
                    let _guard = ticking;
                    // Requests for a reload do not put it off.
                    let mut ticks = tokio::time::interval(TICK);
                    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                    loop {
                        tokio::select! {
                            _ = ticks.tick() => ticker.tick(Instant::now()).await,
                            Some(request) = requests.recv() => ticker.reload(request).await,
                        }
                    }
                });
                // Also when the other end is gone.
                let _ = stopped.await;
            });
        })?;
        Ok(Some(Self { control, local_addr, thread, stop }))
    }

    /// Lets requests switch the filter of the process's log. The first one counts.
    pub(crate) fn set_log_filter(&self, filter: LogFilter) {
        let _ = self.control.log_filter.set(filter);
    }

    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// The relay is not ready for clients any more.
    pub(crate) fn drain(&self) {
        self.control.draining.store(true, SeqCst);
    }

    /// The configuration file is read again, soon.
    pub(crate) fn reload(&self) {
        // Where others wait, they read it.
        let _ = self.control.reload.try_send(None);
    }

    pub(crate) fn drain_limit(&self) -> Duration {
        Duration::from_secs(self.control.drain.load(SeqCst))
    }

    pub(crate) fn stop(self) {
        // Fails when it has ended by itself, which is as good.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// What asks for a reload, in the log.
pub(crate) const SIGNAL: &str = "SIGHUP";

/// Says that a reload does nothing.
pub(crate) fn no_file(by: &str) {
    info!("{by}: there is no configuration file to read again");
}

/// One for the sockets of each thread.
fn breakers(config: &Config, control: &Control) -> Vec<Breaker> {
    config.breaker.iter().flat_map(|&limits| control.threads.iter().map(move |_| Breaker::new(limits))).collect()
}

fn into_tokio(runtime: &Runtime, listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    let _inside = runtime.enter();
    tokio::net::TcpListener::from_std(listener)
}

/// What is looked at once a second.
struct Ticker {
    control: Arc<Control>,
    file: Option<FileWatch>,
    certificate: Option<CertificateWatch>,
    /// One for the sockets of each thread.
    breakers: Vec<Breaker>,
    updates: Updates,
}

impl Ticker {
    async fn tick(&mut self, now: Instant) {
        let outcome = self.file.as_mut().map(FileWatch::look).unwrap_or_default();
        self.apply(outcome).await;
        self.certificate.iter_mut().for_each(CertificateWatch::look);
        self.check_breakers(now);
        for thread in &self.control.threads {
            // A full mailbox is a thread that is late already: this question would not be the first one to wait.
            let _ = thread.mailbox.try_send(Mail::Question(Question::Delay(Instant::now())));
        }
    }

    async fn reload(&mut self, answer: ReloadRequest) {
        let by = if answer.is_some() { "POST /reload" } else { SIGNAL };
        self.certificate.iter_mut().for_each(CertificateWatch::read_now);
        let outcome = match &mut self.file {
            Some(file) => {
                info!("{by}: the configuration file is read again");
                let outcome = file.read_now();
                Some(self.apply(outcome).await)
            }
            None => {
                no_file(by);
                None
            }
        };
        // Who asks by a signal waits for no answer.
        let _ = answer.map(|answer| answer.send(outcome));
    }

    /// Applies what the file says, and logs what comes of it.
    async fn apply(&mut self, mut outcome: Outcome) -> Outcome {
        if let Some(mut config) = outcome.config.take() {
            match self.updates.listeners_of(&mut config) {
                Ok(listeners) => {
                    let listen = outcome.applied.iter().position(|key| *key == "listen");
                    if let Some(place) = listen.filter(|_| listeners.added.is_empty()) {
                        outcome.applied.remove(place);
                    }
                    if listeners.is_one_removed {
                        outcome.restart.push("listen");
                    }
                    outcome.late = !self.switch_to(*config, &listeners.added).await;
                }
                Err(problem) => {
                    self.file.iter_mut().for_each(FileWatch::undo);
                    outcome = Outcome { problems: vec![problem], ..Outcome::default() };
                }
            }
        }
        for (key, by) in &outcome.overruled {
            info!(key, "{key} in the configuration file has changed, but {by} counts before it");
        }
        if !outcome.restart.is_empty() {
            let keys = outcome.restart.join(", ");
            info!(keys, "the configuration file has changed: these keys need a restart");
        }
        if !outcome.applied.is_empty() {
            let keys = outcome.applied.join(", ");
            info!(keys, "the configuration file has changed: these keys are applied");
        }
        if outcome.late {
            warn!("a thread is late: it applies the new configuration when it gets to it");
        }
        for problem in &outcome.problems {
            warn!(problem, "the configuration file is invalid: nothing of it is applied");
        }
        outcome
    }

    /// Returns whether all threads have the configuration.
    async fn switch_to(&mut self, config: Config, added: &[SocketAddr]) -> bool {
        let before = &self.updates.current;
        if let Some(warning) =
            config.exposed_secrets().filter(|warning| before.exposed_secrets().as_ref() != Some(warning))
        {
            warn!("{warning}");
        }
        if config.policy != before.policy {
            self.control.switch(config.policy, "the configuration file");
        }
        if config.breaker != before.breaker {
            self.breakers = breakers(&config, &self.control);
        }
        if let Some(filter) = self.control.log_filter.get().filter(|_| config.log_level != before.log_level)
            && let Err(error) = filter.set(&config.log_level)
        {
            warn!(%error, "the filter of the logs stays as it was");
        }
        *self.control.credentials.lock().unwrap_or_else(PoisonError::into_inner) = config.credentials.clone();
        self.control.drain.store(config.drain.as_secs(), SeqCst);
        let in_time = self.updates.send(config, added).await;
        for listener in added {
            info!(%listener, threads = self.control.threads.len(), "listening for TURN over UDP");
        }
        *self.control.uris.lock().unwrap_or_else(PoisonError::into_inner) =
            self.updates.current.uris(&self.updates.listeners, &self.updates.tcp_listeners);
        in_time
    }

    fn check_breakers(&mut self, now: Instant) {
        if self.control.backpressure.get() == Policy::Drop {
            self.breakers.iter_mut().for_each(Breaker::reset);
            return;
        }
        for (breaker, thread) in self.breakers.iter_mut().zip(&self.control.threads) {
            let mut stats = thread.listeners.snapshot();
            stats += thread.relayed.snapshot();
            if let Some(trip) = breaker.check(now, &stats) {
                self.control.backpressure.set(Policy::Drop);
                warn!(reason = %trip, "circuit breaker: back-pressure policy switched to drop");
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl Control {
    /// Of a relay with so many threads, which have ended.
    fn of_threads(threads: usize) -> Self {
        let thread = || ThreadView {
            counters: Arc::default(),
            listeners: Arc::default(),
            relayed: Arc::default(),
            mailbox: crate::worker::mobility::mailbox().0,
        };
        Self {
            backpressure: Backpressure::default(),
            threads: (0..threads).map(|_| thread()).collect(),
            health: Health::new(),
            uris: Mutex::default(),
            hooks: Arc::default(),
            credentials: Mutex::new(Credentials::new("backwater").unwrap().into()),
            token: None,
            started: Instant::now(),
            draining: AtomicBool::default(),
            log_filter: OnceLock::new(),
            drain: AtomicU64::default(),
            reload: reload::channel().0,
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("backpressure", &self.backpressure).finish_non_exhaustive()
    }
}
