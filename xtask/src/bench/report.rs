//! The tables, in Markdown.

use std::{fmt, fs, process::Command};

use anyhow::Result;
use backwater_probe::load::Direction;

use super::{
    Cell, HELD, MADE,
    search::{Alone, Figures, Latency},
    server::{Footprint, Kind, Made},
    statistics::{Estimate, estimate, median},
};

pub(super) struct Report {
    kinds: Vec<Kind>,
    cells: Vec<Cell>,
    /// Rounds that are done.
    pub(super) rounds: usize,
    plain_sink: bool,
    machine: String,
    pub(super) footprints: Vec<(Kind, Footprint)>,
    /// One for each round, in their order.
    pub(super) made: Vec<(Kind, Made)>,
    figures: Vec<(Kind, Cell, Figures)>,
    /// By cell.
    pub(super) alone: Vec<Alone>,
    pub(super) seconds: f64,
}

/// Rounds below which no interval is sure enough to say that a target is met or missed.
const ENOUGH: usize = 5;

/// What is compared, and by which name.
struct Metric {
    title: &'static str,
    value: fn(&Figures) -> f64,
    /// Whether the targets are about it.
    targeted: bool,
    /// Whether the generator's limit may be what was measured.
    bounded: bool,
}

const METRICS: [Metric; 3] = [
    Metric {
        title: "Highest rate with < 0.1 % loss, thousand datagrams/s",
        value: |f| f.lossless,
        targeted: true,
        bounded: true,
    },
    Metric {
        title: "Relayed per second of the server's CPU at that rate, thousand datagrams",
        value: |f| f.per_cpu_second,
        targeted: true,
        bounded: false,
    },
    Metric {
        title: "Goodput at three times that rate, thousand datagrams/s",
        value: |f| f.goodput,
        targeted: false,
        bounded: true,
    },
];

impl Report {
    pub(super) fn new(kinds: Vec<Kind>, cells: Vec<Cell>, plain_sink: bool) -> Result<Self> {
        Ok(Self {
            kinds,
            cells,
            rounds: 0,
            plain_sink,
            machine: machine()?,
            footprints: Vec::new(),
            made: Vec::new(),
            figures: Vec::new(),
            alone: Vec::new(),
            seconds: 0.0,
        })
    }

    pub(super) fn add(&mut self, kind: Kind, cell: Cell, figures: Figures) {
        self.figures.push((kind, cell, figures));
    }

    /// One for each round, in their order.
    fn of(&self, kind: Kind, cell: Cell) -> impl Iterator<Item = &Figures> {
        self.figures.iter().filter(move |(k, c, _)| (*k, *c) == (kind, cell)).map(|(_, _, figures)| figures)
    }

    /// The ratios within the rounds.
    fn ratio(&self, of: Kind, to: Kind, cell: Cell, value: fn(&Figures) -> f64) -> Estimate {
        let ratios = self.of(of, cell).zip(self.of(to, cell)).map(|(a, b)| value(a) / value(b));
        estimate(&ratios.collect::<Vec<_>>())
    }

