//! `credentials`: a time-limited credential, as a web page hands it to `RTCPeerConnection`.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use backwater_stun::Uri;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::Config;

/// The longest time that a credential may be good for.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

pub(super) fn command() -> Command {
    Command::new("credentials")
        .about("Prints a time-limited credential as WebRTC's iceServers (JSON), made with a secret of the configuration")
        .arg(
            Arg::new("name")
                .long("name")
                .value_name("NAME")
                .required(true)
                .help("Whom the credential is for: the user whom the relay's limits and logs see"),
        )
        .arg(
            Arg::new("ttl")
                .long("ttl")
                .value_name("TIME")
                .default_value("1h")
                .value_parser(ttl)
                .help("How long it may be used to make allocations: a number and s, m, h or d, up to 366d"),
        )
        .arg(
            Arg::new("secret-id")
                .long("secret-id")
                .value_name("ID")
                .help("The named-secret to make it with [default: the first one, else the first secret]"),
        )
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URI")
                .action(ArgAction::Append)
                .value_parser(uri)
                .help("A turn: or stun: URI of the relay; may be repeated [default: the listeners' addresses, or the external-address]"),
        )
}

/// Returns the JSON text.
///
/// # Errors
/// Why there can be no credential, in a line.
pub fn credentials(config: &Config, command: &ArgMatches) -> Result<String, String> {
    let text = |id: &str| command.get_one::<String>(id).map(String::as_str);
    let ttl: Duration = command.get_one("ttl").copied().unwrap_or_default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let urls = match command.get_many::<String>("url") {
        Some(urls) => urls.cloned().collect(),
        None => config.uris(&config.listen),
    };
    if urls.is_empty() {
        return Err("--url: expected one, since no listener has an address that a client could be told".to_owned());
    }
    let id = text("secret-id");
    let made = config.credentials.time_limited(id, text("name").unwrap_or_default(), (now + ttl).as_secs());
    let (username, credential) = made.map_err(|error| match (error, id) {
        (backwater_turn::CredentialsError::NoSecret, Some(id)) => {
            format!("--secret-id: there is no named-secret {id:?}")
        }
        (backwater_turn::CredentialsError::NoSecret, None) => {
            "secret: expected a secret or named-secret in the configuration, found none".to_owned()
        }
        _ => format!("--name: expected a user name, but {error}"),
    })?;
    let server = serde_json::json!({ "urls": urls, "username": username, "credential": credential });
    Ok(format!("{:#}", serde_json::json!({ "iceServers": [server] })))
}

impl Config {
    /// Returns the URIs of these listeners, by the addresses that clients reach them at.
    pub(crate) fn uris(&self, listeners: &[SocketAddr]) -> Vec<String> {
        let mut uris = Vec::new();
        for listener in listeners {
            let relayed = if listener.is_ipv4() { self.relay_v4 } else { self.relay_v6 };
            // Behind a one-to-one NAT, it translates the address that both share.
            let shared = relayed.filter(|ip| ip.bind == listener.ip() || listener.ip().is_unspecified());
            let ip: IpAddr = shared.map_or(listener.ip(), |ip| ip.advertise);
            let uri = format!("turn:{}?transport=udp", SocketAddr::new(ip, listener.port()));
            if !ip.is_unspecified() && !uris.contains(&uri) {
                uris.push(uri);
            }
        }
        uris
    }
}

fn uri(text: &str) -> Result<String, String> {
    Uri::parse(text)
        .map(|_| text.to_owned())
        .map_err(|_| "expected a URI such as turn:turn.example.org:3478".to_owned())
}

fn ttl(text: &str) -> Result<Duration, String> {
    let seconds = || {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits)?;
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor)
    };
    let ttl = seconds().map(Duration::from_secs).filter(|ttl| (Duration::from_secs(1)..=LONGEST).contains(ttl));
    ttl.ok_or_else(|| "expected a time such as 30m, 1h or 7d, from 1s to 366d".to_owned())
}
