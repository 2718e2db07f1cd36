//! `backwater-probe pressure`.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, ensure};
use backwater_probe::pressure::{Findings, Pressure, Progress, Summary, Treatment};
use clap::{Args, ValueEnum};

use crate::{
    address::{Unresolvable, resolve},
    usage,
};

#[derive(Args)]
pub(crate) struct PressureArgs {
    /// Where to send: a host, or HOST:PORT. Nothing has to answer. The default port is 9, discard.
    address: String,
    /// How long each policy is tried on each kind of socket.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Bytes of payload in each datagram.
    #[arg(long, default_value_t = 1200)]
    size: usize,
    /// Datagrams per second; 0 is as many as the system takes.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    rate: f64,
    /// What to try.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "wait,drop,naive")]
    policies: Vec<Treatment>,
    /// The kinds of socket to try it on.
    #[arg(long, value_enum, default_value_t = Connected::Both)]
    connected: Connected,
    /// Print one line of JSON instead of the report.
    #[arg(long)]
    json: bool,
    /// Print one screen instead of the report, to paste into an issue.
    #[arg(long, conflicts_with = "json")]
    summary: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Connected {
    Yes,
    No,
    Both,
}

/// The discard protocol, RFC 863.
const DISCARD: u16 = 9;

const MAX_PAYLOAD: usize = backwater_udp::gso::MAX_BYTES;
const MAX_SECONDS: f64 = 3600.0;

impl PressureArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        ensure!(self.size <= MAX_PAYLOAD, usage(format!("--size must be at most {MAX_PAYLOAD}")));
        let seconds = self.seconds > 0.0 && self.seconds <= MAX_SECONDS;
        ensure!(seconds, usage(format!("--seconds must be more than 0, at most {MAX_SECONDS}")));
        let rate = self.rate >= 0.0 && self.rate.is_finite();
        ensure!(rate, usage("--rate must be a number of datagrams per second"));
        let to = resolve(&self.address, DISCARD).ok_or(Unresolvable(self.address))?;
        let duration = Duration::from_secs_f64(self.seconds);
        let pressure = Pressure { to, size: self.size, rate: self.rate, duration };
        let sockets = match self.connected {
            Connected::Yes => &[true][..],
            Connected::No => &[false],
            Connected::Both => &[true, false],
        };
        let rate =
            if self.rate > 0.0 { format!("{} per second", self.rate) } else { "as many as the system takes".into() };
        let (size, runs) = (self.size, sockets.len() * self.policies.len());
        eprintln!(
            "sends datagrams of {size} bytes to {to}, {rate}, for {} s",
            (self.seconds * runs as f64 * 10.0).round() / 10.0
        );

        let mut line = Line { on: std::io::stderr().is_terminal() };
        let mut findings = Findings {
            version: env!("CARGO_PKG_VERSION"),
            os: std::env::consts::OS,
            system: system(),
            command: std::iter::once("backwater-probe".to_owned())
                .chain(std::env::args().skip(1))
                .collect::<Vec<_>>()
                .join(" "),
            address: to,
            size,
            rate: self.rate,
            runs: Vec::with_capacity(runs),
        };
        for &connected in sockets {
            for &policy in &self.policies {
                let of = format!("{}/{runs}", findings.runs.len() + 1);
                let run =
                    pressure.run(policy, connected, |progress| line.show(&of, policy, connected, &pressure, progress));
                findings.runs.push(run.await.with_context(|| format!("a socket that sends to {to}"))?);
            }
        }
        line.clear();
        if self.json {
            println!("{}", serde_json::to_string(&findings)?);
        } else if self.summary {
            print!("{}", Summary(&findings));
        } else {
            print!("{findings}");
        }
        Ok(())
    }
}

/// Names the system, its release and its processor.
#[cfg(unix)]
fn system() -> String {
    let name = rustix::system::uname();
    [name.sysname(), name.release(), name.machine()].map(|part| part.to_string_lossy().into_owned()).join(" ")
}

/// Names the system and its processor.
#[cfg(not(unix))]
fn system() -> String {
    [std::env::consts::OS, std::env::consts::ARCH].join(" ")
}

/// The line on a terminal that says how far it is.
struct Line {
    on: bool,
}

const WIDTH: usize = 79;

impl Line {
    fn show(&mut self, of: &str, policy: Treatment, connected: bool, pressure: &Pressure, progress: Progress) {
        let Progress { elapsed, sent, refused } = progress;
        let kind = if connected { "connected" } else { "not connected" };
        let (elapsed, whole) = (elapsed.as_secs_f64(), pressure.duration.as_secs_f64());
        self.write(&format!("{of} {policy}, {kind}: {elapsed:.1} of {whole:.1} s, {sent} sent, {refused} refused"));
    }

    fn clear(&mut self) {
        self.write("");
        if self.on {
            eprint!("\r");
        }
    }

    fn write(&mut self, text: &str) {
        if self.on {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r{text:<WIDTH$.WIDTH$}");
            let _ = stderr.flush();
        }
    }
}
