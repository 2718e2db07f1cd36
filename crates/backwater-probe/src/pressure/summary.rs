//! The report of one screen, made to be pasted into an issue.

use std::fmt::{self, Display, Formatter};

use super::{Findings, outcome::Outcome};

/// Displays [`Findings`] as one table of at most 24 lines and 80 columns; a column is a run.
pub struct Summary<'a>(pub &'a Findings);

/// Columns of a row's name, and of each run. Six runs make 78.
const NAME: usize = 24;
const CELL: usize = 9;

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Findings { version, system, command, address, size, rate, runs, .. } = self.0;
        writeln!(f, "backwater-probe {version} on {system}")?;
        let seconds = runs.iter().map(|run| run.seconds).sum::<f64>();
        let rate = if *rate > 0.0 { format!("{rate} per second") } else { "as fast as possible".to_owned() };
        writeln!(f, "{size} bytes to {address}, {rate}, {} runs in {seconds:.0} s\n", runs.len())?;
        row(f, runs, "socket", |run| if run.connected { "conn." } else { "unconn." }.to_owned())?;
        row(f, runs, "policy", |run| run.policy.to_string())?;
        row(f, runs, "sent per second", |run| count(run.sent_per_second as u64))?;
        row(f, runs, "lost on this host", |run| count(run.dropped_total()))?;
        for (name, class) in [("ENOBUFS, advised", "advised"), ("ENOBUFS, silent", "silent")] {
            row(f, runs, name, |run| of_class(run, class))?;
        }
        row(f, runs, "ENOBUFS, any", |run| of_class(run, "any"))?;
        row(f, runs, "EWOULDBLOCK", |run| run.naive.map_or("–".to_owned(), |naive| count(naive.would_block)))?;
        row(f, runs, "recoveries", |run| count(run.recoveries()))?;
        row(f, runs, "  within 1 ms", |run| count(run.recoveries_within_1_ms()))?;
        row(f, runs, "hold p50, ms", |run| ms(run.holds.p50_seconds))?;
        row(f, runs, "hold p99, ms", |run| ms(run.holds.p99_seconds))?;
        row(f, runs, "hangs", |run| run.naive.map_or("–".to_owned(), |naive| count(naive.hangs)))?;
        row(f, runs, "wake-ups for nothing", |run| count(run.spurious_wakes))?;
        row(f, runs, "CPU, %", |run| format!("{:.0}", run.cpu_share * 100.0))?;
        writeln!(
            f,
            "\nadvised, silent: whether the system promised an event when there is room\n\
             hold: from the first refusal of a datagram until it was sent or dropped\n\
             hang: no event for 1 s although there was room; a program would wait for ever"
        )?;
        writeln!(f, "{command}")
    }
}

fn row(f: &mut Formatter<'_>, runs: &[Outcome], name: &str, cell: impl Fn(&Outcome) -> String) -> fmt::Result {
    write!(f, "{name:<NAME$}")?;
    runs.iter().try_for_each(|run| write!(f, "{:>CELL$}", cell(run)))?;
    writeln!(f)
}

/// Refusals of a class; a dash where the policy does not tell the classes apart.
fn of_class(run: &Outcome, name: &str) -> String {
    let class = run.classes.iter().find(|class| class.class == name);
    class.map_or("–".to_owned(), |class| count(class.enobufs))
}

fn count(n: u64) -> String {
    if n < 10_000_000 { n.to_string() } else { format!("{} M", n / 1_000_000) }
}

fn ms(seconds: Option<f64>) -> String {
    seconds.map_or("–".to_owned(), |seconds| format!("{:.2}", seconds * 1e3))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Treatment,
            outcome::{Bucket, Class, Holds, NaiveOutcome, Woken},
        },
        *,
    };

    #[test]
    fn summary_has_refusals_by_class_quick_recoveries_holds_and_hangs() {
        let buckets = [(Some(0.0005), 3), (Some(0.001), 4), (Some(0.002), 5), (None, 1)];
        let class = |class, enobufs| Class {
            class,
            enobufs,
            recovered: Woken { readiness: 6, timer: 7, policy: 0 },
            recovery: buckets.map(|(le, count)| Bucket { le, count }).into(),
            ..Class::default()
        };
        let none = |class| Class { class, ..Class::default() };
        let wait = Outcome {
            connected: true,
            seconds: 20.0,
            sent_per_second: 123_456.7,
            holds: Holds { count: 13, p50_seconds: Some(0.00081), p99_seconds: Some(0.0123) },
            classes: vec![none("advised"), class("silent", 42)],
            ..Outcome::empty(Treatment::Wait)
        };
        let naive = Outcome {
            seconds: 20.1,
            dropped: [("error", 4_321_000_000)].into(),
            spurious_wakes: 77,
            classes: vec![class("any", 9)],
            naive: Some(NaiveOutcome { hangs: 2, would_block: 8, ..NaiveOutcome::default() }),
            cpu_share: 0.998,
            ..Outcome::empty(Treatment::Naive)
        };
        let findings = Findings {
            version: "1",
            os: "macos",
            system: "Darwin 24.6.0 arm64".into(),
            command: "backwater-probe pressure 192.0.2.1 --seconds 20 --summary".into(),
            address: "192.0.2.1:9".parse().unwrap(),
            size: 1200,
            rate: 0.0,
            runs: vec![wait, naive],
        };
        let text = Summary(&findings).to_string();
        for line in [
            "backwater-probe 1 on Darwin 24.6.0 arm64",
            "1200 bytes to 192.0.2.1:9, as fast as possible, 2 runs in 40 s",
            "socket                      conn.  unconn.",
            "policy                       wait    naive",
            "sent per second            123456        0",
            "lost on this host               0   4321 M",
            "ENOBUFS, advised                0        –",
            "ENOBUFS, silent                42        –",
            "ENOBUFS, any                    –        9",
            "EWOULDBLOCK                     –        8",
            "recoveries                     13       13",
            "  within 1 ms                   7        7",
            "hold p50, ms                 0.81        –",
            "hold p99, ms                12.30        –",
            "hangs                           –        2",
            "wake-ups for nothing            0       77",
            "CPU, %                          0      100",
            "backwater-probe pressure 192.0.2.1 --seconds 20 --summary",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }
}
