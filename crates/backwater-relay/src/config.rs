//! The configuration: flags, environment and a TOML file, by one table of keys.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    str::FromStr,
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use backwater_turn::{
    Credentials, FailureLimit, Families, Limits as Quota, PeerRules, Quotas, RelayedPorts, ReplyLimit, server,
};
use backwater_udp::{Limits, Policy};
use clap::{Arg, ArgAction, Command};
use ipnet::{IpNet, Ipv6Net};

use crate::ports::{RelayIp, is_local};

mod file;
mod keys;

pub(crate) use file::{ConfigFile, Stamp};
use keys::KEYS;

/// What a relay is to do.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) relay_v4: Option<RelayIp>,
    pub(crate) relay_v6: Option<RelayIp>,
    pub(crate) ports: RangeInclusive<u16>,
    credentials: Credentials,
    peers: PeerRules,
    pub(crate) threads: usize,
    user_limits: Quota,
    total_limits: Quota,
    /// A second; 0 for none.
    reply_limit: u32,
    /// A minute; 0 for none.
    failure_limit: u32,
    max_lifetime: Duration,
    pub(crate) policy: Policy,
    pub(crate) breaker: Option<Limits>,
    pub(crate) admin: Option<SocketAddr>,
    /// To be watched.
    pub(crate) file: Option<ConfigFile>,
    /// How long to wait for clients to leave at the end.
    pub drain: Duration,
    /// The filter of the logs.
    pub log_level: String,
    /// Present when nobody was configured and a user was made up.
    pub first_run: Option<FirstRun>,
}

/// A user that was made up for the first run, on loopback. `Debug` does not show the password.
#[derive(Clone)]
pub struct FirstRun {
    /// The name.
    pub user: String,
    /// The password: random, and new at each start.
    pub password: String,
    /// Whether peers on loopback were allowed for it.
    pub loopback_peers: bool,
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it stands: `--listen`, `BACKWATER_RELAY_LISTEN`, `relay.toml: listen`.
    pub key: String,
    /// What is wrong with it and what was expected.
    pub problem: String,
}

/// What the command line, the environment and the file say, not yet understood.
#[derive(Debug, Default)]
pub struct Arguments {
    values: HashMap<&'static str, Given>,
    file: Option<ConfigFile>,
}

/// The values of a key, and where they stand. `Debug` does not show the values: some are passwords.
#[derive(Clone)]
struct Given {
    place: String,
    values: Vec<String>,
}

impl fmt::Debug for FirstRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, password: _, loopback_peers } = self;
        f.debug_struct("FirstRun").field("user", user).field("loopback_peers", loopback_peers).finish_non_exhaustive()
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, values } = self;
        f.debug_struct("Given").field("place", place).field("values", &values.len()).finish()
    }
}

impl Arguments {
    /// The command line's grammar, from which `--help` comes.
    pub fn command() -> Command {
        let mut command = Command::new("backwater-relay")
            .version(env!("CARGO_PKG_VERSION"))
            .about("A TURN relay")
            .after_help(
                "Each option is also a variable, BACKWATER_RELAY_ and its name in capitals with underscores, lists \
                 separated by commas; and a key of the configuration file, lists as arrays. The command line counts \
                 before the environment, that before the file. Passwords are best kept in the file: others can see \
                 the command line.",
            )
            .arg(Arg::new("config").long("config").value_name("FILE").help("A configuration file (TOML)"));
        for key in KEYS {
            let action = if key.list { ArgAction::Append } else { ArgAction::Set };
            command = command.arg(
                Arg::new(key.name)
                    .long(key.name)
                    .value_name(key.value)
                    .action(action)
                    .help(key.help)
                    .allow_hyphen_values(true),
            );
        }
        command
    }

    /// Reads the command line, the environment and the file that they name.
    ///
    /// # Errors
    /// All that is wrong with the file's form.
    pub fn read(matches: &clap::ArgMatches, env: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<ConfigError>> {
        let path = matches.get_one::<String>("config").cloned().or_else(|| env("BACKWATER_RELAY_CONFIG"));
        let file = path.map(|path| ConfigFile::read(path.into())).transpose()?;
        let mut given = HashMap::new();
        for key in KEYS {
            let name = format!("BACKWATER_RELAY_{}", key.name.to_uppercase().replace('-', "_"));
            if let Some(value) = env(&name).filter(|v| !v.is_empty()) {
                let values = if key.list { value.split(',').map(str::to_owned).collect() } else { vec![value] };
                given.insert(key.name, Given { place: name, values });
            }
            if let Some(values) = matches.get_many::<String>(key.name) {
                let place = format!("--{}", key.name);
                given.insert(key.name, Given { place, values: values.cloned().collect() });
            }
        }
        Ok(match file {
            Some(file) => Self::of_file(ConfigFile { instead: given, ..file }),
            None => Self { values: given, file: None },
        })
    }

    fn of_file(file: ConfigFile) -> Self {
        let mut values = file.values.clone();
        values.extend(file.instead.clone());
        Self { values, file: Some(file) }
    }
}

impl Config {
    /// What to warn of when passwords are in a file that others than its owner can read.
    pub fn exposed_secrets(&self) -> Option<String> {
        self.file.as_ref()?.exposed_secrets()
    }

