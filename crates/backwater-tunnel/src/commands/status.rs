//! `status`: what a running tunnel says of itself.

use std::{fmt, fmt::Write as _, process::ExitCode, time::Duration};

use super::FAILED;
use crate::{
    control::{self, Answer, Request},
    status::Status,
};

/// Prints it for one tunnel or for all that run, once or every second.
pub async fn run(name: Option<&str>, json: bool, watch: bool) -> ExitCode {
    loop {
        let names = name.map_or_else(control::running, |name| vec![name.to_owned()]);
        if names.is_empty() {
            eprintln!("backwater-tunnel: no tunnel is up");
            return ExitCode::from(FAILED);
        }
        let mut failed = false;
        for name in names {
            match control::ask(&name, &Request::Status).await {
                Ok(Answer::Status(status)) if json => match serde_json::to_string(&status) {
                    Ok(line) => println!("{line}"),
                    Err(error) => failed |= complain(&name, error),
                },
                Ok(Answer::Status(status)) => println!("{}", ForPeople(&status)),
                Ok(Answer::Error(error)) => failed |= complain(&name, error),
                Ok(Answer::Done) => failed |= complain(&name, "an answer to something else"),
                Err(error) => failed |= complain(&name, error),
            }
        }
        if failed {
            return ExitCode::from(FAILED);
        }
        if !watch {
            return ExitCode::SUCCESS;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn complain(name: &str, error: impl fmt::Display) -> bool {
    eprintln!("backwater-tunnel: {name}: {error}");
    true
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
            writeln!(
                f,
                "    bytes:      {} sent, {} received",
                counter("bytes_sent"),
                counter("bytes_received")
            )?;
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
