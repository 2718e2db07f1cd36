//! The report for people.

use std::fmt::{self, Display, Formatter};

use super::{
    Findings, Treatment,
    outcome::{Bucket, Class, Holds, NaiveOutcome, Outcome, Woken},
};

const BAR: usize = 40;

impl Display for Treatment {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wait => "wait",
            Self::Drop => "drop",
            Self::Naive => "naive",
        })
    }
}

impl Display for Findings {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { version, system, address, size, rate, runs, .. } = self;
        write!(f, "backwater-probe {version} on {system}: datagrams of {size} bytes to {address}")?;
        match *rate > 0.0 {
            true => writeln!(f, ", {rate} per second")?,
            false => writeln!(f, ", as many as the system takes")?,
        }
        for run in runs {
            write!(f, "\n{run}")?;
        }
        writeln!(f)?;
        let head = ["policy", "connected", "sent/s", "dropped", "ENOBUFS", "waits", "wakes/s", "hangs", "CPU %"];
        table_row(f, &head)?;
        for run in runs {
            let hangs = run.naive.map_or("–".to_owned(), |naive| naive.hangs.to_string());
            table_row(
                f,
                &[
                    run.policy.to_string().as_str(),
                    yes_no(run.connected),
                    &format!("{:.0}", run.sent_per_second),
                    &run.dropped_total().to_string(),
                    &run.enobufs().to_string(),
                    &run.waits.to_string(),
                    &format!("{:.0}", run.wakes_per_blocked_second()),
                    &hangs,
                    &format!("{:.1}", run.cpu_share * 100.0),
                ],
            )?;
        }
        writeln!(f, "\nwakes/s: by the second that the sender waited")
    }
}

fn table_row(f: &mut Formatter<'_>, cells: &[&str; 9]) -> fmt::Result {
    let [policy, connected, numbers @ ..] = cells;
    write!(f, "{policy:<6} {connected:<9}")?;
    for number in numbers {
        write!(f, " {number:>9}")?;
    }
    writeln!(f)
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = if self.connected { "connected" } else { "not connected" };
        writeln!(f, "── {}, {kind}, {:.2} s", self.policy, self.seconds)?;
        writeln!(f, "sent       {:>10}  {:.0}/s, of {} offered", self.sent, self.sent_per_second, self.offered)?;
        write!(f, "dropped    {:>10}", self.dropped_total())?;
        list(f, self.dropped.iter().map(|(&reason, &n)| (reason, n)))?;
        if self.unaccounted != 0 {
            writeln!(f, "LOST       {:>10}  not accounted for: a fault of this program", self.unaccounted)?;
        }
        writeln!(f, "waits      {:>10}  {:.2} s, {} calls in all", self.waits, self.blocked_seconds, self.attempts)?;
        let Holds { count, p50_seconds, p99_seconds } = self.holds;
        let ms = |seconds: Option<f64>| seconds.map_or("–".to_owned(), |seconds| format!("{:.2} ms", seconds * 1e3));
        writeln!(f, "holds      {count:>10}  p50 {}, p99 {}", ms(p50_seconds), ms(p99_seconds))?;
        writeln!(f, "CPU        {:>9.1}%  {:.2} s", self.cpu_share * 100.0, self.cpu_seconds)?;
        for class in self.classes.iter().filter(|class| class.enobufs > 0 || class.woken.total() > 0) {
            write!(f, "{class}")?;
        }
        writeln!(f, "for nothing{:>10}  wake-ups by readiness after which there was no room", self.spurious_wakes)?;
        match &self.naive {
            Some(naive) => write!(f, "{naive}")?,
            None => {
                writeln!(f, "lost edges {:>10}  {} waits examined in a pause", self.lost_edges, self.edges_examined)?
            }
        }
        for (name, n) in [("stuck", self.stuck), ("doubled?", self.possible_duplicates), ("ICMP", self.icmp_errors)] {
            if n > 0 {
                writeln!(f, "{name:<11}{n:>10}")?;
            }
        }
        match &self.error {
            Some(error) => writeln!(f, "ended early: {error}"),
            None => Ok(()),
        }
    }
}

impl Display for Class {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { class, enobufs, woken, recovered, recovery, recovery_seconds } = self;
        writeln!(f, "{class:<11}{enobufs:>10}  ENOBUFS")?;
        write!(f, "  woken    {:>10}", woken.total())?;
        list(f, by(woken))?;
        write!(f, "  recovered{:>10}", recovered.total())?;
        list(f, by(recovered))?;
        if recovered.total() > 0 {
            let mean = recovery_seconds * 1e3 / recovered.total() as f64;
            writeln!(f, "  after {mean:.2} ms on average:")?;
            histogram(f, recovery)?;
        }
        Ok(())
    }
}

