//! Checks a TURN server step by step, as a client that wants to use it: what works, how fast, and what to do about the rest.
//!
//! Nothing is needed but the server. The peer of the check is a socket of this process. Where the server does not allow that, as for private
//! addresses, the peer is a second allocation of the same server.

mod advice;
mod exchange;
mod session;
mod text;
mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use backwater_stun::Code;
use backwater_turn::{
    Protocol,
    client::{Allocated, Credential, Event, Failure},
};
use serde::Serialize;
use tokio::{net::UdpSocket, time::timeout};

pub use exchange::Exchanged;
pub use tls::Trust;

use advice::{of_connection, of_refusal};
use exchange::{Peer, exchange};
use session::{Happening, Link, Session, any, binding, udp_socket};

/// The longest wait for the outcome of one step.
const PATIENCE: Duration = Duration::from_secs(10);

/// The wait for an ICMP message.
const ICMP: Duration = Duration::from_secs(1);

/// How often a peer's first datagram is sent, and the wait after each.
const TRIES: (u32, Duration) = (5, Duration::from_millis(400));

/// What carries messages to the server.
#[derive(Clone, Debug)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls(Trust),
}

/// The result of a check.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this program.
    pub version: &'static str,
    /// The server as the user wrote it.
    pub server: String,
    /// The address that was checked.
    pub address: SocketAddr,
    /// One for each transport, in the order in which they were checked.
    pub transports: Vec<TransportReport>,
    /// The NAT between this host and the server.
    pub nat: Nat,
    /// Whether data went both ways over some transport. Without a credential: whether the server can be reached.
    pub works: bool,
}

/// The steps of one transport.
#[derive(Debug, Serialize)]
pub struct TransportReport {
    /// `udp`, `tcp` or `tls`.
    pub transport: &'static str,
    /// The steps, in their order.
    pub steps: Vec<Step>,
    /// The datagrams of the last step.
    pub exchanged: Option<Exchanged>,
}

/// The outcome of one step.
#[derive(Debug, Serialize)]
pub struct Step {
    /// The name: see [`STEPS`].
    pub step: &'static str,
    /// Whether it works.
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub milliseconds: Option<f64>,
    /// What happened.
    pub detail: String,
    /// What to do about it, if it does not work.
    pub advice: Option<String>,
}

/// Whether a step works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It works.
    Works,
    /// It does not.
    Fails,
    /// An earlier step does not, or there is no credential.
    NotTested,
}

/// The steps of each transport.
pub const STEPS: [&str; 6] = ["reachable", "authentication", "allocation", "permission", "channel", "data"];

/// How the NAT between this host and the server maps addresses (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nat {
    /// The kind.
    pub kind: NatKind,
    /// The address of a socket of this host.
    pub local: Option<SocketAddr>,
    /// The same socket's address as the server sees it.
    pub mapped: Option<SocketAddr>,
}

/// A kind of NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NatKind {
    /// None: the server sees this host's own address.
    None,
    /// One address for all destinations.
    EndpointIndependent,
    /// Another address for each destination: a "symmetric" NAT.
    EndpointDependent,
    /// There is a NAT, and not enough was seen of it.
    Unspecified,
    /// Nothing is known: UDP was not checked, or the server cannot be reached.
    #[default]
    Unknown,
}

/// Checks a server over each of `transports`. `name` is the server as the user wrote it. Without a credential, only whether it can be reached.
///
/// # Errors
/// This host has no sockets left.
pub async fn check(
    name: &str,
    server: SocketAddr,
    transports: &[Transport],
    credential: Option<&Credential>,
) -> io::Result<Report> {
    let (mut reports, mut nat) = (Vec::new(), Nat::default());
    for transport in transports {
        let mut check = Check::new(server, transport);
        // What went wrong is in the steps.
        let _ = check.run(credential).await;
        nat = if check.nat.kind == NatKind::Unknown { nat } else { check.nat };
        reports.push(check.report());
    }
    let last = if credential.is_some() { STEPS.len() } else { 1 };
    let all = |t: &TransportReport| t.steps.iter().take(last).all(|step| step.outcome == Outcome::Works);
    let works = reports.iter().any(all);
    let (version, server_name) = (env!("CARGO_PKG_VERSION"), name.to_owned());
    Ok(Report { version, server: server_name, address: server, transports: reports, nat, works })
}

