//! The configuration. Three layers (flags, environment, a TOML file) are merged as text with the place of each value, read into one typed
//! structure ([`keys::Settings`]), and checked ([`Config::new`]). Mistakes of all three steps are reported together.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use backwater_ops::{PolicyText, breaker};
use backwater_turn::{
    Credentials, Directory, FailureLimit, Families, Limits as Quota, PeerRules, Quotas, RelayedPorts, ReplyLimit,
    server,
};
use backwater_udp::Policy;
use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ErrorKind},
};
use ipnet::IpNet;

use crate::{
    commands,
    hooks::HookUrl,
    ingress::stream::tls::CertificateFiles,
    ports::{RelayIp, is_local},
};

mod announce;
mod checks;
mod credentials;
mod file;
mod keys;
mod suggest;
mod values;

pub(crate) use file::{ConfigFile, Stamp};
use keys::{KEYS, Settings};
pub(crate) use values::Token;
use values::*;

/// What a relay is to do.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) listen_tcp: Vec<SocketAddr>,
    pub(crate) certificate: Option<CertificateFiles>,
    /// Load balancers that speak the PROXY protocol.
    pub(crate) proxies: Vec<IpNet>,
    pub(crate) relay_v4: Option<RelayIp>,
    pub(crate) relay_v6: Option<RelayIp>,
    /// A STUN server that says what peers see them as.
    pub(crate) external_server: Option<(Box<str>, u16)>,
    pub(crate) ports: RangeInclusive<u16>,
    pub(crate) credentials: Arc<Credentials>,
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
    pub(crate) breaker: Option<breaker::Limits>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) admin_token: Option<Token>,
    /// To be watched.
    pub(crate) file: Option<ConfigFile>,
    /// The wait for clients at the end is over when there are fewer allocations.
    pub(crate) drain_below: u64,
    /// How long to wait for clients to leave at the end.
    pub drain: Duration,
    /// The filter of the logs.
    pub log_level: String,
    /// Whether allocations are logged at `info`.
    pub(crate) log_allocations: bool,
    /// The URL that is asked about users who are not configured.
    pub(crate) auth_hook: Option<HookUrl>,
    /// Where events are posted.
    pub(crate) event_hook: Option<HookUrl>,
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
    /// Where it stands: `--listen`, `BACKWATER_RELAY_LISTEN`, `relay.toml, line 2: listen`.
    pub key: String,
    /// What is wrong with it and what was expected.
    pub problem: String,
}

/// What the command line, the environment and the file say, not yet understood.
#[derive(Debug, Default)]
pub struct Arguments {
    values: HashMap<&'static str, Given>,
    file: Option<ConfigFile>,
    /// What is wrong with it whatever the other values are.
    errors: Vec<ConfigError>,
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
                 separated by commas (in a value, a comma is \\, and a backslash \\\\); and a key of the configuration file, lists as arrays. The command line counts \
                 before the environment, that before the file. Passwords are best kept in the file: others can see \
                 the command line.",
            )
            .subcommands(commands::commands())
            .arg(Arg::new("config").long("config").value_name("FILE").global(true).help("A configuration file (TOML)"));
        for key in KEYS {
            let action = if key.is_list { ArgAction::Append } else { ArgAction::Set };
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

    /// Says on one line what is wrong with a command line.
    pub fn explain(error: &clap::Error) -> String {
        let unknown = error.get(ContextKind::InvalidArg).filter(|_| error.kind() == ErrorKind::UnknownArgument);
        match unknown {
            Some(flag) => {
                let command = Self::command();
                let commands = command.get_subcommands().flat_map(Command::get_arguments);
                let flags = command.get_arguments().chain(commands).filter_map(Arg::get_long);
                let flags: Vec<_> = flags.map(|flag| format!("--{flag}")).collect();
                unknown_name(&flag.to_string(), &flags).to_string()
            }
            None => {
                let text = error.to_string();
                let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
                lines.join(" ").trim_start_matches("error: ").to_owned()
            }
        }
    }

    /// Reads the command line, the environment (names and values) and the file that they name.
    ///
    /// # Errors
    /// That the file cannot be read, or is no TOML. All other mistakes are [`Config::new`]'s to report, together.
    pub fn read(
        matches: &clap::ArgMatches,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let env = env.into_iter().filter(|(name, value)| name.starts_with(PREFIX_OF_VARIABLES) && !value.is_empty());
        let mut env: BTreeMap<_, _> = env.collect();
        let config = env.remove(&variable("config"));
        let path = commands::file(matches).or(matches.get_one("config")).cloned().or(config);
        let file = path.map(|path| ConfigFile::read(path.into())).transpose()?;
        let mut given = HashMap::new();
        for key in KEYS {
            let place = variable(key.name);
            if let Some(value) = env.remove(&place) {
                let values = if key.is_list { elements(&value) } else { vec![value] };
                given.insert(key.name, Given { place, values });
            }
            if let Some(values) = matches.get_many::<String>(key.name) {
                let place = format!("--{}", key.name);
                given.insert(key.name, Given { place, values: values.cloned().collect() });
            }
        }
        let names: Vec<_> = KEYS.iter().map(|key| variable(key.name)).collect();
        let mut arguments = match file {
            Some(file) => Self::of_file(ConfigFile { instead: given, ..file }),
            None => Self { values: given, ..Self::default() },
        };
        arguments.errors.extend(env.keys().map(|name| unknown_name(name, &names)));
        Ok(arguments)
    }

    /// Reads the text of a configuration file, without a command line and an environment; mistakes are in `name`.
    ///
    /// # Errors
    /// That it is no TOML.
    pub(crate) fn from_toml(name: &str, text: &str) -> Result<Self, Vec<ConfigError>> {
        let (values, errors) = file::parse(name, text)?;
        Ok(Self { values, file: None, errors })
    }

    /// Returns the same, but with the values of `started` for the keys of which a change needs a restart.
    pub(crate) fn with_fixed_of(mut self, started: &ConfigFile) -> Self {
        let started = Self::of_file(started.clone()).values;
        for key in KEYS.iter().filter(|key| !key.is_live) {
            match started.get(key.name) {
                Some(given) => drop(self.values.insert(key.name, given.clone())),
                None => drop(self.values.remove(key.name)),
            }
        }
        self
    }

    fn of_file(file: ConfigFile) -> Self {
        let mut values = file.values.clone();
        values.extend(file.instead.clone());
        Self { values, errors: file.errors.clone(), file: Some(file) }
    }
}

