//! The figures of one server under one load.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::{Result, bail};
use backwater_probe::load::{Load, Outcome, Session, Setup};

use super::{Cell, server::Server};

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
    /// Latency at that overload, in microseconds.
    pub(super) p50_us: f64,
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
        Self { warm_up: Duration::from_millis(60), probe: Duration::from_millis(300), precision: 1.02 };
    pub(super) const QUICK: Self =
        Self { warm_up: Duration::from_millis(40), probe: Duration::from_millis(120), precision: 1.05 };
}

/// Loss below which a rate counts.
const LOSS: f64 = 0.001;

/// Goes with the load: a rate fails when it fails this often, for a machine that does something else for a moment
/// makes any server lose.
const ATTEMPTS: usize = 2;

/// The generator has to reach this share of the rate asked for.
const REACHED: f64 = 0.97;

/// How often a load is repeated in which the sink itself lost.
const INVALID: usize = 4;

/// One load, and the CPU that it took.
struct Probe {
    outcome: Outcome,
    cpu_seconds: f64,
}

impl Probe {
    fn passes(&self) -> bool {
        self.outcome.loss < LOSS
    }

    fn limited(&self) -> bool {
        self.outcome.rate > 0.0 && self.outcome.sent_per_second < REACHED * self.outcome.rate
    }
}

/// Searches for the highest rate without loss, then overloads.
pub(super) async fn measure(server: &Server, cell: Cell, timing: Timing) -> Result<Figures> {
    let mut session = server.session(cell.clients).await?;
    // As much as there is: what comes through is near the rate searched for.
    let flood = probe(server, &mut session, cell, 0.0, timing).await?;
    let through = flood.outcome.received_per_second.max(1000.0);
    let (mut low, mut high) = (through * 0.2, through * 1.5);
    let mut rate = through * 0.9;
    let mut best: Option<Probe> = None;
    let mut limited = flood.passes();
    if limited {
        best = Some(flood);
    }
    while !limited && high / low > timing.precision {
        let tried = try_rate(server, &mut session, cell, rate, timing).await?;
        if tried.passes() {
            low = rate;
            limited = tried.limited();
            if best.as_ref().is_none_or(|best| best.outcome.sent_per_second < tried.outcome.sent_per_second) {
                best = Some(tried);
            }
        } else {
            high = rate;
        }
        rate = next_rate(low, high, through);
    }
    let Some(best) = best else { bail!("it loses at {:.0} datagrams per second already", low) };
    let lossless = best.outcome.received_per_second;
    let overload = probe(server, &mut session, cell, lossless * 3.0, timing).await?.outcome;
    session.close().await?;
    Ok(Figures {
        lossless,
        limited,
        per_cpu_second: lossless * best.outcome.seconds / best.cpu_seconds.max(1e-9),
        goodput: overload.received_per_second,
        p50_us: overload.p50_us.unwrap_or(f64::NAN),
    })
}

/// The middle of the bracket; while one end is still a guess, near what came through.
fn next_rate(low: f64, high: f64, through: f64) -> f64 {
    match (low < through * 0.21, high > through * 1.49) {
        (true, false) => (high * 0.85).max(low * 1.05),
        (false, true) => (low * 1.1).min(high * 0.99),
        _ => (low * high).sqrt(),
    }
}

async fn try_rate(server: &Server, session: &mut Session, cell: Cell, rate: f64, timing: Timing) -> Result<Probe> {
    let mut tried = probe(server, session, cell, rate, timing).await?;
    for _ in 1..ATTEMPTS {
        if tried.passes() {
            break;
        }
        tried = probe(server, session, cell, rate, timing).await?;
    }
    Ok(tried)
}

async fn probe(server: &Server, session: &mut Session, cell: Cell, rate: f64, timing: Timing) -> Result<Probe> {
    for _ in 0..INVALID {
        let (outcome, [before, after]) = session.run(&load(cell, rate, timing), || server.run_time()).await?;
        if outcome.valid {
            return Ok(Probe { outcome, cpu_seconds: (after? - before?) as f64 / 1e9 });
        }
    }
    bail!("the sink itself lost datagrams {INVALID} times: not a measurement")
}

/// What the generator reaches with nothing in between: datagrams per second for each cell.
pub(super) async fn ceilings(cells: &[Cell], timing: Timing) -> Result<Vec<f64>> {
    let sink = SocketAddr::from(([127, 0, 0, 1], 9998));
    let mut ceilings = Vec::new();
    for &cell in cells {
        let setup = Setup { server: sink, credential: None, clients: cell.clients, sink };
        let mut session = Session::open(&setup).await?;
        let (outcome, _) = session.run(&load(cell, 0.0, timing), || ()).await?;
        ceilings.push(outcome.received_per_second);
    }
    Ok(ceilings)
}

fn load(cell: Cell, rate: f64, timing: Timing) -> Load {
    Load { size: cell.size, burst: cell.burst, rate, warm_up: timing.warm_up, duration: timing.probe }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>5.0} k/s{} lossless, {:>5.0} k per CPU-second, {:>5.0} k/s at overload (p50 {:.0} µs)",
            self.lossless / 1e3,
            if self.limited { "+" } else { " " },
            self.per_cpu_second / 1e3,
            self.goodput / 1e3,
            self.p50_us
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many steps the search takes to find `limit`, and what it finds.
    fn search(limit: f64, through: f64) -> (usize, f64) {
        let (mut low, mut high, mut rate, mut steps) = (through * 0.2, through * 1.5, through * 0.9, 0);
        while high / low > 1.02 {
            *(if rate <= limit { &mut low } else { &mut high }) = rate;
            rate = next_rate(low, high, through);
            steps += 1;
        }
        (steps, low)
    }

    #[test]
    fn the_search_ends_near_the_limit() {
        for limit in [25.0, 40.0, 70.0, 89.0, 90.0, 97.0, 120.0, 148.0] {
            let (steps, found) = search(limit, 100.0);
            assert!(found <= limit && found * 1.021 >= limit, "{limit}: {found}");
            assert!(steps <= 14, "{limit}: {steps} steps");
        }
    }
}
