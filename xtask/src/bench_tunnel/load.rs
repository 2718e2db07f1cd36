//! iperf3 through one tunnel.

use std::{fmt, fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    network::End,
    process::{PATIENCE, Process, wait_until},
    subject::Tunnel,
};

/// What is sent, from the near end to the far one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// So many streams.
    Tcp(usize),
    /// As fast as it goes, in datagrams that iperf3 makes as long as they may be.
    Udp,
    /// The same, with 100 bytes each.
    UdpShort,
}

/// What is measured of one tunnel in one load and round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// Of the streams' or datagrams' payload, as the receiver counts it.
    pub(super) mbit_per_second: f64,
    /// The share of the payload sent that did not arrive; TCP loses none.
    pub(super) loss: Option<f64>,
    /// CPU-seconds of the sending and of the receiving end for each gigabyte (10⁹ bytes) delivered.
    pub(super) cpu: Option<[f64; 2]>,
}

const PORT: u16 = 5201;

/// What iperf3 may take longer than its load: its own connection goes through the tunnel too, and so through the overload.
const LONGER: Duration = Duration::from_secs(15);

impl Load {
    pub(super) const ALL: [Self; 4] = [Self::Tcp(1), Self::Tcp(4), Self::Udp, Self::UdpShort];

    pub(super) fn is_udp(self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    fn arguments(self) -> Vec<String> {
        let text = match self {
            Self::Tcp(streams) => format!("-P {streams}"),
            Self::Udp => "-u -b 0".to_owned(),
            Self::UdpShort => "-u -b 0 -l 100".to_owned(),
        };
        text.split(' ').map(str::to_owned).collect()
    }
}

impl Figures {
    /// CPU-seconds of both ends.
    pub(super) fn cpu_of_both(&self) -> f64 {
        self.cpu.map_or(f64::NAN, |[near, far]| near + far)
    }
}

pub(super) fn measure(load: Load, tunnel: &mut Tunnel, seconds: u64) -> Result<Figures> {
    let before = tunnel.cpu_seconds()?;
    let told = iperf3(load, tunnel, seconds, &[])?;
    let after = tunnel.cpu_seconds()?;
    let cpu = before.zip(after).map(|(before, after)| [0, 1].map(|end| after[end] - before[end]));
    figures(load, &told, cpu)
}

/// Runs iperf3 through a tunnel, its client with `more` arguments; what that says at the end.
pub(super) fn iperf3(load: Load, tunnel: &mut Tunnel, seconds: u64, more: &[&str]) -> Result<Value> {
    tunnel.still_runs()?;
    let address = tunnel.address().to_string();
    let port = PORT.to_string();
    let mut server = End::Far.command("iperf3");
    server.args(["-s", "-1", "-B", &address, "-p", &port]);
    let mut server = Process::start(server, "iperf3-server")?;
    let listening = format!(":{PORT:04X} 00000000:0000 0A ");
    wait_until(PATIENCE, || {
        server.still_runs()?;
        Ok(fs::read_to_string(format!("/proc/{}/net/tcp", server.id()))?.contains(&listening))
    })
    .context("the server of iperf3")?;

    let mut client = End::Near.command("iperf3");
    client.args(["-c", &address, "-p", &port, "-J", "--connect-timeout", "3000", "-t", &seconds.to_string()]);
    client.args(load.arguments()).args(more);
    let client = Process::start(client, "iperf3-client")?;
    let finished = client.finish(Duration::from_secs(seconds) + LONGER);
    tunnel.still_runs()?;
    // It says whether it failed in the JSON only.
    let (_, text) = finished.context("iperf3")?;
    parse(&text)
}

fn parse(text: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(text).with_context(|| format!("iperf3 says {:?}", text.trim()))?;
    if let Some(error) = all["error"].as_str() {
        bail!("iperf3: {error}");
    }
    Ok(all)
}

/// From the client's JSON.
fn figures(load: Load, all: &Value, cpu: Option<[f64; 2]>) -> Result<Figures> {
    let number = |sum: &str, key: &str| {
        all["end"][sum][key].as_f64().with_context(|| format!("iperf3 does not say end.{sum}.{key}"))
    };
    let (sent, received) = (number("sum_sent", "bytes")?, number("sum_received", "bytes")?);
    let seconds = number("sum_received", "seconds")?;
    ensure!(sent > 0.0 && received > 0.0 && seconds > 0.0, "nothing arrived");
    Ok(Figures {
        mbit_per_second: received * 8.0 / 1e6 / seconds,
        loss: load.is_udp().then(|| 1.0 - received / sent),
        cpu: cpu.map(|ends| ends.map(|seconds| seconds / (received / 1e9))),
    })
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(streams) => f.pad(&format!("TCP × {streams}")),
            Self::Udp => f.pad("UDP"),
            Self::UdpShort => f.pad("UDP, 100 B"),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} Mbit/s", self.mbit_per_second)?;
        if let Some(loss) = self.loss {
            write!(f, ", {:.1} % lost", loss * 100.0)?;
        }
        if let Some([near, far]) = self.cpu {
            write!(f, ", {near:.1} + {far:.1} CPU-s/GB")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivered_is_what_the_receiver_counts() {
        let text = r#"{"end": {
            "sum": {"bytes": 4e9, "seconds": 2.0, "bits_per_second": 16e9, "lost_percent": 3.0},
            "sum_sent": {"bytes": 4e9, "seconds": 2.0}, "sum_received": {"bytes": 1e9, "seconds": 2.5}}}"#;
        let figures = |load, text: &str, cpu| figures(load, &parse(text)?, cpu);
        let udp = figures(Load::Udp, text, Some([2.0, 3.0])).unwrap();
        assert_eq!((udp.mbit_per_second, udp.loss, udp.cpu), (3200.0, Some(0.75), Some([2.0, 3.0])));
        assert_eq!(udp.to_string(), "3200 Mbit/s, 75.0 % lost, 2.0 + 3.0 CPU-s/GB");
        let tcp = figures(Load::Tcp(1), text, None).unwrap();
        assert_eq!((tcp.loss, tcp.cpu), (None, None));
        let nothing = text.replace("1e9", "0");
        assert_eq!(figures(Load::Udp, &nothing, None).unwrap_err().to_string(), "nothing arrived");
    }

    #[test]
    fn what_iperf3_complains_of_is_told() {
        let told = |text| parse(text).and_then(|told| figures(Load::Udp, &told, None)).unwrap_err().to_string();
        assert_eq!(told(r#"{"start": {}, "error": "unable to connect", "end": {}}"#), "iperf3: unable to connect");
        assert_eq!(told("iperf3: no\n"), "iperf3 says \"iperf3: no\"");
        assert_eq!(told(r#"{"end": {}}"#), "iperf3 does not say end.sum_sent.bytes");
    }
}
