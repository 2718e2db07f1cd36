//! The keys of the configuration. Each is declared once, with its type: its flag, its variable, its name in the file, and its field
//! in [`Settings`] come from that line. A misspelt field does not compile, and neither does one that nobody reads.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use backwater_ops::PolicyText;
use ipnet::IpNet;

use super::{ConfigError, Given, values::*};
use crate::hooks::HookUrl;

/// A key: a flag `--name`, a variable `BACKWATER_RELAY_NAME`, and `name` in the file.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// What stands for the value in `--help`.
    pub(super) value: &'static str,
    /// Whether it may be given several times: separated by commas in the environment, an array in the file.
    pub(super) is_list: bool,
    /// Whether the running relay applies a change of it.
    pub(crate) is_live: bool,
    /// Whether it is secret, so that only the owner of a file with it may read the file.
    pub(super) is_secret: bool,
    /// Whether the file may have `true` and `false` for it.
    pub(super) is_switch: bool,
    pub(super) help: &'static str,
}

/// What the layers say about a key.
pub(super) struct Setting<T> {
    pub(super) key: &'static Key,
    /// Where it is set; `None`: nowhere.
    place: Option<String>,
    /// The values that could be read.
    pub(super) values: Vec<T>,
}

impl<T: Value> Setting<T> {
    fn read(key: &'static Key, given: Option<&Given>, errors: &mut Vec<ConfigError>) -> Self {
        let mut setting = Self { key, place: given.map(|given| given.place.clone()), values: Vec::new() };
        for text in given.into_iter().flat_map(|given| &given.values) {
            match T::read(text) {
                Ok(value) => setting.values.push(value),
                Err(problem) => errors.push(setting.error(problem)),
            }
        }
        setting
    }
}

impl<T> Setting<T> {
    pub(super) fn is_given(&self) -> bool {
        self.place.is_some()
    }

    /// Returns the value of a key that has one at most.
    pub(super) fn one(self) -> Option<T> {
        self.values.into_iter().next_back()
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError { key: self.place.clone().unwrap_or_else(|| self.key.name.to_owned()), problem: problem.into() }
    }
}

/// Returns the name of a field as the name of a key.
const fn hyphenated<const LEN: usize>(field: &str) -> [u8; LEN] {
    let (mut name, mut at) = ([0; LEN], 0);
    while at < LEN {
        name[at] = if field.as_bytes()[at] == b'_' { b'-' } else { field.as_bytes()[at] };
        at += 1;
    }
    name
}

/// Declares the keys: whether the running relay applies a change (`live`) or it needs a restart (`fixed`), `one` or `many` values, the
/// field, the type of a value, what stands for it in `--help`, and the help.
macro_rules! keys {
    ($($change:ident $arity:ident $field:ident: $type:ty = ($value:literal, $help:literal $(,)?);)*) => {
        #[allow(non_upper_case_globals, reason = "they are named as the fields are")]
        mod key {
            use super::*;

            $(pub(super) static $field: Key = Key {
                name: {
                    const NAME: [u8; stringify!($field).len()] = hyphenated(stringify!($field));
                    match str::from_utf8(&NAME) {
                        Ok(name) => name,
                        Err(_) => panic!("a key is ASCII"),
                    }
                },
                value: $value,
                is_list: keys!(@is_list $arity),
                is_live: keys!(@is_live $change),
                is_secret: <$type as Value>::IS_SECRET,
                is_switch: <$type as Value>::IS_SWITCH,
                help: $help,
            };)*
        }

        /// All keys.
        pub(super) static KEYS: &[&Key] = &[$(&key::$field),*];

        /// The values of all keys.
        pub(super) struct Settings {
            $(pub(super) $field: Setting<$type>,)*
        }

        impl Settings {
            /// Reads the values, and adds what is wrong with them to `errors`.
            pub(super) fn read(given: &HashMap<&'static str, Given>, errors: &mut Vec<ConfigError>) -> Self {
                Self { $($field: Setting::read(&key::$field, given.get(key::$field.name), errors),)* }
            }
        }
    };
    (@is_list one) => { false };
    (@is_list many) => { true };
    (@is_live live) => { true };
    (@is_live fixed) => { false };
}

/// A number of allocations, permissions or channels.
pub(super) type Count = Number<1, 1_000_000_000>;

/// Bytes in a second.
pub(super) type Bytes = Number<1000, 1_000_000_000_000>;

/// On other systems than Linux, one listener gets all clients.
const MOST_THREADS: u64 = if cfg!(target_os = "linux") { 1024 } else { 1 };