/// What the names of this program's variables begin with.
const PREFIX_OF_VARIABLES: &str = "BACKWATER_RELAY_";

fn variable(key: &str) -> String {
    format!("{PREFIX_OF_VARIABLES}{}", key.to_uppercase().replace('-', "_"))
}

/// Splits a list at its commas. In a value, `\,` stands for a comma and `\\` for a backslash; any other backslash for itself.
fn elements(list: &str) -> Vec<String> {
    let (mut elements, mut element) = (Vec::new(), String::new());
    let mut rest = list.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ',' => elements.push(std::mem::take(&mut element)),
            '\\' => element.push(rest.next_if(|next| [',', '\\'].contains(next)).unwrap_or(c)),
            c => element.push(c),
        }
    }
    elements.push(element);
    elements
}

/// An unknown flag or variable, and the one of all `names` that may have been meant.
fn unknown_name(found: &str, names: &[String]) -> ConfigError {
    // What all have in common would make them similar.
    let key = |name: &'_ str| name.trim_start_matches("--").trim_start_matches(PREFIX_OF_VARIABLES).to_owned();
    let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
    let meant = suggest::closest(&key(found), keys.iter().map(String::as_str));
    let problem = match meant.and_then(|meant| names.iter().find(|name| key(name) == meant)) {
        Some(name) => format!("unknown; did you mean {name}?"),
        None => "unknown; backwater-relay --help has all of them".to_owned(),
    };
    ConfigError { key: found.to_owned(), problem }
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
        let mut errors = arguments.errors.clone();
        let s = Settings::read(&arguments.values, &mut errors);
        checks::no_overlap(&s.allow_peer, &s.deny_peer, &mut errors);
        let (total_limits, user_limits) = checks::limits(&s, &mut errors);
        let admin = checks::admin(&s.admin, &s.admin_token, &mut errors);
        let (listen, listen_tcp) = checks::listeners(&s, &mut errors);
        let everywhere = [&listen[..], &listen_tcp].concat();
        let (certificate, proxies) = (checks::certificate(&s, &mut errors), checks::proxies(&s, &mut errors));
        let credentials = credentials::credentials(&s, &mut errors);
        let mut peers = PeerRules {
            allow: s.allow_peer.values.clone(),
            deny: s.deny_peer.values.clone(),
            nat64: s.nat64_prefix.values.iter().map(|&Nat64Prefix(net)| net).collect(),
            ..PeerRules::default()
        };
        let (mut credentials, mut first_run) = (credentials, None);
        if let Some(credentials) =
            credentials.as_mut().filter(|credentials| credentials.is_empty() && !s.auth_hook.is_given())
            && errors.is_empty()
        {
            if everywhere.iter().all(|listener| listener.ip().is_loopback()) {
                first_run = Some(credentials::make_up(&s, credentials, &mut peers, &mut errors));
            } else {
                let problem = "expected a user NAME:PASSWORD, or a secret, since others than this host are listened to";
                errors.push(s.user.error(problem));
            }
        }
        if s.external_address.values.len() > 1 && checks::external_server(&s.external_address).is_some() {
            errors.push(s.external_address.error("expected addresses, or one stun:HOST:PORT, found both or several"));
        }
        let mut family = |v4| checks::relay_ip(&everywhere, &s.relay_address, &s.external_address, v4, &mut errors);
        let (relay_v4, relay_v6) = (family(true), family(false));
        if relay_v4.is_none() && relay_v6.is_none() && errors.is_empty() {
            errors.push(s.relay_address.error("expected the address that peers reach, since listen names none"));
        }
        let Ports(ports) = s.ports.one().unwrap_or(Ports(49_152..=65_535));
        let families = usize::from(relay_v4.is_some()) + usize::from(relay_v6.is_some());
        let (sockets, found) = (families * ports.len(), total_limits.allocations);
        if s.max_allocations.is_given() && sockets > 0 && found > sockets {
            let problem = format!("expected at most {sockets}, as many as there are ports, found {found}");
            errors.push(s.max_allocations.error(problem));
        }
        let Some(credentials) = credentials.filter(|_| errors.is_empty()) else { return Err(errors) };
        let cores = if cfg!(target_os = "linux") { available_parallelism().map_or(1, usize::from) } else { 1 };
        Ok(Self {
            listen,
            listen_tcp,
            certificate,
            proxies,
            relay_v4,
            relay_v6,
            external_server: checks::external_server(&s.external_address),
            ports,
            credentials: credentials.into(),
            peers,
            threads: s.threads.one().map_or(cores, |Number(threads)| threads as usize),
            user_limits,
            total_limits,
            reply_limit: s.reply_limit.one().map_or(1000, |Number(limit)| limit as u32),
            failure_limit: s.failure_limit.one().map_or(30, |Number(limit)| limit as u32),
            max_lifetime: Duration::from_secs(s.max_lifetime.one().map_or(3600, |Number(seconds)| seconds)),
            policy: s.backpressure.one().map_or_else(Policy::default, |PolicyText(policy)| policy),
            breaker: s.breaker.one().and_then(|Breaker(limits)| limits),
            admin,
            admin_token: s.admin_token.one(),
            file: arguments.file.clone(),
            drain_below: s.drain_below.one().map_or(1, |Number(allocations)| allocations),
            drain: Duration::from_secs(s.drain.one().map_or(5, |Number(seconds)| seconds)),
            log_level: s.log_level.one().map_or_else(|| "info".to_owned(), |LogFilter(filter)| filter),
            log_allocations: s.log_allocations.one().unwrap_or(false),
            auth_hook: s.auth_hook.one(),
            event_hook: s.event_hook.one(),
            first_run,
        })
    }

    /// Keeps what was found and made up at the start: the external address, and a user.
    ///
    /// # Errors
    /// That the relay was started with users, and none is left.
    pub(crate) fn keep_start(mut self, started: &Self) -> Result<Self, Vec<ConfigError>> {
        (self.relay_v4, self.relay_v6) = (started.relay_v4, started.relay_v6);
        if self.first_run.is_some() {
            if started.first_run.is_none() {
                let problem = "expected one: a user is made up at a start only".to_owned();
                return Err(vec![ConfigError { key: "user".to_owned(), problem }]);
            }
            self.first_run.clone_from(&started.first_run);
            self.credentials = started.credentials.clone();
        }
        Ok(self)
    }

    /// What the servers of all threads have in common, from now on.
    pub(crate) fn shared(&self, nonce_key: [u8; 64], now: Instant) -> Shared {
        Shared {
            nonce_key,
            quotas: Quotas::new(self.user_limits, self.total_limits, now),
            reply_limit: self.new_reply_limit(now),
            failure_limit: self.new_failure_limit(now),
            directory: None,
            relayed_ports: Arc::default(),
        }
    }

    fn new_reply_limit(&self, now: Instant) -> Option<Arc<ReplyLimit>> {
        (self.reply_limit > 0).then(|| Arc::new(ReplyLimit::new(self.reply_limit, now)))
    }

    fn new_failure_limit(&self, now: Instant) -> Option<Arc<FailureLimit>> {
        (self.failure_limit > 0).then(|| Arc::new(FailureLimit::new(self.failure_limit, now)))
    }

    pub(crate) fn server(&self, shared: &Shared, thread: u16) -> server::Config {
        let relayed = [self.relay_v4, self.relay_v6].into_iter().flatten().flat_map(|ip| [ip.bind, ip.advertise]);
        server::Config {
            credentials: self.credentials.clone(),
            directory: shared.directory.clone(),
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
    /// Who knows other users.
    pub(crate) directory: Option<Arc<Directory>>,
    pub(crate) relayed_ports: Arc<RelayedPorts>,
}

impl Shared {
    /// Takes over the limits of `new`. What is counted stays counted, but for limits that are other ones.
    pub(crate) fn change(&mut self, old: &Config, new: &Config, now: Instant) {
        self.quotas.set_limits(new.user_limits, new.total_limits);
        if new.reply_limit != old.reply_limit {
            self.reply_limit = new.new_reply_limit(now);
        }
        if new.failure_limit != old.failure_limit {
            self.failure_limit = new.new_failure_limit(now);
        }
    }
}

impl ConfigError {
    /// Returns the key and the problem: what stays the same when other lines of the file move it.
    pub(crate) fn without_line(&self) -> (&str, &str) {
        (self.key.rsplit(": ").next().unwrap_or_default(), &self.problem)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests;
