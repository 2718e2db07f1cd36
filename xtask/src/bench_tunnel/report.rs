//! The tables, in Markdown.

use std::fmt;

use anyhow::Result;

use super::{
    load::{Figures, Load},
    subject::{Idle, Kind},
};
use crate::bench::{
    machine,
    statistics::{Estimate, estimate, median},
    verdict,
};

pub(super) struct Report {
    kinds: Vec<Kind>,
    v6: bool,
    load_seconds: u64,
    machine: String,
    /// Rounds that are done.
    pub(super) rounds: usize,
    /// By the round.
    pub(super) figures: Vec<(Kind, Load, usize, Figures)>,
    /// Of those that have processes.
    pub(super) idle: Vec<(Kind, Idle)>,
    /// What could not be measured, and why.
    pub(super) failures: Vec<String>,
    pub(super) seconds: f64,
}

/// What is compared.
#[derive(Clone, Copy)]
enum Metric {
    /// More is better.
    Delivered,
    /// Less is better.
    Cpu,
}

/// What ours may do while nothing is sent.
const WAKE_UPS: f64 = 1.0;
const RESIDENT: f64 = 20.0;

impl Metric {
    fn value(self, figures: &Figures) -> f64 {
        match self {
            Self::Delivered => figures.mbit_per_second,
            Self::Cpu => figures.cpu_of_both(),
        }
    }

    fn better(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Delivered => a.max(b),
            Self::Cpu => a.min(b),
        }
    }

    /// What ours has to reach of the best peer.
    fn target(self, load: Load) -> Option<f64> {
        match (self, load) {
            (Self::Delivered, Load::Tcp(1)) => Some(2.0),
            (Self::Delivered, Load::Tcp(_) | Load::Udp | Load::UdpShort) => None,
            (Self::Cpu, Load::Tcp(1)) => Some(0.5),
            (Self::Cpu, Load::Tcp(_) | Load::Udp | Load::UdpShort) => None,
        }
    }

    fn verdict(self, load: Load, ratio: &Estimate, rounds: usize) -> &'static str {
        let Some(target) = self.target(load) else { return "" };
        match self {
            Self::Delivered => verdict(target, ratio, rounds, false, false),
            Self::Cpu => {
                let Estimate { median, low, high } = *ratio;
                let inverse = Estimate { median: 1.0 / median, low: 1.0 / high, high: 1.0 / low };
                verdict(1.0 / target, &inverse, rounds, false, false)
            }
        }
    }
}

impl Report {
    pub(super) fn new(kinds: Vec<Kind>, v6: bool, load_seconds: u64) -> Result<Self> {
        Ok(Self {
            kinds,
            v6,
            load_seconds,
            machine: machine()?,
            rounds: 0,
            figures: Vec::new(),
            idle: Vec::new(),
            failures: Vec::new(),
            seconds: 0.0,
        })
    }

    fn of(&self, kind: Kind, load: Load) -> impl Iterator<Item = &Figures> {
        self.figures.iter().filter(move |(k, l, ..)| (*k, *l) == (kind, load)).map(|(.., figures)| figures)
    }

    fn median(&self, kind: Kind, load: Load, value: impl Fn(&Figures) -> f64) -> f64 {
        median(&self.of(kind, load).map(value).collect::<Vec<_>>())
    }

    /// Ours to the best peer's, of each round that has both.
    fn ratios(&self, metric: Metric, load: Load) -> Vec<f64> {
        let of_round = |round: usize| {
            let here = self.figures.iter().filter(move |(_, l, r, _)| (*l, *r) == (load, round));
            let ours = here.clone().find(|(kind, ..)| *kind == Kind::Backwater)?;
            let peers = here.filter(|(kind, ..)| kind.is_peer()).map(|(.., figures)| metric.value(figures));
            Some(metric.value(&ours.3) / peers.reduce(|a, b| metric.better(a, b))?)
        };
        (0..self.rounds).filter_map(of_round).collect()
    }

