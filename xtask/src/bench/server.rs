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
    load::{Session, Setup},
    turn::{self, Credential},
};
use backwater_udp::UdpSocket;
use clap::ValueEnum;

use super::{SERVER_CORE, cpu};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// Ours.
    Backwater,
    /// The one that is installed.
    Coturn,
    /// Strips headers, and does nothing else: the limit.
    Raw,
}

/// A server that runs, until this is dropped.
pub(super) struct Server {
    pub(super) kind: Kind,
    child: Child,
    address: SocketAddr,
    directory: PathBuf,
    plain_sink: bool,
}

const USER: &str = "load";
const PASSWORD: &str = "loadtest";
const REALM: &str = "bench";

/// The raw forwarder knows one destination, so the sink has one address; below the ports that the system gives out.
const SINK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9999);

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(5);

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Backwater, Self::Coturn, Self::Raw];

    /// Whether it speaks TURN.
    pub(super) fn is_turn(self) -> bool {
        self != Self::Raw
    }

    fn port(self) -> u16 {
        3478 + self as u16 * 10
    }

    fn command(self, programs: &Path, listen: SocketAddr, directory: &Path) -> Command {
        let mut command = crate::namespace::ends_with_us();
        command.args(["taskset", "-c", SERVER_CORE]);
        let user = format!("{USER}:{PASSWORD}");
        let (ip, port) = (listen.ip().to_string(), listen.port().to_string());
        match self {
            Self::Backwater => {
                command.arg(programs.join("backwater-relay"));
                command.args(["--listen", &listen.to_string(), "--threads", "1", "--realm", REALM, "--user", &user]);
                command.args(["--allow-peer", "127.0.0.0/8", "--log-level", "warn"]);
            }
            Self::Coturn => {
                // `-n`: no configuration file. One relay thread; no other listeners than UDP.
                command.args(["turnserver", "-n", "-m", "1", "-L", &ip, "-E", &ip, "-p", &port]);
                command.args(["-a", "-r", REALM, "-u", &user, "--allow-loopback-peers", "--no-tcp", "--no-tls"]);
                command.args(["--no-dtls", "--no-cli", "--no-tcp-relay", "--no-stdout-log", "-l", "/dev/null"]);
                command.arg("--pidfile").arg(directory.join("pid")).arg("-b").arg(directory.join("db"));
            }
            Self::Raw => {
                command.arg(programs.join("backwater-probe"));
                command.args(["forward", "--listen", &listen.to_string(), "--to", &SINK.to_string()]);
            }
        }
        command
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backwater => "backwater",
            Self::Coturn => "coturn",
            Self::Raw => "raw",
        })
    }
}

impl Server {
    /// Starts it and waits until it answers.
    pub(super) async fn start(kind: Kind, programs: &Path, plain_sink: bool) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], kind.port()));
        let directory = std::env::temp_dir().join(format!("backwater-bench-{}-{kind}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let log = fs::File::create(directory.join("log"))?;
        let mut command = kind.command(programs, address, &directory);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {kind}"))?;
        let mut server = Self { kind, child, address, directory, plain_sink };
        server.wait_until_ready().await.with_context(|| format!("{kind} does not run: {}", server.log()))?;
        Ok(server)
    }

    pub(super) fn run_time(&self) -> Result<u64> {
        cpu::run_time(self.child.id())
    }

    /// Clients of this server.
    pub(super) async fn session(&self, clients: usize) -> Result<Session> {
        let credential =
            self.kind.is_turn().then(|| Credential { user: USER.to_owned(), password: PASSWORD.to_owned() });
        let setup = Setup { server: self.address, credential, clients, sink: SINK, plain_sink: self.plain_sink };
        Ok(Session::open(&setup).await?)
    }

    /// Resident KiB that each of `count` allocations with a channel adds, all held at once.
    pub(super) async fn memory_per_allocation(&self, count: usize) -> Result<f64> {
        // What is allocated once, on first use, is not an allocation's.
        self.session(10).await?.close().await?;
        let before = cpu::resident(self.child.id())?;
        let session = self.session(count).await?;
        let after = cpu::resident(self.child.id())?;
        session.close().await?;
        Ok((after - before) / count as f64)
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
