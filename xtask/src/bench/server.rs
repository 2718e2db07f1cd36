//! The servers that are measured: how each is started, and that it ends.

use std::{
    fmt, fs,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use backwater_probe::{
    clients::{Clients, Round},
    load::{Direction, Session, Setup, Via},
    turn::{self, Credential},
};
use backwater_stun::{AddressFamily, ChannelNumber};
use backwater_udp::UdpSocket;
use clap::ValueEnum;

use super::{Cell, SERVER_CORE, cpu};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// Ours.
    Backwater,
    /// The one that is installed.
    Coturn,
    /// The one at --coturn.
    CoturnAt,
    /// The same with one port for all peers, and segmentation offload.
    CoturnAtGso,
    /// The crate of that name. It has no relayed sockets, so that only its own clients reach each other.
    TurnServer,
    /// Relays, and does nothing else: the limit.
    Raw,
}

/// Where the programs are.
pub(super) struct Programs {
    /// Of this repository.
    pub(super) ours: PathBuf,
    pub(super) coturn: Option<PathBuf>,
}

/// A server that runs, until this is dropped.
pub(super) struct Server {
    pub(super) kind: Kind,
    child: Child,
    address: SocketAddr,
    directory: PathBuf,
    plain_sink: bool,
}

/// What allocations cost while nothing is sent.
pub(super) struct Footprint {
    /// How many could be made.
    pub(super) held: usize,
    /// Resident KiB for each.
    pub(super) idle: f64,
    /// The same with a channel.
    pub(super) with_channel: f64,
}

/// Making allocations, as fast as it goes.
#[derive(Clone, Copy)]
pub(super) struct Made {
    pub(super) per_second: f64,
    /// Per second of the server's CPU.
    pub(super) per_cpu_second: f64,
    /// What the generator makes in a second of its own work, when it never waits.
    pub(super) generator: f64,
}

/// The version of the crate that is compared with.
pub(super) const TURN_SERVER: &str = "4.1.5";

const USER: &str = "load";
const PASSWORD: &str = "loadtest";
const REALM: &str = "bench";

/// The raw forwarder knows one peer, so the peer has one address; below the ports that the system gives out.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9999);

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(5);

impl Programs {
    pub(super) fn turn_server(&self) -> PathBuf {
        self.ours.with_file_name("turn-server").join("bin/turn-server")
    }
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Backwater, Self::Coturn, Self::CoturnAt, Self::CoturnAtGso, Self::TurnServer, Self::Raw];

    /// Whether it speaks TURN.
    pub(super) fn is_turn(self) -> bool {
        self != Self::Raw
    }

    pub(super) fn is_coturn(self) -> bool {
        matches!(self, Self::Coturn | Self::CoturnAt | Self::CoturnAtGso)
    }

    pub(super) fn serves(self, direction: Direction) -> bool {
        self != Self::TurnServer || direction == Direction::Across
    }

    fn port(self) -> u16 {
        3478 + self as u16 * 10
    }

    fn command(
        self,
        direction: Direction,
        programs: &Programs,
        listen: SocketAddr,
        directory: &Path,
    ) -> Result<Command> {
        let mut command = crate::namespace::ends_with_us();
        command.args(["taskset", "-c", SERVER_CORE]);
        let user = format!("{USER}:{PASSWORD}");
        let (ip, port) = (listen.ip().to_string(), listen.port().to_string());
        match self {
            Self::Backwater => {
                command.arg(programs.ours.join("backwater-relay"));
                command.args(["--listen", &listen.to_string(), "--threads", "1", "--realm", REALM, "--user", &user]);
                command.args(["--allow-peer", "127.0.0.0/8", "--max-allocations", "16384", "--log-level", "warn"]);
            }
            Self::Coturn | Self::CoturnAt | Self::CoturnAtGso => {
                let installed = Path::new("turnserver");
                let other = programs.coturn.as_deref().filter(|_| self != Self::Coturn);
                // `-n`: no configuration file. One relay thread; no other listeners than UDP.
                command.arg(other.unwrap_or(installed)).args(["-n", "-m", "1", "-L", &ip, "-E", &ip, "-p", &port]);
                command.args(["-a", "-r", REALM, "-u", &user, "--allow-loopback-peers", "--no-tcp", "--no-tls"]);
                command.args(["--no-dtls", "--no-cli", "--no-tcp-relay", "--no-stdout-log", "-l", "/dev/null"]);
                command.arg("--pidfile").arg(directory.join("pid")).arg("-b").arg(directory.join("db"));
                if self == Self::CoturnAtGso {
                    command.args(["--multiplex-peer", "--udp-gso"]);
                }
            }
            Self::TurnServer => {
                let path = directory.join("turn-server.toml");
                fs::write(&path, turn_server_toml(listen))?;
                command.arg(programs.turn_server()).arg("--config").arg(path);
            }
            Self::Raw => {
                let direction = direction.to_possible_value().context("a direction that cannot be named")?;
                command.arg(programs.ours.join("backwater-probe"));
                command.args(["forward", "--listen", &listen.to_string(), "--peer", &PEER.to_string()]);
                command.args(["--direction", direction.get_name()]);
            }
        }
        Ok(command)
    }
}

