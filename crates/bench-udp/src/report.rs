//! The tables, in Markdown.

use std::{fmt, fs, process::Command};

use crate::{
    Cell, NAMES, Sample, Work, cells,
    full::Full,
    statistics::{Estimate, estimate, median},
    subject::Change,
};

#[derive(Default)]
pub(crate) struct Report {
    samples: Vec<(Cell, usize, Sample)>,
    pub(crate) memory: Vec<String>,
    pub(crate) full: Full,
}

const RAW: usize = 0;
const QUINN: usize = 1;
const TOKIO: usize = 2;
const OURS: usize = 3;

/// Rounds below which no interval is sure enough to say that a target is met or missed.
const ENOUGH: usize = 5;

/// A sample during which the thread has waited for its core for longer than this part of its time.
const DISTURBED: f64 = 0.2;

impl Report {
    pub(crate) fn add(&mut self, cell: Cell, who: usize, sample: Sample) {
        self.samples.push((cell, who, sample));
    }

    /// One for each round, in their order.
    fn of(&self, cell: Cell, who: usize, value: fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().filter(|(c, w, _)| (*c, *w) == (cell, who)).map(|(_, _, sample)| value(sample)).collect()
    }

    /// How many times what ours costs another one costs.
    fn advantage(&self, cell: Cell, other: usize) -> (Estimate, usize) {
        let (ours, other) = (self.of(cell, OURS, Sample::cost), self.of(cell, other, Sample::cost));
        let ratios: Vec<_> = other.iter().zip(&ours).map(|(other, ours)| other / ours).collect();
        (estimate(&ratios), ratios.len())
    }

    fn rounds(&self) -> usize {
        self.samples.len() / cells().count() / NAMES.len()
    }

    fn table(
        &self,
        f: &mut fmt::Formatter<'_>,
        title: &str,
        value: fn(&Sample) -> f64,
        precision: usize,
    ) -> fmt::Result {
        writeln!(f, "\n### {title}\n\n| Load | {} |\n|---|{}", NAMES.join(" | "), "---:|".repeat(NAMES.len()))?;
        for cell in cells() {
            write!(f, "| {cell} |")?;
            for who in 0..NAMES.len() {
                write!(f, " {:.precision$} |", median(&self.of(cell, who, value)))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Sample {
    /// Nanoseconds of the thread's time for each datagram.
    fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.datagrams as f64
    }

    /// Million datagrams per second.
    fn rate(&self) -> f64 {
        self.datagrams as f64 / self.wall.as_secs_f64() / 1e6
    }

    fn allocations(&self) -> f64 {
        self.allocations as f64 / self.datagrams as f64
    }

    fn is_disturbed(&self) -> bool {
        self.wall.as_secs_f64() > self.cpu.as_secs_f64() * (1.0 + DISTURBED)
    }
}

/// What ours has to reach: nearly what can be reached at all, where nothing is changed; as much as quinn-udp everywhere.
fn target(cell: Cell, other: usize) -> Option<f64> {
    match (cell.work, other) {
        (Work::One | Work::Many | Work::Receive, RAW) => Some(0.95),
        (_, QUINN) => Some(1.0),
        _ => None,
    }
}

/// Missed only when the whole interval lies below the target, met only when it lies above; a few rounds settle nothing.
fn verdict(target: f64, ratio: &Estimate, rounds: usize) -> &'static str {
    match () {
        () if rounds < ENOUGH => "",
        () if ratio.high < target => " **missed**",
        () if ratio.low >= target => " ✓",
        () => " (unsettled)",
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} rounds.", machine(), self.rounds())?;
        let disturbed = self.samples.iter().filter(|(_, _, sample)| sample.is_disturbed()).count();
        if disturbed > 0 {
            let all = self.samples.len();
            writeln!(f, "\nThe measured thread had to wait for its core in {disturbed} of {all} samples.")?;
        }
        self.table(f, "CPU time per datagram, ns", Sample::cost, 1)?;
        writeln!(
            f,
            "\n### What others cost, in ours\n\nMedians of the ratios within each round, with their interval. Targets: \
             0.95 of raw where nothing is changed, and 1.00 of quinn-udp.\n"
        )?;
        writeln!(f, "| Load | raw | quinn-udp | tokio |\n|---|---:|---:|---:|")?;
        for cell in cells() {
            write!(f, "| {cell} |")?;
            for other in [RAW, QUINN, TOKIO] {
                let (ratio, rounds) = self.advantage(cell, other);
                let mark = target(cell, other).map_or("", |target| verdict(target, &ratio, rounds));
                write!(f, " {:.3} [{:.3}–{:.3}]{mark} |", ratio.median, ratio.low, ratio.high)?;
            }
            writeln!(f)?;
        }
        self.table(f, "Throughput, million datagrams per second", Sample::rate, 2)?;
        self.table(f, "Heap allocations per datagram", Sample::allocations, 4)?;
        writeln!(f, "\n### Memory, bytes\n\n| What | Itself | On the heap | Descriptors |\n|---|---:|---:|---:|")?;
        self.memory.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "{}", self.full)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, train) = (self.size, self.datagrams());
        match self.work {
            Work::One => write!(f, "send to one, {size} B, trains of {train}"),
            Work::Many => write!(f, "send to {}, {size} B, trains of {train}", crate::MANY),
            Work::Receive => write!(f, "receive, {size} B, trains of {train}"),
            Work::Forward(Change::Strip) => write!(f, "forward, strip 4 of {size} B, trains of {train}"),
            Work::Forward(Change::Insert) => write!(f, "forward, insert 4 to {size} B, trains of {train}"),
        }
    }
}

/// Processor, kernel, date.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output().map(|out| out.stdout).unwrap_or_default();
    format!("{model}, Linux {}, {}", kernel.trim(), String::from_utf8_lossy(&date).trim())
}
