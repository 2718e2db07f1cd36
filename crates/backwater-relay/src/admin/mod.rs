//! What is done beside the relaying, on a thread of its own: the configuration file and the circuit breaker are looked at
//! once a second, and HTTP requests are answered. The relay's threads never wait for it.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use backwater_ops::{LogFilter, PolicyText, breaker::Breaker};
use backwater_udp::{Backpressure, Policy, Stats};
use tokio::{
    runtime::Runtime,
    sync::{Notify, oneshot},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    counters::Counters,
    health::Health,
    worker::{
        mobility::{Mail, Mailbox},
        sessions::Question,
    },
};

mod http;
mod metrics;
mod policy;
mod process;
mod sessions;
mod snapshot;
mod watch;

use watch::{Change, FileWatch};

/// How often the file and the breaker are looked at.
const TICK: Duration = Duration::from_secs(1);

/// What is known of the relay, and what can be switched.
pub(crate) struct Control {
    pub(crate) backpressure: Backpressure,
    pub(crate) threads: Vec<ThreadView>,
    pub(crate) health: Health,
    /// URIs of the relay, for clients.
    pub(crate) uris: Vec<String>,
    /// What a request has to know; `None`: nothing, on loopback.
    pub(crate) token: Option<Box<str>>,
    pub(crate) started: Instant,
    pub(crate) draining: AtomicBool,
    /// The filter of the process's log, where it can be switched.
    pub(crate) log_filter: OnceLock<LogFilter>,
    /// Notified when the configuration file is to be read again.
    pub(crate) reload: Notify,
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
    pub(crate) fn start(config: &Config, control: Control, listener: Option<TcpListener>) -> io::Result<Option<Self>> {
        let control = Arc::new(control);
        let mut ticker = Ticker {
            control: control.clone(),
            file: config.file.clone().and_then(|file| FileWatch::new(file, config.policy)),
            breakers: config
                .breaker
                .iter()
                .flat_map(|&l| control.threads.iter().map(move |_| Breaker::new(l)))
                .collect(),
        };
        if listener.is_none() && ticker.file.is_none() && ticker.breakers.is_empty() {
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
                    loop {
                        tokio::select! {
                            () = tokio::time::sleep(TICK) => ticker.tick(Instant::now()),
                            () = ticker.control.reload.notified() => ticker.reload(),
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
        self.control.reload.notify_one();
    }

    pub(crate) fn stop(self) {
        // Fails when it has ended by itself, which is as good.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Says that a reload does nothing.
pub(crate) fn no_file() {
    info!("SIGHUP: there is no configuration file to read again");
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
    /// One for the sockets of each thread.
    breakers: Vec<Breaker>,
}

impl Ticker {
    fn tick(&mut self, now: Instant) {
        let changes = self.file.as_mut().map(FileWatch::look).unwrap_or_default();
        self.apply(changes);
        self.check_breakers(now);
        for thread in &self.control.threads {
            // A full mailbox is a thread that is late already: this question would not be the first one to wait.
            let _ = thread.mailbox.try_send(Mail::Question(Question::Delay(Instant::now())));
        }
    }

    fn reload(&mut self) {
        let Some(file) = &mut self.file else { return no_file() };
        info!("SIGHUP: the configuration file is read again");
        let changes = file.read_now();
        self.apply(changes);
    }

    fn apply(&self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Policy(policy) => self.control.switch(policy, "the configuration file"),
                Change::Overruled(by) => {
                    info!("backpressure in the configuration file has changed, but {by} counts before it");
                }
                Change::Restart(keys) => {
                    info!(keys = keys.join(", "), "the configuration file has changed: these keys need a restart");
                }
                Change::Invalid(problems) => {
                    for problem in problems {
                        warn!(problem, "the configuration file is invalid: back-pressure stays as it is");
                    }
                }
            }
        }
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
            uris: vec![],
            token: None,
            started: Instant::now(),
            draining: AtomicBool::default(),
            log_filter: OnceLock::new(),
            reload: Notify::new(),
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("backpressure", &self.backpressure).finish_non_exhaustive()
    }
}
