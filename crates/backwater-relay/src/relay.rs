//! The threads.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, TcpListener},
    rc::Rc,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use backwater_ops::LogFilter;
use backwater_turn::server::Server;
use backwater_udp::{Backpressure, Stats, UdpSocket, UdpSocketBuilder};
use rustls::ServerConfig;
use tokio::{sync::watch, task::LocalSet};

use crate::{
    admin::{self, Admin, Control, ThreadView},
    config::{Config, Shared, Token},
    counters::{Counter, Counters},
    endpoint,
    health::Health,
    hooks::{Ends, HookCounters, Hooks, Lookups, Queues},
    ingress::{
        stream::{self, Streams, tls::Certificate},
        udp::listen,
    },
    ports::{Ports, RelayIp},
    pulse::{Pulse, Responder},
    reload::{UpdateReceiver, Updates},
    worker::{
        Worker,
        lines::Lines,
        mobility::{self, Inbox, Mailbox},
    },
};

/// A running relay. [`stop`](Self::stop) ends it in order; when this is dropped, it ends at once.
#[derive(Debug)]
pub struct Relay {
    local_addrs: LocalAddrs,
    certificate: Option<Arc<Certificate>>,
    backpressure: Backpressure,
    threads: Vec<JoinHandle<()>>,
    admin: Option<Admin>,
    hooks: Option<Hooks>,
    counters: Vec<Arc<Counters>>,
    stats: Vec<Arc<Stats>>,
    stop: watch::Sender<Option<Instant>>,
    health: Health,
    pulse: Pulse,
    /// For tests, which make a thread fail by mail.
    #[cfg(test)]
    mailboxes: Vec<Mailbox>,
}

/// Where a relay listens.
#[derive(Clone, Debug, Default)]
struct LocalAddrs {
    udp: Vec<SocketAddr>,
    tcp: Vec<SocketAddr>,
}

/// Why a relay did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// Relayed ports cannot be bound on the address.
    Relay(IpAddr, io::Error),
    /// This STUN server has not said what peers see the relayed addresses as.
    External(String, io::Error),
    /// The address cannot be listened on for administration.
    Admin(SocketAddr, io::Error),
    /// The certificate cannot be used, for this reason.
    Certificate(String),
    /// No thread, no runtime or no randomness to be had.
    System(io::Error),
}

/// How long what is held back may take to leave when the relay stops.
const FLUSH: Duration = Duration::from_millis(100);