keys! {
    live many listen: SocketAddr = ("IP:PORT", "Where clients reach the relay [default: 127.0.0.1:3478 and [::1]:3478]");
    fixed many listen_tcp: SocketAddr = (
        "IP:PORT",
        "Where clients reach the relay over TCP, and over TLS too with tls-certificate [default: nowhere]",
    );
    fixed one tls_certificate: PathBuf = (
        "FILE",
        "The certificate chain for TLS, as PEM: the relay's own certificate first. A change of the file is applied at once",
    );
    fixed one tls_key: PathBuf = ("FILE", "The private key of tls-certificate, as PEM");
    fixed many proxy_protocol_from: IpNet = (
        "PREFIX",
        "Load balancers: their connections to listen-tcp begin with a header of the PROXY protocol, version 2, which names the client",
    );
    fixed many relay_address: IpAddr = (
        "IP",
        "Where peers reach the clients: one address of each family [default: the listeners' own; with a wildcard listener and \
         external-address, every address of this host]",
    );
    fixed many external_address: External = (
        "IP|stun:HOST:PORT",
        "What peers see the relay-address of the same family as, behind a one-to-one NAT; or a STUN server that is asked at the \
         start [default: the same]",
    );
    fixed one ports: Ports = ("FIRST-LAST", "Ports of relayed addresses [default: 49152-65535]");
    fixed one realm: String = ("NAME", "The realm of the credentials [default: backwater]");
    live many user: Secret = ("NAME:PASSWORD", "A user [default: one is made up when only loopback is listened on]");
    live many hashed_user: Secret = (
        "NAME:KEYS",
        "A user whose password is stored as the keys it makes: a line that hash-password prints, or NAME and the MD5 key in hexadecimal",
    );
    live many secret: Secret = (
        "SECRET",
        "A shared secret for time-limited credentials: user EXPIRY:NAME or NAME:EXPIRY, password base64(HMAC-SHA1(SECRET, user)), \
         or with HMAC-SHA256",
    );
    live many named_secret: Secret = ("ID:SECRET", "The same, with an id by which the command credentials is told which one to use");
    live many allow_peer: IpNet = (
        "PREFIX",
        "Peers to allow that are refused by default: private, loopback, link-local, multicast, and all other ranges that \
         the registries of special-purpose addresses do not call globally reachable",
    );
    live many deny_peer: IpNet = ("PREFIX", "Peers to refuse, whatever else is allowed");
    live many nat64_prefix: Nat64Prefix = (
        "PREFIX",
        "Prefixes of NAT64 translators, beside 64:ff9b::/96: a peer there is judged by its IPv4 address too",
    );
    fixed one threads: Number<1, MOST_THREADS> = ("N", "Threads [default: one for each core on Linux, else 1]");
    live one max_allocations: Count = ("N", "Allocations there may be [default: as many as there are ports]");
    live one max_allocations_per_user: Count = ("N", "Allocations that a user may have [default: no limit]");
    live one max_permissions: Count = ("N", "Permissions there may be in all allocations [default: 256 in each allocation]");
    live one max_permissions_per_user: Count = ("N", "Permissions that a user may have in all allocations [default: no limit]");
    live one max_channels: Count = ("N", "Channels there may be in all allocations [default: 256 in each allocation]");
    live one max_channels_per_user: Count = ("N", "Channels that a user may have in all allocations [default: no limit]");
    live one max_bytes_per_second: Bytes = (
        "N",
        "Payload bytes that are relayed in a second, both ways together, from 1000; what comes beyond is dropped \
         [default: no limit]",
    );
    live one max_bytes_per_second_per_user: Bytes = ("N", "The same for one user [default: no limit]");
    live one reply_limit: Number<0, 1_000_000> = (
        "N",
        "Answers in a second to a source that has not authenticated (an IPv4 address, an IPv6 network of 64 bits), 0 for \
         no limit; loopback is not limited [default: 1000]",
    );
    live one failure_limit: Number<0, 1_000_000> = (
        "N",
        "Wrong passwords in a minute that are looked at from a source (an IPv4 address, an IPv6 network of 64 bits), and \
         twice as many for a user name; what comes beyond is dropped; 0 for no limit [default: 30]",
    );
    live one max_lifetime: Number<600, 86_400> = (
        "SECONDS",
        "The longest lifetime of an allocation between refreshes, 600 to 86400 [default: 3600]",
    );
    live one backpressure: PolicyText = (
        "POLICY",
        "What to do with a datagram that the system has no room for: wait (100 ms; macOS: 500), wait:TIME such as wait:50ms, or \
         drop [default: wait]",
    );
    live one breaker: Breaker = (
        "LIMITS",
        "When to switch to drop by itself: lost-edges=N/min, stall=TIME, or both with a comma, on any thread; or off \
         [default: off]",
    );
    fixed one admin: AdminAddr = (
        "IP:PORT",
        "Where to serve the live page, metrics, sessions and switches over HTTP: on loopback, or anywhere with admin-token [default: nowhere]",
    );
    fixed one admin_token: Token = (
        "TOKEN",
        "What each request to admin has to have in the header Authorization: Bearer TOKEN; 16 characters at least [default: none]",
    );
    live one drain: Number<0, 3600> = ("SECONDS", "How long SIGTERM waits for clients to leave, 0 to 3600 [default: 5]");
    fixed one drain_below: Count = (
        "N",
        "SIGTERM waits no longer once there are fewer allocations than this, on all threads together [default: 1]",
    );
    fixed one auth_hook: HookUrl = (
        "URL",
        "Whom to ask for the password of a user that is not configured, by a POST in JSON, such as http://127.0.0.1:8080/turn [default: nobody]",
    );
    fixed one event_hook: HookUrl = (
        "URL",
        "Where to post what becomes of allocations (allocated, refreshed, closed), in JSON, such as http://127.0.0.1:8080/turn [default: nowhere]",
    );
    live one log_allocations: bool = (
        "on|off",
        "Whether allocations that are made, refreshed and ended are in the log at info, or at debug [default: off]",
    );
    live one log_level: LogFilter = (
        "FILTER",
        "error, warn, info, debug, trace, or a list such as info,backwater_turn=debug [default: info]",
    );
}
