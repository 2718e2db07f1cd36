//! `cargo xtask experiment`: what becomes of TCP in a tunnel whose uplink is slower than its sender.
//!
//! The near end's link has a token bucket before it, which refuses what it has no room for, and the far end is some
//! milliseconds away. The far end is always ours, since it counts what it misses by the numbers that WireGuard gives to
//! datagrams, whoever sends them.

mod delay;
mod report;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{
    Programs, again, is_installed,
    load::{Load, iperf3},
    network::{self, End},
    prepare,
    process::{Process, output, run as run_program},
    subject::{Kind, Tunnel, port},
};
use crate::cargo::Metadata;
use delay::Delay;
use report::Report;

#[derive(Args)]
pub(crate) struct Options {
    /// Rounds through all cases.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each load lasts.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// The uplink, Mbit/s.
    #[arg(long, value_delimiter = ',', default_values_t = [20, 200])]
    rates: Vec<u64>,
    /// The round trip of the path when nothing waits, ms.
    #[arg(long, default_value_t = 20)]
    round_trip: u64,
    /// The bucket and the queue of the uplink, bytes. Trains that are longer than the bucket are taken apart by the kernel,
    /// which reports success if it has room for a part of one.
    #[arg(long, default_value_t = 80_000)]
    burst: u64,
    #[arg(long, default_value_t = 128_000)]
    limit: u64,
    /// Streams of TCP.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4])]
    streams: Vec<usize>,
    /// Only these: all that are there by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Sender>,
    /// Only with ECN, or only without.
    #[arg(long)]
    ecn: Option<bool>,
    /// Write the tables to this file as well.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Cargo's target directory, where the programs are: given to the part that runs inside the namespace.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
    /// The process between the ends.
    #[arg(long, hide = true, num_args = 4)]
    delay: Option<Vec<String>>,
}

/// Who sends, and what it does with a datagram that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sender {
    /// Ours, waiting.
    Wait,
    /// Ours, dropping.
    Drop,
    /// Debian's, which is not told (no IP_RECVERR).
    WireguardGo,
    /// The crate of that name, which is not told either.
    BoringtunCli,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    /// Mbit/s.
    rate: u64,
    ecn: bool,
    streams: usize,
    sender: Sender,
}

#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    /// Mbit/s of TCP's payload.
    goodput: f64,
    /// Of what the uplink can carry of it.
    share: f64,
    /// Datagrams that were numbered and did not arrive.
    lost: u64,
    /// Of these, datagrams that the sender says it has dropped.
    told: u64,
    /// What the uplink's queue counts as dropped, that is refused: a train is one.
    refused: u64,
    /// Packets that the near end's device dropped since the tunnel did not read them.
    device_dropped: u64,
    /// Packets that the tunnel's queue marked, and that it dropped.
    marked: u64,
    shed: u64,
    retransmissions: u64,
    /// Of these, segments that had arrived all the same (RFC 2883): TCP was too impatient, mostly since the machine was busy.
    needless: u64,
    /// Of a ping in the tunnel, ms.
    rtt_p50: f64,
    rtt_p99: f64,
}

/// Of an Ethernet frame: payload of TCP with time stamps in a packet of 1,420 bytes; and the frame of its datagram.
const PAYLOAD: f64 = 1420.0 - 20.0 - 32.0;
const FRAME: f64 = 14.0 + 20.0 + 8.0 + 32.0 + 1420.0;

/// Whatever the system's default is: not all heed marks.
const CUBIC: [&str; 2] = ["-C", "cubic"];

const PINGS_PER_SECOND: u64 = 20;

/// Between a load and the counting, for what is still on its way.
const PAUSE: Duration = Duration::from_millis(500);

const DELAY_PORT: u16 = 53000;

impl Sender {
    const ALL: [Self; 4] = [Self::Wait, Self::Drop, Self::WireguardGo, Self::BoringtunCli];

