//! Requests that the relay makes to others.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use backwater_stun::{Lifetime, Method};
use serde_json::Value;

use crate::{
    admin::{get, start_with_admin, until},
    client::{Client, PATIENCE, channel_data, client, peer},
    program::Program,
    streams::StreamClient,
};

/// A server of HTTP that answers each request with what the function makes of its body: a status and a body.
pub fn serve(answer: impl Fn(&Value) -> (u16, String) + Send + 'static) -> (SocketAddr, Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let (mut reader, mut head, mut len) = (BufReader::new(&stream), String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap() == 0 {
                    break;
                }
            }
            for line in head.lines() {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    len = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; len];
            reader.read_exact(&mut body).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let (status, text) = answer(&body);
            let reply = format!("HTTP/1.1 {status} Because\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            // The relay may have stopped waiting.
            let _ = (&stream).write_all(reply.as_bytes());
            if sender.send((head, body)).is_err() {
                break;
            }
        }
    });
    (addr, receiver)
}

/// The events of the requests that come, until there are so many.
fn events(requests: &Receiver<(String, Value)>, count: usize) -> Vec<Value> {
    let mut events = Vec::new();
    while events.len() < count {
        let (head, mut body) = requests.recv_timeout(PATIENCE).expect("a request");
        assert!(head.starts_with("POST /turn?token=a HTTP/1.1\r\n"), "{head}");
        let Value::Array(more) = body["events"].take() else { panic!("{body}") };
        events.extend(more);
    }
    events
}

fn metric(admin: SocketAddr, name: &str) -> u64 {
    let status: Value = serde_json::from_str(&get(admin, "/status").1).unwrap();
    status["hooks"][name].as_u64().unwrap_or_else(|| panic!("{name}: {status}"))
}

#[test]
fn events_of_an_allocation_are_posted_in_their_order() {
    let (addr, requests) = serve(|_| (204, String::new()));
    let (mut relay, admin) = start_with_admin(&["--event-hook", &format!("http://{addr}/turn?token=a")]);
    let mut client = client(&relay);
    let relayed = client.allocate();
    let (peer, peer_addr) = peer();
    client.bind_channel(0x4000, peer_addr).unwrap();
    client.socket.send(&channel_data(0x4000, &[0; 100])).unwrap();
    peer.recv(&mut [0; 200]).unwrap();
    peer.send_to(&[0; 70], relayed).unwrap();
    client.socket.recv(&mut [0; 200]).unwrap();
    for lifetime in [1800, 0] {
        let refreshed = client.request(Method::REFRESH, &|w| {
            w.attribute(&Lifetime(lifetime)).unwrap();
        });
        refreshed.unwrap();
    }
    let events = events(&requests, 3);
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["allocated", "refreshed", "closed"]);
    for event in &events {
        assert_eq!((&event["user"], &event["transport"]), (&"alice".into(), &"udp".into()), "{event}");
        assert_eq!(event["client"], client.socket.local_addr().unwrap().to_string());
        assert_eq!(event["relayed"], serde_json::json!([relayed.to_string()]));
        assert!(event["time"].as_f64().unwrap() > 1.7e9);
    }
    assert_eq!((&events[0]["lifetime_seconds"], &events[1]["lifetime_seconds"]), (&600.into(), &1800.into()));
    let closed = &events[2];
    assert_eq!((&closed["bytes_to_peers"], &closed["bytes_to_client"]), (&100.into(), &70.into()), "{closed}");
    assert!(closed["why"] == "deleted" && closed["duration_seconds"].as_f64().unwrap() >= 0.0, "{closed}");
    until("all are counted", || (metric(admin, "events_sent"), metric(admin, "events_dropped")) == (3, 0));
    relay.stop(Duration::ZERO);
}

#[test]
fn events_of_allocations_that_end_with_the_relay_are_delivered_before_it_ends() {
    let (addr, requests) = serve(|_| (200, "thanks".to_owned()));
    let (mut relay, _) = start_with_admin(&["--threads", "2", "--event-hook", &format!("http://{addr}/turn?token=a")]);
    let mut clients: Vec<_> = (0..8).map(|_| client(&relay)).collect();
    for client in &mut clients {
        client.allocate();
    }
    relay.stop(Duration::ZERO);
    let events = events(&requests, 16);
    assert_eq!(events.iter().filter(|event| event["why"] == "stopped").count(), 8, "{events:?}");
}

#[test]
fn request_that_is_refused_is_sent_again() {
    let refused = std::sync::atomic::AtomicBool::new(false);
    let (addr, requests) = serve(move |_| {
        let first = !refused.swap(true, std::sync::atomic::Ordering::SeqCst);
        (if first { 500 } else { 200 }, String::new())
    });
    let (mut relay, admin) = start_with_admin(&["--event-hook", &format!("http://{addr}/turn?token=a")]);
    client(&relay).allocate();
    let both = events(&requests, 2);
    assert_eq!(both[0], both[1]);
    until("it is counted once", || (metric(admin, "events_sent"), metric(admin, "events_dropped")) == (1, 0));
    relay.stop(Duration::ZERO);
}

/// Nobody listens, or somebody who says nothing: clients notice nothing of it, and the log says what is lost.
#[test]
fn hook_that_does_not_answer_holds_nobody_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let args = ["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "0", "--event-hook", &url];
    let mut relay = Program::start(&args, 0);
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    for _ in 0..20 {
        crate::client::Client::new(addr, "alice", "secret", "backwater").allocate();
    }
    let (code, lines) = relay.terminate_and_read();
    let left = lines.iter().find(|line| line["message"].as_str().unwrap().contains("before all events are delivered"));
    assert_eq!((code, &left.expect("a line")["events"]), (Some(0), &40.into()), "{lines:?}");
}

