//! The table of keys: what there is to configure. A key is declared here and named by its constant everywhere else, so that a
//! misspelt one does not compile.

/// A key of the configuration: a flag `--name`, a variable `BACKWATER_RELAY_NAME`, and `name` in the file.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(super) value: &'static str,
    /// May be given several times; separated by commas in the environment; an array in the file.
    pub(super) list: bool,
    pub(super) help: &'static str,
}

const fn one(name: &'static str, value: &'static str, help: &'static str) -> Key {
    Key { name, value, list: false, help }
}

const fn many(name: &'static str, value: &'static str, help: &'static str) -> Key {
    Key { name, value, list: true, help }
}

/// Declares each key as a constant, and all of them as [`KEYS`].
macro_rules! keys {
    ($($constant:ident = $key:expr;)*) => {
        $(pub(crate) static $constant: Key = $key;)*

        pub(super) static KEYS: &[&Key] = &[$(&$constant),*];
    };
}

keys! {
    LISTEN = many("listen", "IP:PORT", "Where clients reach the relay [default: 127.0.0.1:3478 and [::1]:3478]");
    RELAY_ADDRESS = many(
        "relay-address",
        "IP",
        "Where peers reach the clients: one address of each family [default: the listeners' own; with a wildcard listener and \
         external-address, every address of this host]",
    );
    EXTERNAL_ADDRESS = many(
        "external-address",
        "IP",
        "What peers see the relay-address of the same family as, behind a one-to-one NAT [default: the same]",
    );
    PORTS = one("ports", "FIRST-LAST", "Ports of relayed addresses [default: 49152-65535]");
    REALM = one("realm", "NAME", "The realm of the credentials [default: backwater]");
    USER = many("user", "NAME:PASSWORD", "A user [default: one is made up when only loopback is listened on]");
    HASHED_USER = many(
        "hashed-user",
        "NAME:KEYS",
        "A user whose password is stored as the keys it makes: a line that hash-password prints, or NAME and the MD5 key in hexadecimal",
    );
    SECRET = many(
        "secret",
        "SECRET",
        "A shared secret for time-limited credentials: user EXPIRY:NAME or NAME:EXPIRY, password base64(HMAC-SHA1(SECRET, user)), \
         or with HMAC-SHA256",
    );
    NAMED_SECRET = many("named-secret", "ID:SECRET", "The same, with an id by which the command credentials is told which one to use");
    ALLOW_PEER = many(
        "allow-peer",
        "PREFIX",
        "Peers to allow that are refused by default: private, loopback, link-local, multicast, and all other ranges that \
         the registries of special-purpose addresses do not call globally reachable",
    );
    DENY_PEER = many("deny-peer", "PREFIX", "Peers to refuse, whatever else is allowed");
    NAT64_PREFIX = many(
        "nat64-prefix",
        "PREFIX",
        "Prefixes of NAT64 translators, beside 64:ff9b::/96: a peer there is judged by its IPv4 address too",
    );
    THREADS = one("threads", "N", "Threads [default: one for each core on Linux, else 1]");
    MAX_ALLOCATIONS = one("max-allocations", "N", "Allocations there may be [default: as many as there are ports]");
    MAX_ALLOCATIONS_PER_USER = one("max-allocations-per-user", "N", "Allocations that a user may have [default: no limit]");
    MAX_PERMISSIONS = one("max-permissions", "N", "Permissions there may be in all allocations [default: 256 in each allocation]");
    MAX_PERMISSIONS_PER_USER = one("max-permissions-per-user", "N", "Permissions that a user may have in all allocations [default: no limit]");
    MAX_CHANNELS = one("max-channels", "N", "Channels there may be in all allocations [default: 256 in each allocation]");
    MAX_CHANNELS_PER_USER = one("max-channels-per-user", "N", "Channels that a user may have in all allocations [default: no limit]");
    MAX_BYTES_PER_SECOND = one(
        "max-bytes-per-second",
        "N",
        "Payload bytes that are relayed in a second, both ways together, from 1000; what comes beyond is dropped \
         [default: no limit]",
    );
    MAX_BYTES_PER_SECOND_PER_USER = one("max-bytes-per-second-per-user", "N", "The same for one user [default: no limit]");
    REPLY_LIMIT = one(
        "reply-limit",
        "N",
        "Answers in a second to a source that has not authenticated (an IPv4 address, an IPv6 network of 64 bits), 0 for \
         no limit; loopback is not limited [default: 1000]",
    );
    FAILURE_LIMIT = one(
        "failure-limit",
        "N",
        "Wrong passwords in a minute that are looked at from a source (an IPv4 address, an IPv6 network of 64 bits), and \
         twice as many for a user name; what comes beyond is dropped; 0 for no limit [default: 30]",
    );
    MAX_LIFETIME = one(
        "max-lifetime",
        "SECONDS",
        "The longest lifetime of an allocation between refreshes, 600 to 86400 [default: 3600]",
    );
    BACKPRESSURE = one(
        "backpressure",
        "POLICY",
        "What to do with a datagram that the system has no room for: wait (100 ms; macOS: 500), wait:TIME such as wait:50ms, or \
         drop; a change in the file is applied at once [default: wait]",
    );
    BREAKER = one(
        "breaker",
        "LIMITS",
        "When to switch to drop by itself: lost-edges=N/min, stall=TIME, or both with a comma, on any thread; or off \
         [default: off]",
    );
    ADMIN = one("admin", "IP:PORT", "Where to serve metrics and the policy over HTTP, on loopback [default: nowhere]");
    DRAIN = one("drain", "SECONDS", "How long SIGTERM waits for clients to leave, 0 to 3600 [default: 5]");
    LOG_ALLOCATIONS = one(
        "log-allocations",
        "on|off",
        "Whether allocations that are made, refreshed and ended are in the log at info, or at debug [default: off]",
    );
    LOG_LEVEL = one(
        "log-level",
        "FILTER",
        "error, warn, info, debug, trace, or a list such as info,backwater_turn=debug [default: info]",
    );
}
