//! The program as an operator meets it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::UdpSocket,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{in_namespace, installed, skip};

pub struct Program {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts the relay and waits for as many listeners as it is to have.
    pub fn start(args: &[&str], listeners: usize) -> Self {
        let mut program = Self::start_with(args, &[]);
        for _ in 0..listeners {
            program.line("listening for TURN over UDP");
        }
        program
    }

    /// Starts the relay with these variables of the environment.
    pub fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::spawn(command(args).envs(env.iter().copied()))
    }

    /// Starts the relay by a program that is to start it.
    #[cfg(target_os = "linux")]
    pub fn start_within(starter: &[String], args: &[&str]) -> Self {
        let mut command = Command::new(&starter[0]);
        Self::spawn(command.args(&starter[1..]).arg(env!("CARGO_BIN_EXE_backwater-relay")).args(args))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads the log until a line whose message contains `text`.
    pub fn line(&mut self, text: &str) -> Value {
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if line["message"].as_str().unwrap().contains(text) {
                return line;
            }
        }
        panic!("no line with {text:?} before the end");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by SIGTERM and returns its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        self.line("stopped");
        self.child.wait().unwrap().code()
    }

    /// As [`terminate`](Self::terminate), with what it had logged since the last line that was read.
    pub fn terminate_and_read(mut self) -> (Option<i32>, Vec<Value>) {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let lines = self.lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        (self.child.wait().unwrap().code(), lines)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backwater-relay"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BACKWATER_RELAY_")) {
        command.env_remove(name);
    }
    command.args(args);
    command
}

pub fn run(args: &[&str]) -> (Option<i32>, Vec<String>) {
    let Output { status, stderr, .. } = command(args).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap().lines().map(str::to_owned).collect())
}

const QUIET: [&str; 6] = ["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "0"];

#[test]
fn a_first_run_says_how_to_try_it() {
    in_namespace("program::a_first_run_says_how_to_try_it", || {
        let mut relay = Program::start(&[], 1);
        let made_up = relay.line("made up");
        let try_it = relay.line("try it: ");
        let (user, password) = (made_up["username"].as_str().unwrap(), made_up["password"].as_str().unwrap());
        let want = format!("try it: turnutils_uclient -y -u {user} -w {password} -p 3478 127.0.0.1");
        assert_eq!(try_it["message"], want);
        assert_eq!(relay.line("PEERS ON LOOPBACK ARE ALLOWED")["severity"], "WARN");
        if installed("turnutils_uclient") {
            let words: Vec<_> = want.split_whitespace().skip(2).collect();
            let tried = Command::new(words[0]).args(&words[1..]).output().unwrap();
            assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stdout));
        } else {
            skip("turnutils_uclient is not installed (package coturn)");
        }
        assert_eq!(relay.terminate(), Some(0));
    });
}