impl Transport {
    fn name(&self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls(_) => "tls",
        }
    }

    fn protocol(&self) -> Protocol {
        match self {
            Self::Udp => Protocol::Udp,
            Self::Tcp | Self::Tls(_) => Protocol::Tcp,
        }
    }
}

/// The check of one transport.
struct Check {
    server: SocketAddr,
    transport: Transport,
    steps: Vec<Step>,
    exchanged: Option<Exchanged>,
    nat: Nat,
}

/// A step has failed, and is recorded.
struct Failed;

impl Check {
    fn new(server: SocketAddr, transport: &Transport) -> Self {
        Self { server, transport: transport.clone(), steps: Vec::new(), exchanged: None, nat: Nat::default() }
    }

    fn report(mut self) -> TransportReport {
        let (outcome, detail) = (Outcome::NotTested, String::new());
        for step in STEPS.into_iter().skip(self.steps.len()) {
            self.steps.push(Step { step, outcome, milliseconds: None, detail: detail.clone(), advice: None });
        }
        TransportReport { transport: self.transport.name(), steps: self.steps, exchanged: self.exchanged }
    }

    async fn run(&mut self, credential: Option<&Credential>) -> Result<(), Failed> {
        let (link, socket) = self.reach(credential).await?;
        let Some(credential) = credential else { return Ok(()) };
        let session = Session::new(link, &self.transport, self.server, credential.clone());
        let mut session = session.map_err(|error| self.broken(&error))?;
        let result = match self.allocate(&mut session).await {
            Ok(allocated) => self.relay(&mut session, &allocated, &socket, credential).await,
            Err(failed) => Err(failed),
        };
        session.close().await;
        result
    }

    /// Finds out whether the server answers at all, and returns a link to it and the socket of the peer.
    async fn reach(&mut self, credential: Option<&Credential>) -> Result<(Link, UdpSocket), Failed> {
        let began = Instant::now();
        let link = Link::open(self.server, &self.transport).await.map_err(|error| self.broken(&error))?;
        let connected = began.elapsed();
        let socket = UdpSocket::bind(any(self.server)).await.map_err(|error| self.broken(&error))?;
        let local = link.local().ok().zip(socket.local_addr().ok());
        let local = local.map(|(link, socket)| SocketAddr::new(link.ip(), socket.port()));
        if self.transport.protocol() == Protocol::Tcp {
            let with = link
                .tls_version()
                .map_or(String::new(), |version| format!(" with {version}, by a certificate that is trusted"));
            self.works(connected, format!("connected{with}"));
            return Ok((link, socket));
        }
        match binding(&socket, self.server).await.map_err(|error| self.broken(&error))? {
            Some((mapped, round_trip)) => {
                let kind = if Some(mapped) == local { NatKind::None } else { NatKind::Unspecified };
                self.nat = Nat { kind, local, mapped: Some(mapped) };
                self.works(round_trip, format!("the server sees this host at {mapped}"));
                Ok((link, socket))
            }
            None => {
                self.answers_allocate(credential).await?;
                Ok((link, socket))
            }
        }
    }

