//! The figures of one server under one load.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use backwater_probe::load::{Load, Outcome, Session, Setup, Via};

use super::{Cell, cpu, server::Server};

/// What is measured of one server in one cell and round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// Datagrams per second at the highest rate with less than [`LOSS`].
    pub(super) lossless: f64,
    /// Whether the generator could not send more: the server may do better.
    pub(super) limited: bool,
    /// Datagrams relayed per second of the server's CPU, at that rate.
    pub(super) per_cpu_second: f64,
    /// Datagrams per second that arrive at three times that rate.
    pub(super) goodput: f64,
    /// Median latency at that overload.
    pub(super) overload_us: f64,
    /// KiB by which the server's resident memory grows meanwhile.
    pub(super) overload_kib: f64,
    /// Latency at half of the highest rate.
    pub(super) latency: Latency,
    /// Loads of the search during which something else ran on one of the two cores, each time they were tried.
    pub(super) disturbed: usize,
}

/// Microseconds from source to sink.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// The generator with nothing in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    /// Datagrams per second, as fast as possible.
    pub(super) rate: f64,
    /// At a quarter of that.
    pub(super) latency: Latency,
}

/// How long each load lasts.
#[derive(Clone, Copy)]
pub(super) struct Timing {
    warm_up: Duration,
    probe: Duration,
    /// The search ends when the bracket is this narrow.
    precision: f64,
}

impl Timing {
    pub(super) const FULL: Self =
        Self { warm_up: Duration::from_millis(40), probe: Duration::from_millis(200), precision: 1.03 };
    pub(super) const QUICK: Self =
        Self { warm_up: Duration::from_millis(30), probe: Duration::from_millis(100), precision: 1.08 };
}

/// Loss below which a rate counts.
const LOSS: f64 = 0.001;

/// Goes with the load: a rate fails when it fails this often, for a machine that does something else for a moment
/// makes any server lose.
const ATTEMPTS: usize = 2;

/// The generator has to reach this share of the rate asked for.
const REACHED: f64 = 0.97;

/// How often a load is repeated in which the sink itself lost; then the generator is the limit.
const REPEATS: usize = 3;

/// How many loads of a cell are repeated because something else ran on one of the two cores. On a machine that is busy
/// all the time, more would not help.
const DISTURBED: usize = 4;

/// How long a search may take, once it has found a rate: a busy machine must not use up the time of all rounds.
const SEARCH: Duration = Duration::from_secs(4);

/// The share of a load's time that the generator, which never sleeps, may wait for its core; and the server, whose own
/// threads may wait for each other.
const WAITED: f64 = 0.02;
const SERVER_WAITED: f64 = 0.1;

/// One load, and the CPU that it took.
struct Probe {
    outcome: Outcome,
    cpu_seconds: f64,
    disturbed: bool,
}

/// What a load says about its rate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The server relays it.
    Passes,
    /// The generator did not reach it.
    Limited,
    /// The server loses.
    Loses,
}

impl Probe {
    fn verdict(&self) -> Verdict {
        if !self.outcome.valid {
            Verdict::Limited
        } else if self.outcome.loss >= LOSS {
            Verdict::Loses
        } else if self.outcome.rate == 0.0 || self.outcome.sent_per_second < REACHED * self.outcome.rate {
            Verdict::Limited
        } else {
            Verdict::Passes
        }
    }
}

/// Searches for the highest rate without loss, then overloads.
pub(super) async fn measure(server: &Server, cell: Cell, timing: Timing) -> Result<Figures> {
    let mut session = server.session(cell).await?;
    let began = Instant::now();
    // As much as there is: what comes through is near the rate searched for.
    let mut again = DISTURBED;
    let flood = probe(server, &mut session, cell, 0.0, timing, &mut again).await?;
    let through = flood.outcome.received_per_second.max(1000.0);
    let mut disturbed = usize::from(flood.disturbed);
    let mut bracket = Bracket::near(through, timing.precision);
    // What stops the search: the generator, or the server's loss.
    let mut stopped_by = flood.verdict();
    let lost = flood.outcome.loss >= LOSS;
    let mut best = (!lost).then_some(flood);
    // A flood that comes through leaves nothing to search for.
    while let Some(rate) = if lost && (best.is_none() || began.elapsed() < SEARCH) { bracket.next() } else { None } {
        let tried = try_rate(server, &mut session, cell, rate, timing, &mut again).await?;
        let verdict = tried.verdict();
        disturbed += usize::from(tried.disturbed);
        bracket.tell(rate, verdict == Verdict::Passes);
        if verdict != Verdict::Passes {
            stopped_by = verdict;
        }
        let faster = |best: &Probe| best.outcome.sent_per_second < tried.outcome.sent_per_second;
        if tried.outcome.loss < LOSS && best.as_ref().is_none_or(faster) {
            best = Some(tried);
        }
    }
    let limited = stopped_by == Verdict::Limited;
    let Some(best) = best else { bail!("it loses even at {:.0} datagrams per second", bracket.rate) };
    let lossless = best.outcome.received_per_second;
    let before = server.resident()?;
    let overload = probe(server, &mut session, cell, lossless * 3.0, timing, &mut again).await?.outcome;
    let overload_kib = server.resident()? - before;
    let half = probe(server, &mut session, cell, lossless / 2.0, timing, &mut again).await?.outcome;
    session.close().await?;
    Ok(Figures {
        lossless,
        limited,
        per_cpu_second: lossless * best.outcome.seconds / best.cpu_seconds.max(1e-9),
        goodput: overload.received_per_second,
        overload_us: overload.p50_us.unwrap_or(f64::NAN),
        overload_kib,
        latency: Latency::of(&half),
        disturbed,
    })
}

