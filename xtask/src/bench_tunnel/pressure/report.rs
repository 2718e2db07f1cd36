//! The tables, in Markdown.

use std::fmt;

use anyhow::Result;

use super::{Case, Figures, Sender};
use crate::bench::{machine, statistics::median};

pub(super) struct Report {
    load_seconds: u64,
    round_trip: u64,
    machine: String,
    /// Rounds that are done.
    pub(super) rounds: usize,
    pub(super) figures: Vec<(Case, Figures)>,
    /// What could not be measured, and why.
    pub(super) failures: Vec<String>,
}

impl Report {
    pub(super) fn new(load_seconds: u64, round_trip: u64) -> Result<Self> {
        let machine = machine()?;
        Ok(Self { load_seconds, round_trip, machine, rounds: 0, figures: Vec::new(), failures: Vec::new() })
    }

    /// What was required of waiting and seen otherwise, in any round.
    pub(super) fn misses(&self) -> impl Iterator<Item = String> {
        let required = self.figures.iter().filter(|(case, _)| case.sender == Sender::Wait && case.ecn);
        required.filter(|(_, figures)| !figures.is_as_required()).map(|(case, figures)| format!("{case}: {figures}"))
    }
}

impl Figures {
    fn is_as_required(&self) -> bool {
        self.retransmissions <= self.needless && self.lost == 0 && self.device_dropped == 0 && self.share >= 0.95
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, rounds, load_seconds, round_trip, .. } = self;
        writeln!(
            f,
            "{machine}; {rounds} rounds of {load_seconds} s each; round trip {round_trip} ms. Counts are of all rounds together, \
             the others medians of the rounds. Goodput is of what the uplink can carry."
        )?;
        if !self.failures.is_empty() {
            writeln!(f, "\n**Not measured:**\n")?;
            self.failures.iter().try_for_each(|failure| writeln!(f, "- {failure}"))?;
        }
        let mut cases: Vec<Case> = Vec::new();
        for (case, _) in &self.figures {
            if !cases.contains(case) {
                cases.push(*case);
            }
        }
        writeln!(
            f,
            "\n| Mbit/s | ECN | Streams | Sender | Datagrams lost (told) | Refused by the queue | Lost by the device | Marked | \
             Shed | Retransmitted (needlessly) | Goodput | RTT p50, p99, ms |\n|---:|---|---:|---|{}",
            "---:|".repeat(8)
        )?;
        for case in cases {
            let of: Vec<&Figures> =
                self.figures.iter().filter(|(c, _)| *c == case).map(|(_, figures)| figures).collect();
            let sum = |value: fn(&Figures) -> u64| of.iter().map(|figures| value(figures)).sum::<u64>();
            let middle =
                |value: fn(&Figures) -> f64| median(&of.iter().map(|figures| value(figures)).collect::<Vec<_>>());
            let Case { rate, ecn, streams, sender } = case;
            let ecn = if ecn { "yes" } else { "no" };
            write!(f, "| {rate} | {ecn} | {streams} | {sender} | {} ({}) ", sum(|f| f.lost), sum(|f| f.told))?;
            write!(f, "| {} | {} ", sum(|f| f.refused), sum(|f| f.device_dropped))?;
            write!(f, "| {} | {} ", sum(|f| f.marked), sum(|f| f.shed))?;
            write!(f, "| {} ({}) ", sum(|f| f.retransmissions), sum(|f| f.needless))?;
            writeln!(f, "| {:.3} | {:.0}, {:.0} |", middle(|f| f.share), middle(|f| f.rtt_p50), middle(|f| f.rtt_p99))?;
        }
        let misses: Vec<_> = self.misses().collect();
        match misses.as_slice() {
            [] => writeln!(f, "\nWith ECN and waiting, no round lost, retransmitted, or fell below 0.95."),
            _ => {
                writeln!(f, "\n**Not as required, with ECN and waiting:**\n")?;
                misses.iter().try_for_each(|miss| writeln!(f, "- {miss}"))
            }
        }
    }
}
