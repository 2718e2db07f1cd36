use std::net::IpAddr;

use super::*;

fn config(args: &[&str], env: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    let args = std::iter::once("backwater-relay").chain(args.iter().copied());
    let matches = Arguments::command().try_get_matches_from(args).unwrap();
    Config::new(&Arguments::read(&matches, variables(env))?)
}

fn variables(env: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

fn problems(args: &[&str]) -> Vec<String> {
    config(args, &[]).unwrap_err().iter().map(ToString::to_string).collect()
}

fn file(text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("backwater-{}-{}.toml", std::process::id(), fastrand::u64(..)));
    std::fs::write(&path, text).unwrap();
    path
}

fn with_file(text: &str, args: &[&str]) -> Result<Config, Vec<ConfigError>> {
    let path = file(text);
    let mut all = vec!["--config", path.to_str().unwrap()];
    all.extend(args);
    let result = config(&all, &[]);
    std::fs::remove_file(path).unwrap();
    result
}

#[test]
fn nothing_given_is_a_first_run_on_loopback() {
    let c = config(&[], &[]).unwrap();
    assert!(c.listen.iter().all(|l| l.ip().is_loopback() && l.port() == 3478));
    let first = c.first_run.unwrap();
    assert!(first.loopback_peers);
    assert_eq!(first.password.len(), 24);
    assert_ne!(first.password, config(&[], &[]).unwrap().first_run.unwrap().password);
    assert_eq!(c.peers.allow.len(), 2);
    assert_eq!(c.relay_v4.unwrap().advertise, IpAddr::from([127, 0, 0, 1]));
}

#[test]
fn loopback_peers_are_not_allowed_once_anything_is_said() {
    let c = config(&["--user", "a:b"], &[]).unwrap();
    assert!(c.first_run.is_none() && c.peers.allow.is_empty());
    let c = config(&["--allow-peer", "10.0.0.0/8"], &[]).unwrap();
    assert!(!c.first_run.unwrap().loopback_peers);
    assert_eq!(c.peers.allow.len(), 1);
}

#[test]
fn the_command_line_counts_before_the_environment_and_that_before_the_file() {
    let env = [("BACKWATER_RELAY_REALM", "env"), ("BACKWATER_RELAY_LISTEN", "127.0.0.1:1,127.0.0.2:2")];
    let c = config(&["--realm", "flag"], &env).unwrap();
    assert_eq!((c.credentials.realm(), c.listen.len()), ("flag", 2));
    assert_eq!(config(&[], &env).unwrap().credentials.realm(), "env");
    let c = with_file("realm = \"file\"\nthreads = 1\nallow-peer = [\"10.0.0.1\", \"::1/128\"]", &["--threads", "1"]);
    let c = c.unwrap();
    assert_eq!((c.credentials.realm(), c.threads, c.peers.allow.len()), ("file", 1, 2));
}

#[test]
fn every_mistake_is_named_with_what_was_expected() {
    let all =
        problems(&["--listen", "localhost", "--ports", "9-8", "--threads", "0", "--user", "x", "--deny-peer", "y"]);
    assert_eq!(all.len(), 5, "{all:?}");
    for (line, parts) in all.iter().zip([
        ["--listen", "expected an address and a port", "\"localhost\""],
        ["--ports", "expected two ports", "\"9-8\""],
        ["--deny-peer", "expected an address or a prefix", "\"y\""],
        ["--threads", "expected a number from 1", "found 0"],
        ["--user", "expected NAME:PASSWORD", "no colon"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)) && !line.contains('\n'), "{line}");
    }
}

#[test]
fn others_than_this_host_need_a_credential() {
    assert!(problems(&["--listen", "192.0.2.1:3478"])[0].starts_with("user: expected a user"));
    config(&["--listen", "192.0.2.1:3478", "--secret", "s"], &[]).unwrap();
}

#[test]
fn a_wildcard_listener_needs_a_relay_address() {
    let wild = ["--listen", "0.0.0.0:3478", "--user", "a:b"];
    assert!(problems(&wild)[0].contains("relay-address: expected"));
    let c = config(&[&wild[..], &["--relay-address", "10.0.0.5", "--external-address", "192.0.2.5"]].concat(), &[]);
    let ip = c.unwrap().relay_v4.unwrap();
    assert_eq!((ip.bind, ip.advertise), ([10, 0, 0, 5].into(), [192, 0, 2, 5].into()));
    assert!(problems(&[&wild[..], &["--relay-address", "0.0.0.0"]].concat())[0].contains("found the wildcard"));
    let c = config(&[&wild[..], &["--external-address", "192.0.2.5"]].concat(), &[]);
    let ip = c.unwrap().relay_v4.unwrap();
    assert_eq!((ip.bind, ip.advertise), ([0, 0, 0, 0].into(), [192, 0, 2, 5].into()), "for containers");
    let two = ["--relay-address", "10.0.0.5", "--relay-address", "10.0.0.6"];
    assert!(problems(&[&wild[..], &two].concat())[0].contains("one address of each family"));
}