    fn is_compared(&self) -> bool {
        self.kinds.contains(&Kind::Backwater) && self.kinds.iter().any(|kind| kind.is_peer())
    }

    fn table(&self, f: &mut fmt::Formatter<'_>, metric: Metric) -> fmt::Result {
        let title = match metric {
            Metric::Delivered => "Delivered, Mbit/s",
            Metric::Cpu => "CPU-seconds per gigabyte delivered, sender + receiver",
        };
        let compared = self.is_compared();
        write!(f, "\n#### {title}\n\n| Load |")?;
        self.kinds.iter().try_for_each(|kind| write!(f, " {kind} |"))?;
        f.write_str(if compared { " backwater / best peer |" } else { "" })?;
        write!(f, "\n|---|{}\n", "---:|".repeat(self.kinds.len() + usize::from(compared)))?;
        for load in Load::ALL {
            write!(f, "| {load} |")?;
            for &kind in &self.kinds {
                match self.of(kind, load).next() {
                    Some(Figures { loss, cpu, .. }) => match metric {
                        Metric::Delivered => {
                            write!(f, " {:.0}", self.median(kind, load, |f| f.mbit_per_second))?;
                            if loss.is_some() {
                                let loss = self.median(kind, load, |f| f.loss.unwrap_or(f64::NAN));
                                write!(f, " ({:.0} % lost)", loss * 100.0)?;
                            }
                            f.write_str(" |")?;
                        }
                        Metric::Cpu if cpu.is_none() => write!(f, " – |")?,
                        Metric::Cpu => {
                            let end = |end: usize| self.median(kind, load, |f| f.cpu.map_or(f64::NAN, |cpu| cpu[end]));
                            write!(f, " {:.2} + {:.2} |", end(0), end(1))?;
                        }
                    },
                    None => write!(f, " – |")?,
                }
            }
            if compared {
                let ratios = self.ratios(metric, load);
                let ratio = estimate(&ratios);
                if ratio.median.is_nan() {
                    write!(f, " – |")?;
                } else {
                    let mark = metric.verdict(load, &ratio, ratios.len());
                    write!(f, " {:.2} [{:.2}–{:.2}]{mark} |", ratio.median, ratio.low, ratio.high)?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn idle_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.idle.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\n#### Idle, sender / receiver\n\n\
             | | wake-ups per second | MiB resident | MiB resident after the loads |\n|---|---:|---:|---:|"
        )?;
        for (kind, Idle { wake_ups, resident, resident_after }) in &self.idle {
            let cell = |[near, far]: &[f64; 2], limit: f64| {
                let mark = match *kind {
                    Kind::Backwater if near.max(*far) < limit => " ✓",
                    Kind::Backwater => " **missed**",
                    Kind::WireguardGo | Kind::BoringtunCli | Kind::GotatunCli | Kind::Kernel => "",
                };
                format!("{near:.1} / {far:.1}{mark}")
            };
            let after = resident_after.as_ref().map_or("–".to_owned(), |after| cell(after, RESIDENT));
            writeln!(f, "| {kind} | {} | {} | {after} |", cell(wake_ups, WAKE_UPS), cell(resident, RESIDENT))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, rounds, load_seconds, seconds, .. } = self;
        let outside = if self.v6 { "IPv6" } else { "IPv4" };
        writeln!(f, "{machine}, {rounds} rounds of {load_seconds} s each, {outside} outside, {seconds:.0} s.")?;
        writeln!(
            f,
            "\nMedians of the rounds; ratios are medians of the ratios within each round to the peer that was best in it, \
             with their interval. Both ends and iperf3 share the cores."
        )?;
        if !self.failures.is_empty() {
            writeln!(f, "\n**Not measured:**\n")?;
            self.failures.iter().try_for_each(|failure| writeln!(f, "- {failure}"))?;
        }
        self.table(f, Metric::Delivered)?;
        self.table(f, Metric::Cpu)?;
        self.idle_table(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kinds: &[Kind]) -> Report {
        Report { rounds: 5, ..Report::new(kinds.to_vec(), false, 5).unwrap() }
    }

    fn figures(mbit_per_second: f64, cpu: f64) -> Figures {
        Figures { mbit_per_second, loss: None, cpu: Some([cpu, cpu]) }
    }

    #[test]
    fn the_best_peer_is_the_rounds() {
        let mut report = report(&[Kind::Backwater, Kind::WireguardGo, Kind::GotatunCli, Kind::Kernel]);
        let load = Load::Tcp(1);
        for round in 0..5 {
            report.figures.push((Kind::Backwater, load, round, figures(2000.0, 1.0)));
            let (a, b) = if round % 2 == 0 { (1000.0, 500.0) } else { (400.0, 800.0) };
            report.figures.push((Kind::WireguardGo, load, round, figures(a, 4.0)));
            // The fifth round of this peer failed.
            if round < 4 {
                report.figures.push((Kind::GotatunCli, load, round, figures(b, 1.6)));
            }
            report.figures.push((Kind::Kernel, load, round, Figures { cpu: None, ..figures(9000.0, 0.0) }));
        }
        assert_eq!(report.ratios(Metric::Delivered, load), [2.0, 2.5, 2.0, 2.5, 2.0]);
        assert_eq!(report.ratios(Metric::Cpu, load), [0.625, 0.625, 0.625, 0.625, 0.25]);
        let text = report.to_string();
        assert!(text.contains("| TCP × 1 | 2000 | 1000 | 650 | 9000 | 2.00 [2.00–2.50] ✓ |"), "{text}");
        let cpu = "| TCP × 1 | 1.00 + 1.00 | 4.00 + 4.00 | 1.60 + 1.60 | – | 0.62 [0.25–0.62] (unsettled) |";
        assert!(text.contains(cpu), "{text}");
    }

    #[test]
    fn less_cpu_is_better() {
        let ratio = |low, high| Estimate { median: (low + high) / 2.0, low, high };
        let verdict = |low, high| Metric::Cpu.verdict(Load::Tcp(1), &ratio(low, high), 5);
        assert_eq!(verdict(0.3, 0.5), " ✓");
        assert_eq!(verdict(0.4, 0.6), " (unsettled)");
        assert_eq!(verdict(0.55, 0.6), " **missed**");
        assert_eq!(Metric::Cpu.verdict(Load::Tcp(4), &ratio(0.9, 0.9), 5), "");
    }

    #[test]
    fn a_rounds_failure_is_told() {
        let mut report = report(&[Kind::Backwater, Kind::WireguardGo]);
        let load = Load::Udp;
        for round in 0..5 {
            let lossy = |rate| Figures { loss: Some(0.9), ..figures(rate, 1.0) };
            report.figures.push((Kind::WireguardGo, load, round, lossy(100.0)));
            match round {
                2 => report.failures.push("backwater, UDP, round 3: nothing arrived".to_owned()),
                _ => report.figures.push((Kind::Backwater, load, round, lossy(400.0))),
            }
        }
        let text = report.to_string();
        assert!(text.contains("- backwater, UDP, round 3: nothing arrived\n"), "{text}");
        // Four rounds settle nothing.
        assert!(text.contains("| UDP | 400 (90 % lost) | 100 (90 % lost) | 4.00 [4.00–4.00] |"), "{text}");
    }

    #[test]
    fn idle_has_targets_of_its_own() {
        let mut report = report(&[Kind::Backwater, Kind::WireguardGo]);
        for kind in [Kind::Backwater, Kind::WireguardGo] {
            let idle = Idle { wake_ups: [0.5, 1.2], resident: [10.0, 19.9], resident_after: None };
            report.idle.push((kind, idle));
        }
        let text = report.to_string();
        assert!(text.contains("| backwater | 0.5 / 1.2 **missed** | 10.0 / 19.9 ✓ | – |"), "{text}");
        assert!(text.contains("| wireguard-go | 0.5 / 1.2 | 10.0 / 19.9 | – |"), "{text}");
    }
}
