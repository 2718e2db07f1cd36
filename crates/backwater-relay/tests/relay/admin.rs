//! The administration: over HTTP, through the configuration file, and by the relay itself.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use backwater_relay::Relay;
use backwater_udp::Policy;

use crate::{
    client::{Client, channel_data, client, peer, start},
    program::{Program, run},
    support::{in_namespace, ip, tc},
};

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends these bytes and reads until the server closes.
pub fn raw(addr: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    // What the server has not read of a refused body may make the end of the connection a reset.
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("{request:?}: {text:?}")).parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

pub fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let len = body.len();
    let answer = raw(addr, &format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: {len}\r\n\r\n{body}"));
    (answer.status, answer.body)
}

pub fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    ask(addr, "GET", path, "")
}

fn put(addr: SocketAddr, body: &str) -> (u16, String) {
    ask(addr, "PUT", "/backpressure", body)
}

pub fn start_with_admin(args: &[&str]) -> (Relay, SocketAddr) {
    let relay = start(&[&["--admin", "127.0.0.1:0"], args].concat());
    let admin = relay.admin_addr().unwrap();
    (relay, admin)
}

/// The samples of `/metrics`, by name and labels, after a look at the format of every line.
pub fn metrics(admin: SocketAddr) -> HashMap<String, f64> {
    let (status, text) = get(admin, "/metrics");
    assert_eq!(status, 200);
    let (mut samples, mut families) = (HashMap::new(), Vec::new());
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(!families.contains(&name), "{name} is there twice");
            families.push(name);
        } else if !line.starts_with("# HELP backwater_") && !line.starts_with("# HELP process_") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(families.last().unwrap()), "{line} is not of the family above it");
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} is there twice");
        }
    }
    samples
}

/// All with this name, whatever the labels.
fn total(samples: &HashMap<String, f64>, name: &str) -> f64 {
    let named: Vec<_> = samples.iter().filter(|(key, _)| key.split('{').next() == Some(name)).collect();
    assert!(!named.is_empty(), "there is no {name}");
    named.into_iter().map(|(_, value)| value).sum()
}

/// Waits until it holds, for ten times as long as anything here takes on an idle machine.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "not within half a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_policy_is_read_and_switched() {
    let (mut relay, admin) = start_with_admin(&["--backpressure", "wait:50ms"]);
    let wait = |ms| format!("{{\"policy\":\"wait\",\"deadline_ms\":{ms}}}\n");
    assert_eq!(get(admin, "/backpressure"), (200, wait(50)));
    assert_eq!(put(admin, "{\"policy\":\"drop\"}"), (200, "{\"policy\":\"drop\"}\n".to_owned()));
    assert_eq!(relay.backpressure().get(), Policy::Drop);
    assert_eq!(put(admin, "{\"policy\":\"wait\",\"deadline_ms\":2000}"), (200, wait(2000)));
    assert_eq!(relay.backpressure().get(), Policy::Wait { deadline: Duration::from_secs(2) });
    assert_eq!(put(admin, "{\"policy\": \"wait\"}").1, wait(100), "the default");
    assert_eq!(get(admin, "/backpressure").1, wait(100));
    relay.stop(Duration::ZERO);
    TcpStream::connect(admin).unwrap_err();
}