#[test]
fn external_address_may_be_asked_of_a_stun_server() {
    let wild = ["--listen", "0.0.0.0:3478", "--user", "a:b"];
    let external =
        |value: &str| config(&[&wild[..], &["--external-address", value]].concat(), &[]).map_err(|e| e[0].to_string());
    for (uri, host, port) in [
        ("stun:stun.example.org", "stun.example.org", 3478),
        ("stun:stun.example.org:19302", "stun.example.org", 19302),
        ("stun:[2001:db8::1]:1", "2001:db8::1", 1),
    ] {
        assert_eq!(external(uri).unwrap().external_server, Some((host.into(), port)));
    }
    for wrong in ["turn:stun.example.org", "stuns:stun.example.org", "stun.example.org", "stun:", "stun:host:x"] {
        let problem = external(wrong).unwrap_err();
        assert!(problem.contains("expected an IP address, or stun:HOST:PORT") && problem.contains(wrong), "{problem}");
    }
    let both = [&wild[..], &["--external-address", "192.0.2.5", "--external-address", "stun:a"]].concat();
    assert!(problems(&both)[0].contains("one stun:HOST:PORT, found both"));
}

#[test]
fn a_password_is_never_shown() {
    for args in [&["--user", ":hunter2"][..], &["--user", "a\u{1}:hunter2"], &["--user", "hunter2"]] {
        assert!(!problems(args).concat().contains("hunter2"));
    }
}

#[test]
fn a_file_that_is_wrong_is_named_with_the_line_or_the_key() {
    let lines = |text: &str| with_file(text, &[]).unwrap_err();
    assert!(lines("realm = \"a\"\nthreads = = 3")[0].key.ends_with(", line 2"));
    let two = lines("relm = \"a\"\nuser = [1.5]\n");
    assert!(two[0].key.ends_with(": relm") && two[0].problem == "unknown; did you mean realm?", "{two:?}");
    assert!(lines("colour = 1")[0].problem.contains("unknown; expected one of listen,"));
    assert!(two[1].key.ends_with(": user") && two[1].problem.contains("array of strings"), "{two:?}");
    assert!(lines("threads = 0")[0].problem.contains("from 1"));
    let missing = config(&["--config", "/nonexistent/relay.toml"], &[]).unwrap_err();
    assert!(missing[0].problem.contains("cannot be read"));
}

#[test]
fn rules_that_cannot_be_met_are_all_named() {
    let all = problems(&[
        "--allow-peer",
        "10.1.0.0/16",
        "--deny-peer",
        "10.0.0.0/8",
        "--nat64-prefix",
        "2001:db8::/33",
        "--nat64-prefix",
        "10.0.0.0/8",
    ]);
    assert_eq!(all.len(), 3, "{all:?}");
    for (key, part) in [
        ("--allow-peer", "10.1.0.0/16 can never be allowed, since deny-peer has 10.0.0.0/8"),
        ("--nat64-prefix: expected an IPv6 prefix", "found \"10.0.0.0/8\""),
        ("--nat64-prefix: expected an IPv6 prefix", "found \"2001:db8::/33\""),
    ] {
        assert!(all.iter().any(|line| line.starts_with(key) && line.contains(part)), "{part}: {all:?}");
    }
    config(&["--allow-peer", "10.0.0.0/8", "--deny-peer", "10.1.0.0/16", "--nat64-prefix", "2001:db8::/96"], &[])
        .unwrap();
}

