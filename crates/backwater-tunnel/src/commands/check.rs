//! `check`: whether a configuration is good, and whether its peers answer.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    net::{UdpSocket, lookup_host},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{
    config::{Config, Endpoint, Errors, Interface, Key, Mode, Peer, tunnel_name},
    engine::{
        session_indices::SessionIndices,
        wireguard::{Clock, INITIATION, Received, Tunnel},
    },
};

/// Validates a configuration, resolves its names, and tries a handshake with each peer that has an endpoint.
///
/// Exit code 0: all is well; 1: some peer does not answer; 2: the configuration cannot be used.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A WireGuard configuration.
    pub file: PathBuf,
}

/// How long a name or a peer has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// An initiation may be lost. (WireGuard's own interval is 5 s.)
const AGAIN: Duration = Duration::from_millis(1500);

/// Initiations that come sooner than 20 ms after one are ignored (Linux' `INITIATIONS_PER_SECOND`).
const FLOOD: Duration = Duration::from_millis(50);

/// Peers that are tried at once: each has two sockets at most.
const AT_ONCE: usize = 64;

/// Prints a line for each address of each peer.
///
/// # Errors
/// [`Errors`] of the configuration, all of them.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (name, read) = (tunnel_name(&args.file), Config::read(&args.file));
    let (name, (config, warnings)) = match (name, read) {
        (Ok(name), Ok(read)) => (name, read),
        (name, read) => return Err(Errors::joined([name.err(), read.err()]).into()),
    };
    let skipped = config.interface.hooks.iter().map(|hook| hook.skipped(&args.file));
    for warning in warnings.into_iter().chain(skipped) {
        eprintln!("{warning}");
    }
    println!("{}: a good configuration of the tunnel {name} with {} peers", args.file.display(), config.peers.len());
    let Config { interface, peers, relay } = config;
    if relay.is_some_and(|relay| relay.mode == Mode::Always) {
        println!(
            "no peer is tried: they are reached by the relay alone, and a handshake from here would show them this host's address"
        );
        return Ok(ExitCode::SUCCESS);
    }
    let (mut tried, mut answered) = (0, 0);
    for peers in peers.chunks(AT_ONCE) {
        let mut checks = JoinSet::new();
        for (at, peer) in peers.iter().enumerate() {
            let (interface, peer) = (interface.clone(), peer.clone());
            checks.spawn(async move { (at, check(&interface, &peer).await) });
        }
        let mut reports = checks.join_all().await;
        reports.sort_by_key(|(at, _)| *at);
        for (peer, (_, report)) in peers.iter().zip(reports) {
            let key = peer.public_key.to_base64();
            for (at, outcome) in &report {
                println!("peer {key} at {at}: {outcome}");
            }
            if report.is_empty() {
                println!("peer {key}: no endpoint to try: it has to call");
            } else {
                tried += 1;
                answered += usize::from(report.iter().any(|(_, outcome)| matches!(outcome, Outcome::Answered(_))));
            }
        }
    }
    if tried > 0 {
        println!("{answered} of {tried} peers with an endpoint answered");
    }
    Ok(if answered == tried { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What became of an attempt.
#[derive(Debug)]
enum Outcome {
    Answered(Duration),
    Silent,
    Refused,
    NoRoute(io::Error),
    Forbidden(io::Error),
    Unresolved(io::Error),
    Failed(io::Error),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(time) => write!(f, "answered in {:.1} ms", time.as_secs_f64() * 1e3),
            Self::Silent => write!(
                f,
                "nothing came back within {} s: UDP is blocked on the way, a key is wrong, or nobody is there",
                PATIENCE.as_secs()
            ),
            Self::Refused => f.write_str("refused: the host is there, but nothing listens on the port (ICMP)"),
            Self::NoRoute(error) => write!(f, "no route: {error}"),
            Self::Forbidden(error) => write!(f, "blocked on this host: {error}"),
            Self::Unresolved(error) => write!(f, "the name does not resolve: {error}"),
            Self::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}

/// Tries an IPv4 and an IPv6 address of a peer side by side. Returns the addresses, as they are shown, and what became of each.
async fn check(interface: &Interface, peer: &Peer) -> Vec<(String, Outcome)> {
    let (name, port) = match &peer.endpoint {
        None => return Vec::new(),
        Some(Endpoint::Address(addr)) => return vec![(addr.to_string(), attempt(interface, peer, *addr).await)],
        Some(Endpoint::Name(name, port)) => (name, *port),
    };
    let found = match timeout(PATIENCE, lookup_host((name.as_str(), port))).await {
        Ok(found) => found.map(Vec::from_iter),
        Err(_) => Err(io::Error::new(ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()))),
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => return vec![(format!("{name}:{port}"), Outcome::Unresolved(error))],
    };
    let first = |v4: bool| found.iter().copied().find(|addr| addr.is_ipv4() == v4);
    let attempt_after = async |delay, addr: Option<SocketAddr>| {
        let addr = addr?;
        sleep(delay).await;
        Some((format!("{name}, {addr}"), attempt(interface, peer, addr).await))
    };
    let (v4, v6) = tokio::join!(attempt_after(Duration::ZERO, first(true)), attempt_after(FLOOD, first(false)));
    let mut report = Vec::from_iter(v4.into_iter().chain(v6));
    if report.is_empty() {
        let error = io::Error::new(ErrorKind::NotFound, "it has no address");
        report.push((format!("{name}:{port}"), Outcome::Unresolved(error)));
    }
    report
}

async fn attempt(interface: &Interface, peer: &Peer, addr: SocketAddr) -> Outcome {
    let handshake = handshake(interface, peer, addr);
    let error = match timeout(PATIENCE, handshake).await {
        Err(_) => return Outcome::Silent,
        Ok(Ok(time)) => return Outcome::Answered(time),
        Ok(Err(error)) => error,
    };
    let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
    if is(&[ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset]) {
        Outcome::Refused
    } else if is(&[ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable, ErrorKind::AddrNotAvailable]) {
        Outcome::NoRoute(error)
    } else if is(&[ErrorKind::PermissionDenied]) {
        Outcome::Forbidden(error)
    } else {
        Outcome::Failed(error)
    }
}

/// How long a handshake takes from its last initiation on. It waits for ever.
///
/// The message that would confirm it is not sent. So the peer has a session that nobody uses, and forgets it.
async fn handshake(interface: &Interface, peer: &Peer, addr: SocketAddr) -> io::Result<Duration> {
    let any: IpAddr = if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    mark(&socket, interface.fwmark)?;
    socket.connect(addr).await?;
    let private = StaticSecret::from(interface.private_key.0);
    let public = PublicKey::from(peer.public_key.0);
    let preshared = peer.preshared_key.as_ref().map(|Key(bytes)| *bytes);
    let (mut indices, clock) = (SessionIndices::default(), Clock::new(Instant::now(), SystemTime::now()));
    let mut tunnel = Tunnel::new(0, &private, public, preshared, clock);
    let (mut message, mut answer) = ([0; INITIATION], [0; 2048]);
    // Once only: a peer that always asks for a cookie is not asked for ever.
    let mut cookie = true;
    loop {
        let sent = Instant::now();
        if let Some(initiation) = tunnel.initiate(sent, true, &mut indices, &mut message) {
            socket.send(initiation).await?;
        }
        let again = (sent + AGAIN).into();
        loop {
            let len = tokio::select! {
                len = socket.recv(&mut answer) => len?,
                () = sleep_until(again) => break,
            };
            match tunnel.receive(Instant::now(), answer.get(..len).unwrap_or_default(), &mut [], &mut indices) {
                // It is a response of whom the public key belongs to.
                Ok(Received::Response) => return Ok(sent.elapsed()),
                // With it, it has to be said again.
                Ok(Received::Cookie) if std::mem::take(&mut cookie) => break,
                Ok(Received::Cookie | Received::Keepalive | Received::Packet(..)) | Err(_) => {}
            }
        }
    }
}

/// So that it goes the way that the tunnel's datagrams go.
#[cfg(target_os = "linux")]
fn mark(socket: &UdpSocket, mark: u32) -> io::Result<()> {
    if mark == 0 {
        return Ok(());
    }
    let cannot = |error: io::Error| io::Error::other(format!("FwMark wants CAP_NET_ADMIN: {error}"));
    socket2::SockRef::from(socket).set_mark(mark).map_err(cannot)
}

#[cfg(not(target_os = "linux"))]
fn mark(_: &UdpSocket, _: u32) -> io::Result<()> {
    Ok(())
}
