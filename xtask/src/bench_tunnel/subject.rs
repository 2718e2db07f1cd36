//! The implementations that are measured: how each is started, and that it ends.

use std::{
    fmt, fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{
    network::{End, INNER_MTU},
    process::{PATIENCE, Process, run, wait_until},
};
use crate::bench::cpu;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Ours.
    Backwater,
    /// Debian's.
    WireguardGo,
    /// The crate of that name.
    BoringtunCli,
    /// The crate of that name.
    GotatunCli,
    /// The kernel's own, if it has one; to know, not to compare with.
    Kernel,
}

/// Where the programs are.
pub(super) struct Programs {
    /// Cargo's target directory.
    pub(super) target: PathBuf,
}

/// A tunnel from the near end to the far one that runs, until this is dropped.
pub(super) struct Tunnel {
    pub(super) kind: Kind,
    index: u8,
    /// Of both ends; the kernel has none.
    processes: Vec<Process>,
}

/// What the two ends do while nothing is sent.
pub(super) struct Idle {
    /// Per second.
    pub(super) wake_ups: [f64; 2],
    /// MiB, before all loads.
    pub(super) resident: [f64; 2],
    /// And after them, if both still run.
    pub(super) resident_after: Option<[f64; 2]>,
}

/// Private and public. They are made up, and good for nothing but these networks.
const KEYS: [[&str; 2]; 2] = [
    ["EGq05fE9BycasbI6yXmIzK/4iP1nPttdrG86LmnaO34=", "bgr+0E64xSsyoO46HpqY5RpCG0ue/bllUItl3G26sRU="],
    ["uGgIQ2Z55jY5Air7Cvc3SEnR6ckVN7j8PStnS3P61kM=", "/KRPo2oEUU3rOkjLNGtfa1FuWTepNiTCXre7eTahoUU="],
];

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Backwater, Self::WireguardGo, Self::BoringtunCli, Self::GotatunCli, Self::Kernel];

    /// Whether ours is compared with it.
    pub(super) fn is_peer(self) -> bool {
        !matches!(self, Self::Backwater | Self::Kernel)
    }

    pub(super) fn has_processes(self) -> bool {
        self != Self::Kernel
    }

    /// Which one cargo installs.
    pub(super) fn version(self) -> Option<&'static str> {
        match self {
            Self::BoringtunCli => Some("0.7.1"),
            Self::GotatunCli => Some("0.10.2"),
            Self::Backwater | Self::WireguardGo | Self::Kernel => None,
        }
    }

    /// Starts an end in the foreground, on the device of that name; errors are all that it logs.
    fn command(self, end: End, programs: &Programs, device: &str, configuration: &Path) -> Command {
        let mut command = end.command(programs.path(self));
        match self {
            // It names the device after the file. Its logs go where they vanish.
            Self::Backwater => command.arg("up").arg(configuration).env("XDG_CACHE_HOME", "/run"),
            // As with -f, but without the advice to use the kernel's.
            Self::WireguardGo => command.arg(device).env("WG_PROCESS_FOREGROUND", "1"),
            Self::BoringtunCli | Self::GotatunCli => {
                command.args(["--foreground", "--disable-drop-privileges", "--verbosity", "error", device])
            }
            Self::Kernel => command.args(["link", "add", device, "type", "wireguard"]),
        };
        command
    }
}

impl Programs {
    /// What `cargo install` has installed.
    pub(super) fn peers(&self) -> PathBuf {
        self.target.join("tunnel-peers")
    }

    pub(super) fn path(&self, kind: Kind) -> PathBuf {
        match kind {
            Kind::Backwater => self.target.join("release/backwater-tunnel"),
            Kind::WireguardGo => "wireguard-go".into(),
            Kind::BoringtunCli => self.peers().join("bin/boringtun-cli"),
            Kind::GotatunCli => self.peers().join("bin/gotatun"),
            Kind::Kernel => "ip".into(),
        }
    }
}

impl Tunnel {
    /// Starts both ends and waits until something comes through.
    pub(super) fn start(kind: Kind, index: u8, programs: &Programs, v6: bool) -> Result<Self> {
        let configuration = |end| Configuration::new(kind, index, end, (end.other().outer(v6), port(index)).into());
        Self::start_with(End::BOTH.map(configuration), programs)
    }

    /// Starts a near end of this kind and a far one of ours, each of which sends to `midway`.
    pub(super) fn start_by_way_of(midway: SocketAddr, kind: Kind, index: u8, programs: &Programs) -> Result<Self> {
        let near = Configuration::new(kind, index, End::Near, midway);
        Self::start_with([near, Configuration::new(Kind::Backwater, index, End::Far, midway)], programs)
    }