#[test]
fn limits_that_cannot_be_met_are_all_named() {
    let all = problems(&[
        "--ports",
        "50000-50009",
        "--listen",
        "127.0.0.1:3478",
        "--max-allocations",
        "11",
        "--max-channels",
        "5",
        "--max-channels-per-user",
        "6",
        "--max-bytes-per-second",
        "1000",
        "--max-bytes-per-second-per-user",
        "1001",
        "--max-permissions",
        "0",
        "--reply-limit",
        "-1",
    ]);
    for part in [
        "--max-permissions: expected a number from 1",
        "--max-channels-per-user: expected at most the 5 of max-channels, found 6",
        "--max-bytes-per-second-per-user: expected at most the 1000 of max-bytes-per-second, found 1001",
        "--reply-limit: expected a number from 0",
        "--max-allocations: expected at most 10, as many as there are ports, found 11",
    ] {
        assert!(all.iter().any(|line| line.starts_with(part)), "{part}: {all:?}");
    }
    assert_eq!(all.len(), 5, "{all:?}");
    config(&["--max-allocations", "10", "--max-allocations-per-user", "10", "--reply-limit", "0"], &[]).unwrap();
}

#[test]
fn what_to_do_without_room() {
    use std::time::Duration;
    let wait = |ms| Policy::Wait { deadline: Duration::from_millis(ms) };
    let of = |args: &[&str]| config(args, &[]).unwrap();
    let nothing = of(&[]);
    assert_eq!((nothing.policy, nothing.breaker, nothing.admin), (wait(100), None, None));
    assert_eq!(of(&["--backpressure", "wait:50ms"]).policy, wait(50));
    assert_eq!(config(&[], &[("BACKWATER_RELAY_BACKPRESSURE", "drop")]).unwrap().policy, Policy::Drop);
    assert_eq!(with_file("backpressure = \"wait:2s\"\n", &[]).unwrap().policy, wait(2000));
    assert_eq!(of(&["--breaker", "off"]).breaker, None);
    let both = of(&["--breaker", "lost-edges=10/min,stall=5s"]).breaker.unwrap();
    assert_eq!((both.lost_edges, both.stall), (Some(10), Some(Duration::from_secs(5))));
    for (args, expected) in [
        (["--backpressure", "maybe"], "--backpressure: expected wait,"),
        (["--backpressure", "wait:2m"], "--backpressure: expected wait,"),
        (["--backpressure", "wait:61s"], "--backpressure: expected a deadline from 1ms to 60s"),
        (["--breaker", "on"], "--breaker: expected limits such as lost-edges="),
        (["--admin", "9479"], "--admin: expected an address and a port"),
        (["--admin", "0.0.0.0:9479"], "--admin: expected an address on loopback"),
        (["--admin", "[2001:db8::1]:9479"], "--admin: expected an address on loopback"),
    ] {
        let all = problems(&args);
        assert!(all.len() == 1 && all[0].starts_with(expected) && all[0].contains(args[1]), "{all:?}");
    }
    assert!(of(&["--admin", "[::1]:9479"]).admin.is_some());
    let token = "a-token-of-20-chars.";
    assert_eq!(of(&["--admin", "0.0.0.0:9479", "--admin-token", token]).admin_token.unwrap().0, token.into());
    for token in ["too-short", "with blanks inside it", "mit-Ümlauten-und-mehr"] {
        let all = problems(&["--admin", "0.0.0.0:9479", "--admin-token", token]);
        assert!(
            all.len() == 1 && all[0].starts_with("--admin-token: expected 16") && !all[0].contains(token),
            "{all:?}"
        );
    }
}

#[test]
fn help_explains_every_key() {
    let help = Arguments::command().render_long_help().to_string();
    for key in KEYS {
        assert!(help.contains(&format!("--{} <{}>", key.name, key.value)), "{}", key.name);
    }
}

#[test]
fn debug_shows_no_password() {
    const HIDDEN: [&str; 3] = ["hunter2", "hush-hush", "in-the-file"];
    let text = "secret = \"in-the-file\"\n";
    let path = file(text);
    let arguments = ["relay", "--config", path.to_str().unwrap(), "--user", "a:hunter2", "--secret", "hush-hush"];
    let matches = Arguments::command().try_get_matches_from(arguments).unwrap();
    let arguments = Arguments::read(&matches, []).unwrap();
    std::fs::remove_file(path).unwrap();
    let shown = format!("{arguments:?} {:#?}", Config::new(&arguments).unwrap());
    assert!(shown.contains("--user") && !HIDDEN.iter().any(|password| shown.contains(password)), "{shown}");
    let first = config(&[], &[]).unwrap();
    assert!(!format!("{first:?}").contains(&first.first_run.unwrap().password));
}