#[test]
fn every_line_of_the_log_is_an_object_with_time_severity_and_message() {
    let mut child = command(&[&QUIET[..], &["--log-level", "trace"]].concat()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdout, mut out) = (BufReader::new(child.stdout.take().unwrap()), String::new());
    while !out.contains("listening for TURN") {
        assert!(stdout.read_line(&mut out).unwrap() > 0, "it ended: {out}");
    }
    let stop = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(stop.success());
    stdout.read_to_string(&mut out).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(out.lines().count() >= 3, "{out}");
    for line in out.lines() {
        let object: Value = serde_json::from_str(line).unwrap();
        for key in ["time", "severity", "message"] {
            assert!(object[key].is_string(), "{key} in {line}");
        }
        assert!(object["time"].as_str().unwrap().ends_with('Z'));
    }
    if !installed("jq") {
        return skip("jq is not installed (package jq)");
    }
    let mut jq = Command::new("jq")
        .args(["-r", r#""\(.time) \(.severity) \(.message)""#])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    jq.stdin.take().unwrap().write_all(out.as_bytes()).unwrap();
    let read = jq.wait_with_output().unwrap();
    assert!(read.status.success());
    assert_eq!(String::from_utf8(read.stdout).unwrap().lines().count(), out.lines().count());
}

#[test]
fn a_bad_configuration_is_one_line_a_mistake_and_exit_2() {
    for (args, parts) in [
        (&["--listen", "nowhere"][..], &["--listen: expected an address and a port", "\"nowhere\""][..]),
        (&["--nonsense"], &["--nonsense"]),
        (&["--threads"], &["--threads"]),
        (&["--config", "/nonexistent.toml"], &["/nonexistent.toml: cannot be read"]),
        (&["--log-level", "a=b=c", "--listen", "127.0.0.1:0"], &["log-level: expected a level or a filter"]),
        (&["--listen", "0.0.0.0:0"], &["user: expected a user"]),
    ] {
        let (code, lines) = run(args);
        assert_eq!((code, lines.len()), (Some(2), 1), "{args:?}: {lines:?}");
        assert!(parts.iter().all(|part| lines[0].contains(part)), "{args:?}: {lines:?}");
    }
    let (code, lines) = run(&["--listen", "x", "--ports", "y", "--user", "z"]);
    assert_eq!((code, lines.len()), (Some(2), 3), "{lines:?}");
}

/// A `listen` or `relay-address` that is not this host's: the remedy is on the line.
#[test]
fn an_address_of_another_host_is_one_line_and_exit_1() {
    let (code, lines) = run(&["--listen", "192.0.2.77:3478", "--user", "a:b"]);
    assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");
    assert!(
        lines[0].contains("cannot listen on 192.0.2.77:3478: ") && lines[0].contains("external-address"),
        "{lines:?}"
    );
    let (code, lines) = run(&[&QUIET[..], &["--relay-address", "192.0.2.77"]].concat());
    assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");
    assert!(lines[0].contains("cannot relay from 192.0.2.77: ") && lines[0].contains("external-address"), "{lines:?}");
}

/// The first 508 for want of a port is a warning with the remedy; the next ones within a minute are counted only.
#[test]
fn an_exhausted_port_range_is_one_warning_with_the_remedy() {
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut relay =
        Program::start(&[&QUIET[..], &["--threads", "1", "--ports", &format!("{free}-{free}")]].concat(), 0);
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    let mut clients: Vec<_> =
        (0..4).map(|_| crate::client::Client::new(addr, "alice", "secret", "backwater")).collect();
    let results: Vec<_> = clients.iter_mut().map(|client| client.try_allocate(&|_| ()).map(drop)).collect();
    assert_eq!(results, [Ok(()), Err(508), Err(508), Err(508)]);
    let (code, lines) = relay.terminate_and_read();
    let warnings: Vec<_> = lines.iter().filter(|line| line["severity"] == "WARN").collect();
    assert_eq!((code, warnings.len()), (Some(0), 1), "{lines:?}");
    assert!(warnings[0]["message"].as_str().unwrap().contains("508"), "{}", warnings[0]);
    assert!(warnings[0]["remedy"].as_str().unwrap().contains("ports"), "{}", warnings[0]);
}

/// Like that of a port range, but a limit of the configuration: each limit has its own line.
#[test]
fn a_limit_that_is_reached_is_one_warning_with_its_key() {
    let limits = ["--threads", "1", "--max-allocations-per-user", "2", "--max-allocations", "3", "--max-channels", "1"];
    let mut relay = Program::start(&[&QUIET[..], &["--user", "bob:secret"], &limits].concat(), 0);
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    let users = ["alice", "alice", "alice", "alice", "bob", "bob", "bob"];
    let mut clients = users.map(|user| crate::client::Client::new(addr, user, "secret", "backwater"));
    let results = clients.each_mut().map(|client| client.try_allocate(&|_| ()).map_or_else(|code| code, |_| 0));
    assert_eq!(results, [0, 0, 486, 486, 0, 508, 508]);
    for (number, code) in [(0x4000, 0), (0x4001, 508), (0x4002, 508)] {
        let bound = clients[0].bind_channel(number, ([9, 9, 9, 9], number).into());
        assert_eq!(bound.map_or_else(|code| code, |_| 0), code);
    }
    let (code, lines) = relay.terminate_and_read();
    let warnings: Vec<_> = lines.iter().filter(|line| line["severity"] == "WARN").collect();
    let expected = [
        ("user_allocations", 486, "alice", "max-allocations-per-user"),
        ("total_allocations", 508, "bob", "max-allocations"),
        ("channels", 508, "alice", "max-channels"),
    ];
    assert_eq!((code, warnings.len()), (Some(0), expected.len()), "{lines:?}");
    for (line, (limit, code, user, key)) in warnings.into_iter().zip(expected) {
        assert_eq!(
            (&line["limit"], &line["code"], &line["user"]),
            (&limit.into(), &code.into(), &user.into()),
            "{line}"
        );
        assert!(line["remedy"].as_str().unwrap().contains(&format!("raise {key}")), "{line}");
        assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
}

fn signal(relay: &Program, name: &str) {
    assert!(Command::new("kill").args([name, &relay.pid().to_string()]).status().unwrap().success());
}

/// SIGHUP reads the file again; without one it does nothing. SIGUSR1 and SIGUSR2, which mean something to other relays, neither.
#[test]
fn sighup_reloads_and_no_signal_but_those_that_end_it_does() {
    let path = std::env::temp_dir().join(format!("backwater-hangup-{}.toml", std::process::id()));
    std::fs::write(&path, "backpressure = \"wait\"\n").unwrap();
    let mut relay = Program::start(&[&QUIET[..], &["--config", path.to_str().unwrap()]].concat(), 1);
    std::fs::write(&path, "backpressure = \"drop\"\nrealm = \"example.org\"\n").unwrap();
    signal(&relay, "-HUP");
    relay.line("SIGHUP: the configuration file is read again");
    assert_eq!(relay.line("back-pressure policy switched")["policy"], "drop");
    assert_eq!(relay.line("need a restart")["keys"], "realm");
    std::fs::write(&path, "backpressure = \"sometimes\"\n").unwrap();
    signal(&relay, "-HUP");
    relay.line("the configuration file is invalid");
    std::fs::remove_file(&path).unwrap();
    for name in ["-USR1", "-USR2", "-HUP"] {
        signal(&relay, name);
    }
    relay.line("SIGHUP");
    assert_eq!(relay.terminate(), Some(0));

    let mut relay = Program::start(&QUIET, 1);
    signal(&relay, "-HUP");
    relay.line("SIGHUP: there is no configuration file to read again");
    signal(&relay, "-QUIT");
    relay.line("stopping");
    assert_eq!(relay.terminate(), Some(0));
}

/// Whoever does not want to wait for the clients any longer says so by a second signal.
#[test]
fn a_second_sigterm_ends_the_drain() {
    let mut relay = Program::start(&["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "3600"], 0);
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    let mut client = crate::client::Client::new(addr, "alice", "secret", "backwater");
    client.allocate();
    signal(&relay, "-TERM");
    relay.line("stopping");
    assert_eq!(relay.terminate(), Some(0));
}

#[test]
fn a_port_in_use_is_one_line_and_exit_1() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for threads in ["1", "2"] {
        let (code, lines) = run(&["--listen", &addr, "--user", "a:b", "--threads", threads]);
        assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");
        assert!(lines[0].contains(&format!("cannot listen on {addr}: ")), "{lines:?}");
    }
    let relay = Program::start(&[&QUIET[..], &["--threads", "2"]].concat(), 0);
    let mut relay = relay;
    let addr = relay.line("listening")["listener"].as_str().unwrap().to_owned();
    let (code, _) = run(&["--listen", &addr, "--user", "a:b", "--threads", "2"]);
    assert_eq!(code, Some(1), "a second relay must not share the port of the first");
    assert_eq!(relay.terminate(), Some(0));
}

/// "Forbidden" that nobody can explain is what users of relays complain of: the log has the rule and the remedy.
#[test]
fn a_403_is_explained_in_the_log() {
    let args = ["--listen", "[::1]:0", "--user", "alice:secret", "--deny-peer", "8.8.8.0/24", "--drain", "0"];
    let args = [&args[..], &["--log-level", "backwater_relay=debug"]].concat();
    let mut relay = Program::start(&args, 0);
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    let mut client = crate::client::Client::new(addr, "alice", "secret", "backwater");
    client
        .try_allocate(&|w| {
            w.attribute(&backwater_stun::RequestedAddressFamily(backwater_stun::AddressFamily::Ipv6)).unwrap();
        })
        .unwrap();
    for (peer, why, remedy) in [
        ("[fd00::1]:9", "it is in fc00::/7 (unique local), which is refused unless allowed", "add the address"),
        ("[2002:a00:1::]:9", "it stands for 10.0.0.1, which is in 10.0.0.0/8 (private use), which is", "add the IPv4"),
        (
            "[64:ff9b::808:808]:9",
            "it stands for 8.8.8.8, which is in the denied prefix 8.8.8.0/24",
            "take the prefix out",
        ),
    ] {
        assert_eq!(client.permit(peer.parse().unwrap()).unwrap_err(), 403);
        let line = relay.line("peer refused with 403");
        assert_eq!(line["peer"], peer);
        assert!(line["why"].as_str().unwrap().starts_with(why), "{line}");
        assert!(line["remedy"].as_str().unwrap().starts_with(remedy), "{line}");
    }
    assert_eq!(relay.terminate(), Some(0));
}

/// Starts the relay with such a limit of descriptors, and returns where it listens.
fn with_limit(limit: &str, args: &[&str]) -> (Program, std::net::SocketAddr) {
    let script = format!(r#"ulimit {limit}; exec "$0" "$@""#);
    let mut command = Command::new("sh");
    let mut relay =
        Program::spawn(command.args(["-c", &script, env!("CARGO_BIN_EXE_backwater-relay")]).args(QUIET).args(args));
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    (relay, addr)
}

/// Many systems let a program have 1,024 descriptors unless it asks for more.
#[test]
fn a_low_limit_of_descriptors_is_raised() {
    let (relay, addr) = with_limit("-Sn 64", &[]);
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = crate::client::Client::new(addr, "alice", "secret", "backwater");
        client.allocate();
        clients.push(client);
    }
    assert_eq!(relay.terminate(), Some(0));
}

/// Without a descriptor a new client gets 508, the others go on, and what one gives back another one gets.
#[test]
fn descriptors_that_run_out_are_508() {
    let (mut relay, addr) = with_limit("-n 64", &[]);
    let mut clients: Vec<_> =
        (0..100).map(|_| crate::client::Client::new(addr, "alice", "secret", "backwater")).collect();
    let results: Vec<_> = clients.iter_mut().map(|client| client.try_allocate(&|_| ()).map(drop)).collect();
    let allocated = results.iter().filter(|result| result.is_ok()).count();
    assert!((20..64).contains(&allocated), "{allocated}");
    assert!(results[allocated..].iter().all(|result| *result == Err(508)), "{results:?}");
    clients[0]
        .request(backwater_stun::Method::REFRESH, &|w| {
            w.attribute(&backwater_stun::Lifetime(0)).unwrap();
        })
        .unwrap();
    assert!(relay.line("508")["remedy"].as_str().unwrap().contains("LimitNOFILE"));
    clients[99].allocate();
    clients[1].request(backwater_stun::Method::REFRESH, &|_| ()).unwrap();
    assert_eq!(relay.terminate(), Some(0));
}

/// What restarts a relay by its /healthz must not do so because it has as many clients as it can take.
#[test]
fn healthz_answers_when_descriptors_are_used_up() {
    let (mut relay, addr) = with_limit("-n 64", &["--admin", "127.0.0.1:0"]);
    let admin = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
    let mut clients: Vec<_> =
        (0..100).map(|_| crate::client::Client::new(addr, "alice", "secret", "backwater")).collect();
    let refused = clients.iter_mut().filter_map(|client| client.try_allocate(&|_| ()).err()).count();
    assert!(refused > 30, "{refused}");
    let idle: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(admin).unwrap()).collect();
    for _ in 0..5 {
        assert_eq!(crate::admin::get(admin, "/healthz"), (200, "ok\n".to_owned()));
    }
    drop(idle);
    assert_eq!(relay.terminate(), Some(0));
}

#[test]
fn sigterm_waits_for_clients_as_long_as_it_was_told() {
    let mut relay = Program::start(&["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "3"], 0);
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    let mut client = crate::client::Client::new(addr, "alice", "secret", "backwater");
    client.allocate();
    let start = Instant::now();
    let pid = relay.pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    relay.line("stopping");
    let mut late = crate::client::Client::new(addr, "alice", "secret", "backwater");
    assert_eq!(late.try_allocate(&|_| ()).unwrap_err(), 508);
    relay.line("stopped");
    assert!(start.elapsed() >= Duration::from_millis(2900), "{:?}", start.elapsed());
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
}
