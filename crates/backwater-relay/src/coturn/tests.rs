use super::*;

const BASE: &str = "listening-ip=192.0.2.10\nrealm=example.org\nuser=alice:secret\n";

/// The configuration of these lines, as the keys and values of its own lines, and the notes.
fn imported(text: &str) -> (Vec<String>, Vec<String>) {
    let Import { config, notes } = import(text);
    (config.lines().skip(1).map(str::to_owned).collect(), notes.iter().map(ToString::to_string).collect())
}

/// The same of the base and more lines: what is there beside the base, and whether it is all.
fn beside_base(text: &str) -> (Vec<String>, bool) {
    let Import { config, notes } = import(&format!("{BASE}{text}"));
    let Import { config: base, .. } = import(BASE);
    let lines = config.lines().filter(|line| !base.lines().any(|other| other == *line)).map(str::to_owned);
    (lines.collect(), !notes.iter().any(|note| note.is_essential))
}

#[test]
fn keys_with_a_counterpart_are_translated() {
    for (theirs, ours) in [
        ("", &[][..]),
        ("listening-port=443", &[r#"listen = ["192.0.2.10:443"]"#, r#"listen-tcp = ["192.0.2.10:443"]"#]),
        ("listening-port 443 ", &[r#"listen = ["192.0.2.10:443"]"#, r#"listen-tcp = ["192.0.2.10:443"]"#]),
        (
            "aux-server=[2001:db8::1]:53",
            &[
                r#"listen = ["192.0.2.10:3478", "[2001:db8::1]:53"]"#,
                r#"listen-tcp = ["192.0.2.10:3478", "[2001:db8::1]:53"]"#,
            ],
        ),
        (
            "cert=/a.pem\npkey=/a.key\naux-server=192.0.2.10:53",
            &[
                r#"listen = ["192.0.2.10:3478", "192.0.2.10:53"]"#,
                r#"listen-tcp = ["192.0.2.10:3478", "192.0.2.10:53", "192.0.2.10:5349"]"#,
                r#"tls-certificate = "/a.pem""#,
                r#"tls-key = "/a.key""#,
            ],
        ),
        (
            "no-tcp\ncert=/a.pem\npkey=/a.key\ntls-listening-port=443",
            &[r#"listen-tcp = ["192.0.2.10:443"]"#, r#"tls-certificate = "/a.pem""#, r#"tls-key = "/a.key""#],
        ),
        ("no-udp\nlistening-port=443", &[r#"listen-tcp = ["192.0.2.10:443"]"#]),
        ("relay-ip=192.0.2.11", &[r#"relay-address = ["192.0.2.11"]"#]),
        ("external-ip=9.9.9.9", &[r#"external-address = ["9.9.9.9"]"#]),
        ("external-ip=9.9.9.9/10.0.0.1", &[r#"external-address = ["9.9.9.9"]"#, r#"relay-address = ["10.0.0.1"]"#]),
        ("min-port=50000", &[r#"ports = "50000-65535""#]),
        ("min-port=50000\nmax-port=50100", &[r#"ports = "50000-50100""#]),
        ("user=\"bob:a \\\"b\"", &[r#"user = ["alice:secret", 'bob:a \"b']"#]),
        ("user=alice:other", &[r#"user = ["alice:other"]"#]),
        ("user=b:0xbc807ee29df3c9ffa736523fb2c4e8ee", &[r#"hashed-user = ["b:bc807ee29df3c9ffa736523fb2c4e8ee"]"#]),
        ("denied-peer-ip=83.166.64.0-83.166.95.255", &[r#"deny-peer = ["83.166.64.0/19"]"#]),
        (
            "denied-peer-ip=10.0.0.0-10.0.0.3\nallowed-peer-ip=10.0.0.1",
            &[r#"allow-peer = ["10.0.0.1/32"]"#, r#"deny-peer = ["10.0.0.0/32", "10.0.0.2/31"]"#],
        ),
        ("allow-loopback-peers", &[r#"allow-peer = ["127.0.0.0/8", "::1/128"]"#]),
        ("allow-loopback-peers=no", &[]),
        ("allow-loopback-peers\ndenied-peer-ip=::/0", &[r#"allow-peer = ["127.0.0.0/8"]"#, r#"deny-peer = ["::/0"]"#]),
        ("user-quota=12\ntotal-quota=1200", &["max-allocations = 1200", "max-allocations-per-user = 12"]),
        ("user-quota=0\ntotal-quota=0\nbps-capacity=0", &[]),
        ("total-quota=100000", &[]),
        ("bps-capacity=3000000", &["max-bytes-per-second = 6000000"]),
        ("max-allocate-lifetime=3600", &["max-lifetime = 3600"]),
        ("max-allocate-lifetime=60", &["max-lifetime = 600"]),
        ("relay-threads=0", &["threads = 1"]),
        ("verbose", &[r#"log-allocations = "on""#]),
        ("Verbose", &[r#"log-allocations = "on""#, r#"log-level = "debug""#]),
        ("log-min-level=Warning", &[r#"log-level = "warn""#]),
        ("prometheus", &[r#"admin = "127.0.0.1:9641""#]),
        ("prometheus\nprometheus-address=::1\nprometheus-port=99", &[r#"admin = "[::1]:99""#]),
        ("prometheus-port=99", &[]),
        ("syslog\nno-cli\nno-tcp\nno-tls\nno-dtls\ncert=/a.pem\nno-auth=0\nrest-api-separator=:", &[]),
    ] {
        let (found, is_all) = beside_base(theirs);
        assert!(found == ours && is_all, "{theirs}: {found:?} {is_all} {:?}", imported(&format!("{BASE}{theirs}")).1);
    }
}

#[test]
fn what_has_no_counterpart_is_named_with_its_line_and_the_reason() {
    let (_, notes) = imported(&format!(
        "{BASE}# a comment\n\nsyslog\nmax-bps=1000\nno-such-key=1\nrelay-ip=1.1.1.1\nrelay-ip=1.1.1.2\n"
    ));
    for start in [
        "line 6: syslog: the log goes",
        "line 7: max-bps: it is a limit",
        "line 8: no-such-key: coturn",
        "line 10: relay-ip: the relay has",
    ] {
        assert!(notes.iter().any(|note| note.starts_with(start)), "{start}: {notes:?}");
    }
}

#[test]
fn what_is_essential_is_not_left_out_silently() {
    for (theirs, reason) in [
        ("no-auth", "without a credential"),
        ("stun-only", "TURN too"),
        ("userdb=/var/db/turndb", "there is no database"),
        ("cert=/a.pem", "both cert and pkey"),
        ("no-udp\nno-tcp", "neither UDP nor TCP"),
        ("tls-listening-port=x", "expected a port"),
        ("tcp-proxy-port=5555", "proxy-protocol-from"),
        ("use-auth-secret", "the secret is in a database"),
        ("rest-api-separator=|", "colon"),
        ("server-relay", "permission"),
        ("listening-ip=turn.example.org", "expected an IP address"),
        ("listening-port=x", "expected a port"),
        ("min-port=0", "ports: expected two ports"),
        ("user=bob", "no colon"),
        ("user=bob:0x00", "expected a key of MD5"),
        ("external-ip=9.9.9.9/x", "two with a slash"),
        ("denied-peer-ip=10.0.0.9-10.0.0.1", "two with a hyphen"),
        ("user-quota=many", "expected a number"),
    ] {
        let Import { notes, .. } = import(&format!("{BASE}{theirs}\n"));
        let essential: Vec<_> = notes.iter().filter(|n| n.is_essential).map(ToString::to_string).collect();
        assert!(essential.len() == 1 && essential[0].contains(reason), "{theirs}: {essential:?}");
    }
    let Import { notes, .. } = import("listening-ip=192.0.2.10\nlt-cred-mech\n");
    assert!(notes.iter().any(|note| note.is_essential && note.reason.contains("neither a user nor a secret")));
}

#[test]
fn users_beside_a_secret_are_left_out_as_coturn_does() {
    let (config, notes) =
        imported(&format!("{BASE}use-auth-secret\nstatic-auth-secret=north\nstatic-auth-secret=north\n"));
    assert_eq!(
        config,
        [
            r#"listen = ["192.0.2.10:3478"]"#,
            r#"listen-tcp = ["192.0.2.10:3478"]"#,
            r#"realm = "example.org""#,
            r#"secret = ["north"]"#
        ]
    );
    assert!(notes.iter().any(|note| note.contains("user: coturn has no such users")), "{notes:?}");
}

/// The file comes from somebody: whatever it says, there is an answer.
#[test]
fn any_text_is_imported_or_refused() {
    let all: Vec<_> = foreign().map(|(key, _)| key).chain(["user", "realm"]).collect();
    let values = [
        "",
        "0",
        "-1",
        "65536",
        "18446744073709551615",
        "99999999999999999999",
        "\"",
        "/",
        "-",
        ":",
        "::",
        "\u{1}",
        "é",
        "0.0.0.0/0",
        "::/0",
    ];
    for key in &all {
        for value in values {
            let Import { config, notes } = import(&format!("{BASE}{key}={value}\n"));
            let is_one = Arguments::from_toml("x", &config).and_then(|a| Config::new(&a)).is_ok();
            assert!(is_one || notes.iter().any(|note| note.is_essential), "{key}={value}: {config} {notes:?}");
        }
    }
    for seed in 0..2000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let line = |rng: &mut fastrand::Rng| {
            let key = all[rng.usize(..all.len())];
            let value: String = (0..rng.usize(..20)).map(|_| rng.char(' '..'\u{ff}')).collect();
            format!("{key}{}{value}\n", if rng.bool() { "=" } else { " " })
        };
        let text: String = (0..rng.usize(..10)).map(|_| line(&mut rng)).collect();
        import(&text);
    }
}