    fn table(&self, f: &mut fmt::Formatter<'_>, metric: &Metric) -> fmt::Result {
        let pairs: Vec<_> = self.pairs().collect();
        write!(f, "\n### {}\n\n| Load |", metric.title)?;
        self.kinds.iter().try_for_each(|kind| write!(f, " {kind} |"))?;
        pairs.iter().try_for_each(|(a, b)| write!(f, " {a} / {b} |"))?;
        write!(f, "\n|---|{}\n", "---:|".repeat(self.kinds.len() + pairs.len()))?;
        for &cell in &self.cells {
            write!(f, "| {cell} |")?;
            for &kind in &self.kinds {
                let values: Vec<_> = self.of(kind, cell).map(metric.value).collect();
                if values.is_empty() {
                    write!(f, " – |")?;
                    continue;
                }
                let plus = if metric.targeted && self.of(kind, cell).any(|f| f.limited) { "+" } else { "" };
                write!(f, " {:.0}{plus} |", median(&values) / 1e3)?;
            }
            for &(a, b) in &pairs {
                let ratio = self.ratio(a, b, cell, metric.value);
                if ratio.median.is_nan() {
                    write!(f, " – |")?;
                    continue;
                }
                let mark = match target(a, b, cell).filter(|_| metric.targeted) {
                    None => "",
                    Some(target) => {
                        let limited = |kind| metric.bounded && self.of(kind, cell).any(|f| f.limited);
                        verdict(target, &ratio, self.rounds, limited(a), limited(b))
                    }
                };
                write!(f, " {:.2} [{:.2}–{:.2}]{mark} |", ratio.median, ratio.low, ratio.high)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n### Latency, µs\n\n\
             Added at half of the highest rate, p50 and p99: the percentile through the server less the same percentile \
             with nothing in between (last column, with the rate that the generator then reaches, thousand \
             datagrams/s). In brackets the median at three times the highest rate, nothing subtracted.\n"
        )?;
        write!(f, "| Load |")?;
        self.kinds.iter().try_for_each(|kind| write!(f, " {kind} |"))?;
        write!(f, " generator |\n|---|{}\n", "---:|".repeat(self.kinds.len() + 1))?;
        for (&cell, alone) in self.cells.iter().zip(&self.alone) {
            write!(f, "| {cell} |")?;
            for &kind in &self.kinds {
                let of = |value: fn(&Figures) -> f64| median(&self.of(kind, cell).map(value).collect::<Vec<_>>());
                let Latency { p50, p99 } = alone.latency;
                let (p50, p99) = (of(|f| f.latency.p50) - p50, of(|f| f.latency.p99) - p99);
                match self.of(kind, cell).next() {
                    Some(_) => write!(f, " {p50:.0} / {p99:.0} ({:.0}) |", of(|f| f.overload_us))?,
                    None => write!(f, " – |")?,
                }
            }
            let Alone { rate, latency: Latency { p50, p99 } } = alone;
            writeln!(f, " {p50:.0} / {p99:.0} at {:.0} |", rate / 1e3)?;
        }
        write!(f, "\nResident memory grew during one overload by at most:")?;
        for (index, &kind) in self.kinds.iter().enumerate() {
            let grown = self.figures.iter().filter(|(k, ..)| *k == kind).map(|(_, _, figures)| figures.overload_kib);
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma} {kind} {:.0} KiB", grown.fold(0.0, f64::max))?;
        }
        writeln!(f, ".")
    }

    fn allocations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.footprints.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\n### Allocations\n\n\
             Resident memory while {HELD} are held, as far as the server makes them; the rate is of {MADE}, each with the \
             401 that comes first. The generator's is what it would make if it never waited.\n\n\
             | Server | held | KiB idle | KiB with a channel | per second | per CPU-second | generator |\n\
             |---|---:|---:|---:|---:|---:|---:|"
        )?;
        for (kind, Footprint { held, idle, with_channel }) in &self.footprints {
            let made = |value: fn(&Made) -> f64| {
                estimate(&self.made.iter().filter(|(k, _)| k == kind).map(|(_, made)| value(made)).collect::<Vec<_>>())
            };
            let (rate, generator) = (made(|m| m.per_second), made(|m| m.generator).median);
            let ours = *kind == Kind::Backwater;
            let mark = |met: bool| {
                if !ours {
                    ""
                } else if met {
                    " ✓"
                } else {
                    " **missed**"
                }
            };
            // Near its own limit the generator is what was measured.
            let limited = rate.median > generator * 0.8;
            let rate_mark = if ours { verdict(PER_SECOND, &rate, self.rounds, limited, false) } else { "" };
            writeln!(
                f,
                "| {kind} | {held}{} | {idle:.1}{} | {with_channel:.1}{} | {:.0} [{:.0}–{:.0}]{}{rate_mark} | {:.0} | \
                 {generator:.0} |",
                mark(*held >= HELD),
                mark(*idle <= IDLE),
                mark(*with_channel <= WITH_CHANNEL),
                rate.median,
                rate.low,
                rate.high,
                if limited { "+" } else { "" },
                made(|m| m.per_cpu_second).median,
            )?;
        }
        Ok(())
    }

    /// Who is compared with whom: the first with each of the others.
    fn pairs(&self) -> impl Iterator<Item = (Kind, Kind)> {
        let first = self.kinds.first().copied();
        first.into_iter().flat_map(|first| self.kinds.iter().skip(1).map(move |&other| (first, other)))
    }
}