/// The rates that the one searched for lies between.
#[derive(Debug)]
struct Bracket {
    /// The highest that passed, and the lowest that did not, so far.
    low: Option<f64>,
    high: Option<f64>,
    rate: f64,
    precision: f64,
    steps: usize,
}

impl Bracket {
    /// The most loads that a search takes.
    const STEPS: usize = 24;

    /// What comes through a flood is near the rate searched for, mostly somewhat above.
    fn near(through: f64, precision: f64) -> Self {
        Self { low: None, high: None, rate: through * 0.9, precision, steps: 0 }
    }

    /// The rate to try, or `None` when the search is over.
    fn next(&mut self) -> Option<f64> {
        self.rate = match (self.low, self.high) {
            (None, None) => self.rate,
            (Some(low), None) => low * 1.1,
            (None, Some(high)) => high * 0.85,
            (Some(low), Some(high)) if high / low > self.precision => (low * high).sqrt(),
            (Some(_), Some(_)) => return None,
        };
        self.steps += 1;
        (self.steps <= Self::STEPS).then_some(self.rate)
    }

    fn tell(&mut self, rate: f64, passes: bool) {
        *(if passes { &mut self.low } else { &mut self.high }) = Some(rate);
    }
}

async fn try_rate(
    server: &Server,
    session: &mut Session,
    cell: Cell,
    rate: f64,
    timing: Timing,
    again: &mut usize,
) -> Result<Probe> {
    let mut tried = probe(server, session, cell, rate, timing, again).await?;
    for _ in 1..ATTEMPTS {
        if tried.verdict() == Verdict::Passes {
            break;
        }
        tried = probe(server, session, cell, rate, timing, again).await?;
    }
    Ok(tried)
}

async fn probe(
    server: &Server,
    session: &mut Session,
    cell: Cell,
    rate: f64,
    timing: Timing,
    again: &mut usize,
) -> Result<Probe> {
    let mut invalid = 0;
    loop {
        let meter = || (server.run_time(), server.waited(), cpu::waited(std::process::id()));
        let (outcome, [before, after]) = session.run(&load(cell, rate, timing), meter).await?;
        let [cpu_seconds, server_waited, waited] =
            [after.0? - before.0?, after.1? - before.1?, after.2? - before.2?].map(|nanos| nanos as f64 / 1e9);
        let disturbed = waited > outcome.seconds * WAITED || server_waited > outcome.seconds * SERVER_WAITED;
        if !outcome.valid && invalid < REPEATS {
            invalid += 1;
        } else if outcome.valid && disturbed && *again > 0 {
            *again -= 1;
        } else {
            return Ok(Probe { disturbed: disturbed || !outcome.valid, outcome, cpu_seconds });
        }
    }
}

/// The generator with nothing in between, for each cell.
pub(super) async fn alone(cells: &[Cell], plain_sink: bool, timing: Timing) -> Result<Vec<Alone>> {
    let peer = SocketAddr::from(([127, 0, 0, 1], 9998));
    let mut all = Vec::new();
    for &cell in cells {
        let Cell { direction, clients, .. } = cell;
        let mut session = Session::open(&Setup { via: Via::Nothing, direction, clients, peer, plain_sink }).await?;
        let (flood, _) = session.run(&load(cell, 0.0, timing), || ()).await?;
        let rate = flood.received_per_second;
        let (quarter, _) = session.run(&load(cell, rate / 4.0, timing), || ()).await?;
        all.push(Alone { rate, latency: Latency::of(&quarter) });
    }
    Ok(all)
}

impl Latency {
    fn of(outcome: &Outcome) -> Self {
        Self { p50: outcome.p50_us.unwrap_or(f64::NAN), p99: outcome.p99_us.unwrap_or(f64::NAN) }
    }
}

fn load(cell: Cell, rate: f64, timing: Timing) -> Load {
    Load { size: cell.size, burst: cell.burst, rate, warm_up: timing.warm_up, duration: timing.probe }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>5.0} k/s{} lossless, {:>5.0} k per CPU-second, {:>5.0} k/s at overload (p50 {:.0} µs), \
             at half {:.0}/{:.0} µs",
            self.lossless / 1e3,
            if self.limited { "+" } else { " " },
            self.per_cpu_second / 1e3,
            self.goodput / 1e3,
            self.overload_us,
            self.latency.p50,
            self.latency.p99,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_ends_near_the_limit() {
        for limit in [10.0, 40.0, 70.0, 89.0, 90.0, 97.0, 120.0, 300.0] {
            let mut bracket = Bracket::near(100.0, 1.02);
            while let Some(rate) = bracket.next() {
                bracket.tell(rate, rate <= limit);
            }
            let found = bracket.low.unwrap();
            assert!(found <= limit && found * 1.021 >= limit, "{limit}: {found}");
            assert!(bracket.steps < Bracket::STEPS, "{limit}: {} steps", bracket.steps);
        }
    }

    #[test]
    fn a_server_that_relays_nothing_ends_the_search() {
        let mut bracket = Bracket::near(100.0, 1.02);
        while let Some(rate) = bracket.next() {
            bracket.tell(rate, false);
        }
        assert_eq!((bracket.low, bracket.steps), (None, Bracket::STEPS + 1));
    }
}