impl Relay {
    /// Binds all listeners and starts the threads. The group of listeners on a port is complete when this returns.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let admin = config.admin.map(|addr| TcpListener::bind(addr).map_err(|e| StartError::Admin(addr, e)));
        let admin = admin.transpose()?;
        let certificate = config.certificate.clone().map(Certificate::load).transpose();
        let certificate = certificate.map_err(StartError::Certificate)?;
        let tls = certificate.as_ref().map(Certificate::server_config).transpose();
        let tls = tls.map_err(|error| StartError::Certificate(error.to_string()))?;
        // Otherwise every Allocate request would fail, and nothing before.
        for RelayIp { bind, .. } in [config.relay_v4, config.relay_v6].into_iter().flatten() {
            let listener = config.listen.iter().find(|listener| listener.ip() == bind);
            std::net::UdpSocket::bind((bind, 0)).map_err(|e| match listener {
                Some(&listener) => StartError::Listen(listener, e),
                None => StartError::Relay(bind, e),
            })?;
        }
        let (stop, stopped) = watch::channel(None);
        let mut relay = Self {
            local_addrs: LocalAddrs { udp: config.listen.clone(), tcp: config.listen_tcp.clone() },
            certificate: certificate.clone(),
            backpressure: Backpressure::new(config.policy),
            threads: vec![],
            admin: None,
            hooks: None,
            counters: (0..config.threads).map(|_| Arc::default()).collect(),
            stats: vec![],
            stop,
            health: Health::new(),
            pulse: Pulse::new(),
            #[cfg(test)]
            mailboxes: vec![],
        };
        let mut nonce_key = [0; 64];
        getrandom::fill(&mut nonce_key).map_err(|e| StartError::System(e.into()))?;
        let hook_counters = Arc::<HookCounters>::default();
        let (queues, hooks) = Queues::new(config, &hook_counters);
        relay.hooks = Hooks::start(queues, hook_counters.clone(), relay.health.clone()).map_err(StartError::System)?;
        let mut shared_state = config.shared(nonce_key, Instant::now());
        shared_state.directory = hooks.lookups.as_ref().map(|lookups| lookups.directory.clone());
        let ports =
            Ports::new(config.relay_v4, config.relay_v6, config.ports.clone(), shared_state.relayed_ports.clone());
        let (mut updates, update_receiver) = Updates::new(config.clone(), shared_state.clone());
        let busy = Arc::new(AtomicUsize::new(config.threads));
        let shared = config.threads > 1;
        if shared {
            // SO_REUSEPORT would let another relay of the same user share the port without a word.
            for &addr in &config.listen {
                std::net::UdpSocket::bind(addr).map_err(|e| StartError::Listen(addr, e))?;
            }
            for &addr in &config.listen_tcp {
                TcpListener::bind(addr).map_err(|e| StartError::Listen(addr, e))?;
            }
        }
        let (mailboxes, inboxes): (Vec<_>, Vec<_>) = (0..config.threads).map(|_| mobility::mailbox()).unzip();
        #[cfg(test)]
        relay.mailboxes.clone_from(&mailboxes);
        let mut threads = Vec::new();
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let view = ThreadView {
                counters: relay.counters[number].clone(),
                listeners: Arc::default(),
                relayed: Arc::default(),
                mailbox: mailboxes[number].clone(),
            };
            let thread = Thread {
                number,
                mailboxes: mailboxes.clone(),
                addrs: relay.local_addrs.clone(),
                shared,
                config: config.clone(),
                tls: tls.clone(),
                backpressure: relay.backpressure.clone(),
                shared_state: shared_state.clone(),
                ports: ports.clone(),
                counters: relay.counters.clone(),
                common: endpoint::builder().stats(view.listeners.clone()).backpressure(relay.backpressure.clone()),
                relayed: view.relayed.clone(),
                busy: busy.clone(),
                stopped: stopped.clone(),
                updates: update_receiver.clone(),
                hooks: hooks.clone(),
                health: relay.health.clone(),
            };
            let responder = relay.pulse.responder();
            let (ready, started) = mpsc::channel();
            let handle = std::thread::Builder::new()
                .name(format!("relay-{number}"))
                .spawn(move || thread.run(inbox, &ready, responder))
                .map_err(StartError::System);
            relay.stats.extend([view.listeners.clone(), view.relayed.clone()]);
            threads.push(view);
            let result = handle.and_then(|handle| {
                relay.threads.push(handle);
                started.recv().map_err(|_| StartError::System(io::ErrorKind::Other.into()))?
            });
            match result {
                // Port 0 becomes the same real port for all.
                Ok(addrs) => relay.local_addrs = addrs,
                Err(error) => {
                    relay.stop(Duration::ZERO);
                    return Err(error);
                }
            }
        }
        updates.listeners.clone_from(&relay.local_addrs.udp);
        updates.tcp_listeners.clone_from(&relay.local_addrs.tcp);
        let (reload, requests) = admin::reload::channel();
        let control = Control {
            backpressure: relay.backpressure.clone(),
            threads,
            health: relay.health.clone(),
            hooks: hook_counters,
            uris: Mutex::new(config.uris(&relay.local_addrs.udp, &relay.local_addrs.tcp)),
            credentials: Mutex::new(config.credentials.clone()),
            token: config.admin_token.clone().map(|Token(token)| token),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            log_filter: OnceLock::new(),
            drain: AtomicU64::new(config.drain.as_secs()),
            reload,
        };
        match Admin::start((control, requests), admin, certificate, updates) {
            Ok(admin) => relay.admin = admin,
            Err(error) => {
                relay.stop(Duration::ZERO);
                return Err(StartError::System(error));
            }
        }
        Ok(relay)
    }

    /// What it listens on for datagrams.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs.udp
    }

    /// What it listens on for connections.
    pub fn local_tcp_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs.tcp
    }

    /// Whether connections may use TLS.
    pub fn has_tls(&self) -> bool {
        self.certificate.is_some()
    }

    /// Where it is administered over HTTP, if anywhere.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr()
    }

    /// The handle to the policy of all its sockets: what to do when the system has no room.
    pub fn backpressure(&self) -> &Backpressure {
        &self.backpressure
    }

    /// The counters of each thread.
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    /// The counters of each thread's sockets: for each thread those of its listeners, then those of its relayed sockets.
    pub fn stats(&self) -> &[Arc<Stats>] {
        &self.stats
    }

    /// Lets the administration show and switch the filter of the process's log.
    pub fn set_log_filter(&self, filter: LogFilter) {
        if let Some(admin) = &self.admin {
            admin.set_log_filter(filter);
        }
    }

    /// Reads the configuration file again and applies what can change while the relay runs. The log says what came of it. Returns at
    /// once.
    pub fn reload(&self) {
        match &self.admin {
            Some(admin) => admin.reload(),
            None => admin::no_file(admin::SIGNAL),
        }
    }

    /// Returns how long the configuration lets [`drain`](Self::drain) take, as it is now. `None`: it has not changed since the start.
    pub fn drain_limit(&self) -> Option<Duration> {
        self.admin.as_ref().map(Admin::drain_limit)
    }

    /// Turns new clients away from now on. Returns at once; the threads end when their clients have left or after `drain`.
    pub fn drain(&self, drain: Duration) {
        if let Some(admin) = &self.admin {
            admin.drain();
        }
        self.stop.send_replace(Some(Instant::now() + drain));
    }

    /// Waits until a part of the relay has failed or panicked. Its clients are without service then: end the process with an error, so
    /// that whoever watches it starts it anew. Pending for as long as all is well.
    pub async fn failed(&self) {
        self.health.failed().await;
    }

    /// Waits until each thread has gone through its loop once more: that it is ready soon shows that none hangs. Cancel safe.
    pub async fn beat(&self) {
        self.pulse.beat().await;
    }

    /// Waits until all threads have ended, after [`drain`](Self::drain).
    pub async fn drained(&self) {
        while !self.threads.iter().all(JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Turns new clients away, waits until the others have left but no longer than `drain`, sends what is held, and ends
    /// the threads.
    pub fn stop(&mut self, drain: Duration) {
        self.drain(drain);
        for thread in self.threads.drain(..) {
            // A panic of a thread has been reported by its hook.
            let _ = thread.join();
        }
        // It answers until the last client has left.
        if let Some(admin) = self.admin.take() {
            admin.stop();
        }
        // The threads have told it of their last allocations.
        if let Some(hooks) = self.hooks.take() {
            hooks.stop();
        }
    }
}

/// What a thread starts with.
struct Thread {
    number: usize,
    mailboxes: Vec<Mailbox>,
    addrs: LocalAddrs,
    shared: bool,
    config: Config,
    tls: Option<Arc<ServerConfig>>,
    backpressure: Backpressure,
    shared_state: Shared,
    ports: Arc<Ports>,
    /// Of all threads.
    counters: Vec<Arc<Counters>>,
    /// What all its sockets have in common.
    common: UdpSocketBuilder,
    /// The counters of the relayed sockets.
    relayed: Arc<Stats>,
    /// How many threads have clients still, once the relay stops.
    busy: Arc<AtomicUsize>,
    stopped: watch::Receiver<Option<Instant>>,
    updates: UpdateReceiver,
    hooks: Ends,
    health: Health,
}

impl Thread {
    fn run(self, inbox: Inbox, ready: &mpsc::Sender<Result<LocalAddrs, StartError>>, responder: Responder) {
        let _guard = self.health.guard();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return drop(ready.send(Err(StartError::System(e)))),
        };
        LocalSet::new().block_on(&runtime, async {
            let (listeners, tcp_listeners, addrs) = match self.listen() {
                Ok(listeners) => listeners,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let mut server = self.config.server(&self.shared_state, self.number as u16);
            server.peers.listeners.clone_from(&addrs.udp);
            let builder = self.common.clone().stats(self.relayed.clone()).receive_buffer(1 << 20);
            let streams = Streams::new(stream::Options {
                tls: self.tls.clone(),
                proxies: self.config.proxies.clone(),
                backpressure: self.backpressure.clone(),
            });
            let worker = Rc::new(Worker::new(
                Server::new(server),
                (listeners, streams),
                builder,
                self.ports.clone(),
                (
                    self.counters[self.number].clone(),
                    Lines::new(self.config.log_allocations, self.hooks.events.clone()),
                ),
                (self.number, self.mailboxes.clone()),
                self.health.clone(),
            ));
            if let Some(Lookups { answered, .. }) = &self.hooks.lookups {
                worker.waiting.set_answered(answered.clone());
            }
            worker.start();
            if !tcp_listeners.is_empty() {
                worker.watch_streams();
            }
            tcp_listeners.into_iter().for_each(|listener| worker.start_accepting(listener));
            worker.start_moving(inbox);
            let (shared, common) = (self.shared, self.common.clone());
            worker.start_updates(self.updates.clone(), move |addr| listen(addr, shared, &common));
            tokio::task::spawn_local(responder.run());
            if ready.send(Ok(addrs)).is_ok() {
                self.until_stopped(&worker).await;
            }
        });
    }

    fn listen(&self) -> Result<(Vec<UdpSocket>, Vec<tokio::net::TcpListener>, LocalAddrs), StartError> {
        let failed = |addr| move |error| StartError::Listen(addr, error);
        let (mut listeners, mut tcp_listeners, mut addrs) = (Vec::new(), Vec::new(), LocalAddrs::default());
        for &addr in &self.addrs.udp {
            let listener = listen(addr, self.shared, &self.common).map_err(failed(addr))?;
            addrs.udp.push(listener.local_addr());
            listeners.push(listener);
        }
        for &addr in &self.addrs.tcp {
            let listener = stream::listen(addr, self.shared).map_err(failed(addr))?;
            addrs.tcp.push(listener.local_addr().map_err(failed(addr))?);
            tcp_listeners.push(listener);
        }
        Ok((listeners, tcp_listeners, addrs))
    }

    /// The allocations of all threads.
    fn allocations(&self) -> u64 {
        let total = |get: fn(&Counters) -> &Counter| self.counters.iter().map(|c| get(c).get()).sum::<u64>();
        // In this order, one that comes and goes in between counts.
        let closed = total(|c| &c.closed);
        total(|c| &c.allocations).saturating_sub(closed)
    }

    async fn until_stopped(&self, worker: &Worker) {
        let mut stopped = self.stopped.clone();
        if stopped.wait_for(Option::is_some).await.is_err() {
            return;
        }
        worker.refuse_new();
        let poll = || tokio::time::sleep(Duration::from_millis(10));
        // It may become shorter meanwhile.
        let is_early = || stopped.borrow().is_some_and(|until| Instant::now() < until);
        let draining = || is_early() && self.allocations() >= self.config.drain_below;
        while worker.allocations() > 0 && draining() {
            poll().await;
        }
        // When one listener of the group closes, the system spreads the others' clients anew.
        self.busy.fetch_sub(1, SeqCst);
        while self.busy.load(SeqCst) > 0 && draining() {
            poll().await;
        }
        let flush = Instant::now() + FLUSH;
        while !worker.is_flushed() && Instant::now() < flush {
            poll().await;
        }
        worker.log_stop();
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(addr, error) => {
                write!(f, "cannot listen on {addr}: {error}")?;
                if error.kind() == io::ErrorKind::PermissionDenied && (1..1024).contains(&addr.port()) {
                    f.write_str(": a port below 1024 needs CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=)")?;
                }
                not_this_hosts(f, error, "listen")
            }
            Self::Relay(ip, error) => {
                write!(f, "cannot relay from {ip}: {error}")?;
                not_this_hosts(f, error, "relay-address")
            }
            Self::Certificate(problem) => write!(f, "the certificate cannot be used: {problem}"),
            Self::External(server, error) => {
                write!(
                    f,
                    "cannot find external-address by STUN from {server}: {error}; is UDP open to it? else give the address itself"
                )
            }
            Self::Admin(addr, error) => write!(f, "cannot listen on {addr} for administration: {error}"),
            Self::System(error) => write!(f, "cannot start: {error}"),
        }
    }
}