    fn start_with(configurations: [Configuration; 2], programs: &Programs) -> Result<Self> {
        let [Configuration { kind, index, .. }, _] = configurations;
        let mut tunnel = Self { kind, index, processes: Vec::new() };
        for configuration in configurations {
            let end = configuration.end;
            tunnel.start_end(&configuration, programs).with_context(|| format!("the {} end", end.name()))?;
        }
        // Nobody listens there: the refusal is the far end's.
        let nobody = SocketAddr::from((tunnel.address(), 9));
        wait_until(PATIENCE, || {
            tunnel.still_runs()?;
            let refused = TcpStream::connect_timeout(&nobody, Duration::from_millis(500));
            Ok(refused.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused))
        })
        .context("nothing comes through")?;
        Ok(tunnel)
    }

    /// The name of the device of that end.
    pub(super) fn device(&self, end: End) -> String {
        device(self.index, end)
    }

    /// Of the far end, inside.
    pub(super) fn address(&self) -> std::net::Ipv4Addr {
        End::Far.inner(self.index)
    }

    pub(super) fn still_runs(&mut self) -> Result<()> {
        let mut ends = End::BOTH.iter().zip(&mut self.processes);
        ends.try_for_each(|(end, process)| process.still_runs().with_context(|| format!("the {} end", end.name())))
    }

    /// CPU-seconds that the near and the far end have used; none if they are not processes.
    pub(super) fn cpu_seconds(&self) -> Result<Option<[f64; 2]>> {
        if !self.kind.has_processes() {
            return Ok(None);
        }
        self.each(cpu::cpu_seconds).map(Some)
    }

    /// How often the two ends have slept so far.
    pub(super) fn wake_ups(&self) -> Result<[u64; 2]> {
        self.each(cpu::wake_ups)
    }

    /// Resident memory of the two ends, MiB.
    pub(super) fn resident(&self) -> Result<[f64; 2]> {
        self.each(|id| Ok(cpu::resident(id)? / 1024.0))
    }

    /// The near and the far end's; nothing for those without processes.
    fn each<T: Default + Copy>(&self, value: impl Fn(u32) -> Result<T>) -> Result<[T; 2]> {
        let mut values = [T::default(); 2];
        for (slot, process) in values.iter_mut().zip(&self.processes) {
            *slot = value(process.id())?;
        }
        Ok(values)
    }

    fn start_end(&mut self, configuration: &Configuration, programs: &Programs) -> Result<()> {
        let Configuration { kind, index, end, .. } = *configuration;
        let device = device(index, end);
        let file = PathBuf::from(format!("/run/{device}.conf"));
        fs::write(&file, configuration.to_string())?;
        let command = kind.command(end, programs, &device, &file);
        match kind {
            Kind::Backwater => {
                self.processes.push(Process::start(command, &device)?);
                return Ok(());
            }
            Kind::Kernel => run(command, "")?,
            Kind::WireguardGo | Kind::BoringtunCli | Kind::GotatunCli => {
                let socket = PathBuf::from(format!("/run/wireguard/{device}.sock"));
                // One that was ended leaves it.
                let _ = fs::remove_file(&socket);
                let mut process = Process::start(command, &device)?;
                wait_until(PATIENCE, || {
                    process.still_runs()?;
                    Ok(socket.exists())
                })
                .context("its control socket")?;
                self.processes.push(process);
            }
        }
        run(end.command("wg"), &format!("setconf {device} {}", file.display()))?;
        end.ip(&format!("address add {}/24 dev {device}", end.inner(index)))?;
        end.ip(&format!("link set {device} mtu {INNER_MTU} up"))
    }
}

/// What one end is started with.
struct Configuration {
    kind: Kind,
    index: u8,
    end: End,
    /// Where it sends to.
    endpoint: SocketAddr,
}

impl Configuration {
    fn new(kind: Kind, index: u8, end: End, endpoint: SocketAddr) -> Self {
        Self { kind, index, end, endpoint }
    }
}

/// What wg(8) reads; ours has the rest in it as well.
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, index, end, endpoint } = *self;
        let [[private, _], [_, public]] = if end == End::Near { KEYS } else { [KEYS[1], KEYS[0]] };
        let (port, address, inner) = (port(index), end.inner(index), end.other().inner(index));
        writeln!(f, "[Interface]\nPrivateKey = {private}\nListenPort = {port}")?;
        if kind == Kind::Backwater {
            writeln!(f, "Address = {address}/24\nMTU = {INNER_MTU}\nTable = auto")?;
        }
        writeln!(f, "[Peer]\nPublicKey = {public}\nAllowedIPs = {inner}/32\nEndpoint = {endpoint}")
    }
}

/// The port of both ends.
pub(super) fn port(index: u8) -> u16 {
    51820 + u16::from(index)
}

fn device(index: u8, end: End) -> String {
    format!("bench{index}{}", end.name())
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_know_each_other() {
        let text =
            |kind, end: End, v6| Configuration::new(kind, 3, end, (end.other().outer(v6), port(3)).into()).to_string();
        let near = text(Kind::Backwater, End::Near, true);
        assert!(near.contains("Address = 10.78.3.1/24\nMTU = 1420\n"), "{near}");
        assert!(near.contains("AllowedIPs = 10.78.3.2/32\nEndpoint = [fd77::2]:51823\n"), "{near}");
        let far = text(Kind::WireguardGo, End::Far, false);
        assert!(far.contains("ListenPort = 51823\n[Peer]\n"), "{far}");
        assert!(far.contains("AllowedIPs = 10.78.3.1/32\nEndpoint = 10.77.0.1:51823\n"), "{far}");
        for (text, private, public) in [(near, KEYS[0][0], KEYS[1][1]), (far, KEYS[1][0], KEYS[0][1])] {
            assert!(text.contains(&format!("PrivateKey = {private}\n")), "{text}");
            assert!(text.contains(&format!("PublicKey = {public}\n")), "{text}");
        }
    }
}