#[cfg(unix)]
#[test]
fn file_with_secrets_that_others_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    for (text, mode, warned) in [
        ("user = \"a:b\"", 0o644, true),
        ("secret = [\"s\"]", 0o640, true),
        ("user = \"a:b\"", 0o600, false),
        ("realm = \"example.org\"", 0o644, false),
    ] {
        let path = file(text);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let warning = config(&["--config", path.to_str().unwrap()], &[]).unwrap().exposed_secrets();
        std::fs::remove_file(&path).unwrap();
        let expected =
            format!("{}: others can read the passwords in it (mode {mode:04o}): chmod 600 it", path.display());
        assert_eq!(warning, warned.then_some(expected), "{text}");
    }
}

/// Blanks belong to a password. In a list of the environment, commas and backslashes of a value are written with a backslash.
#[test]
fn values_are_taken_as_written() {
    let given = |args: &[&str], env: &[(&str, &str)]| {
        let args = std::iter::once("backwater-relay").chain(args.iter().copied());
        let matches = Arguments::command().try_get_matches_from(args).unwrap();
        let arguments = Arguments::read(&matches, variables(env)).unwrap();
        let settings = Settings::read(&arguments.values, &mut vec![]);
        [settings.user, settings.secret].into_iter().flat_map(|s| s.values).map(|Secret(s)| s).collect::<Vec<_>>()
    };
    assert_eq!(given(&["--user", "alice: a b "], &[]), ["alice: a b "]);
    assert_eq!(given(&["--secret", " a,b "], &[]), [" a,b "]);
    assert_eq!(given(&[], &[("BACKWATER_RELAY_SECRET", r" a\,b ,c\d,")]), [" a,b ", r"c\d", ""]);
    for (written, meant) in
        [(r"a\\,b", &[r"a\", "b"][..]), (r"a\\\,b", &[r"a\,b"]), (r"a\\b\", &[r"a\b\"]), (r"\\\\,\,", &[r"\\", ","])]
    {
        assert_eq!(given(&[], &[("BACKWATER_RELAY_SECRET", written)]), meant, "{written}");
        let joined =
            meant.iter().map(|value| value.replace('\\', r"\\").replace(',', r"\,")).collect::<Vec<_>>().join(",");
        assert_eq!(given(&[], &[("BACKWATER_RELAY_SECRET", &joined)]), meant, "{joined}");
    }
    assert_eq!(given(&["--secret", r"a\\,b\,"], &[]), [r"a\\,b\,"], "a flag has one value");
    let c = config(&[], &[("BACKWATER_RELAY_LISTEN", "127.0.0.1:1, 127.0.0.2:2 ")]).unwrap();
    assert_eq!(c.listen.len(), 2, "an address has no blanks");
}

#[test]
fn what_is_given_twice_is_an_error() {
    let user = problems(&["--user", "alice:hunter2", "--user", "bob:x", "--user", "alice:other"]);
    assert_eq!(user, ["--user: expected each user once, found \"alice\" twice"]);
    let secret = problems(&["--secret", "hunter2", "--secret", "hunter2"]);
    assert_eq!(secret, ["--secret: expected each secret once, found one twice"]);
    let listen = problems(&["--listen", "127.0.0.1:3478", "--listen", "127.0.0.1:3478"]);
    assert_eq!(listen, ["--listen: expected each address once, found 127.0.0.1:3478 twice"]);
    config(&["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"], &[]).unwrap();
}

#[test]
fn a_mistyped_variable_is_an_error_with_what_may_have_been_meant() {
    let all =
        config(&[], &[("BACKWATER_RELAY_RELM", "a"), ("BACKWATER_RELAY_COLOUR", "b"), ("HOME", "c")]).unwrap_err();
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    assert!(all[0].starts_with("BACKWATER_RELAY_COLOUR: unknown; backwater-relay --help has all"), "{all:?}");
    assert_eq!(all[1], "BACKWATER_RELAY_RELM: unknown; did you mean BACKWATER_RELAY_REALM?");
    assert_eq!(all.len(), 2, "{all:?}");
}

#[test]
fn a_mistyped_flag_is_one_line_with_what_may_have_been_meant() {
    let line = |args: &[&str]| {
        let args = std::iter::once("backwater-relay").chain(args.iter().copied());
        Arguments::explain(&Arguments::command().try_get_matches_from(args).unwrap_err())
    };
    assert_eq!(line(&["--lisen", "127.0.0.1:1"]), "--lisen: unknown; did you mean --listen?");
    assert_eq!(line(&["--colour"]), "--colour: unknown; backwater-relay --help has all of them");
    assert!(line(&["--realm", "a", "--realm", "b"]).contains("--realm"));
}

#[test]
fn an_unknown_key_hides_no_other_mistake() {
    let all = with_file("relm = \"a\"\nports = \"x\"\nthreads = []\n", &["--max-lifetime", "1"]).unwrap_err();
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    for mistake in
        ["relm: unknown; did you mean realm?", "ports: expected", "threads: expected", "--max-lifetime: expected"]
    {
        assert!(all.iter().any(|line| line.contains(mistake)), "{mistake}: {all:?}");
    }
    assert_eq!(all.len(), 4, "{all:?}");
}

#[test]
fn a_log_level_is_among_all_that_is_wrong() {
    let all = problems(&["--ports", "y", "--log-level", "wran"]);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[1].starts_with("--log-level: expected a level or a filter: "), "{all:?}");
}

#[test]
fn a_file_of_coturn_is_recognised() {
    let turnserver = "listening-port=3478\nlt-cred-mech\nuser=alice:secret\nrealm=example.org\nexternal-ip=192.0.2.1\n";
    let all = with_file(turnserver, &[]).unwrap_err();
    let line = all[0].to_string();
    assert!(all.len() == 1 && line.contains("configuration of coturn"), "{line}");
    assert!(line.contains("listening-port is listen") && line.contains("external-ip is external-address"), "{line}");
    let all = with_file("listening-port=3478\nuser=alice:secret\nrealm=example.org\n", &[]).unwrap_err();
    assert!(all.len() == 1 && all[0].problem.contains("configuration of coturn"), "one key of its own: {all:?}");
    let all = with_file("listening-port = 3478\nmin-port = 1000\n", &[]).unwrap_err();
    assert!(all.len() == 1 && all[0].problem.contains("configuration of coturn"), "also when it is TOML: {all:?}");
}

#[test]
fn an_external_address_needs_a_listener_of_its_family() {
    let all = problems(&["--listen", "127.0.0.1:1", "--user", "a:b", "--external-address", "2001:db8::1"]);
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].starts_with("--external-address: expected an IPv4 address"), "{all:?}");
}