/// Adds what to do about an address that is not this host's, to the error about the value of `key`.
fn not_this_hosts(f: &mut fmt::Formatter<'_>, error: &io::Error, key: &str) -> fmt::Result {
    if error.kind() == io::ErrorKind::AddrNotAvailable {
        write!(
            f,
            ": it is no address of this host; behind a NAT, {key} is the host's own and this is external-address"
        )?;
    }
    Ok(())
}

impl std::error::Error for StartError {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::config::Arguments;

    #[test]
    fn a_privileged_port_names_the_capability() {
        let text =
            |port| StartError::Listen(([0, 0, 0, 0], port).into(), io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(text(443).contains("CAP_NET_BIND_SERVICE"), "{}", text(443));
        assert!(!text(3478).contains("CAP_NET_BIND_SERVICE"), "{}", text(3478));
    }

    fn get(relay: &Relay, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(relay.admin_addr().unwrap()).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        std::io::read_to_string(stream).unwrap()
    }

    /// A request for the list costs its deadline then, and other requests are answered meanwhile.
    #[test]
    fn sessions_of_a_thread_that_hangs_are_503() {
        let args = ["relay", "--listen", "127.0.0.1:0", "--user", "a:b", "--threads", "2", "--admin", "127.0.0.1:0"];
        let matches = Arguments::command().try_get_matches_from(args).unwrap();
        let mut relay = Relay::start(&Config::new(&Arguments::read(&matches, []).unwrap()).unwrap()).unwrap();
        let (go_on, hang) = mpsc::channel();
        relay.mailboxes[1].try_send(mobility::Mail::Hang(hang)).ok().unwrap();
        let answer = std::thread::scope(|scope| {
            let list = scope.spawn(|| get(&relay, "/sessions"));
            assert!(get(&relay, "/healthz").starts_with("HTTP/1.1 200 "));
            list.join().unwrap()
        });
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("thread 1 did not answer"), "{answer}");
        assert!(get(&relay, "/sessions/0-0-1").starts_with("HTTP/1.1 404 "), "the other thread answers");
        go_on.send(()).unwrap();
        assert!(get(&relay, "/sessions").starts_with("HTTP/1.1 200 "));
        relay.stop(Duration::ZERO);
    }

