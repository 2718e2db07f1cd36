//! The commands beside running the relay, as an operator types them.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use backwater_stun::*;
use backwater_turn::time_limited_password;
use serde_json::Value;

use crate::{
    client::{Client, channel_data},
    program::{Program, command},
    support::{in_namespace, installed, ip, skip},
};

/// Runs the program: exit code, stdout, stderr.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A file that is deleted at the end, and that its owner alone can read.
pub struct File(PathBuf);

impl File {
    pub fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("backwater-{}-{}", std::process::id(), fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    pub fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn check_config_says_all_mistakes_with_their_lines_and_exits_with_2() {
    let file = File::new("listen = [\"nowhere\"]\n\nports = \"9-8\"\nrelm = \"example.org\"\nuser = [\"alice\"]\n");
    let (code, out, err) = run(&["check-config", file.path()]);
    assert_eq!((code, &*out), (Some(2), ""), "{err}");
    let lines: Vec<_> = err.lines().collect();
    let name = format!("backwater-relay: {}", file.path());
    for (line, parts) in [
        (1, ["listen: expected an address and a port", "found \"nowhere\""]),
        (3, ["ports: expected two ports", "found \"9-8\""]),
        (4, ["relm: unknown", "did you mean realm?"]),
        (5, ["user: expected NAME:PASSWORD", "found no colon"]),
    ] {
        let start = format!("{name}, line {line}: {}", parts[0]);
        assert!(lines.iter().any(|l| l.starts_with(&start) && l.contains(parts[1])), "{start}: {err}");
    }
    assert_eq!(lines.len(), 4, "{err}");
}

#[test]
fn check_config_of_a_good_file_says_what_it_serves() {
    let file = File::new("listen = [\"192.0.2.10:3478\"]\nrealm = \"example.org\"\nuser = [\"alice:correct horse\"]\n");
    for args in [&["check-config", file.path()][..], &["--config", file.path(), "check-config"]] {
        let (code, out, err) = run(args);
        assert_eq!((code, &*err, out.lines().count()), (Some(0), "", 1), "{out}");
        for part in ["192.0.2.10:3478", "49152-65535", "realm example.org", "users 1", "secrets 0"] {
            assert!(out.contains(part), "{part}: {out}");
        }
        assert!(!out.contains("horse"), "{out}");
    }
    let (code, _, err) = run(&["check-config", "/nonexistent.toml"]);
    assert!(code == Some(2) && err.contains("/nonexistent.toml: cannot be read"), "{err}");
    assert!(Path::new(file.path()).exists());
}

/// Starts the relay with a file and returns where it listens.
fn start(file: &File) -> (Program, std::net::SocketAddr) {
    let mut relay = Program::start_with(&["--config", file.path(), "--drain", "0"], &[]);
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    (relay, addr)
}

/// `credentials` with these arguments: the server of `iceServers`.
fn server(args: &[&str]) -> Value {
    let (code, out, err) = run(args);
    assert_eq!(code, Some(0), "{args:?}: {err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    json["iceServers"][0].clone()
}

#[test]
fn printed_credentials_get_an_allocation_with_each_secret() {
    let file = File::new(
        "listen = [\"127.0.0.1:0\"]\nrealm = \"example.org\"\nnamed-secret = [\"2026b:north:1\", \"2026a:west\"]\nsecret = [\"south\"]\n",
    );
    let (relay, addr) = start(&file);
    let base = ["credentials", "--config", file.path(), "--name", "alice", "--ttl"];
    let mut passwords = Vec::new();
    for args in [&["1h"][..], &["2d", "--secret-id", "2026a"]] {
        let server = server(&[&base[..], args].concat());
        let (user, password) = (server["username"].as_str().unwrap(), server["credential"].as_str().unwrap());
        assert!(user.ends_with(":alice"), "{server}");
        assert_eq!(Uri::parse(server["urls"][0].as_str().unwrap()).unwrap().transport, Some(Transport::Udp));
        Client::new(addr, user, password, "example.org").allocate();
        passwords.push((user.to_owned(), password.to_owned()));
    }
    for ((user, password), secret) in passwords.iter().zip(["north:1", "west"]) {
        assert_eq!(*password, time_limited_password(secret, user));
    }
    // The secret without an id is good as well.
    let (user, _) = &passwords[0];
    Client::new(addr, user, &time_limited_password("south", user), "example.org").allocate();
    assert_eq!(relay.terminate(), Some(0));
}

/// The same over HTTP, also with the secret of a file that has changed since the start.
#[test]
fn credentials_of_the_administration_get_an_allocation() {
    let text = |secret: &str| {
        format!(
            "listen = [\"127.0.0.1:0\"]\nrealm = \"example.org\"\nadmin = \"127.0.0.1:0\"\nnamed-secret = [{secret}]\n"
        )
    };
    let file = File::new(&text("\"a:north\", \"b:west\""));
    let (mut relay, addr) = start(&file);
    let admin = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
    let get = |query: &str| crate::admin::get(admin, &format!("/credentials{query}"));
    for (query, secret) in
        [("?name=alice", "north"), ("?name=al%20ice&ttl=2d&secret-id=b", "west"), ("?name=carol", "south")]
    {
        if secret == "south" {
            file.write(&text("\"c:south\""));
            assert_eq!(crate::admin::ask(admin, "POST", "/reload", "").0, 200);
        }
        let (status, body) = get(query);
        assert_eq!(status, 200, "{body}");
        let server = &serde_json::from_str::<Value>(&body).unwrap()["iceServers"][0];
        let (user, password) = (server["username"].as_str().unwrap(), server["credential"].as_str().unwrap());
        assert_eq!(password, time_limited_password(secret, user));
        assert_eq!(server["urls"], serde_json::json!([format!("turn:{addr}?transport=udp")]));
        Client::new(addr, user, password, "example.org").allocate();
    }
    let urls = "?name=a&url=turn:turn.example.org&url=stun:turn.example.org";
    assert!(get(urls).1.contains(r#"["turn:turn.example.org","stun:turn.example.org"]"#));
    for (query, part) in [
        ("", "name: expected a user name"),
        ("?name=alice&ttl=9999d", "ttl: expected a time"),
        ("?name=alice&secret-id=z", "secret-id: there is no named-secret \"z\""),
        ("?name=alice&url=http://x", "url: expected a URI"),
        ("?user=alice", "expected name, ttl, secret-id or url"),
    ] {
        let (status, reason) = get(query);
        assert!(status == 400 && reason.starts_with(part) && reason.lines().count() == 1, "{query}: {reason}");
    }
    assert_eq!(relay.terminate(), Some(0));
}

#[test]
fn printed_uris_are_those_that_clients_reach() {
    let uris = |file: &str, more: &[&str]| {
        let file = File::new(&format!("secret = [\"s\"]\n{file}\n"));
        let base = ["--config", file.path(), "credentials", "--name", "alice"];
        serde_json::from_value::<Vec<String>>(server(&[&base[..], more].concat())["urls"].clone()).unwrap()
    };
    let listed = "listen = [\"192.0.2.10:3478\", \"[2001:db8::10]:53\"]";
    assert_eq!(uris(listed, &[]), ["turn:192.0.2.10:3478?transport=udp", "turn:[2001:db8::10]:53?transport=udp"]);
    let external = "listen = [\"10.0.0.10:3478\"]\nexternal-address = [\"192.0.2.10\"]";
    assert_eq!(uris(external, &[]), ["turn:192.0.2.10:3478?transport=udp"]);
    let wildcard = "listen = [\"0.0.0.0:3478\"]\nexternal-address = [\"192.0.2.10\"]";
    assert_eq!(uris(wildcard, &[]), ["turn:192.0.2.10:3478?transport=udp"]);
    let given = ["--url", "turn:turn.example.org", "--url", "stun:turn.example.org:53"];
    assert_eq!(uris(listed, &given), ["turn:turn.example.org", "stun:turn.example.org:53"]);
}

#[test]
fn a_credential_that_cannot_be_made_is_one_line_and_exit_2() {
    let file = File::new("named-secret = [\"a:north\"]\n");
    let (none, config) = (File::new("user = [\"a:b\"]\n"), ["--config", file.path()]);
    for (args, part) in [
        (&["credentials", "--config", none.path(), "--name", "alice"][..], "secret: expected a secret or named-secret"),
        (
            &[config[0], config[1], "credentials", "--name", "alice", "--secret-id", "b"],
            "--secret-id: there is no named-secret \"b\"",
        ),
        (&[config[0], config[1], "credentials", "--name", "alice", "--ttl", "9999d"], "from 1s to 366d"),
        (
            &[config[0], config[1], "credentials", "--name", "alice", "--url", "http://x"],
            "expected a URI such as turn:",
        ),
        (&[config[0], config[1], "credentials", "--name", ""], "--name: expected a user name"),
        (&[config[0], config[1], "credentials"], "--name"),
        (&[config[0], config[1], "credentials", "--nam", "alice"], "did you mean --name?"),
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, &*out, err.lines().count()), (Some(2), "", 1), "{args:?}: {err}");
        assert!(err.contains(part) && !err.contains("north"), "{args:?}: {err}");
    }
}

#[test]
fn a_hashed_user_gets_an_allocation_and_only_algorithms_that_all_users_have() {
    use std::{io::Write, process::Stdio};
    let mut hash = command(&["hash-password", "--name", "alice", "--realm", "example.org"]);
    let mut child = hash.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"correct horse\n").unwrap();
    let out = child.wait_with_output().unwrap();
    let line = String::from_utf8(out.stdout).unwrap();
    let line = line.trim();
    assert!(line.starts_with("alice:") && line.len() == 6 + 32 + 1 + 64, "{line}");
    // What coturn's turnadmin prints: the MD5 key alone.
    for (value, offered) in [(line, PasswordAlgorithms::SHA256_MD5), (&line[..6 + 32], PasswordAlgorithms::MD5)] {
        let file =
            File::new(&format!("listen = [\"127.0.0.1:0\"]\nrealm = \"example.org\"\nhashed-user = [\"{value}\"]\n"));
        let (relay, addr) = start(&file);
        let mut client = Client::new(addr, "alice", "correct horse", "example.org");
        let challenge = client.exchange(Method::ALLOCATE, &|w| {
            w.attribute(&RequestedTransport::UDP).unwrap();
        });
        assert_eq!(Message::parse(&challenge).unwrap().get::<PasswordAlgorithms<'_>>().unwrap(), Some(offered));
        client.allocate();
        assert_eq!(Client::new(addr, "alice", "wrong", "example.org").try_allocate(&|_| ()).unwrap_err(), 401);
        assert_eq!(relay.terminate(), Some(0));
    }
    let file = File::new("user = [\"alice:x\"]\nhashed-user = [\"alice:00\"]\nnamed-secret = [\"a:s\", \"a:s\"]\n");
    let (code, _, err) = run(&["check-config", file.path()]);
    assert_eq!((code, err.lines().count()), (Some(2), 4), "{err}");
    for part in
        ["expected each user once", "hashed-user: expected NAME:KEYS, but a hashed", "each id once", "each secret once"]
    {
        assert!(err.contains(part), "{part}: {err}");
    }
}

/// coturn's example configuration, as its package has it.
const EXAMPLE: &str = "/usr/share/doc/coturn/examples/etc/turnserver.conf";

/// Lines of the example that are comments, made lines of the configuration. The addresses are the example's own.
const UNCOMMENTED: [&str; 20] = [
    "listening-port=3478",
    "listening-ip=172.17.19.101",
    "relay-ip=172.17.19.105",
    "external-ip=60.70.80.91",
    "relay-threads=0",
    "min-port=49152",
    "max-port=65535",
    "verbose",
    "fingerprint",
    "lt-cred-mech",
    "user=username1:password1",
    "user=ninefingers:0xbc807ee29df3c9ffa736523fb2c4e8ee",
    "realm=mycompany.org",
    "total-quota=0",
    "stale-nonce=600",
    "no-tls",
    "no-multicast-peers",
    "mobility",
    "no-cli",
    "pidfile=\"/var/run/turnserver.pid\"",
];

/// The text of the example with these lines active.
fn example() -> Option<String> {
    if !installed("turnserver") {
        skip("turnserver is not installed (package coturn)");
        return None;
    }
    let mut text = std::fs::read_to_string(EXAMPLE).unwrap();
    for line in UNCOMMENTED {
        let comment = format!("\n#{line}\n");
        assert!(text.contains(&comment), "the example has no {line:?}");
        text = text.replacen(&comment, &format!("\n{line}\n"), 1);
    }
    // Its hashed user is of another realm.
    Some(text.replace("realm=mycompany.org", "realm=north.gov"))
}

#[test]
fn coturns_example_configuration_is_imported_and_serves_a_client() {
    let Some(text) = example() else { return };
    in_namespace("commands::coturns_example_configuration_is_imported_and_serves_a_client", || {
        for address in ["172.17.19.101", "172.17.19.105", "60.70.80.92"] {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        let theirs = File::new(&text);
        let (code, config, notes) = run(&["import", theirs.path()]);
        assert_eq!(code, Some(0), "{notes}");
        for key in ["fingerprint", "stale-nonce", "pidfile", "syslog", "no-rfc5780"] {
            let is_named = |line: &str| {
                line.starts_with(&format!("{}, line ", theirs.path())) && line.contains(&format!(": {key}: "))
            };
            assert!(notes.lines().any(is_named), "{key}: {notes}");
        }
        let ours = File::new(&config);
        let (code, out, err) = run(&["check-config", ours.path()]);
        assert_eq!((code, &*err), (Some(0), ""), "{config}");
        assert!(out.contains("172.17.19.105 → 60.70.80.91") && out.contains("users 2"), "{out}");
        let (relay, addr) = start(&ours);
        for (user, password) in [("username1", "password1"), ("ninefingers", "youhavetoberealistic")] {
            let mut client = Client::at("172.17.19.101:0".parse().unwrap(), addr, user, password, "north.gov");
            assert_eq!(client.allocate().ip().to_string(), "60.70.80.91");
            let peer = std::net::UdpSocket::bind("60.70.80.92:0").unwrap();
            let peer_addr = peer.local_addr().unwrap();
            client.bind_channel(0x4000, peer_addr).unwrap();
            client.socket.send(&channel_data(0x4000, b"through")).unwrap();
            let mut buffer = [0; 20];
            let (len, from) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from.ip().to_string()), (&b"through"[..], "172.17.19.105".to_owned()));
        }
        assert_eq!(relay.terminate(), Some(0));
    });
}

/// Those that are comments too: each is named or translated, none is unknown.
#[test]
fn every_key_of_coturns_example_is_known() {
    let Some(text) = example() else { return };
    let key = |line: &str| {
        let line = line.strip_prefix('#').unwrap_or(line).trim_start();
        let key: String = line.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
        // A line of prose has blanks behind its first word.
        let is_key = !key.is_empty() && (line.len() == key.len() || line[key.len()..].starts_with('='));
        is_key.then_some(key)
    };
    let keys: Vec<_> = text.lines().filter_map(key).collect();
    assert!(keys.len() > 100, "{}", keys.len());
    let file = File::new(&keys.iter().map(|key| format!("{key}=1\n")).collect::<String>());
    let (_, _, notes) = run(&["import", file.path()]);
    let unknown: Vec<_> = notes.lines().filter(|line| line.contains("coturn is not known to have")).collect();
    assert!(unknown.iter().all(|line| line.contains(": OR: ") || line.contains(": Example: ")), "{unknown:#?}");
}

#[test]
fn a_configuration_with_something_essential_missing_is_exit_1_with_the_rest_printed() {
    let file = File::new("listening-ip=192.0.2.10\nuser=alice:secret\nno-auth\n");
    let (code, config, notes) = run(&["import", file.path()]);
    assert_eq!(code, Some(1), "{notes}");
    assert!(config.contains("listen = [\"192.0.2.10:3478\"]"), "{config}");
    assert!(
        notes.lines().any(|line| line.starts_with(&format!("{}, line 3: no-auth: NOT POSSIBLE: ", file.path()))),
        "{notes}"
    );
    let (code, out, err) = run(&["import", "/nonexistent.conf"]);
    assert_eq!((code, &*out, err.lines().count()), (Some(2), "", 1), "{err}");
    assert!(err.contains("/nonexistent.conf: cannot be read"), "{err}");
}

/// A WebRTC service's credentials by coturn's documented recipe go on working.
#[test]
fn a_secret_of_coturns_is_good_for_the_same_credentials() {
    let theirs = File::new(
        "listening-ip=127.0.0.1\nlistening-port=0\nuse-auth-secret\nstatic-auth-secret=north\nrealm=north.gov\n",
    );
    let (code, config, notes) = run(&["import", theirs.path()]);
    assert_eq!(code, Some(0), "{notes}");
    let ours = File::new(&config.replace("127.0.0.1:3478", "127.0.0.1:0"));
    let (relay, addr) = start(&ours);
    let user = "1893456000:alice";
    Client::new(addr, user, &time_limited_password("north", user), "north.gov").allocate();
    assert_eq!(relay.terminate(), Some(0));
}

/// What a package contains is made of the grammar, so it has every command and every key.
#[test]
fn completions_and_the_manual_page_have_every_option() {
    let help = run(&["--help"]).1;
    let options: Vec<_> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
    assert!(options.len() > 25, "{options:?}");
    let (code, page, _) = run(&["man"]);
    assert!(code == Some(0) && page.contains(".TH backwater-relay 1"), "{page}");
    // In roff, a hyphen is escaped.
    let page = page.replace('\\', "");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = run(&["completions", shell]);
        assert_eq!(code, Some(0));
        for option in options.iter().map(|option| option.trim_start_matches('-')) {
            assert!(script.contains(option), "{shell}: {option}");
            assert!(page.contains(&format!("--{option}")), "{option}: {page}");
        }
        assert!(script.contains("check-config") && script.contains("secret-id"), "{shell}");
    }
    let file = File::new(&run(&["completions", "bash"]).1);
    let checked = std::process::Command::new("bash").args(["-n", file.path()]).output();
    match checked {
        Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr)),
        Err(_) => skip("bash is not installed"),
    }
}