/// What ours has to reach of another: of every peer as much; twice as much from client to client, and of coturn on
/// bursts of 8 with 10 and 100 clients; and of what can be reached at all 0.85.
fn target(of: Kind, to: Kind, cell: Cell) -> Option<f64> {
    let bursts = cell.burst == 8 && matches!(cell.clients, 10 | 100);
    if of != Kind::Backwater || to == of {
        None
    } else if to == Kind::Raw {
        Some(0.85)
    } else if cell.direction == Direction::Across || to.is_coturn() && bursts {
        Some(2.0)
    } else {
        Some(1.0)
    }
}

/// What ours has to do on its own: at most so many KiB for an allocation, idle and with a channel; at least so many
/// allocations per second.
const IDLE: f64 = 2.0;
const WITH_CHANNEL: f64 = 3.0;
const PER_SECOND: f64 = 20_000.0;

/// Missed only when the whole interval lies below the target, met only when it lies above. A few rounds settle nothing;
/// nor does a figure that is the generator's: what is only known to be at least so much may be more.
pub(crate) fn verdict(
    target: f64,
    ratio: &Estimate,
    rounds: usize,
    ours_limited: bool,
    theirs_limited: bool,
) -> &'static str {
    if rounds < ENOUGH {
        ""
    } else if ratio.high < target && !ours_limited {
        " **missed**"
    } else if ratio.low >= target && !theirs_limited {
        " ✓"
    } else {
        " (unsettled)"
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} rounds, {:.0} s.", self.machine, self.rounds, self.seconds)?;
        writeln!(
            f,
            "\nMedians of the rounds; ratios are medians of the ratios within each round, with their interval. \
             The server has one core, the load another. A load is a direction, the payload's bytes, clients × datagrams \
             in a burst; client to client both of each pair send. `+`: the generator could not send more."
        )?;
        let peers = if self.plain_sink { "datagrams one by one" } else { "trains (GRO)" };
        writeln!(f, "\nThe peers receive {peers}.")?;
        let disturbed: usize = self.figures.iter().map(|(_, _, figures)| figures.disturbed).sum();
        if disturbed > 0 {
            writeln!(f, "\n**Something else ran on the two cores during {disturbed} loads: not figures to quote.**")?;
        }
        for metric in &METRICS {
            self.table(f, metric)?;
        }
        self.latencies(f)?;
        self.allocations(f)
    }
}

