//! `cargo xtask bench relay --blocked`: what ten clients whose path is full cost the 990 others of a server.
//!
//! Ten clients of 127.9.0.0/16 are in a traffic class of 200 kbit/s on the loopback device, and are sent forty times as much. The others
//! are measured as in any other row, alone (nothing is sent to the ten) and beside them, by turns.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use backwater_probe::{clients::Clients, load::Direction};
use backwater_stun::{AddressFamily, ChannelNumber};

use super::{
    Cell, Options,
    report::machine,
    search::{self, Figures, Timing},
    server::{Kind, Programs, Server, credential, everything},
    statistics::{estimate, median},
};

/// The clients that are measured: they have 0.98 of their rate alone, at least.
const CELL: Cell = Cell { direction: Direction::Down, size: 100, clients: 990, burst: 8 };
const TARGET: f64 = 0.98;

const BLOCKED: usize = 10;
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 1);

/// One datagram of so many bytes each tick: 8 Mbit/s.
const SIZE: usize = 1000;
const TICK: Duration = Duration::from_millis(1);

/// What goes to others goes past the classes (`direct_queue`).
const SLOW_PATH: [&str; 4] = [
    "qdisc add dev lo root handle 1: htb",
    "class add dev lo parent 1: classid 1:2 htb rate 200kbit burst 5000",
    "qdisc add dev lo parent 1:2 handle 3: pfifo limit 10",
    "filter add dev lo parent 1: protocol ip u32 match ip dst 127.9.0.0/16 flowid 1:2",
];

/// Sends to the relayed addresses of the blocked clients while it is told to, and as much to nobody else.
struct Blocked {
    _clients: Clients,
    is_on: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Blocked {
    async fn new(server: SocketAddr) -> Result<Self> {
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut clients = Clients::at(server, BLOCKED, FIRST)?;
        everything(clients.allocate(&credential(), AddressFamily::Ipv4).await?)?;
        let here = peer.local_addr()?;
        everything(clients.bind_channels(ChannelNumber::MIN, |_| here).await?)?;
        let relayed: Vec<_> = (0..BLOCKED).filter_map(|number| clients.relayed(number)).collect();
        ensure!(relayed.len() == BLOCKED, "a client has no relayed address");
        let (is_on, is_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (is_on, is_over) = (is_on.clone(), is_over.clone());
            move || {
                let to_nobody = nobody.local_addr().ok();
                for to in relayed.into_iter().cycle() {
                    if is_over.load(SeqCst) {
                        return;
                    }
                    let to = if is_on.load(SeqCst) { Some(to) } else { to_nobody };
                    // The generator pays for it either way.
                    let _ = to.map(|to| peer.send_to(&[0; SIZE], to));
                    std::thread::sleep(TICK);
                }
            }
        });
        Ok(Self { _clients: clients, is_on, is_over, thread: Some(thread) })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Measures the servers that were asked for, and returns the table.
pub(super) async fn measure(programs: &Programs, options: &Options) -> Result<String> {
    for words in SLOW_PATH {
        let tc = Command::new("tc")
            .args(words.split(' '))
            .env("PATH", crate::namespace::path())
            .status()
            .context("starting tc (iproute2)")?;
        ensure!(tc.success(), "tc {words}");
    }
    let timing = if options.quick { Timing::QUICK } else { Timing::FULL };
    let rounds = if options.quick { 1 } else { options.rounds.max(1) };
    let mut text = format!("{}, {rounds} rounds.\n\n", machine()?);
    let _ = writeln!(
        text,
        "{} of {} clients ({CELL}), alone and beside {BLOCKED} whose path is full; the ratios are medians of the ratios within \
         each round, with their interval.\n\n\
         | Server | lossless alone, thousand datagrams/s | beside | ratio | goodput at three times that, alone | beside | ratio |\n\
         |---|---:|---:|---:|---:|---:|---:|",
        CELL.clients,
        CELL.clients + BLOCKED,
    );
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_turn() && options.only.contains(kind)) {
        let server = Server::start(kind, CELL.direction, programs, false).await?;
        let blocked = Blocked::new(server.address()).await.with_context(|| format!("the blocked clients of {kind}"))?;
        let mut figures: [Vec<Figures>; 2] = Default::default();
        for round in 0..rounds {
            for beside in if round % 2 == 0 { [false, true] } else { [true, false] } {
                blocked.is_on.store(beside, SeqCst);
                let measured =
                    search::measure(&server, CELL, timing).await.with_context(|| format!("{kind}, {CELL}"))?;
                let how = if beside { "beside the blocked" } else { "alone" };
                eprintln!("round {}/{rounds}  {kind}  {how}  {measured}", round + 1);
                if let Some(of) = figures.get_mut(usize::from(beside)) {
                    of.push(measured);
                }
            }
        }
        ensure!(refused()? > 0, "the path of the blocked clients was not full");
        let _ = write!(text, "| {kind} |");
        for value in [|f: &Figures| f.lossless, |f: &Figures| f.goodput] {
            let [alone, beside] = figures.each_ref().map(|of| of.iter().map(value).collect::<Vec<_>>());
            let ratio = estimate(&beside.iter().zip(&alone).map(|(beside, alone)| beside / alone).collect::<Vec<_>>());
            let mark = super::report::verdict(TARGET, &ratio, rounds, false, false);
            let [alone, beside] = [alone, beside].map(|of| median(&of) / 1e3);
            let _ = write!(
                text,
                " {alone:.0} | {beside:.0} | {:.3} [{:.3}–{:.3}]{mark} |",
                ratio.median, ratio.low, ratio.high
            );
        }
        text.push('\n');
    }
    Ok(text)
}

/// Datagrams that the slow path has refused so far.
fn refused() -> Result<u64> {
    let shown = crate::output(
        Command::new("tc").args(["-s", "qdisc", "show", "dev", "lo"]).env("PATH", crate::namespace::path()),
    )?;
    let of_path = shown.split("qdisc ").find(|qdisc| qdisc.starts_with("pfifo 3:")).context("tc shows no pfifo")?;
    let dropped = of_path.split_once("dropped ").and_then(|(_, rest)| rest.split_once(','));
    Ok(dropped.context("tc shows no drops")?.0.parse()?)
}