    /// Understands the arguments.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn new(arguments: &Arguments) -> Result<Self, Vec<ConfigError>> {
        let mut r = Reader { arguments, errors: Vec::new() };
        let listen = r.list("listen", "an address and a port, such as 192.0.2.1:3478 or [2001:db8::1]:3478");
        let relay: Vec<IpAddr> = r.list("relay-address", "an IP address of this host");
        let external: Vec<IpAddr> = r.list("external-address", "an IP address");
        let Ports(ports) =
            r.one("ports", "two ports and a hyphen, such as 49152-65535").unwrap_or(Ports(49_152..=65_535));
        let realm: String = r.one("realm", "a name").unwrap_or_else(|| "backwater".to_owned());
        let allow = r.list("allow-peer", PREFIX);
        let deny = r.list("deny-peer", PREFIX);
        r.no_overlap(&allow, &deny);
        let nat64 = r.nat64();
        let cores = if cfg!(target_os = "linux") { available_parallelism().map_or(1, usize::from) } else { 1 };
        let most_threads = if cfg!(target_os = "linux") { 1024 } else { 1 };
        let threads = r.number("threads", 1..=most_threads).unwrap_or(cores as u64) as usize;
        let total_limits = r.limits(&["max-allocations", "max-permissions", "max-channels", "max-bytes-per-second"]);
        let user_limits = r.limits(&[
            "max-allocations-per-user",
            "max-permissions-per-user",
            "max-channels-per-user",
            "max-bytes-per-second-per-user",
        ]);
        r.no_more_than_all(&user_limits, &total_limits);
        let reply_limit = r.number("reply-limit", 0..=1_000_000).unwrap_or(100) as u32;
        let failure_limit = r.number("failure-limit", 0..=1_000_000).unwrap_or(30) as u32;
        let max_lifetime = Duration::from_secs(r.number("max-lifetime", 600..=86_400).unwrap_or(3600));
        let drain = Duration::from_secs(r.number("drain", 0..=3600).unwrap_or(5));
        let policy = r.parsed("backpressure").unwrap_or_default();
        let breaker = r.breaker();
        let admin = r.admin();
        let log_level = r.one("log-level", "a level or a filter").unwrap_or_else(|| "info".to_owned());

        let listen = if r.has("listen") { listen } else { loopback() };
        let mut credentials = r.credentials(&realm);
        let on_loopback = listen.iter().all(|l: &SocketAddr| l.ip().is_loopback());
        let mut peers = PeerRules { allow, deny, nat64, ..PeerRules::default() };
        let mut first_run = None;
        if credentials.is_empty() && r.errors.is_empty() {
            if on_loopback {
                first_run = Some(r.make_up(&mut credentials, &mut peers));
            } else {
                let problem = "expected a user NAME:PASSWORD, or a secret, since others than this host are listened to";
                r.errors.push(ConfigError { key: "user".to_owned(), problem: problem.to_owned() });
            }
        }
        let mut family = |v4: bool| r.relay_ip(&listen, &relay, &external, v4);
        let (relay_v4, relay_v6) = (family(true), family(false));
        if relay_v4.is_none() && relay_v6.is_none() && r.errors.is_empty() {
            r.error("relay-address", "expected the address that peers reach, since listen names none");
        }
        let families = usize::from(relay_v4.is_some()) + usize::from(relay_v6.is_some());
        let sockets = families * ports.len();
        if r.has("max-allocations") && sockets > 0 && total_limits.allocations > sockets {
            let found = total_limits.allocations;
            r.error(
                "max-allocations",
                &format!("expected at most {sockets}, as many as there are ports, found {found}"),
            );
        }
        let Reader { errors, .. } = r;
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            listen,
            relay_v4,
            relay_v6,
            ports,
            credentials,
            peers,
            threads,
            user_limits,
            total_limits,
            reply_limit,
            failure_limit,
            max_lifetime,
            policy,
            breaker,
            admin,
            file: arguments.file.clone(),
            drain,
            log_level,
            first_run,
        })
    }

    /// What the servers of all threads have in common, from now on.
    pub(crate) fn shared(&self, nonce_key: [u8; 64], now: Instant) -> Shared {
        let limited = self.reply_limit > 0;
        Shared {
            nonce_key,
            quotas: Quotas::new(self.user_limits, self.total_limits, now),
            reply_limit: limited.then(|| Arc::new(ReplyLimit::new(self.reply_limit, now))),
            failure_limit: (self.failure_limit > 0).then(|| Arc::new(FailureLimit::new(self.failure_limit, now))),
            relayed_ports: Arc::default(),
        }
    }

    pub(crate) fn server(&self, shared: &Shared, thread: u16) -> server::Config {
        let relayed = [self.relay_v4, self.relay_v6].into_iter().flatten().flat_map(|ip| [ip.bind, ip.advertise]);
        server::Config {
            credentials: self.credentials.clone(),
            peers: PeerRules { relayed: relayed.collect(), is_local, ..self.peers.clone() },
            families: Families { v4: self.relay_v4.is_some(), v6: self.relay_v6.is_some() },
            max_lifetime: self.max_lifetime,
            quotas: shared.quotas.clone(),
            reply_limit: shared.reply_limit.clone(),
            failure_limit: shared.failure_limit.clone(),
            relayed_ports: shared.relayed_ports.clone(),
            nonce_key: shared.nonce_key,
            thread,
        }
    }
}

