//! quinn and noq on Backwater's sockets, beside their own. `cargo xtask bench quic` calls it, in a network namespace of its own.
//!
//! Each round goes through all links, and at each through all sockets, in an order that turns with the rounds. A ratio is the
//! median of the ratios within the rounds, with its interval. The arguments are the megabytes of a transfer, the number of
//! rounds, and the deadlines of Backwater's sockets in milliseconds, separated by commas.

use std::{
    fmt::Write as _,
    process::ExitCode,
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use bench_quic::{Link, Outcome, Sockets, noq, quinn, support::tc, veth::Veth};
use statistics::{estimate, median};

#[path = "../../../xtask/src/bench/statistics.rs"]
mod statistics;

/// A link, and the queue before it: `tbf` with these parameters, whose burst holds every batch.
struct Cell {
    name: &'static str,
    queue: Option<&'static str>,
    /// How long the link takes nothing, once in each two seconds.
    outage: Duration,
    is_loopback: bool,
}

const NONE: Cell = Cell { name: "", queue: None, outage: Duration::ZERO, is_loopback: false };

const SLOW: &str = "rate 20mbit burst 20000 limit 40000";

const CELLS: [Cell; 6] = [
    Cell { name: "20 Mbit/s, a queue of 16 ms", queue: Some(SLOW), ..NONE },
    Cell {
        name: "20 Mbit/s, an outage of 100 ms each two seconds",
        queue: Some(SLOW),
        outage: Duration::from_millis(100),
        ..NONE
    },
    Cell {
        name: "20 Mbit/s, an outage of 500 ms each two seconds",
        queue: Some(SLOW),
        outage: Duration::from_millis(500),
        ..NONE
    },
    Cell { name: "200 Mbit/s, a queue of 4 ms", queue: Some("rate 200mbit burst 50000 limit 100000"), ..NONE },
    Cell { name: "veth, not shaped", ..NONE },
    Cell { name: "loopback", is_loopback: true, ..NONE },
];

/// One outage in so much time.
const EACH: Duration = Duration::from_secs(2);

impl Cell {
    /// Runs `transfer`, beside outages of the link.
    fn run(&self, transfer: impl FnOnce() -> Outcome) -> Outcome {
        if self.outage.is_zero() {
            return transfer();
        }
        let (stop, stopped) = channel::<()>();
        std::thread::scope(|scope| {
            let outages = scope.spawn(move || {
                let goes_on = |time| stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
                while goes_on(EACH - self.outage) {
                    tc("qdisc change dev near0 root tbf rate 8bit burst 20000 limit 40000");
                    let goes_on = goes_on(self.outage);
                    tc(&format!("qdisc change dev near0 root tbf {SLOW}"));
                    if !goes_on {
                        break;
                    }
                }
            });
            let outcome = transfer();
            drop(stop);
            outages.join().unwrap();
            outcome
        })
    }
}

/// One who is measured.
#[derive(Clone, Copy)]
struct Subject {
    crate_name: &'static str,
    transfer: fn(&Link, Sockets, u64) -> Outcome,
    sockets: Sockets,
}

fn main() -> ExitCode {
    let Some((bytes, rounds, deadlines)) = arguments() else {
        eprintln!("usage: bench-quic MEGABYTES ROUNDS MILLISECONDS[,MILLISECONDS…]");
        return ExitCode::FAILURE;
    };
    let subjects = subjects(&deadlines);
    let mut samples = vec![vec![Vec::new(); subjects.len()]; CELLS.len()];
    let veth = Link::Veth(Veth::new(0));
    for round in 0..rounds {
        for (cell, samples) in CELLS.iter().zip(&mut samples) {
            let link = if cell.is_loopback { &Link::Loopback } else { &veth };
            match (cell.queue, link) {
                (Some(queue), Link::Veth(veth)) => veth.shape(queue),
                _ => tc("qdisc replace dev near0 root noqueue"),
            }
            for turn in 0..subjects.len() {
                let who = (turn + round) % subjects.len();
                let Subject { transfer, sockets, .. } = subjects[who];
                let outcome = cell.run(|| transfer(link, sockets, bytes));
                eprintln!("{}, {}: {:.1} s", cell.name, subjects[who].name(), outcome.wall.as_secs_f64());
                samples[who].push(outcome);
            }
        }
        eprintln!("round {}/{rounds}", round + 1);
    }
    print!("{}", report(bytes, &subjects, &samples));
    ExitCode::SUCCESS
}

fn arguments() -> Option<(u64, usize, Vec<Duration>)> {
    let mut arguments = std::env::args().skip(1);
    let megabytes: u64 = arguments.next()?.parse().ok()?;
    let rounds = arguments.next()?.parse().ok()?;
    let deadlines: Option<Vec<_>> =
        arguments.next()?.split(',').map(|ms| Some(Duration::from_millis(ms.parse().ok()?))).collect();
    Some((megabytes * 1_000_000, rounds, deadlines?))
}

fn subjects(deadlines: &[Duration]) -> Vec<Subject> {
    let crates = [("quinn", quinn::transfer as fn(&Link, Sockets, u64) -> Outcome), ("noq", noq::transfer)];
    let mut subjects = Vec::new();
    for (crate_name, transfer) in crates {
        let all = [Sockets::Stock].into_iter().chain(deadlines.iter().copied().map(Sockets::Backwater));
        subjects.extend(all.map(|sockets| Subject { crate_name, transfer, sockets }));
    }
    subjects
}

impl Subject {
    fn name(&self) -> String {
        match self.sockets {
            Sockets::Stock => format!("{}, its own socket", self.crate_name),
            Sockets::Backwater(deadline) => format!("{}, Backwater, {} ms", self.crate_name, deadline.as_millis()),
        }
    }
}

fn report(bytes: u64, subjects: &[Subject], samples: &[Vec<Vec<Outcome>>]) -> String {
    let mut text = format!("{} MB in each transfer, {} rounds.\n", bytes / 1_000_000, samples[0][0].len());
    for (cell, samples) in CELLS.iter().zip(samples) {
        let _ = writeln!(
            text,
            "\n### {}\n\n| Socket | Lost on this host | Goodput, Mbit/s | / its own | Declared lost | CPU, s | / its own | Refused | \
             Dropped | Held, mean ms |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            cell.name
        );
        for (subject, outcomes) in subjects.iter().zip(samples) {
            let is_own = |other: &&Subject| other.crate_name == subject.crate_name && other.sockets == Sockets::Stock;
            let own = subjects.iter().position(|other| is_own(&other)).unwrap_or_default();
            let value = |value: fn(&Outcome) -> f64| median(&outcomes.iter().map(value).collect::<Vec<_>>());
            let ratio = |value: fn(&Outcome) -> f64| {
                let ratios: Vec<_> =
                    outcomes.iter().zip(&samples[own]).map(|(us, own)| value(us) / value(own)).collect();
                let ratio = estimate(&ratios);
                format!("{:.3} [{:.3}–{:.3}]", ratio.median, ratio.low, ratio.high)
            };
            // What is not known is not counted, and said.
            let lost: Vec<_> = outcomes.iter().filter_map(Outcome::lost_locally).map(|lost| lost as f64).collect();
            let unknown = outcomes.len() - lost.len();
            let unknown = if unknown > 0 { format!(" ({unknown} unknown)") } else { String::new() };
            let cpu = |outcome: &Outcome| outcome.cpu.as_secs_f64();
            let _ = write!(
                text,
                "| {} | {:.0}{unknown} | {:.1} | {} | {:.0} | {:.2} | {} |",
                subject.name(),
                median(&lost),
                value(Outcome::goodput),
                ratio(Outcome::goodput),
                value(|outcome| outcome.declared_lost as f64),
                value(cpu),
                ratio(cpu),
            );
            let _ = match subject.sockets {
                Sockets::Stock => writeln!(text, " | | |"),
                Sockets::Backwater(_) => writeln!(
                    text,
                    " {:.0} | {:.0} | {:.2} |",
                    value(|outcome| of_stats(outcome, |stats| stats.no_buffers_total() as f64)),
                    value(|outcome| of_stats(outcome, |stats| stats.dropped_total() as f64)),
                    value(|outcome| of_stats(outcome, |stats| {
                        1e3 * stats.blocked.as_secs_f64() / stats.parked.max(1) as f64
                    })),
                ),
            };
        }
    }
    text
}

fn of_stats(outcome: &Outcome, value: fn(&backwater_udp::StatsSnapshot) -> f64) -> f64 {
    outcome.stats.as_ref().map_or(f64::NAN, value)
}
