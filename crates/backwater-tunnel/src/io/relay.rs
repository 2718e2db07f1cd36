//! The way by a TURN server: one allocation, with a channel to each peer.

use std::{
    net::SocketAddr,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use backwater_stun::{ChannelNumber, Code};
use backwater_turn::{
    Families,
    client::{Client, Config, Credential, Event, Failure, Input, InvalidCredential},
    time_limited_password,
};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::sockets::Sockets;
use crate::{
    config::{self, Login, Mode},
    engine::{Engine, Route, endpoints::canonical},
    status::RelayStatus,
};

mod servers;

use servers::{Resolved, Servers};

/// How long a server has to make an allocation while there are others to try.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause after all servers have failed: it doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// Between two looks whether the relay still has what it has granted.
const CHECKS: Duration = Duration::from_secs(5);

/// Credentials that are made here are good until the end of the next day (UTC), in seconds: those of one day are the same, so that a tunnel
/// that was killed finds its allocation again.
const DAY: u64 = 86_400;

/// The user name in time-limited credentials, unless the configuration has one.
const NAME: &str = "backwater";

/// The relay, as the event loop drives it.
pub(super) struct Relay {
    config: config::Relay,
    resolved: (mpsc::Sender<Resolved>, mpsc::Receiver<Resolved>),
    servers: Servers,
    client: Option<Client>,
    /// Whether the client has asked for a relayed address of IPv6, beside that of IPv4.
    has_v6: bool,
    /// The relay does not allocate both.
    refuses_v6: bool,
    /// The client's.
    credential: Option<Credential>,
    /// When the client was made, or has lost its allocation.
    since: Instant,
    /// The relayed address.
    allocated: Option<SocketAddr>,
    channels: Vec<Channel>,
    pause: Duration,
    /// When the servers are tried again.
    again: Option<Instant>,
    checked: Option<Instant>,
    /// What went wrong last. Nothing is told twice in a row.
    problem: Option<String>,
    /// What the operator is to be told.
    news: Vec<String>,
}

struct Channel {
    peer: SocketAddr,
    number: ChannelNumber,
    is_bound: bool,
}

impl Relay {
    /// `None`: the configuration has no relay, or it is never used.
    pub(super) fn new(now: Instant, config: Option<&config::Relay>) -> Option<Self> {
        let config = config.filter(|config| config.mode != Mode::Never)?.clone();
        Some(Self {
            resolved: mpsc::channel(config.servers.len().max(1)),
            config,
            servers: Servers::default(),
            client: None,
            has_v6: false,
            refuses_v6: false,
            credential: None,
            since: now,
            allocated: None,
            channels: Vec::new(),
            pause: FIRST_PAUSE,
            again: Some(now),
            checked: None,
            problem: None,
            news: Vec::new(),
        })
    }

    /// Whether datagrams from this address are a relay's.
    #[inline]
    pub(super) fn is_from(&self, source: SocketAddr) -> bool {
        self.client.as_ref().is_some_and(|client| client.server() == source) || self.servers.is_measured(source)
    }

    /// Takes a datagram of a relay's. Returns the peer, and the part of the datagram that it has sent; `None`: it was for this side.
    #[inline]
    pub(super) fn handle<'a>(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &'a [u8],
    ) -> Option<(SocketAddr, &'a [u8])> {
        let input = match &mut self.client {
            Some(client) => client.handle_input(now, from, datagram),
            None => Input::Ignored,
        };
        match input {
            Input::Data { peer, payload } => Some((canonical(peer), datagram.get(payload)?)),
            Input::Consumed => None,
            Input::Ignored => {
                self.servers.measured(now, from, datagram);
                None
            }
        }
    }

    /// Whether the relay accepts data by this route now.
    #[inline]
    pub(super) fn accepts(&mut self, now: Instant, route: Route) -> bool {
        let Route::Relayed { channel, .. } = route else { return true };
        // The engine has written the header: this one only asks.
        self.client.as_mut().is_some_and(|client| client.send(now, channel, &mut [0; 4]).is_ok())
    }

    /// Does what is due, and sends what there is to send.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>, now: Instant, engine: &mut Engine, sockets: &mut Sockets) {
        let had_client = self.client.is_some();
        while let Poll::Ready(Some(Resolved { server, result })) = self.resolved.1.poll_recv(cx) {
            if let Err(error) = self.servers.resolved(result) {
                self.tell(format!("the relay's name {server} does not resolve: {error}"));
            }
        }
        if self.again.is_some_and(|at| now >= at) {
            self.again = None;
            self.refuses_v6 = false;
            self.servers.begin(&self.config.servers, &self.resolved.0);
        }
        if self.client.is_none() && self.again.is_none() && engine.relay_peers().next().is_some() {
            if self.servers.measure(now, |server, request| sockets.send_message(server, request)) {
                self.make_client(now, engine);
            }
        } else if self.client.is_some() && self.is_late(now) {
            self.tell("no answer to the request for an allocation".to_owned());
            self.try_next(now, engine);
        }
        if let Some(client) = &mut self.client
            && client.poll_timeout().is_some_and(|at| now >= at)
        {
            client.handle_timeout(now);
        }
        self.send(now, sockets);
        while let Some(event) = self.client.as_mut().and_then(Client::poll_event) {
            self.follow(now, event, engine);
        }
        self.send(now, sockets);
        if had_client && self.client.is_none() {
            // The next server's turn.
            cx.waker().wake_by_ref();
        }
    }

    /// Returns when [`drive`](Self::drive) is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let of_client = self.client.as_ref().and_then(Client::poll_timeout);
        let is_waiting = self.client.is_some() && self.allocated.is_none() && self.servers.has_next();
        let of_server = is_waiting.then(|| self.since + PATIENCE);
        let of_servers = if self.client.is_none() { self.servers.poll_timeout() } else { None };
        [of_client, self.again, of_server, of_servers].into_iter().flatten().min()
    }

    /// Binds channels to the peers that the relay is to reach, and releases the others.
    pub(super) fn follow_peers(&mut self, now: Instant, engine: &mut Engine) {
        let mut wanted: Vec<_> = engine.relay_peers().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let lacks_v6 = !self.has_v6 && !self.refuses_v6 && wanted.iter().any(SocketAddr::is_ipv6);
        if lacks_v6 && self.client.is_some() {
            self.drop_client(engine, now);
            return;
        }
        let Some(client) = &mut self.client else { return };
        self.channels.retain(|channel| {
            let stays = wanted.binary_search(&channel.peer).is_ok();
            if !stays {
                client.release(now, channel.number);
            }
            stays
        });
        for peer in wanted {
            if peer.is_ipv6() && !self.has_v6 {
                continue;
            }
            if let Some(channel) = self.channels.iter().find(|channel| channel.peer == peer) {
                // Another peer of the tunnel may have come to the same address.
                if channel.is_bound {
                    let route = Route::Relayed { relay: client.server(), peer, channel: channel.number };
                    engine.set_relayed(now, peer, Some(route));
                }
                continue;
            }
            match client.bind(now, peer) {
                Ok(number) => self.channels.push(Channel { peer, number, is_bound: false }),
                Err(error) => debug!(%peer, %error, "no channel to the peer"),
            }
        }
    }

    /// The sockets are others, or this host's address is.
    pub(super) fn rebound(&mut self, now: Instant) {
        self.again = self.again.map(|_| now);
        if let Some(client) = &mut self.client {
            client.rebound(now);
        }
    }

    /// Looks whether the relay still has what it has granted: a peer does not answer.
    pub(super) fn check(&mut self, now: Instant) {
        if self.checked.is_none_or(|at| now.saturating_duration_since(at) >= CHECKS)
            && let Some(client) = &mut self.client
        {
            self.checked = Some(now);
            client.refresh(now);
        }
    }

    /// Has the allocation deleted. The answer is not waited for.
    pub(super) fn close(&mut self, now: Instant, sockets: &mut Sockets) {
        if let Some(client) = &mut self.client {
            client.close(now);
        }
        self.send(now, sockets);
    }

    /// Returns the next line that the operator is to be told.
    pub(super) fn take_news(&mut self) -> Option<String> {
        self.news.pop()
    }

    pub(super) fn status(&self) -> RelayStatus {
        RelayStatus {
            mode: self.config.mode.to_string(),
            server: self.client.as_ref().map(|client| client.server().to_string()),
            relayed_address: self.allocated.map(|address| address.to_string()),
            rtt_ms: self.client.as_ref().and_then(Client::round_trip).map(|rtt| rtt.as_secs_f64() * 1e3),
            problem: self.problem.clone(),
        }
    }

    fn send(&mut self, now: Instant, sockets: &mut Sockets) {
        let Some(client) = &mut self.client else { return };
        while let Some(transmit) = client.poll_transmit(now) {
            sockets.send_message(transmit.server, transmit.bytes);
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.allocated.is_none() && self.servers.has_next() && now.saturating_duration_since(self.since) >= PATIENCE
    }

    fn make_client(&mut self, now: Instant, engine: &mut Engine) {
        let Some(server) = self.servers.current() else { return self.pause(now) };
        let mut seed = [0; 64];
        let Ok(credential) = credential(&self.config) else {
            self.tell("the user name cannot be used".to_owned());
            return self.pause(now);
        };
        if getrandom::fill(&mut seed).is_err() {
            return self.pause(now);
        }
        self.has_v6 = engine.relay_needs_v6() && !self.refuses_v6;
        let families = Families { v4: true, v6: self.has_v6 };
        let config = Config { families, ..Config::new(server, credential.clone(), seed) };
        debug!(relay = %server, "asking for an allocation");
        self.client = Some(Client::new(now, config));
        self.credential = Some(credential);
        (self.since, self.allocated) = (now, None);
        self.follow_peers(now, engine);
    }

    fn follow(&mut self, now: Instant, event: Event, engine: &mut Engine) {
        let Some(relay) = self.client.as_ref().map(Client::server) else { return };
        match event {
            Event::Allocated(allocated) => {
                let address = allocated.relayed.v4.or(allocated.relayed.v6);
                info!(%relay, relayed = address.map(tracing::field::display), "there is an allocation");
                if let Some((family, code)) = allocated.missing {
                    warn!(%relay, ?family, %code, "the relay has no address of this family");
                }
                (self.allocated, self.pause, self.problem) = (address, FIRST_PAUSE, None);
            }
            Event::Bound { peer, channel } => {
                if let Some(bound) = self.channels.iter_mut().find(|bound| bound.number == channel) {
                    bound.is_bound = true;
                }
                debug!(%relay, %peer, "there is a channel to the peer");
                engine.set_relayed(now, peer, Some(Route::Relayed { relay, peer, channel }));
            }
            Event::PeerRefused { peer, code, reason } => {
                self.unbind(now, engine, |channel| channel.peer == peer);
                self.tell(format!("the relay refuses the peer {peer}: {code} {reason}"));
            }
            Event::Lost(loss) => {
                warn!(%relay, ?loss, "the allocation is gone: asking for another one");
                (self.allocated, self.since) = (None, now);
                self.unbind(now, engine, |_| true);
            }
            Event::Refused { code, reason, .. } => {
                self.tell(format!("the relay refuses an allocation for now: {code} {reason}"));
                if self.servers.has_next() {
                    self.try_next(now, engine);
                }
            }
            Event::Failed(why) => self.failed(now, &why, engine),
            Event::Redirected { server, .. } => info!(%relay, to = %server, "the relay names another one"),
            Event::AddressInUse => self.tell("the relay has an allocation of someone else's for our port".to_owned()),
            Event::NoResponse(method) => debug!(%relay, %method, "no answer"),
            Event::Icmp { peer, icmp } => debug!(%relay, %peer, ?icmp, "about an earlier datagram to the peer"),
            // The rest is asked for by nobody here, or says nothing new.
            Event::Moved | Event::Permitted(_) | Event::Closed | _ => {}
        }
    }

    fn failed(&mut self, now: Instant, why: &Failure, engine: &mut Engine) {
        // Time-limited credentials are over: there are others by now.
        if let (Some(client), Ok(credential)) = (&mut self.client, credential(&self.config))
            && self.credential.as_ref() != Some(&credential)
        {
            self.credential = Some(credential.clone());
            return client.set_credential(now, credential);
        }
        if let Failure::Refused { code: Code::ADDRESS_FAMILY_NOT_SUPPORTED, .. } = why
            && self.has_v6
        {
            // A peer at an address of IPv4 can be reached all the same.
            warn!(%why, "asking for a relayed address of IPv4 alone");
            self.refuses_v6 = true;
            return self.drop_client(engine, now);
        }
        self.tell(why.to_string());
        self.try_next(now, engine);
    }

    /// Turns to the next server; after the last one there is a pause.
    fn try_next(&mut self, now: Instant, engine: &mut Engine) {
        self.drop_client(engine, now);
        self.servers.next();
    }

    fn drop_client(&mut self, engine: &mut Engine, now: Instant) {
        self.unbind(now, engine, |_| true);
        (self.client, self.allocated) = (None, None);
        self.channels.clear();
    }

    fn unbind(&mut self, now: Instant, engine: &mut Engine, which: impl Fn(&Channel) -> bool) {
        for channel in self.channels.iter_mut().filter(|channel| which(channel)) {
            channel.is_bound = false;
            engine.set_relayed(now, channel.peer, None);
        }
    }

    fn pause(&mut self, now: Instant) {
        debug!(seconds = self.pause.as_secs(), "no relay: trying again after a pause");
        self.again = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    fn tell(&mut self, problem: String) {
        let server = self.client.as_ref().map(|client| format!(" {}", client.server())).unwrap_or_default();
        if self.problem.as_ref() == Some(&problem) {
            debug!(problem, "still");
            return;
        }
        warn!(problem, "the relay{server} cannot be used");
        self.news.insert(0, format!("the relay{server}: {problem}"));
        self.problem = Some(problem);
    }
}

/// What the configuration says, or what is made of its secret now.
fn credential(config: &config::Relay) -> Result<Credential, InvalidCredential> {
    match &config.login {
        Login::Password { username, password } => Credential::new(username, &password.0),
        Login::Secret { username, secret } => {
            let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            let name = if username.is_empty() { NAME } else { username };
            let username = format!("{}:{name}", (unix / DAY + 2) * DAY);
            Credential::new(&username, &time_limited_password(&secret.0, &username))
        }
    }
}