/// What the servers of a relay share.
#[derive(Clone)]
pub(crate) struct Shared {
    nonce_key: [u8; 64],
    quotas: Arc<Quotas>,
    reply_limit: Option<Arc<ReplyLimit>>,
    failure_limit: Option<Arc<FailureLimit>>,
    pub(crate) relayed_ports: Arc<RelayedPorts>,
}

const PREFIX: &str = "an address or a prefix, such as 10.0.0.0/8 or 2001:db8::/32";

/// Understands values and gathers what is wrong with them.
struct Reader<'a> {
    arguments: &'a Arguments,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn has(&self, key: &str) -> bool {
        self.arguments.values.contains_key(key)
    }

    fn error(&mut self, key: &str, problem: &str) {
        let key = self.arguments.values.get(key).map_or_else(|| key.to_owned(), |given| given.place.clone());
        self.errors.push(ConfigError { key, problem: problem.to_owned() });
    }

    fn list<T: Value>(&mut self, key: &str, expected: &str) -> Vec<T> {
        let given = self.arguments.values.get(key).map_or(&[][..], |given| &given.values);
        let mut values = Vec::new();
        for text in given {
            match T::read(text.trim()) {
                Some(value) => values.push(value),
                None => self.error(key, &format!("expected {expected}, found {text:?}")),
            }
        }
        values
    }

    fn one<T: Value>(&mut self, key: &str, expected: &str) -> Option<T> {
        self.list(key, expected).pop()
    }

    fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let number: u64 = self.one(key, &expected)?;
        if range.contains(&number) {
            return Some(number);
        }
        self.error(key, &format!("expected {expected}, found {number}"));
        None
    }

    /// A value whose own error says what was expected.
    fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        let text: String = self.one(key, "")?;
        let value = text.trim().parse();
        value.map_err(|error| self.error(key, &format!("{error}, found {text:?}"))).ok()
    }

    /// Allocations, permissions, channels, bytes a second.
    fn limits(&mut self, [allocations, permissions, channels, bytes]: &[&'static str; 4]) -> Quota {
        let mut count = |key| self.number(key, 1..=1_000_000_000).map_or(usize::MAX, |n| n as usize);
        Quota {
            allocations: count(allocations),
            permissions: count(permissions),
            channels: count(channels),
            bytes_per_second: self.number(bytes, 1000..=1_000_000_000_000),
        }
    }

    /// A limit of one user's that is above that of all users would never be met.
    fn no_more_than_all(&mut self, user: &Quota, total: &Quota) {
        let [a, b] = [user, total].map(|q| {
            let bytes = q.bytes_per_second.map_or(usize::MAX, |bytes| bytes as usize);
            [q.allocations, q.permissions, q.channels, bytes]
        });
        let keys = ["max-allocations", "max-permissions", "max-channels", "max-bytes-per-second"];
        for ((user, total), key) in a.into_iter().zip(b).zip(keys) {
            if user != usize::MAX && user > total {
                let problem = format!("expected at most the {total} of {key}, found {user}");
                self.error(&format!("{key}-per-user"), &problem);
            }
        }
    }

    /// Denied wins: what is allowed inside it is a mistake.
    fn no_overlap(&mut self, allow: &[IpNet], deny: &[IpNet]) {
        for allowed in allow {
            if let Some(denied) = deny.iter().find(|denied| denied.contains(allowed)) {
                let problem = format!("{allowed} can never be allowed, since deny-peer has {denied}");
                self.error("allow-peer", &problem);
            }
        }
    }

    fn nat64(&mut self) -> Vec<Ipv6Net> {
        let expected = "an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits, such as 2001:db8:64::/96";
        let nets: Vec<Ipv6Net> = self.list("nat64-prefix", expected);
        for net in &nets {
            if ![32, 40, 48, 56, 64, 96].contains(&net.prefix_len()) {
                self.error("nat64-prefix", &format!("expected {expected}, found {net}"));
            }
        }
        nets
    }

    fn breaker(&mut self) -> Option<Limits> {
        let off = |text: &String| text.trim() == "off";
        if self.one::<String>("breaker", "").as_ref().is_some_and(off) {
            return None;
        }
        self.parsed("breaker")
    }

    /// There is no password: it must not be reached from elsewhere.
    fn admin(&mut self) -> Option<SocketAddr> {
        let addr: SocketAddr = self.one("admin", "an address and a port, such as 127.0.0.1:9479")?;
        if addr.ip().is_loopback() {
            return Some(addr);
        }
        self.error("admin", &format!("expected an address on loopback, such as 127.0.0.1:9479, found \"{addr}\""));
        None
    }

    fn credentials(&mut self, realm: &str) -> Credentials {
        let mut credentials = match Credentials::new(realm) {
            Ok(credentials) => credentials,
            Err(error) => {
                self.error("realm", &error.to_string());
                return Self::no_credentials();
            }
        };
        for Text(user) in self.list("user", "") {
            let added = user.split_once(':').map(|(name, password)| credentials.add_user(name, password));
            match added {
                Some(Ok(())) => {}
                Some(Err(error)) => self.error("user", &format!("expected NAME:PASSWORD, but {error}")),
                None => self.error("user", "expected NAME:PASSWORD, found no colon"),
            }
        }
        for Text(secret) in self.list("secret", "") {
            if let Err(error) = credentials.add_secret(&secret) {
                self.error("secret", &format!("expected a secret, but {error}"));
            }
        }
        credentials
    }

    /// A placeholder beside an error: nobody in the default realm.
    fn no_credentials() -> Credentials {
        #[allow(clippy::unwrap_used, reason = "a constant that a test reads too")]
        Credentials::new("backwater").unwrap()
    }

    /// Makes a user for someone who has just started the program to look at it.
    fn make_up(&mut self, credentials: &mut Credentials, peers: &mut PeerRules) -> FirstRun {
        let user = "backwater".to_owned();
        let mut random = [0; 12];
        if getrandom::fill(&mut random).is_err() {
            self.error("user", "expected one, since the system has no randomness to make one up");
        }
        let password: String = random.iter().map(|b| format!("{b:02x}")).collect();
        if let Err(error) = credentials.add_user(&user, &password) {
            self.error("user", &error.to_string());
        }
        let loopback_peers = !self.has("allow-peer");
        if loopback_peers {
            peers.allow = ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect();
        }
        FirstRun { user, password, loopback_peers }
    }

    /// The relayed address of a family: as given, or that of a listener.
    fn relay_ip(&mut self, listen: &[SocketAddr], relay: &[IpAddr], external: &[IpAddr], v4: bool) -> Option<RelayIp> {
        let of_family = |ips: &[IpAddr]| ips.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect::<Vec<_>>();
        let (relay, external) = (of_family(relay), of_family(external));
        for (key, ips) in [("relay-address", &relay), ("external-address", &external)] {
            if ips.len() > 1 {
                self.error(key, "expected one address of each family");
            }
        }
        let listeners: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
        let own = of_family(&listeners).into_iter().find(|ip| !ip.is_unspecified());
        let bind = relay.first().copied().or(own)?;
        if bind.is_unspecified() {
            self.error("relay-address", "expected an address that clients can be told, found the wildcard");
        }
        Some(RelayIp { bind, advertise: external.first().copied().unwrap_or(bind) })
    }
}

/// A value that is written as text.
trait Value: Sized {
    fn read(text: &str) -> Option<Self>;
}

macro_rules! from_str {
    ($($t:ty),*) => { $(impl Value for $t {
        fn read(text: &str) -> Option<Self> {
            Self::from_str(text).ok()
        }
    })* };
}

from_str!(SocketAddr, IpAddr, Ipv6Net, u64, String);

impl Value for IpNet {
    fn read(text: &str) -> Option<Self> {
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Self::from))
    }
}

/// Text that must not be shown in an error.
struct Text(String);

impl Value for Text {
    fn read(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }
}

struct Ports(RangeInclusive<u16>);

impl Value for Ports {
    fn read(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (1 <= first && first <= last).then_some(Self(first..=last))
    }
}

/// Loopback in the families that this host has.
fn loopback() -> Vec<SocketAddr> {
    let all = [SocketAddr::from(([127, 0, 0, 1], 3478)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 3478))];
    all.into_iter().filter(|addr| addr.is_ipv4() || UdpSocket::bind((addr.ip(), 0)).is_ok()).collect()
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests;