/// A local user who holds connections open keeps nobody from the next one: the oldest is closed.
#[test]
fn idle_connections_do_not_keep_a_probe_waiting() {
    let (mut relay, admin) = start_with_admin(&[]);
    let mut idle: Vec<_> = (0..64).map(|_| TcpStream::connect(admin).unwrap()).collect();
    assert_eq!(get(admin, "/healthz"), (200, "ok\n".to_owned()));
    // Nothing had to wait for their timeout, which ends all of them at once.
    std::thread::sleep(Duration::from_millis(500));
    let is_open = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        stream.read(&mut [0; 100]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert_eq!(idle.iter_mut().map(is_open).filter(|open| !open).count(), 1, "only the oldest is closed");
    relay.stop(Duration::ZERO);
}

#[test]
fn anything_else_is_refused_with_a_reason_on_one_line() {
    let (mut relay, admin) = start_with_admin(&[]);
    let large = format!("{{\"policy\":\"drop\"{}}}", " ".repeat(5000));
    for (status, method, path, body) in [
        (405, "POST", "/backpressure", "{\"policy\":\"drop\"}"),
        (405, "DELETE", "/backpressure", ""),
        (405, "PATCH", "/backpressure", "{\"policy\":\"drop\"}"),
        (405, "OPTIONS", "/backpressure", ""),
        (405, "BREW", "/backpressure", ""),
        (400, "PUT", "/backpressure", ""),
        (400, "PUT", "/backpressure", "drop"),
        (400, "PUT", "/backpressure", "{\"policy\":\"maybe\"}"),
        (400, "PUT", "/backpressure", "{\"policy\":\"wait\",\"deadline_ms\":0}"),
        (400, "PUT", "/backpressure", "{\"policy\":\"wait\",\"deadline_ms\":60001}"),
        (400, "PUT", "/backpressure", "{\"policy\":\"wait\",\"deadline_ms\":1e99}"),
        (400, "PUT", "/backpressure", &large),
        (405, "PUT", "/metrics", ""),
        (405, "POST", "/healthz", ""),
        (405, "POST", "/readyz", ""),
        (405, "POST", "/", ""),
        (405, "GET", "/reload", ""),
        (404, "GET", "/elsewhere?x=/metrics", ""),
        (404, "PUT", "/backpressure/", "{\"policy\":\"drop\"}"),
        (405, "DELETE", "/sessions", ""),
        (400, "GET", "/sessions?limit=0", ""),
        (400, "GET", "/sessions?name=alice", ""),
        (404, "GET", "/sessions/", ""),
        (404, "GET", "/sessions/nonsense", ""),
        (404, "GET", "/sessions/0-0-99999999999999999999", ""),
        (404, "GET", "/sessions/99-0-1", ""),
        (404, "DELETE", "/sessions/0-0-1", ""),
        (404, "GET", "/log-filter", ""),
    ] {
        let (found, reason) = ask(admin, method, path, body);
        assert_eq!(found, status, "{method} {path} {body}: {reason}");
        assert_eq!((reason.matches('\n').count(), reason.ends_with('\n')), (1, true), "{method} {path}: {reason:?}");
    }
    let foreign = "PUT /backpressure HTTP/1.1\r\nHost: example.org\r\nContent-Length: 17\r\n\r\n{\"policy\":\"drop\"}";
    assert_eq!(raw(admin, foreign).status, 400);
    assert_eq!(raw(admin, "nonsense\r\n\r\n").status, 400);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(raw(admin, &long).status, 431);
    assert_eq!(relay.backpressure().get(), Policy::default(), "nothing of that has switched it");
    relay.stop(Duration::ZERO);
}

/// Clients that connect and say nothing hold up each other only, and not for ever.
#[test]
fn silent_clients_are_sent_away() {
    let (mut relay, admin) = start_with_admin(&[]);
    let silent: Vec<_> = (0..70).map(|_| TcpStream::connect(admin).unwrap()).collect();
    assert_eq!(get(admin, "/healthz").0, 200);
    drop(silent);
    client(&relay).allocate();
    relay.stop(Duration::ZERO);
}

#[test]
fn metrics_add_up() {
    let (mut relay, admin) = start_with_admin(&["--threads", "2"]);
    let mut client = client(&relay);
    let relayed = client.allocate();
    let (peer, peer_addr) = peer();
    client.bind_channel(0x4001, peer_addr).unwrap();
    let mut buffer = [0; 2000];
    for _ in 0..20 {
        client.socket.send(&channel_data(0x4001, b"up")).unwrap();
        peer.recv_from(&mut buffer).unwrap();
        peer.send_to(b"down", relayed).unwrap();
        client.socket.recv(&mut buffer).unwrap();
    }
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"not permitted? it is, by its address", relayed).unwrap();
    client.socket.recv(&mut buffer).unwrap();
    stranger.send_to(&[0xff; 20], relay.local_addrs()[0]).unwrap();
    until("the drop is counted", || metrics(admin)["backwater_relay_drops_total{reason=\"protocol\"}"] == 1.0);
    // A thread counts what it has sent after it was sent.
    until("they add up, and nothing was refused", || {
        let m = metrics(admin);
        let all = |name| total(&m, name);
        let accepted = all("backwater_accepted_total");
        let relayed = all("backwater_relay_to_peers_total") + all("backwater_relay_to_clients_total");
        relayed == 41.0
            && accepted == all("backwater_sent_total") + all("backwater_drops_total") + all("backwater_held")
            && accepted == relayed + all("backwater_relay_replies_total")
    });
    let m = metrics(admin);
    let all = |name| total(&m, name);
    let bytes = |direction| m[&format!("backwater_relay_bytes_total{{direction=\"{direction}\",transport=\"udp\"}}")];
    assert_eq!((bytes("to_peers"), bytes("to_clients")), (20.0 * 2.0, 20.0 * 4.0 + 36.0));
    assert_eq!(all("backwater_relay_allocation_duration_seconds_count"), 0.0, "it has not ended");
    #[cfg(target_os = "linux")]
    assert!(m["process_resident_memory_bytes"] > 1e6 && m["process_open_fds"] > 3.0);
    assert_eq!((all("backwater_relay_allocations"), all("backwater_relay_allocations_total")), (1.0, 1.0));
    assert_eq!(m[&format!("backwater_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))], 1.0);
    assert!(!m.keys().any(|key| key.contains("alice")), "no user's name");
    let head = raw(admin, &format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\n\r\n")).head;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");

    client
        .request(backwater_stun::Method::REFRESH, &|w| {
            w.attribute(&backwater_stun::Lifetime(0)).unwrap();
        })
        .unwrap();
    let m = metrics(admin);
    assert_eq!((m["backwater_relay_allocations"], m["backwater_relay_allocations_total"]), (0.0, 1.0));
    // After the answer.
    until("its end is counted", || metrics(admin)["backwater_relay_allocation_duration_seconds_count"] == 1.0);
    assert_eq!(metrics(admin)["backwater_relay_allocation_bytes_sum"], 156.0);
    until("each thread's delay is measured", || metrics(admin)["backwater_relay_loop_delay_seconds_count"] >= 2.0);
    relay.stop(Duration::ZERO);
}

#[test]
fn it_is_not_ready_while_it_drains() {
    let (mut relay, admin) = start_with_admin(&[]);
    let mut client = client(&relay);
    client.allocate();
    assert_eq!(get(admin, "/readyz"), (200, "ok\n".to_owned()));
    let stopping = std::thread::spawn(move || relay.stop(Duration::from_secs(60)));
    until("503", || get(admin, "/readyz") == (503, "draining\n".to_owned()));
    assert_eq!(get(admin, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(metrics(admin)["backwater_relay_draining"], 1.0);
    assert!(!stopping.is_finished());
    client
        .request(backwater_stun::Method::REFRESH, &|w| {
            w.attribute(&backwater_stun::Lifetime(0)).unwrap();
        })
        .unwrap();
    stopping.join().unwrap();
    TcpStream::connect(admin).unwrap_err();
}

#[test]
fn drain_ends_when_few_enough_allocations_are_left() {
    let (mut relay, admin) = start_with_admin(&["--threads", "2", "--drain-below", "3"]);
    let mut clients: Vec<_> = (0..4).map(|_| client(&relay)).collect();
    for client in &mut clients {
        client.allocate();
    }
    let stopping = std::thread::spawn(move || relay.stop(Duration::from_secs(3600)));
    until("503", || get(admin, "/readyz").0 == 503);
    let mut leave = || {
        let mut client = clients.pop().unwrap();
        client.request(backwater_stun::Method::REFRESH, &|w| drop(w.attribute(&backwater_stun::Lifetime(0)))).unwrap();
    };
    leave();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!stopping.is_finished(), "three are left");
    leave();
    // Two are left: the hour is not waited for.
    stopping.join().unwrap();
}

/// Beyond loopback, or where it is wanted, each request has to know the token; a browser's page may come by any name then.
#[test]
fn requests_without_the_token_are_401() {
    let token = "a-token-of-20-chars.";
    let (mut relay, admin) = start_with_admin(&["--admin-token", token]);
    let with =
        |path: &str, more: &str| raw(admin, &format!("GET {path} HTTP/1.1\r\nHost: relay.example.org\r\n{more}\r\n"));
    for path in ["/metrics", "/status", "/sessions", "/sessions/0-0-1", "/backpressure", "/log-filter", "/elsewhere"] {
        for wrong in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic a-token-of-20-chars.\r\n"] {
            let answer = with(path, wrong);
            assert_eq!((answer.status, answer.body.matches('\n').count()), (401, 1), "{path} {wrong}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
        }
    }
    for path in ["/", "/openapi.json", "/healthz", "/readyz"] {
        assert_eq!(with(path, "").status, 200, "{path}");
    }
    for path in ["/metrics", "/status", "/sessions", "/backpressure"] {
        assert_eq!(with(path, &format!("Authorization: Bearer {token}\r\n")).status, 200, "{path}");
    }
    relay.stop(Duration::ZERO);
}

/// A thread that has no clients keeps its listener as long as others have some: else theirs would be spread anew.
#[test]
fn draining_leaves_every_client_on_its_thread() {
    let mut relay = start(&["--threads", "4"]);
    let made = |relay: &Relay| relay.counters().iter().map(|c| c.allocations.get()).collect::<Vec<_>>();
    let end = |client: &mut Client, seconds| {
        client.request(backwater_stun::Method::REFRESH, &|w| {
            w.attribute(&backwater_stun::Lifetime(seconds)).unwrap();
        })
    };
    let mut stay = Vec::new();
    for _ in 0..32 {
        let (before, mut client) = (made(&relay), client(&relay));
        client.allocate();
        if made(&relay)[0] == before[0] {
            stay.push(client);
        } else {
            end(&mut client, 0).unwrap();
        }
    }
    assert!(stay.len() > 8, "spread over four threads");
    let stopping = std::thread::spawn(move || relay.stop(Duration::from_secs(60)));
    std::thread::sleep(Duration::from_millis(200));
    for client in &mut stay {
        end(client, 600).unwrap();
    }
    for client in &mut stay {
        end(client, 0).unwrap();
    }
    stopping.join().unwrap();
}

/// A relayed socket behind a queue that passes next to nothing: its sender is parked, until the policy is switched.
#[test]
fn a_switch_releases_a_sender_that_waits() {
    in_namespace("admin::a_switch_releases_a_sender_that_waits", || {
        ip("link add v0 type veth peer name v1");
        ip("addr add 10.9.0.1/24 dev v0");
        ip("link set v0 up");
        ip("link set v1 up");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent");
        tc("qdisc add dev v0 root tbf rate 8kbit burst 10k limit 10mb");
        let args =
            ["--backpressure", "wait:60s", "--relay-address", "10.9.0.1", "--allow-peer", "10.9.0.2", "--threads", "1"];
        let (mut relay, admin) = start_with_admin(&args);
        let mut client = client(&relay);
        client.allocate();
        client.bind_channel(0x4001, "10.9.0.2:9".parse().unwrap()).unwrap();
        for _ in 0..200 {
            client.socket.send(&channel_data(0x4001, &[0; 1000])).unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
        until("a sender waits", || metrics(admin)["backwater_held"] > 0.0);
        let before = metrics(admin);
        assert_eq!(total(&before, "backwater_drops_total"), 0.0);
        std::thread::sleep(Duration::from_millis(300));
        assert!(metrics(admin)["backwater_held"] > 0.0, "it waits for as long as it was told");

        // Long before the minute that it was told to wait for.
        assert_eq!(put(admin, "{\"policy\":\"drop\"}").0, 200);
        until("it is released", || metrics(admin)["backwater_held"] == 0.0);
        let m = metrics(admin);
        assert!(m["backwater_drops_total{reason=\"no_buffers\"}"] > 0.0, "{m:?}");
        // What comes now is not even queued.
        for _ in 0..20 {
            client.socket.send(&channel_data(0x4001, &[0; 1000])).unwrap();
        }
        until("all is accounted for", || {
            let m = metrics(admin);
            // Whatever was forwarded was accepted by a queue.
            let handed = total(&m, "backwater_relay_to_peers_total") + total(&m, "backwater_relay_replies_total");
            total(&m, "backwater_accepted_total") == handed
        });
        relay.stop(Duration::ZERO);
    });
}

/// The same queue: nothing is sent for a second, and the relay gives up waiting by itself.
#[test]
fn the_breaker_switches_to_drop_when_nothing_can_be_sent() {
    in_namespace("admin::the_breaker_switches_to_drop_when_nothing_can_be_sent", || {
        ip("link add v0 type veth peer name v1");
        ip("addr add 10.9.0.1/24 dev v0");
        ip("link set v0 up");
        ip("link set v1 up");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent");
        tc("qdisc add dev v0 root tbf rate 8bit burst 2k limit 10mb");
        let args = "--listen 127.0.0.1:0 --user alice:secret --threads 1 --drain 0 --relay-address 10.9.0.1 --allow-peer 10.9.0.2 \
                    --breaker stall=1s --backpressure wait:60s";
        let mut relay = Program::start(&args.split_whitespace().collect::<Vec<_>>(), 0);
        let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
        let mut client = Client::new(addr, "alice", "secret", "backwater");
        client.allocate();
        client.bind_channel(0x4001, "10.9.0.2:9".parse().unwrap()).unwrap();
        for _ in 0..400 {
            client.socket.send(&channel_data(0x4001, &[0; 1000])).unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
        let line = relay.line("circuit breaker: back-pressure policy switched to drop");
        assert!(line["reason"].as_str().unwrap().contains("nothing sent for"), "{line}");
        std::thread::sleep(Duration::from_millis(2500));
        let (code, rest) = relay.terminate_and_read();
        assert_eq!(code, Some(0));
        assert!(!rest.iter().any(|line| line["message"].as_str().unwrap().contains("breaker")), "once: {rest:?}");
    });
}

struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("backwater-admin-{}.toml", std::process::id())));
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_change_of_the_file_is_applied_and_an_invalid_one_is_said_once() {
    let rest = "listen = [\"127.0.0.1:0\"]\nuser = [\"alice:secret\"]\nadmin = \"127.0.0.1:0\"\ndrain = 0\n";
    let file = File::new(&format!("{rest}backpressure = \"wait\"\n"));
    let mut relay = Program::start(&["--config", file.0.to_str().unwrap()], 0);
    let admin: SocketAddr = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
    assert!(get(admin, "/backpressure").1.contains("wait"));

    file.write(&format!("{rest}backpressure = \"drop\"\n"));
    until("drop", || get(admin, "/backpressure").1.contains("drop"));
    let line = relay.line("back-pressure policy switched");
    assert_eq!((line["policy"].as_str(), line["by"].as_str()), (Some("drop"), Some("the configuration file")));

    file.write(&format!("{rest}backpressure = \"perhaps\"\n"));
    let line = relay.line("the configuration file is invalid");
    assert!(line["problem"].as_str().unwrap().contains("\"perhaps\""), "{line}");
    assert_eq!(line["severity"], "WARN");
    std::thread::sleep(Duration::from_millis(2500));
    assert!(get(admin, "/backpressure").1.contains("drop"), "as it was");

    file.write(&format!("{rest}backpressure = \"wait:50ms\"\nrealm = \"other\"\n"));
    let line = relay.line("");
    assert_eq!(line["message"], "back-pressure policy switched", "the invalid file was named once: {line}");
    let line = relay.line("");
    assert!(
        line["message"].as_str().unwrap().ends_with("these keys need a restart") && line["keys"] == "realm",
        "{line}"
    );
    assert!(get(admin, "/backpressure").1.contains("50"));
    let (code, rest) = relay.terminate_and_read();
    assert_eq!(code, Some(0));
    assert!(!rest.iter().any(|line| line["message"].as_str().unwrap().contains("restart")), "once: {rest:?}");
}

#[test]
fn a_taken_port_for_administration_is_one_line_and_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (code, lines) = run(&["--listen", "127.0.0.1:0", "--user", "a:b", "--admin", &addr]);
    assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");
    assert!(lines[0].contains(&format!("cannot listen on {addr} for administration: ")), "{lines:?}");
}

#[test]
fn curl_as_the_manual_has_it() {
    if !crate::support::installed("curl") {
        return crate::support::skip("curl is not installed (package curl)");
    }
    let file = crate::commands::File::new("");
    let (mut relay, admin) = start_with_admin(&["--config", file.path()]);
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/relay.md")).unwrap();
    let commands: Vec<_> = manual.lines().filter(|line| line.starts_with("curl ")).collect();
    assert!(commands.len() >= 4, "{commands:?}");
    for command in commands {
        let out =
            Command::new("sh").args(["-c", &command.replace("127.0.0.1:9479", &admin.to_string())]).output().unwrap();
        assert!(out.status.success() && !out.stdout.is_empty(), "{command}: {out:?}");
    }
    assert_eq!(relay.backpressure().get(), Policy::Wait { deadline: Duration::from_millis(50) }, "the last one");
    relay.stop(Duration::ZERO);
}