/// Processor, kernel, date.
pub(crate) fn machine() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let date = crate::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let cores = std::fs::read_to_string("/proc/cpuinfo")?.lines().filter(|line| line.starts_with("processor")).count();
    Ok(format!("{model}, {cores} cores, Linux {}, {}", kernel.trim(), date.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::BASE;

    fn figures(lossless: f64) -> Figures {
        let latency = Latency { p50: 10.0, p99: 30.0 };
        let (limited, disturbed, overload_us, overload_kib) = (false, 0, 10.0, 0.0);
        Figures {
            lossless,
            limited,
            per_cpu_second: lossless,
            goodput: lossless,
            overload_us,
            overload_kib,
            latency,
            disturbed,
        }
    }

    #[test]
    fn missed_is_said_only_of_the_whole_interval() {
        let ratio = |low, high| Estimate { median: (low + high) / 2.0, low, high };
        let all = |low, high, ours, theirs| verdict(1.5, &ratio(low, high), 5, ours, theirs);
        assert_eq!(all(1.2, 1.4, false, true), " **missed**");
        assert_eq!(all(1.2, 1.6, false, false), " (unsettled)");
        assert_eq!(all(1.5, 1.6, true, false), " ✓");
        assert_eq!(verdict(1.5, &ratio(1.5, 1.6), 4, false, false), "");
    }

    #[test]
    fn the_generators_limit_settles_nothing() {
        let ratio = |r| Estimate { median: r, low: r, high: r };
        assert_eq!(verdict(1.5, &ratio(1.2), 5, true, false), " (unsettled)");
        assert_eq!(verdict(1.5, &ratio(1.6), 5, false, true), " (unsettled)");
    }

    #[test]
    fn targets() {
        let ours = |to, cell| target(Kind::Backwater, to, cell);
        assert_eq!(ours(Kind::Coturn, BASE), Some(2.0));
        assert_eq!(ours(Kind::CoturnAtGso, Cell { clients: 100, ..BASE }), Some(2.0));
        assert_eq!(ours(Kind::Coturn, Cell { clients: 1, ..BASE }), Some(1.0));
        assert_eq!(ours(Kind::Coturn, Cell { burst: 32, ..BASE }), Some(1.0));
        let across = Cell { direction: Direction::Across, burst: 1, ..BASE };
        assert_eq!(ours(Kind::TurnServer, across), Some(2.0));
        assert_eq!(ours(Kind::Raw, across), Some(0.85));
        assert_eq!(target(Kind::Coturn, Kind::Raw, BASE), None);
    }

    #[test]
    fn allocations_have_targets_of_their_own() {
        let mut report = Report::new(vec![Kind::Backwater, Kind::Coturn], vec![BASE], false).unwrap();
        report.rounds = 5;
        for kind in [Kind::Backwater, Kind::Coturn] {
            report.footprints.push((kind, Footprint { held: HELD - 1, idle: 1.9, with_channel: 3.1 }));
            let made = |per_second| Made { per_second, per_cpu_second: 30e3, generator: 100e3 };
            report.made.extend([19e3, 18e3, 17e3, 18e3, 19e3].map(|rate| (kind, made(rate))));
        }
        let text = report.to_string();
        let ours = "| backwater | 14999 **missed** | 1.9 ✓ | 3.1 **missed** | 18000 [17000–19000] **missed** | 30000 | 100000 |";
        assert!(text.contains(ours), "{text}");
        assert!(text.contains("| coturn | 14999 | 1.9 | 3.1 | 18000 [17000–19000] | 30000 | 100000 |"), "{text}");
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let kinds = vec![Kind::Backwater, Kind::Coturn, Kind::TurnServer, Kind::Raw];
        let mut report = Report::new(kinds, vec![BASE], false).unwrap();
        report.rounds = 5;
        // The machine is twice as fast in the second round, and for everyone.
        for (ours, theirs) in [(200e3, 100e3), (400e3, 200e3), (210e3, 100e3), (200e3, 100e3), (200e3, 100e3)] {
            report.add(Kind::Backwater, BASE, figures(ours));
            report.add(Kind::Coturn, BASE, figures(theirs));
            report.add(Kind::Raw, BASE, figures(ours * 2.0));
        }
        let ratio = report.ratio(Kind::Backwater, Kind::Coturn, BASE, |f| f.lossless);
        assert_eq!((ratio.median, ratio.low, ratio.high), (2.0, 2.0, 2.1));
        let text = report.to_string();
        let row = "| 200 | 100 | – | 400 | 2.00 [2.00–2.10] ✓ | – | 0.50 [0.50–0.50] **missed** |";
        assert!(text.contains(row), "{text}");
    }
}
