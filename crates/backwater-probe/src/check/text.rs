//! The report for people.

use std::fmt;

use super::{Nat, NatKind, Outcome, Report, TransportReport};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} at {}", self.server, self.address)?;
        for transport in &self.transports {
            write!(f, "{transport}")?;
        }
        writeln!(f, "\nNAT: {}", self.nat)?;
        let working = self.transports.iter().filter(|t| t.steps.iter().all(|step| step.outcome == Outcome::Works));
        let working: Vec<_> = working.map(|t| t.transport.to_uppercase()).collect();
        let untested = self.transports.iter().all(|t| t.steps.iter().skip(1).all(|s| s.outcome == Outcome::NotTested));
        match (working.is_empty(), self.works && untested) {
            (false, _) => write!(f, "This server works from here, over {}.", working.join(" and over ")),
            (true, true) => write!(
                f,
                "This server can be reached. Whether it relays shows only with a user: --user NAME:PASSWORD, or --secret SECRET."
            ),
            (true, false) => f.write_str("This server does not work from here."),
        }
    }
}

impl fmt::Display for TransportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.transport.to_uppercase())?;
        for step in &self.steps {
            let outcome = match step.outcome {
                Outcome::Works => "yes",
                Outcome::Fails => "NO",
                Outcome::NotTested => "–",
            };
            let time = step.milliseconds.map_or(String::new(), |ms| format!("{ms:.1} ms"));
            let line = format!("  {:<15} {outcome:<4} {time:>10}  {}", step.step, step.detail);
            writeln!(f, "{}", line.trim_end())?;
            if let Some(advice) = &step.advice {
                writeln!(f, "  → {advice}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.kind {
            NatKind::None => "none. The server sees this host's own address.",
            NatKind::EndpointIndependent => {
                "one address for all destinations (endpoint-independent mapping). Direct connections to other hosts mostly work."
            }
            NatKind::EndpointDependent => {
                "another address for each destination (a symmetric NAT). Direct connections to other hosts mostly fail: they need a relay."
            }
            NatKind::Unspecified => "there is one. Its kind is not known, since no data came through the relay.",
            NatKind::Unknown => "not known, since nothing was learned over UDP.",
        };
        f.write_str(text)
    }
}
