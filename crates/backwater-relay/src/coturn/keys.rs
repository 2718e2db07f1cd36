//! What the keys of coturn's `turnserver.conf` mean here.

use Counterpart::*;

/// What this relay has for a key of coturn's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counterpart {
    /// A key of this relay's.
    Key(&'static str),
    /// The relay is always as if the key were given.
    Always(&'static str),
    /// There is none, and clients are served without it.
    Without(&'static str),
    /// There is none, and clients that coturn serves, or addresses that it protects, depend on it.
    Essential(&'static str),
}

/// Returns the counterpart of a key; `None` if coturn has no such key.
pub(crate) fn counterpart(key: &str) -> Option<Counterpart> {
    KEYS.iter().find(|(name, _)| *name == key).map(|(_, counterpart)| *counterpart)
}

const DATABASE: Counterpart =
    Essential("there is no database here: put its users into user or hashed-user, its secrets into secret");
const TLS: Counterpart = Without("TLS is 1.2 and 1.3 with the cipher suites and groups of rustls");
const OLD_TLS: &str = "there is no TLS before 1.2";
const NO_HTTP: Counterpart = Without("the relay speaks no HTTP to its clients");
const LOG: Counterpart = Without("the log goes to stdout, for systemd's journal or whatever starts the relay");
const SERVICE: Counterpart = Without("the service manager does that: see packaging/backwater-relay.service");
const CLI: Counterpart = Without("there is no command line interface: GET and PUT at admin instead");
const OWN_CHOICE: Counterpart = Always("the relay's sockets do what the system can");
const MULTIPLEX: Counterpart = Without("each allocation has a port of its own");
const LIFETIME: Counterpart = Without("it is as RFC 8656 says");
const NAT_DISCOVERY: &str = "there is no NAT behavior discovery (RFC 5780)";

const KEYS: &[(&str, Counterpart)] = &[
    ("listening-ip", Key("listen")),
    ("listening-port", Key("listen")),
    ("aux-server", Key("listen")),
    ("relay-ip", Key("relay-address")),
    ("external-ip", Key("external-address")),
    ("min-port", Key("ports")),
    ("max-port", Key("ports")),
    ("realm", Key("realm")),
    ("user", Key("user")),
    ("static-auth-secret", Key("secret")),
    ("allowed-peer-ip", Key("allow-peer")),
    ("allow-loopback-peers", Key("allow-peer")),
    ("denied-peer-ip", Key("deny-peer")),
    ("user-quota", Key("max-allocations-per-user")),
    ("total-quota", Key("max-allocations")),
    ("bps-capacity", Key("max-bytes-per-second")),
    ("max-allocate-lifetime", Key("max-lifetime")),
    ("relay-threads", Key("threads")),
    ("verbose", Key("log-allocations")),
    ("Verbose", Key("log-level")),
    ("log-min-level", Key("log-level")),
    ("prometheus", Key("admin")),
    ("prometheus-port", Key("admin")),
    ("prometheus-address", Key("admin")),
    ("use-auth-secret", Always("there are time-limited credentials wherever there is a secret")),
    ("lt-cred-mech", Always("there are no other credentials")),
    ("fingerprint", Always("an answer has FINGERPRINT where the request has it")),
    ("mobility", Always("a client that moves keeps its allocation (RFC 8016)")),
    ("stale-nonce", Always("a nonce is good for an hour")),
    ("stateless-nonce", Always("no nonce is remembered")),
    ("no-multicast-peers", Always("multicast is refused unless allow-peer opens it")),
    ("no-loopback-peers", Always("loopback is refused unless allow-peer opens it")),
    ("no-software-attribute", Always("the relay sends no SOFTWARE attribute")),
    ("no-tcp", Key("listen-tcp")),
    ("no-tls", Key("tls-certificate")),
    ("no-udp", Key("listen")),
    ("cert", Key("tls-certificate")),
    ("pkey", Key("tls-key")),
    ("tls-listening-port", Key("listen-tcp")),
    ("no-dtls", Always("there is no DTLS")),
    ("no-tlsv1", Always(OLD_TLS)),
    ("no-tlsv1_1", Always(OLD_TLS)),
    ("no-tlsv1_2", Without("TLS 1.2 is there beside 1.3")),
    ("no-tcp-relay", Always("there are no TCP allocations")),
    ("no-rfc5780", Always(NAT_DISCOVERY)),
    ("response-origin-only-with-rfc5780", Always(NAT_DISCOVERY)),
    ("no-stun-backward-compatibility", Always("an answer to Binding has XOR-MAPPED-ADDRESS only")),
    ("no-cli", Always("there is no command line interface")),
    ("no-auth-pings", Always("there is no database")),
    ("no-dynamic-ip-list", Always("there is no database")),
    ("no-dynamic-realms", Always("there is no database")),
    ("drop-invalid-packets", Always("a datagram that is no message is dropped and counted")),
    ("include-reason-string", Always("an error has its reason phrase")),
    ("rfc5766-channel-numbers", Always("channels go up to 0x7FFF")),
    ("unauthorized-ratelimit", Always("reply-limit bounds the answers to a source, 1,000 a second by default")),
    ("udp-recvmmsg", OWN_CHOICE),
    ("udp-gso", OWN_CHOICE),
    ("no-auth", Essential("the relay serves nobody without a credential")),
    ("stun-only", Essential("the relay serves TURN too, to whoever has a credential")),
    ("no-udp-relay", Essential("the relay relays UDP only")),
    ("tcp-proxy-port", Essential("list the load balancers in proxy-protocol-from: they connect to listen-tcp")),
    ("pkey-pwd", Essential("tls-key is not encrypted: openssl pkey -in KEY -out NEW decrypts it")),
    ("oauth", Essential("there is no third-party authorization (RFC 7635)")),
    ("server-relay", Essential("the relay passes nothing from a peer without a permission")),
    ("listening-device", Essential("a listener is bound to an address, not to a device")),
    ("relay-device", Essential("relayed ports are bound to an address, not to a device")),
    ("rest-api-separator", Essential("the separator in time-limited user names is a colon")),
    ("userdb", DATABASE),
    ("db", DATABASE),
    ("psql-userdb", DATABASE),
    ("sql-userdb", DATABASE),
    ("mysql-userdb", DATABASE),
    ("mongo-userdb", DATABASE),
    ("redis-userdb", DATABASE),
    ("secret-key-file", Without("it belongs to a database")),
    ("redis-statsdb", Without("counters are at /metrics of admin")),
    ("max-bps", Without("it is a limit of an allocation; max-bytes-per-second-per-user is one of a user")),
    ("server-name", Without("it belongs to third-party authorization (RFC 7635)")),
    ("alt-tls-listening-port", Without(NAT_DISCOVERY)),
    ("raw-public-keys", TLS),
    ("cipher-list", TLS),
    ("CA-file", TLS),
    ("ec-curve-name", TLS),
    ("dh-file", TLS),
    ("dh566", TLS),
    ("dh1066", TLS),
    ("dh2066", TLS),
    ("dtls", Without("there is no DTLS")),
    ("tlsv1", Without(OLD_TLS)),
    ("tlsv1_1", Without(OLD_TLS)),
    ("alt-listening-port", Without(NAT_DISCOVERY)),
    ("rfc5780", Without(NAT_DISCOVERY)),
    ("rfc3489-compatibility", Without("clients of RFC 3489 are not answered")),
    ("stun-backward-compatibility", Without("clients of RFC 3489 are not answered")),
    ("no-stun", Without("Binding is always answered")),
    ("secure-stun", Without("Binding is answered without a credential, as reply-limit allows")),
    ("software-attribute", Without("the relay sends no SOFTWARE attribute")),
    ("check-origin-consistency", Without("ORIGIN is ignored")),
    ("channel-lifetime", LIFETIME),
    ("permission-lifetime", LIFETIME),
    ("max-allocate-timeout", Without("a request is answered at once or never")),
    ("keep-address-family", Without("a client that names no family gets IPv4, as RFC 8656 says")),
    ("allocation-default-address-family", Without("a client that names no family gets IPv4, as RFC 8656 says")),
    ("alternate-server", Without("the relay sends no client to another server (ALTERNATE-SERVER)")),
    ("tls-alternate-server", Without("the relay sends no client to another server (ALTERNATE-SERVER)")),
    ("tcp-alternate-server", Without("the relay sends no client to another server (ALTERNATE-SERVER)")),
    ("udp-alternate-server", Without("the relay sends no client to another server (ALTERNATE-SERVER)")),
    ("udp-self-balance", Without("all threads share each listener")),
    ("cpus", Without("give threads if not every core is to be used")),
    ("sock-buf-size", Without("sockets have the system's buffers")),
    ("drain-min-allocations", Without("drain says how long SIGTERM waits for clients to leave")),
    (
        "unauthorized-ratelimit-rps",
        Without("reply-limit counts Binding responses too: its default of 1,000 a second is kept"),
    ),
    ("stateless-nonce-secret", Without("each start makes a key of its own")),
    ("multiplex-peer", MULTIPLEX),
    ("multiplex-peer-port", MULTIPLEX),
    ("multiplex-peer-max-peers", MULTIPLEX),
    ("prometheus-path", Without("the path is /metrics")),
    ("prometheus-username-labels", Without("no label has a user's name")),
    ("prometheus-tls", Without("admin has no TLS, and is on loopback only")),
    ("prometheus-cert", Without("admin has no TLS, and is on loopback only")),
    ("prometheus-key", Without("admin has no TLS, and is on loopback only")),
    ("respond-http-unsupported", NO_HTTP),
    ("acme-redirect", NO_HTTP),
    ("log-file", LOG),
    ("no-stdout-log", LOG),
    ("syslog", LOG),
    ("syslog-facility", LOG),
    ("simple-log", LOG),
    ("log-binding", LOG),
    ("new-log-timestamp", LOG),
    ("new-log-timestamp-format", LOG),
    ("drop-invalid-packets-log", LOG),
    ("udp-recvmmsg-log", LOG),
    ("udp-sendmmsg-log", LOG),
    ("daemon", SERVICE),
    ("pidfile", SERVICE),
    ("proc-user", SERVICE),
    ("proc-group", SERVICE),
    ("cli", CLI),
    ("cli-ip", CLI),
    ("cli-port", CLI),
    ("cli-password", CLI),
    ("cli-max-output-sessions", CLI),
    ("web-admin", CLI),
    ("web-admin-ip", CLI),
    ("web-admin-port", CLI),
    ("web-admin-listen-on-workers", CLI),
    ("ne", Without("it is for coturn's own purposes")),
];

/// Returns coturn's keys that this relay has none of the same name for, and its own key for the same if it has one.
pub(crate) fn foreign() -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    KEYS.iter().filter_map(|&(name, counterpart)| match counterpart {
        Key(ours) => (ours != name).then_some((name, Some(ours))),
        Always(_) | Without(_) | Essential(_) => Some((name, None)),
    })
}