/// As in the crate's own example, with one worker thread and no timeout that a run would reach.
fn turn_server_toml(listen: SocketAddr) -> String {
    format!(
        "[server]\nport-range = \"49152..65535\"\nmax-threads = 1\nrealm = \"{REALM}\"\n\
         [[server.interfaces]]\ntransport = \"udp\"\nlisten = \"{listen}\"\nexternal = \"{listen}\"\n\
         idle-timeout = 3600\n\
         [log]\nlevel = \"error\"\n\
         [auth.static-credentials]\n{USER} = \"{PASSWORD}\"\n"
    )
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { held, idle, with_channel } = self;
        write!(f, "{held} allocations held, {idle:.1} KiB each, {with_channel:.1} KiB with a channel")
    }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { per_second, per_cpu_second, generator } = self;
        write!(f, "{per_second:.0} allocations/s, {per_cpu_second:.0} per CPU-second (generator {generator:.0})")
    }
}

impl Server {
    /// Starts it and waits until it answers.
    pub(super) async fn start(kind: Kind, direction: Direction, programs: &Programs, plain_sink: bool) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], kind.port()));
        let directory = std::env::temp_dir().join(format!("backwater-bench-{}-{kind}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let log = fs::File::create(directory.join("log"))?;
        let mut command = kind.command(direction, programs, address, &directory)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {kind}"))?;
        let mut server = Self { kind, child, address, directory, plain_sink };
        server.wait_until_ready().await.with_context(|| format!("{kind} does not run: {}", server.log()))?;
        Ok(server)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn run_time(&self) -> Result<u64> {
        cpu::run_time(self.child.id())
    }

    pub(super) fn waited(&self) -> Result<u64> {
        cpu::waited(self.child.id())
    }

    /// Clients of this server, and what they talk to.
    pub(super) async fn session(&self, cell: Cell) -> Result<Session> {
        let via =
            if self.kind.is_turn() { Via::Turn(self.address, credential()) } else { Via::Forwarder(self.address) };
        let Cell { direction, clients, .. } = cell;
        Ok(Session::open(&Setup { via, direction, clients, peer: PEER, plain_sink: self.plain_sink }).await?)
    }

    /// What `count` allocations cost that are held all at once, as far as they can be made.
    pub(super) async fn footprint(&self, count: usize) -> Result<Footprint> {
        // What is allocated once, on first use, is not an allocation's.
        self.hold(100).await?;
        self.hold(count).await
    }

    /// KiB of resident memory.
    pub(super) fn resident(&self) -> Result<f64> {
        cpu::resident(self.child.id())
    }

    async fn hold(&self, count: usize) -> Result<Footprint> {
        let resident = || self.resident();
        let mut clients = Clients::new(self.address, count)?;
        let before = resident()?;
        let round = clients.allocate(&credential(), AddressFamily::Ipv4).await?;
        if let Some(error) = round.refusal {
            eprintln!("{}: {error}", self.kind);
        }
        ensure!(round.granted > 0, "no allocation at all");
        let idle = resident()? - before;
        // Another client is a peer that every kind allows.
        let relayed: Vec<_> = (0..count).filter_map(|i| clients.relayed(i)).collect();
        let other = |i: usize| relayed[(i + 1) % relayed.len()];
        everything(clients.bind_channels(ChannelNumber::MIN, other).await?)?;
        let with_channel = resident()? - before;
        everything(clients.release().await?)?;
        let each = |kib: f64| kib / round.granted as f64;
        Ok(Footprint { held: round.granted, idle: each(idle), with_channel: each(with_channel) })
    }

    /// Makes `count` allocations, each with the 401 that comes first, and ends them.
    pub(super) async fn make_allocations(&self, count: usize) -> Result<Made> {
        let mut clients = Clients::new(self.address, count)?;
        let before = self.run_time()?;
        let round = clients.allocate(&credential(), AddressFamily::Ipv4).await?;
        let cpu_seconds = (self.run_time()? - before) as f64 / 1e9;
        let (elapsed, busy) = (round.elapsed.as_secs_f64(), round.busy.as_secs_f64());
        everything(round)?;
        everything(clients.release().await?)?;
        let made = count as f64;
        Ok(Made { per_second: made / elapsed, per_cpu_second: made / cpu_seconds, generator: made / busy })
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it has ended with {status}");
            }
            let ready = if self.kind.is_turn() {
                turn::binding(&socket, self.address, Duration::from_millis(50)).await.is_ok()
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                fs::read_to_string("/proc/net/udp")?.contains(&format!(":{:04X} 00000000:0000", self.address.port()))
            };
            if ready {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "no answer within {} s", PATIENCE.as_secs());
        }
    }

    /// What it said last.
    fn log(&self) -> String {
        let mut text = String::new();
        let read = fs::File::open(self.directory.join("log")).and_then(|mut file| file.read_to_string(&mut text));
        match read {
            Ok(_) => text.lines().rev().take(5).collect::<Vec<_>>().join(" | "),
            Err(e) => e.to_string(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing to do about a failure: it has ended by itself then.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub(super) fn credential() -> Credential {
    Credential { user: USER.to_owned(), password: PASSWORD.to_owned() }
}

pub(super) fn everything(round: Round) -> Result<()> {
    round.refusal.map_or(Ok(()), |error| Err(error.into()))
}