    /// Some servers answer no Binding requests. Finds out whether this one answers requests for an allocation.
    async fn answers_allocate(&mut self, credential: Option<&Credential>) -> Result<(), Failed> {
        let Some(credential) = credential else { return Err(self.silent().await) };
        let began = Instant::now();
        let link = Link::open(self.server, &self.transport).await.map_err(|error| self.broken(&error))?;
        let session = Session::new(link, &self.transport, self.server, credential.clone());
        let mut session = session.map_err(|error| self.broken(&error))?;
        let happening = session.next(began + PATIENCE / 2).await;
        session.close().await;
        match happening {
            Ok(Happening::Event(_) | Happening::Data { .. }) => {
                self.works(began.elapsed(), "it answers requests for an allocation, and no others".to_owned());
                Ok(())
            }
            Ok(Happening::Deadline) => Err(self.silent().await),
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// The server does not answer. Finds out whether its host says that no program listens.
    async fn silent(&mut self) -> Failed {
        let refused = match udp_socket(self.server).await {
            Ok(socket) => timeout(ICMP, binding(&socket, self.server)).await.ok().and_then(Result::err),
            Err(error) => Some(error),
        };
        match refused {
            Some(error) => self.broken(&error),
            None => self.fails("nothing comes back".to_owned(), of_connection(self.transport.name(), None)),
        }
    }

    async fn allocate(&mut self, session: &mut Session) -> Result<Allocated, Failed> {
        let began = Instant::now();
        loop {
            let happening = session.next(began + PATIENCE).await.map_err(|error| self.broken(&error))?;
            let (code, reason) = match happening {
                Happening::Event(Event::Allocated(allocated)) => {
                    self.works(Duration::ZERO, "the user name and the password are accepted".to_owned());
                    let relayed = relayed(&allocated).map_or(String::new(), |relayed| relayed.to_string());
                    let seconds = allocated.lifetime.as_secs();
                    self.works(began.elapsed(), format!("peers reach this client at {relayed}; it lasts {seconds} s"));
                    return Ok(allocated);
                }
                Happening::Event(Event::Failed(Failure::Refused { code, reason }))
                | Happening::Event(Event::Refused { code, reason, .. }) => (code, reason),
                Happening::Event(Event::AddressInUse) => (Code::ALLOCATION_MISMATCH, String::new()),
                Happening::Event(Event::Failed(why)) => {
                    return Err(self.fails(why.to_string(), of_refusal(Code::UNAUTHENTICATED)));
                }
                Happening::Event(Event::NoResponse(_)) | Happening::Deadline => {
                    let detail = "the server does not answer the request for an allocation".to_owned();
                    return Err(self.fails(detail, Some(advice::UNANSWERED.to_owned())));
                }
                Happening::Event(_) | Happening::Data { .. } => continue,
            };
            self.works(Duration::ZERO, "the user name and the password are accepted".to_owned());
            return Err(self.fails(refusal(code, &reason), of_refusal(code)));
        }
    }

    /// Checks permission, channel and data, first with a socket of this process as the peer.
    async fn relay(
        &mut self,
        session: &mut Session,
        allocated: &Allocated,
        socket: &UdpSocket,
        credential: &Credential,
    ) -> Result<(), Failed> {
        let before = self.steps.len();
        let mapped = self.nat.mapped.or(allocated.mapped);
        if let (Some(mapped), Some(relayed)) = (mapped, relayed(allocated))
            && self.own_socket(session, mapped.ip(), relayed, socket).await.is_ok()
        {
            return Ok(());
        }
        let first = self.steps.split_off(before);
        if self.second_allocation(session, allocated, credential).await.is_ok() {
            return Ok(());
        }
        // The refusal of an ordinary peer says more than that of the server's own address.
        let second = self.steps.split_off(before);
        self.steps.extend(if first.is_empty() { second } else { first });
        Err(Failed)
    }

    async fn own_socket(
        &mut self,
        session: &mut Session,
        ip: IpAddr,
        relayed: SocketAddr,
        socket: &UdpSocket,
    ) -> Result<(), Failed> {
        let began = Instant::now();
        session.client.permit(began, ip).map_err(|error| self.broken(&io::Error::other(error)))?;
        self.granted(session, began, "data may come from and go to", ip).await?;
        let Some(peer) = self.first_datagram(session, socket, relayed).await? else {
            self.steps.push(Step {
                step: "channel",
                outcome: Outcome::NotTested,
                milliseconds: None,
                detail: String::new(),
                advice: None,
            });
            let detail = format!("what is sent to {relayed} does not arrive");
            return Err(self.fails(detail, Some(advice::of_relayed(relayed))));
        };
        if self.transport.protocol() == Protocol::Udp && self.nat.kind == NatKind::Unspecified {
            let same = self.nat.mapped == Some(peer);
            self.nat.kind = if same { NatKind::EndpointIndependent } else { NatKind::EndpointDependent };
        }
        self.through(session, peer, Peer::Socket(socket)).await
    }

    async fn second_allocation(
        &mut self,
        session: &mut Session,
        allocated: &Allocated,
        credential: &Credential,
    ) -> Result<(), Failed> {
        let link = Link::open(self.server, &self.transport).await.map_err(|error| self.broken(&error))?;
        let other = Session::new(link, &self.transport, self.server, credential.clone());
        let mut other = other.map_err(|error| self.broken(&error))?;
        let mut silent = Check::new(self.server, &self.transport);
        let second = silent.allocate(&mut other).await;
        let result = match (second.ok().as_ref().and_then(relayed), relayed(allocated)) {
            (Some(to), Some(back)) => self.between(session, &mut other, to, back).await,
            (_, _) => Err(Failed),
        };
        other.close().await;
        result
    }

    async fn between(
        &mut self,
        session: &mut Session,
        other: &mut Session,
        to: SocketAddr,
        back: SocketAddr,
    ) -> Result<(), Failed> {
        let mut silent = Check::new(self.server, &self.transport);
        let now = Instant::now();
        let channel = other.client.bind(now, back).map_err(|_| Failed)?;
        silent.granted(other, now, "", back.ip()).await?;
        let began = Instant::now();
        session.client.permit(began, to.ip()).map_err(|_| Failed)?;
        self.granted(session, began, "data may come from and go to the server's own", to.ip()).await?;
        self.through(session, to, Peer::Allocation(other, channel)).await
    }

    /// Binds a channel to the peer, and sends through it.
    async fn through(&mut self, session: &mut Session, to: SocketAddr, peer: Peer<'_>) -> Result<(), Failed> {
        let began = Instant::now();
        let channel = session.client.bind(began, to).map_err(|error| self.broken(&io::Error::other(error)))?;
        self.granted(session, began, "bound to", to.ip()).await?;
        let exchanged = exchange(session, channel, peer).await.map_err(|error| self.broken(&error))?;
        let detail = exchanged.to_string();
        let works = exchanged.received > 0;
        let median = exchanged.median_ms.unwrap_or_default();
        self.exchanged = Some(exchanged);
        if works {
            self.works(Duration::from_secs_f64(median / 1000.0), detail);
            Ok(())
        } else {
            Err(self.fails(detail, Some(advice::DATA.to_owned())))
        }
    }

    /// Waits until the server has granted or refused a permission or a channel.
    async fn granted(&mut self, session: &mut Session, began: Instant, what: &str, ip: IpAddr) -> Result<(), Failed> {
        loop {
            let happening = session.next(began + PATIENCE).await.map_err(|error| self.broken(&error))?;
            match happening {
                Happening::Event(Event::Permitted(_) | Event::Bound { .. }) => {
                    self.works(began.elapsed(), format!("{what} {ip}"));
                    return Ok(());
                }
                Happening::Event(Event::PeerRefused { code, reason, .. }) => {
                    let detail = format!("{} for {ip}", refusal(code, &reason));
                    return Err(self.fails(detail, of_refusal(code)));
                }
                Happening::Event(Event::NoResponse(_)) | Happening::Deadline => {
                    let detail = "the server does not answer".to_owned();
                    return Err(self.fails(detail, Some(advice::UNANSWERED.to_owned())));
                }
                Happening::Event(_) | Happening::Data { .. } => {}
            }
        }
    }

    /// Sends from the peer's socket to the relayed address. Returns the peer's address as the server sees it there; `None`: nothing
    /// arrives.
    async fn first_datagram(
        &mut self,
        session: &mut Session,
        socket: &UdpSocket,
        relayed: SocketAddr,
    ) -> Result<Option<SocketAddr>, Failed> {
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(|error| self.broken(&io::Error::from(error)))?;
        for _ in 0..TRIES.0 {
            // A host without a way there says so; the next try may find one.
            let _ = socket.send_to(&token, relayed).await;
            let deadline = Instant::now() + TRIES.1;
            loop {
                match session.next(deadline).await.map_err(|error| self.broken(&error))? {
                    Happening::Data { peer, payload } if payload == token => return Ok(Some(peer)),
                    Happening::Deadline => break,
                    Happening::Data { .. } | Happening::Event(_) => {}
                }
            }
        }
        Ok(None)
    }

    fn works(&mut self, took: Duration, detail: String) {
        let milliseconds = (!took.is_zero()).then_some(took.as_secs_f64() * 1000.0);
        self.push(Outcome::Works, milliseconds, detail, None);
    }

    fn fails(&mut self, detail: String, advice: Option<String>) -> Failed {
        self.push(Outcome::Fails, None, detail, advice);
        Failed
    }

    fn broken(&mut self, error: &io::Error) -> Failed {
        self.fails(error.to_string(), of_connection(self.transport.name(), Some(error)))
    }

    fn push(&mut self, outcome: Outcome, milliseconds: Option<f64>, detail: String, advice: Option<String>) {
        if let Some(step) = STEPS.get(self.steps.len()) {
            self.steps.push(Step { step, outcome, milliseconds, detail, advice });
        }
    }
}

fn relayed(allocated: &Allocated) -> Option<SocketAddr> {
    allocated.relayed.v4.or(allocated.relayed.v6)
}

fn refusal(code: Code, reason: &str) -> String {
    let reason = if reason.is_empty() { code.reason() } else { reason };
    format!("the server refuses: {code} {reason}")
}
