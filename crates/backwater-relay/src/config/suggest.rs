//! What a mistyped name may have meant, and files that are another program's.

/// Similarity (Jaro-Winkler, 0 to 1) from which on a name is taken for a slip of another.
const SIMILAR: f64 = 0.85;

/// Keys of coturn's `turnserver.conf` that this relay has no key of the same name for, and its key for the same if it has one.
const COTURN: &[(&str, Option<&str>)] = &[
    ("listening-port", Some("listen")),
    ("listening-ip", Some("listen")),
    ("relay-ip", Some("relay-address")),
    ("external-ip", Some("external-address")),
    ("min-port", Some("ports")),
    ("max-port", Some("ports")),
    ("static-auth-secret", Some("secret")),
    ("allowed-peer-ip", Some("allow-peer")),
    ("denied-peer-ip", Some("deny-peer")),
    ("user-quota", Some("max-allocations-per-user")),
    ("total-quota", Some("max-allocations")),
    ("max-allocate-lifetime", Some("max-lifetime")),
    ("relay-threads", Some("threads")),
    ("bps-capacity", Some("max-bytes-per-second")),
    ("use-auth-secret", None),
    ("lt-cred-mech", None),
    ("tls-listening-port", None),
    ("fingerprint", None),
    ("server-name", None),
    ("stale-nonce", None),
    ("no-tls", None),
    ("no-dtls", None),
    ("no-cli", None),
    ("no-multicast-peers", None),
    ("cert", None),
    ("pkey", None),
    ("userdb", None),
    ("log-file", None),
    ("syslog", None),
];

/// Returns the name that `found` is most similar to, if it is similar enough.
pub(super) fn closest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |name: &str| strsim::jaro_winkler(found, name);
    names.max_by(|a, b| similarity(a).total_cmp(&similarity(b))).filter(|name| similarity(name) >= SIMILAR)
}

/// Returns what is wrong with a file if `least` of coturn's keys are in it: which of them stand for which of this relay's.
pub(super) fn coturn(text: &str, least: usize) -> Option<String> {
    let keys = text.lines().map(|line| line.split('=').next().unwrap_or_default().trim());
    let mut known: Vec<_> = keys.filter_map(|key| COTURN.iter().find(|(name, _)| *name == key)).collect();
    known.dedup();
    if known.len() < least {
        return None;
    }
    let same: Vec<_> = known.iter().filter_map(|(name, ours)| Some(format!("{name} is {}", (*ours)?))).collect();
    let same = if same.is_empty() { String::new() } else { format!(": here, {}", same.join(", ")) };
    Some(format!("this is a configuration of coturn's turnserver, expected a TOML file of this relay's keys{same}"))
}