impl Display for NaiveOutcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "hangs      {:>10}  {:.1} s in which nobody woke it, and a send succeeds",
            self.hangs, self.hung_seconds
        )?;
        let Self { spin_seconds, worst_wakes_per_second, .. } = self;
        writeln!(
            f,
            "spins      {spin_seconds:>9.1}s  up to {worst_wakes_per_second:.0} wake-ups for nothing per second"
        )
    }
}

fn by(woken: &Woken) -> impl Iterator<Item = (&'static str, u64)> + use<> {
    [("by readiness", woken.readiness), ("by timer", woken.timer), ("by policy", woken.policy)].into_iter()
}

/// The rest of a line.
fn list<'a>(f: &mut Formatter<'_>, items: impl Iterator<Item = (&'a str, u64)>) -> fmt::Result {
    let items: Vec<_> = items.filter(|&(_, n)| n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    writeln!(f, "{}{}", if items.is_empty() { "" } else { "  " }, items.join(", "))
}

fn histogram(f: &mut Formatter<'_>, buckets: &[Bucket]) -> fmt::Result {
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0).max(1);
    let is_some = |bucket: &Bucket| bucket.count > 0;
    let (first, last) = (buckets.iter().position(is_some), buckets.iter().rposition(is_some));
    for (i, &Bucket { le, count }) in buckets.iter().enumerate() {
        if Some(i) < first || Some(i) > last {
            continue;
        }
        let bound = match (le, i.checked_sub(1).and_then(|before| buckets.get(before))) {
            (Some(le), _) => format!("≤ {} ms", le * 1e3),
            (None, before) => format!("> {} ms", before.and_then(|bucket| bucket.le).unwrap_or(0.0) * 1e3),
        };
        // What there is shows, however little.
        let bar = (count as usize * BAR).div_ceil(most as usize);
        writeln!(f, "    {bound:>9}  {count:>8}  {}", "█".repeat(bar))?;
    }
    Ok(())
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_lists_every_finding() {
        let buckets = [(Some(0.0005), 0), (Some(0.001), 1), (Some(0.002), 0), (Some(0.005), 99), (None, 1), (None, 0)];
        let class = Class {
            class: "silent",
            enobufs: 42,
            woken: Woken { readiness: 0, timer: 150, policy: 1 },
            recovered: Woken { readiness: 0, timer: 101, policy: 0 },
            recovery: buckets.map(|(le, count)| Bucket { le, count }).into(),
            recovery_seconds: 0.202,
        };
        let run = Outcome {
            dropped: [("deadline", 3)].into(),
            classes: vec![class],
            blocked_seconds: 0.5,
            unaccounted: 2,
            holds: Holds { count: 101, p50_seconds: Some(0.002), p99_seconds: Some(0.0101) },
            ..Outcome::empty(Treatment::Wait)
        };
        let naive = NaiveOutcome { hangs: 7, spin_seconds: 1.5, ..NaiveOutcome::default() };
        let naive = Outcome { naive: Some(naive), ..Outcome::empty(Treatment::Naive) };
        let address = "[::1]:9".parse().unwrap();
        let (system, runs) = ("Linux 6.1 x86_64".into(), vec![run, naive]);
        let command = String::new();
        let text =
            Findings { version: "1", os: "linux", system, command, address, size: 5, rate: 0.0, runs }.to_string();
        for line in [
            "backwater-probe 1 on Linux 6.1 x86_64: datagrams of 5 bytes to [::1]:9, as many as the system takes",
            "dropped             3  deadline 3",
            "LOST                2  not accounted for: a fault of this program",
            "  woken           151  by timer 150, by policy 1",
            "  after 2.00 ms on average:",
            "holds             101  p50 2.00 ms, p99 10.10 ms",
            "holds               0  p50 –, p99 –",
            "       ≤ 1 ms         1  █",
            "       ≤ 2 ms         0  ",
            "       ≤ 5 ms        99  ████████████████████████████████████████",
            "       > 5 ms         1  █",
            "hangs               7  0.0 s in which nobody woke it, and a send succeeds",
            "spins            1.5s  up to 0 wake-ups for nothing per second",
            "wait   no                0         3        42         0       302         –       0.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("0.5 ms"), "empty ends are left out:\n{text}");
    }
}