    fn kind(self) -> Kind {
        match self {
            Self::Wait | Self::Drop => Kind::Backwater,
            Self::WireguardGo => Kind::WireguardGo,
            Self::BoringtunCli => Kind::BoringtunCli,
        }
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    match (&options.delay, &options.inside) {
        (Some(words), _) => Delay::parse(words)?.run(),
        (None, Some(target)) => inside(target, options),
        (None, None) => outside(root, options),
    }
}

/// Builds, and starts this program again in a namespace.
fn outside(root: &Path, options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this needs Linux: network namespaces and tc");
    for (program, package) in [("iperf3", "iperf3"), ("ip", "iproute2"), ("tc", "iproute2"), ("ping", "iputils-ping")] {
        ensure!(is_installed(program), "this needs {program}: apt-get install {package}");
    }
    let target = Metadata::read(root)?.target_directory;
    let programs = Programs { target: target.clone() };
    prepare(root, Kind::Backwater, &programs)?;
    let mut senders = Vec::new();
    for sender in Sender::ALL.into_iter().filter(|sender| options.only.is_empty() || options.only.contains(sender)) {
        let missing = match sender.kind() {
            Kind::BoringtunCli if !programs.path(Kind::BoringtunCli).exists() => {
                Some("cargo xtask bench tunnel installs it")
            }
            Kind::WireguardGo if !is_installed("wireguard-go") => Some("apt-get install wireguard-go"),
            Kind::WireguardGo | Kind::BoringtunCli if !is_installed("wg") => Some("apt-get install wireguard-tools"),
            Kind::Backwater | Kind::WireguardGo | Kind::BoringtunCli | Kind::GotatunCli | Kind::Kernel => None,
        };
        match missing {
            Some(how) => eprintln!("{sender} is left out: {how}"),
            None => senders.push(sender.to_string()),
        }
    }
    ensure!(!senders.is_empty(), "nothing to measure");
    let list = |numbers: Vec<String>| numbers.join(",");
    let mut again = again()?;
    again.args(["experiment", "--inside"]).arg(&target).args(["--only", &senders.join(",")]);
    again.args(["--rounds", &options.rounds.to_string(), "--seconds", &options.seconds.to_string()]);
    again.args(["--rates", &list(options.rates.iter().map(u64::to_string).collect())]);
    again.args(["--streams", &list(options.streams.iter().map(usize::to_string).collect())]);
    again.args(["--round-trip", &options.round_trip.to_string()]);
    again.args(["--burst", &options.burst.to_string(), "--limit", &options.limit.to_string()]);
    if let Some(ecn) = options.ecn {
        again.args(["--ecn", &ecn.to_string()]);
    }
    if let Some(path) = &options.markdown {
        again.arg("--markdown").arg(std::path::absolute(path)?);
    }
    ensure!(again.status().context("starting setpriv and unshare (util-linux)")?.success(), "the experiment failed");
    Ok(())
}

fn inside(target: &Path, options: &Options) -> Result<()> {
    let programs = Programs { target: target.to_owned() };
    let began = Instant::now();
    network::make()?;
    let mut report = Report::new(options.seconds, options.round_trip)?;
    for round in 0..options.rounds.max(1) {
        report.rounds = round + 1;
        for case in cases(options) {
            let at = format!("{:>4.0} s  round {}  {case}", began.elapsed().as_secs_f64(), round + 1);
            match measure(case, options, &programs) {
                Ok(figures) => {
                    eprintln!("{at}  {figures}");
                    report.figures.push((case, figures));
                }
                Err(e) => {
                    eprintln!("{at}  failed: {e:#}");
                    report.failures.push(format!("{case}, round {}: {e:#}", round + 1));
                }
            }
        }
    }
    super::publish(&report, options.markdown.as_deref(), report.failures.len())?;
    ensure!(report.misses().next().is_none(), "not as required");
    Ok(())
}

fn cases(options: &Options) -> impl Iterator<Item = Case> {
    let ecn = [true, false].into_iter().filter(|ecn| options.ecn.is_none_or(|only| only == *ecn));
    let senders = options.only.iter().copied();
    let networks = options.rates.iter().flat_map(move |rate| ecn.clone().map(move |ecn| (*rate, ecn)));
    let loads = networks.flat_map(|(rate, ecn)| options.streams.iter().map(move |streams| (rate, ecn, *streams)));
    loads.flat_map(move |(rate, ecn, streams)| senders.clone().map(move |sender| Case { rate, ecn, streams, sender }))
}

/// Everything is new in each case: the tunnels, and what they have learned of the path.
fn measure(case: Case, options: &Options, programs: &Programs) -> Result<Figures> {
    for end in End::BOTH {
        let mut set = end.command("sh");
        set.args(["-c", &format!("echo {} > /proc/sys/net/ipv4/tcp_ecn", u8::from(case.ecn))]);
        run_program(set, "")?;
    }
    let at = |end: End, port: u16| SocketAddr::from((end.outer(false), port));
    let delay = Delay {
        midway: at(End::Far, DELAY_PORT),
        near: at(End::Near, port(0)),
        far: at(End::Far, port(0)),
        delay: Duration::from_millis(options.round_trip / 2),
    };
    let mut command = End::Far.command(std::env::current_exe()?);
    command.args(["experiment", "--delay"]).args(delay.words());
    let mut midway = Process::start(command, "delay")?;
    let mut tunnel = Tunnel::start_by_way_of(delay.midway, case.sender.kind(), 0, programs)?;
    if case.sender == Sender::Drop {
        let arguments = format!("set --tunnel {} backpressure drop", tunnel.device(End::Near));
        run_program(End::Near.command(programs.path(Kind::Backwater)), &arguments)?;
    }
    let shape = format!(
        "qdisc replace dev near root tbf rate {}mbit burst {} limit {}",
        case.rate, options.burst, options.limit
    );
    run_program(End::Near.command("tc"), &shape)?;
    let (refused_before, needless_before) = (refused()?, needless()?);

    let mut ping = End::Near.command("ping");
    let pings = options.seconds * PINGS_PER_SECOND;
    ping.args(["-n", "-i", &(1.0 / PINGS_PER_SECOND as f64).to_string(), "-c", &pings.to_string(), "-W", "2"]);
    ping.arg(tunnel.address().to_string());
    let ping = Process::start(ping, "ping")?;
    let told = iperf3(Load::Tcp(case.streams), &mut tunnel, options.seconds, &CUBIC)?;
    let (_, pinged) = ping.finish(Duration::from_secs(10)).context("ping")?;
    sleep(PAUSE);
    midway.still_runs().context("the delay")?;

    let number = |sum: &str, key: &str| {
        told["end"][sum][key].as_f64().with_context(|| format!("iperf3 does not say end.{sum}.{key}"))
    };
    let goodput = number("sum_received", "bits_per_second")? / 1e6;
    let (near, far) = (
        status(&tunnel, End::Near, case.sender.kind(), programs)?,
        status(&tunnel, End::Far, Kind::Backwater, programs)?,
    );
    let of_peer = |status: &Value, name: &str| status["peers"][0]["counters"][name].as_u64();
    // Others than ours say nothing of what they dropped.
    let near_counts = |name: &str| {
        if near.is_null() { Ok(0) } else { of_peer(&near, name).with_context(|| format!("status has no {name}")) }
    };
    let device = output(End::Near.command("ip"), &format!("-s -j link show dev {}", tunnel.device(End::Near)))?;
    let device: Value = serde_json::from_str(&device)?;
    let times = round_trips(&pinged)?;
    Ok(Figures {
        goodput,
        share: goodput / (case.rate as f64 * PAYLOAD / FRAME),
        lost: of_peer(&far, "datagrams_missing").context("what the far end misses")?,
        told: near_counts("datagrams_dropped")?,
        refused: refused()?.saturating_sub(refused_before),
        device_dropped: device[0]["stats64"]["tx"]["dropped"].as_u64().context("ip says nothing of drops")?,
        marked: near_counts("marked")?,
        shed: near_counts("dropped")? + near_counts("first_segment_dropped")? + near_counts("overflowed")?,
        retransmissions: number("sum_sent", "retransmits")? as u64,
        needless: needless()?.saturating_sub(needless_before),
        rtt_p50: times[times.len() / 2],
        rtt_p99: times[times.len() * 99 / 100],
    })
}

/// What a tunnel of ours says of itself; nothing for others.
fn status(tunnel: &Tunnel, end: End, kind: Kind, programs: &Programs) -> Result<Value> {
    if kind != Kind::Backwater {
        return Ok(Value::Null);
    }
    let arguments = format!("status {} --json", tunnel.device(end));
    Ok(serde_json::from_str(&output(end.command(programs.path(kind)), &arguments)?)?)
}

/// What the uplink's queue counts as dropped.
fn refused() -> Result<u64> {
    let queue: Value = serde_json::from_str(&output(End::Near.command("tc"), "-s -j qdisc show dev near")?)?;
    queue[0]["drops"].as_u64().context("tc says nothing of drops")
}

/// Segments that the near end has sent again though they had arrived, as the far end's TCP has told it.
fn needless() -> Result<u64> {
    let text = output(End::Near.command("cat"), "/proc/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("/proc/net/netstat is not understood")?;
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = both.find(|(name, _)| *name == "TCPDSACKRecv").context("TCPDSACKRecv is not there")?;
    Ok(value.parse()?)
}

/// From what ping prints, ms, sorted.
fn round_trips(printed: &str) -> Result<Vec<f64>> {
    let times = printed.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok());
    let mut times: Vec<f64> = times.collect();
    ensure!(!times.is_empty(), "ping says {printed:?}");
    times.sort_by(f64::total_cmp);
    Ok(times)
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, ecn, streams, sender } = self;
        write!(f, "{rate:>3} Mbit/s  {}  TCP × {streams}  {sender:<13}", if *ecn { "ECN" } else { "   " })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            goodput, share, lost, told, refused, device_dropped, marked, shed, retransmissions, needless, ..
        } = self;
        write!(
            f,
            "{goodput:.1} Mbit/s ({share:.3}), lost {lost} (told {told}), refused {refused}, device dropped {device_dropped}, \
             marked {marked}, shed {shed}, retransmitted {retransmissions} (needlessly {needless}), rtt {:.1} / {:.1} ms",
            self.rtt_p50, self.rtt_p99
        )
    }
}
