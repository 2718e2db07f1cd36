//! `credentials`: a time-limited credential, as a web page hands it to `RTCPeerConnection`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use backwater_stun::Uri;
use backwater_turn::{Credentials, CredentialsError};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use crate::Config;

/// How long a credential is good for by default.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);

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
                .value_parser(read_ttl)
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
                .value_parser(read_uri)
                .help("A turn: or stun: URI of the relay; may be repeated [default: the listeners' addresses, or the external-address]"),
        )
}

/// Returns the JSON text.
///
/// # Errors
/// Why there can be no credential, in a line.
pub fn credentials(config: &Config, command: &ArgMatches) -> Result<String, String> {
    let text = |id: &str| command.get_one::<String>(id).cloned();
    let wanted = Wanted {
        name: text("name").unwrap_or_default(),
        ttl: command.get_one("ttl").copied().unwrap_or(DEFAULT_TTL),
        secret_id: text("secret-id"),
        urls: match command.get_many::<String>("url") {
            Some(urls) => urls.cloned().collect(),
            None => config.uris(&config.listen, &config.listen_tcp),
        },
    };
    let servers = wanted.ice_servers(&config.credentials).map_err(|error| match error {
        NoCredential::Secrets => error.to_string(),
        NoCredential::Urls | NoCredential::SecretId(_) | NoCredential::Name(_) => format!("--{error}"),
    })?;
    Ok(format!("{servers:#}"))
}

/// What a credential is to be.
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) ttl: Duration,
    pub(crate) secret_id: Option<String>,
    /// Where the client reaches the relay.
    pub(crate) urls: Vec<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { name: String::new(), ttl: DEFAULT_TTL, secret_id: None, urls: vec![] }
    }
}

/// Why there is no credential.
pub(crate) enum NoCredential {
    /// No listener has an address that a client could be told.
    Urls,
    /// There is no secret with this id.
    SecretId(String),
    /// There is no secret at all.
    Secrets,
    /// The name cannot be used.
    Name(CredentialsError),
}

impl Wanted {
    /// Makes the credential, in the form that a web page hands to `RTCPeerConnection`.
    pub(crate) fn ice_servers(&self, credentials: &Credentials) -> Result<Value, NoCredential> {
        let Self { name, ttl, secret_id, urls } = self;
        if urls.is_empty() {
            return Err(NoCredential::Urls);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let made = credentials.time_limited(secret_id.as_deref(), name, (now + *ttl).as_secs());
        let (username, credential) = made.map_err(|error| match (error, secret_id) {
            (CredentialsError::NoSecret, Some(id)) => NoCredential::SecretId(id.clone()),
            (CredentialsError::NoSecret, None) => NoCredential::Secrets,
            _ => NoCredential::Name(error),
        })?;
        let server = json!({ "urls": urls, "username": username, "credential": credential });
        Ok(json!({ "iceServers": [server] }))
    }
}

impl fmt::Display for NoCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Urls => {
                f.write_str("url: expected one, since no listener has an address that a client could be told")
            }
            Self::SecretId(id) => write!(f, "secret-id: there is no named-secret {id:?}"),
            Self::Secrets => f.write_str("secret: expected a secret or named-secret in the configuration, found none"),
            Self::Name(error) => write!(f, "name: expected a user name, but {error}"),
        }
    }
}

impl Config {
    /// Returns the URIs of these listeners, by the addresses that clients reach them at.
    pub(crate) fn uris(&self, udp: &[SocketAddr], tcp: &[SocketAddr]) -> Vec<String> {
        let mut uris = Vec::new();
        let udp = udp.iter().map(|listener| (listener, "udp"));
        for (listener, transport) in udp.chain(tcp.iter().map(|listener| (listener, "tcp"))) {
            let relayed = if listener.is_ipv4() { self.relay_v4 } else { self.relay_v6 };
            // Behind a one-to-one NAT, it translates the address that both share.
            let shared = relayed.filter(|ip| ip.bind == listener.ip() || listener.ip().is_unspecified());
            let ip: IpAddr = shared.map_or(listener.ip(), |ip| ip.advertise);
            let uri = format!("turn:{}?transport={transport}", SocketAddr::new(ip, listener.port()));
            if !ip.is_unspecified() && !uris.contains(&uri) {
                uris.push(uri);
            }
        }
        uris
    }
}

pub(crate) fn read_uri(text: &str) -> Result<String, String> {
    Uri::parse(text)
        .map(|_| text.to_owned())
        .map_err(|_| "expected a URI such as turn:turn.example.org:3478".to_owned())
}

pub(crate) fn read_ttl(text: &str) -> Result<Duration, String> {
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
