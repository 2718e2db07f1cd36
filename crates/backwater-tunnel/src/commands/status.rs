//! `status`: what a running tunnel says of itself.

use std::{fmt, fmt::Write as _, process::ExitCode, time::Duration};

use anyhow::Context;

use crate::{control, status::Status};

/// Shows the state of a running tunnel: the path in use, round-trip time, last handshake, bytes, back-pressure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The tunnel; may be left out where all are meant.
    pub name: Option<String>,
    /// As one JSON object; with `--watch`, one a line.
    #[arg(long)]
    pub json: bool,
    /// Again each second, until interrupted.
    #[arg(long)]
    pub watch: bool,
}

/// Asks the tunnel and prints what it answers; without a name, all that run.
///
/// # Errors
/// When there is no such tunnel, or it does not answer.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    loop {
        let names = args.name.clone().map_or_else(control::running, |name| vec![name]);
        if names.is_empty() {
            anyhow::bail!("no tunnel is up");
        }
        for name in names {
            let status = control::status(&name).await.with_context(|| name.clone())?;
            if args.json {
                println!("{}", serde_json::to_string(&status)?);
            } else {
                println!("{}", ForPeople(&status));
            }
        }
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

struct ForPeople<'a>(&'a Status);

impl fmt::Display for ForPeople<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        let number = |fields: &serde_json::Map<_, serde_json::Value>, name: &str| {
            fields.get(name).and_then(serde_json::Value::as_f64).unwrap_or_default()
        };
        writeln!(f, "tunnel {}: up for {} s", status.name, status.uptime_seconds)?;
        writeln!(f, "  public key:   {}", status.public_key)?;
        writeln!(f, "  port:         {}", status.listen_port)?;
        let transport = |name: &str| number(&status.transport, name);
        let dropped: f64 = status
            .transport
            .iter()
            .filter(|(name, _)| name.starts_with("dropped_total"))
            .filter_map(|(_, value)| value.as_f64())
            .fold(0.0, |sum, value| sum + value);
        writeln!(
            f,
            "  backpressure: {}; {} datagrams sent, {} held now, {dropped} dropped, {} dropped by the device",
            status.backpressure,
            transport("sent_total"),
            transport("held"),
            number(&status.device, "tx_dropped"),
        )?;
        for peer in &status.peers {
            let mut line = String::new();
            match &peer.endpoint {
                Some(endpoint) => write!(line, "direct, {endpoint}")?,
                None => line.push_str("no address known"),
            }
            if let Some(rtt) = peer.rtt_ms {
                write!(line, ", RTT {rtt:.1} ms")?;
            }
            writeln!(f, "  peer {}", peer.public_key)?;
            writeln!(f, "    path:       {line}")?;
            match peer.last_handshake_seconds {
                Some(seconds) => writeln!(f, "    handshake:  {seconds} s ago")?,
                None => writeln!(f, "    handshake:  none yet")?,
            }
            let counter = |name: &str| number(&peer.counters, name);
            writeln!(f, "    bytes:      {} sent, {} received", counter("bytes_sent"), counter("bytes_received"))?;
            write!(f, "    queue:      {} of {} bytes", peer.queued_bytes, peer.queue_bound_bytes)?;
            if let Some(rate) = peer.path_rate {
                write!(f, " at {:.1} Mbit/s", rate as f64 / 1e6)?;
            }
            writeln!(
                f,
                "; {} marked, {} dropped",
                counter("marked"),
                counter("dropped") + counter("overflowed") + counter("beheaded")
            )?;
        }
        Ok(())
    }
}