#[test]
fn an_empty_list_of_listeners_is_named() {
    let all: Vec<_> = with_file("listen = []\nuser = [\"a:b\"]\n", &[]).unwrap_err();
    assert!(all.len() == 1 && all[0].key.ends_with(": listen"), "{all:?}");
}

/// A key that is declared and never read would be without effect, and nobody would be told.
#[test]
fn every_key_is_read() {
    for key in KEYS {
        let flag = format!("--{}", key.name);
        let wrong = if key.name == "secret" { "" } else { "\u{1}" };
        let all = problems(&[&flag, wrong]);
        assert!(all.iter().any(|line| line.starts_with(&format!("{flag}: "))), "{flag}: {all:?}");
    }
}

#[test]
fn a_mistake_in_the_file_has_its_line() {
    let all = with_file("realm = \"a\"\nthreads = 0\n\nlisten = [\n  \"x\",\n]\nrelm = 1\n", &[]).unwrap_err();
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    for mistake in [", line 7: relm: unknown", ", line 2: threads: expected", ", line 4: listen: expected"] {
        assert!(all.iter().any(|line| line.contains(mistake)), "{mistake}: {all:?}");
    }
}

/// A value of another type is no text: `true` would become the realm.
#[test]
fn a_value_of_the_wrong_type_is_named_with_what_was_found() {
    let all = with_file("realm = true\nthreads = [2]\nuser = [1.5]\nports = {}\nlog-allocations = true\n", &[]);
    let all: Vec<_> = all.unwrap_err().iter().map(ToString::to_string).collect();
    for mistake in [
        ", line 1: realm: expected a string or a number: NAME, found a boolean",
        ", line 2: threads: expected a string or a number: N, found an array",
        ", line 3: user: expected an array of strings: NAME:PASSWORD, found a float",
        ", line 4: ports: expected a string or a number: FIRST-LAST, found a table",
    ] {
        assert!(all.iter().any(|line| line.ends_with(mistake)), "{mistake}: {all:?}");
    }
    assert_eq!(all.len(), 4, "{all:?}");
}

#[test]
fn manual_names_each_key_that_needs_a_restart() {
    let manual = include_str!("../../../../docs/relay.md");
    let list = manual.split("- **What needs a restart**").nth(1).unwrap().split("\n- ").next().unwrap();
    let fixed: Vec<_> = KEYS.iter().filter(|key| !key.is_live).map(|key| key.name).collect();
    let named: Vec<_> = list.split('`').skip(1).step_by(2).filter(|name| *name != "listen").collect();
    assert_eq!(named, fixed);
}