/// A hook that knows alice, whose password is in the answer, and hashed, whose keys are.
fn who(body: &Value) -> (u16, String) {
    let keys = backwater_turn::HashedPassword::new("hashed", "backwater", "secret").unwrap();
    match body["user"].as_str().unwrap() {
        "alice" => (200, r#"{"password":"secret","ttl":1}"#.to_owned()),
        "hashed" => (200, format!("{{\"keys\":\"{keys}\",\"more\":1}}")),
        "broken" => (200, r#"{"password":5}"#.to_owned()),
        "failing" => (500, String::new()),
        _ => (404, String::new()),
    }
}

/// Starts a relay without users of its own, but that hook.
fn start_with_auth(url: &str, more: &[&str]) -> (backwater_relay::Relay, SocketAddr) {
    let base = [
        "relay",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--allow-peer",
        "127.0.0.0/8",
        "--auth-hook",
        url,
    ];
    let args = base.iter().chain(more).copied();
    let matches = backwater_relay::Arguments::command().try_get_matches_from(args).unwrap();
    let config = backwater_relay::Config::new(&backwater_relay::Arguments::read(&matches, []).unwrap()).unwrap();
    let relay = backwater_relay::Relay::start(&config).unwrap();
    let admin = relay.admin_addr().unwrap();
    (relay, admin)
}

fn user(relay: &backwater_relay::Relay, name: &str) -> Client {
    Client::new(relay.local_addrs()[0], name, "secret", "backwater")
}

/// No client sends a request twice here: the first one is answered.
#[test]
fn users_of_the_hook_allocate_and_others_do_not() {
    let (addr, requests) = serve(who);
    let url = format!("http://{addr}/turn?token=a");
    let (mut relay, admin) = start_with_auth(&url, &["--threads", "2", "--user", "bob:secret"]);
    for name in ["alice", "hashed"] {
        let mut client = user(&relay, name);
        client.allocate();
        let (head, body) = requests.recv_timeout(PATIENCE).unwrap();
        assert!(head.starts_with("POST /turn?token=a HTTP/1.1\r\n"), "{head}");
        assert_eq!(body, serde_json::json!({ "user": name, "realm": "backwater" }));
        client.request(Method::REFRESH, &|_| ()).unwrap();
    }
    for name in ["broken", "failing", "nobody"] {
        assert_eq!(user(&relay, name).try_allocate(&|_| ()).unwrap_err(), 401, "{name}");
    }
    let mut wrong = Client::new(relay.local_addrs()[0], "hashed", "guess", "backwater");
    assert_eq!(wrong.try_allocate(&|_| ()).unwrap_err(), 401);
    (0..20).for_each(|_| drop(user(&relay, "hashed").try_allocate(&|_| ()).unwrap()));
    user(&relay, "bob").allocate();
    assert_eq!(metric(admin, "failed_lookups"), 2);
    // An answer to alice was good for a second; nobody else is asked about twice.
    let asked: Vec<_> = std::iter::from_fn(|| requests.try_recv().ok()).map(|(_, body)| body["user"].clone()).collect();
    for name in ["hashed", "bob"] {
        assert!(!asked.contains(&name.into()), "{asked:?}");
    }
    assert_eq!(
        ["broken", "failing", "nobody"].map(|name| asked.iter().filter(|user| **user == name).count()),
        [1, 1, 1]
    );
    relay.stop(Duration::ZERO);
}

/// A user who is taken away there cannot refresh once the answer is good no longer.
#[test]
fn user_whom_the_hook_forgets_cannot_refresh() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let (addr, _requests) = serve(move |body| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => who(body),
        _ => (404, String::new()),
    });
    let (mut relay, _) = start_with_auth(&format!("http://{addr}/"), &[]);
    let mut client = user(&relay, "alice");
    client.allocate();
    until("it is refused", || client.request(Method::REFRESH, &|_| ()).is_err_and(|code| code == 401));
    relay.stop(Duration::ZERO);
}

/// A hook that says nothing costs its users an answer, and nobody else anything.
#[test]
fn silent_auth_hook_is_a_refusal_and_holds_nobody_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let (mut relay, admin) = start_with_auth(&url, &["--threads", "1", "--user", "bob:secret"]);
    let mut waits = user(&relay, "alice");
    let refused = std::thread::spawn(move || waits.try_allocate(&|_| ()).unwrap_err());
    until("the hook is asked", || {
        silent.set_nonblocking(true).unwrap();
        silent.accept().map(std::mem::forget).is_ok()
    });
    let mut bob = user(&relay, "bob");
    bob.allocate();
    let (peer, addr) = peer();
    bob.bind_channel(0x4000, addr).unwrap();
    for _ in 0..100 {
        bob.socket.send(&channel_data(0x4000, b"up")).unwrap();
        peer.recv(&mut [0; 10]).unwrap();
    }
    assert_eq!(refused.join().unwrap(), 401);
    assert_eq!((metric(admin, "lookups"), metric(admin, "failed_lookups")), (1, 1));
    relay.stop(Duration::ZERO);
}

/// A client on a connection does not send its request again: the relay keeps it until the answer.
#[test]
fn user_of_the_hook_on_a_connection_waits_for_the_answer() {
    let (addr, _requests) = serve(who);
    let (mut relay, _) = start_with_auth(&format!("http://{addr}/"), &["--listen-tcp", "127.0.0.1:0"]);
    let mut client = StreamClient::tcp(relay.local_tcp_addrs()[0]);
    client.allocate();
    client.request(Method::REFRESH, &|_| ()).unwrap();
    relay.stop(Duration::ZERO);
}
