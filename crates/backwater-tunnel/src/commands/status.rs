//! `status`: what a running tunnel says of itself.

use std::{fmt, fmt::Write as _, process::ExitCode, time::Duration};

use backwater_udp::DropReason;

use crate::{
    control,
    status::{PeerTotals, Status},
};

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
        let names = args.name.clone().map_or_else(control::running, |name| Ok(vec![name]))?;
        if names.is_empty() {
            anyhow::bail!("no tunnel is up");
        }
        for name in names {
            let status = control::status(&name).await?;
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
        let transport = &status.transport;
        writeln!(f, "tunnel {}: up for {} s", status.name, status.uptime_seconds)?;
        writeln!(f, "  public key:   {}", status.public_key)?;
        writeln!(f, "  port:         {}", status.listen_port)?;
        write!(
            f,
            "  backpressure: {}; {} datagrams sent, {} held now, {} dropped",
            status.backpressure,
            transport.sent,
            transport.held,
            transport.dropped_total(),
        )?;
        let reasons = DropReason::ALL.iter().filter(|&&reason| transport.dropped(reason) > 0);
        let reasons: Vec<_> =
            reasons.map(|&reason| format!("{} {}", transport.dropped(reason), reason.name())).collect();
        if !reasons.is_empty() {
            write!(f, " ({})", reasons.join(", "))?;
        }
        match status.device.tx_dropped {
            Some(dropped) => writeln!(f, ", {dropped} dropped by the device")?,
            None => writeln!(f)?,
        }
        if let Some(relay) = &status.relay {
            write!(f, "  relay:        {}", relay.mode)?;
            relay.server.iter().try_for_each(|server| write!(f, ", {server}"))?;
            relay.rtt_ms.map_or(Ok(()), |rtt| write!(f, ", RTT {rtt:.1} ms"))?;
            match &relay.relayed_address {
                Some(address) => write!(f, ", peers see {address}")?,
                None => write!(f, ", no allocation")?,
            }
            relay.problem.iter().try_for_each(|problem| write!(f, ": {problem}"))?;
            writeln!(f)?;
        }
        for peer in &status.peers {
            let mut line = String::new();
            let in_use = peer.routes.iter().find(|route| route.in_use);
            match (in_use, &peer.endpoint) {
                (Some(route), Some(endpoint)) if route.kind == "relayed" => {
                    let relay = route.destination.as_deref().unwrap_or_default();
                    write!(line, "relayed by {relay}, {endpoint}")?;
                }
                (Some(_), Some(endpoint)) => write!(line, "direct, {endpoint}")?,
                (None, Some(endpoint)) => write!(line, "none yet to {endpoint}")?,
                (_, None) => line.push_str("no address known"),
            }
            if let Some(rtt) = peer.rtt_ms {
                write!(line, ", RTT {rtt:.1} ms")?;
            }
            writeln!(f, "  peer {}", peer.public_key)?;
            if status.relay.is_some()
                && let Some(reason) = in_use.and_then(|route| route.reason.as_ref())
            {
                write!(line, ": {reason}")?;
            }
            writeln!(f, "    path:       {line}")?;
            for route in peer.routes.iter().filter(|route| !route.in_use) {
                write!(f, "    other path: {}, {}", route.kind, route.destination.as_deref().unwrap_or_default())?;
                route.rtt_ms.map_or(Ok(()), |rtt| write!(f, ", RTT {rtt:.1} ms"))?;
                let (received, missing) = (route.datagrams_received, route.datagrams_missing);
                if received + missing > 0 {
                    write!(f, ", {missing} of {} datagrams missing", received + missing)?;
                }
                writeln!(f)?;
            }
            match peer.last_handshake_seconds {
                Some(seconds) => writeln!(f, "    handshake:  {seconds} s ago")?,
                None => writeln!(f, "    handshake:  none yet")?,
            }
            let PeerTotals { session, queue } = &peer.counters;
            writeln!(f, "    bytes:      {} sent, {} received", session.bytes_sent, session.bytes_received)?;
            write!(f, "    queue:      {} of {} bytes", peer.queued_bytes, peer.queue_bound_bytes)?;
            if let Some(rate) = peer.path_rate {
                write!(f, " at {:.1} Mbit/s", rate as f64 / 1e6)?;
            }
            let dropped = queue.dropped + queue.overflowed + queue.first_segment_dropped;
            writeln!(f, "; {} marked, {dropped} dropped", queue.marked)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
