//! The tables, in Markdown.

use std::{fmt, fs, process::Command};

use anyhow::Result;

use super::{
    Cell,
    search::Figures,
    server::Kind,
    statistics::{Estimate, estimate, median},
};

pub(super) struct Report {
    kinds: Vec<Kind>,
    pub(super) cells: Vec<Cell>,
    /// Rounds that are done.
    pub(super) rounds: usize,
    plain_sink: bool,
    machine: String,
    memory: Vec<(Kind, f64)>,
    figures: Vec<(Kind, Cell, Figures)>,
    /// What the generator alone reaches, by cell.
    pub(super) ceilings: Vec<f64>,
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
        let (memory, figures, ceilings) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { kinds, cells, rounds: 0, plain_sink, machine: machine()?, memory, figures, ceilings, seconds: 0.0 })
    }

    pub(super) fn memory(&mut self, kind: Kind, kib: f64) {
        self.memory.push((kind, kib));
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
                let plus = if metric.targeted && self.of(kind, cell).any(|f| f.limited) { "+" } else { "" };
                write!(f, " {:.0}{plus} |", median(&values) / 1e3)?;
            }
            for &(a, b) in &pairs {
                let ratio = self.ratio(a, b, cell, metric.value);
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

    /// Who is compared with whom: the first with each of the others.
    fn pairs(&self) -> impl Iterator<Item = (Kind, Kind)> {
        let first = self.kinds.first().copied();
        first.into_iter().flat_map(|first| self.kinds.iter().skip(1).map(move |&other| (first, other)))
    }
}

/// What ours has to reach of another: half as much again as coturn on trains, as much on single datagrams, and four
/// fifths of what can be reached at all.
fn target(of: Kind, to: Kind, cell: Cell) -> Option<f64> {
    match (of, to) {
        (Kind::Backwater, Kind::Coturn) if cell.burst > 1 => Some(1.5),
        (Kind::Backwater, Kind::Coturn) => Some(1.0),
        (Kind::Backwater, Kind::Raw) => Some(0.8),
        (Kind::Backwater | Kind::Coturn | Kind::Raw, _) => None,
    }
}

/// Missed only when the whole interval lies below the target, met only when it lies above. A few rounds settle nothing;
/// nor does a figure that is the generator's: what is only known to be at least so much may be more.
fn verdict(target: f64, ratio: &Estimate, rounds: usize, ours_limited: bool, theirs_limited: bool) -> &'static str {
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
             The server has one core, the load another. `+`: the generator could not send more."
        )?;
        let peers = if self.plain_sink { "datagrams one by one" } else { "trains (GRO)" };
        writeln!(f, "\nThe peers receive {peers}.")?;
        let disturbed: usize = self.figures.iter().map(|(_, _, figures)| figures.disturbed).sum();
        if disturbed > 0 {
            writeln!(f, "\n**Something else ran on the load's core during {disturbed} loads: not figures to quote.**")?;
        }
        for metric in &METRICS {
            self.table(f, metric)?;
        }
        writeln!(
            f,
            "\n### Median latency at three times that rate, µs; and the generator alone, thousand datagrams/s\n"
        )?;
        write!(f, "| Load |")?;
        self.kinds.iter().try_for_each(|kind| write!(f, " {kind} |"))?;
        write!(f, " generator |\n|---|{}\n", "---:|".repeat(self.kinds.len() + 1))?;
        for (&cell, ceiling) in self.cells.iter().zip(&self.ceilings) {
            write!(f, "| {cell} |")?;
            for &kind in &self.kinds {
                write!(f, " {:.0} |", median(&self.of(kind, cell).map(|f| f.p50_us).collect::<Vec<_>>()))?;
            }
            writeln!(f, " {:.0} |", ceiling / 1e3)?;
        }
        if !self.memory.is_empty() {
            writeln!(f, "\n### Resident memory per allocation with a channel, KiB\n\n| Server | KiB |\n|---|---:|")?;
            self.memory.iter().try_for_each(|(kind, kib)| writeln!(f, "| {kind} | {kib:.1} |"))?;
        }
        Ok(())
    }
}

/// Processor, kernel, date.
fn machine() -> Result<String> {
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

    const CELL: Cell = Cell { size: 100, clients: 10, burst: 8 };

    fn figures(lossless: f64) -> Figures {
        Figures { lossless, limited: false, per_cpu_second: lossless, goodput: lossless, p50_us: 10.0, disturbed: 0 }
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
    fn ratios_are_taken_within_rounds() {
        let mut report = Report::new(Kind::ALL.to_vec(), vec![CELL], false).unwrap();
        report.rounds = 5;
        // The machine is twice as fast in the second round, and for everyone.
        for (ours, theirs) in [(200e3, 100e3), (400e3, 200e3), (210e3, 100e3), (200e3, 100e3), (200e3, 100e3)] {
            report.add(Kind::Backwater, CELL, figures(ours));
            report.add(Kind::Coturn, CELL, figures(theirs));
            report.add(Kind::Raw, CELL, figures(ours * 2.0));
        }
        let ratio = report.ratio(Kind::Backwater, Kind::Coturn, CELL, |f| f.lossless);
        assert_eq!((ratio.median, ratio.low, ratio.high), (2.0, 2.0, 2.1));
        let text = report.to_string();
        assert!(text.contains("2.00 [2.00–2.10] ✓") && text.contains("0.50 [0.50–0.50] **missed**"), "{text}");
    }
}