    /// What a watchdog is there for: one thread of several serves nobody, and nothing has failed.
    #[test]
    fn a_thread_that_hangs_does_not_beat() {
        let args = ["relay", "--listen", "127.0.0.1:0", "--user", "a:b", "--threads", "2"];
        let matches = Arguments::command().try_get_matches_from(args).unwrap();
        let mut relay = Relay::start(&Config::new(&Arguments::read(&matches, []).unwrap()).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let beats = |within| runtime.block_on(async { tokio::time::timeout(within, relay.beat()).await }).is_ok();
        assert!(beats(Duration::from_secs(60)));
        let (go_on, hang) = mpsc::channel();
        relay.mailboxes[1].try_send(mobility::Mail::Hang(hang)).ok().unwrap();
        while beats(Duration::from_millis(100)) {}
        go_on.send(()).unwrap();
        assert!(beats(Duration::from_secs(60)));
        relay.stop(Duration::ZERO);
    }

    /// tokio catches the panic of a listener's task: its clients would be without service, and nobody would know.
    #[test]
    fn a_panic_in_one_thread_is_noticed() {
        let args = ["relay", "--listen", "127.0.0.1:0", "--user", "a:b", "--threads", "2", "--admin", "127.0.0.1:0"];
        let matches = Arguments::command().try_get_matches_from(args).unwrap();
        let mut relay = Relay::start(&Config::new(&Arguments::read(&matches, []).unwrap()).unwrap()).unwrap();
        let healthz = |relay: &Relay| get(relay, "/healthz");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let failed = |relay: &Relay, within| {
            runtime.block_on(async { tokio::time::timeout(within, relay.failed()).await }).is_ok()
        };
        assert!(healthz(&relay).starts_with("HTTP/1.1 200 ") && !failed(&relay, Duration::ZERO));
        relay.mailboxes[1].try_send(mobility::Mail::Panic).ok().unwrap();
        assert!(failed(&relay, Duration::from_secs(60)), "nothing has noticed");
        let answer = healthz(&relay);
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("a part of the relay has failed\n"),
            "{answer}"
        );
        relay.stop(Duration::ZERO);
    }
}
