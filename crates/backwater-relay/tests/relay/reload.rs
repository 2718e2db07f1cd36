//! A configuration that changes while the relay runs.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use backwater_stun::{Lifetime, Method};
use serde_json::Value;

use crate::{
    admin::{ask, get},
    client::{Client, PATIENCE, channel_data, peer},
    commands::File,
    program::Program,
};

const BASE: &str = "listen = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"\nthreads = 2\n";

/// Peers on loopback.
const OPEN: &str = "allow-peer = [\"127.0.0.0/8\"]\n";

struct Bench {
    file: File,
    relay: Program,
    admin: SocketAddr,
    listener: SocketAddr,
}

impl Bench {
    fn new(text: &str) -> Self {
        let file = File::new(&format!("{BASE}{text}"));
        let mut relay = Program::start_with(&["--config", file.path(), "--drain", "0"], &[]);
        let listener = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
        let admin = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
        Self { file, relay, admin, listener }
    }

    fn client(&self, user: &str) -> Client {
        Client::new(self.listener, user, "secret", "backwater")
    }

    /// Writes the file and has it read: the status, and the answer.
    fn reload(&self, text: &str) -> (u16, Value) {
        self.file.write(&format!("{BASE}{text}"));
        let (status, body) = ask(self.admin, "POST", "/reload", "");
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }
}

/// Sends datagrams both ways, a few at a time, and returns how many each of the two has received.
fn exchange(client: &Client, peer: &UdpSocket, rounds: usize) -> (usize, usize) {
    let (mut up, mut down, mut buffer) = (0, 0, [0; 2000]);
    for _ in 0..rounds {
        (0..8).for_each(|_| assert!(client.socket.send(&channel_data(0x4000, b"up")).is_ok()));
        for _ in 0..8 {
            peer.recv(&mut buffer).expect("a datagram to the peer");
            up += 1;
        }
        (0..8).for_each(|_| assert!(peer.send_to(b"down", client.relayed()).is_ok()));
        for _ in 0..8 {
            client.socket.recv(&mut buffer).expect("a datagram to the client");
            down += 1;
        }
    }
    (up, down)
}

/// Returns the client of a user with an allocation, and a peer that it exchanges data with.
fn pair(b: &Bench, user: &str) -> (Client, UdpSocket) {
    let (mut client, (peer, addr)) = (b.client(user), peer());
    client.allocate();
    client.bind_channel(0x4000, addr).unwrap();
    (client, peer)
}

fn metric(admin: SocketAddr, name: &str) -> u64 {
    let text = get(admin, "/metrics").1;
    let values = text.lines().filter(|line| line.starts_with(name)).map(|line| line.rsplit_once(' ').unwrap().1);
    values.map(|value| value.parse::<f64>().unwrap() as u64).sum()
}

#[test]
fn reload_under_load_loses_no_datagram() {
    let text = |n: usize| {
        let users: Vec<_> = (0..50 * (n % 3)).map(|user| format!("\"user{user}:x\"")).collect();
        format!(
            "{OPEN}user = [\"alice:secret\", {}]\nsecret = [\"s{n}\"]\ndeny-peer = [\"127.9.{n}.0/24\"]\nreply-limit = {}\n\
             max-bytes-per-second = {}\nlog-level = \"{}\"\nmax-lifetime = {}\n",
            users.join(", "),
            1000 + n,
            1_000_000_000 + n,
            ["info", "warn"][n % 2],
            3600 - n
        )
    };
    let b = Bench::new(&text(0));
    let pairs: Vec<_> = (0..4).map(|_| pair(&b, "alice")).collect();
    let stop = AtomicBool::new(false);
    let totals = std::thread::scope(|scope| {
        let load = |(client, peer): &(Client, UdpSocket)| {
            let mut totals = (0, 0);
            while !stop.load(SeqCst) {
                let (up, down) = exchange(client, peer, 1);
                totals = (totals.0 + up, totals.1 + down);
            }
            totals
        };
        let threads: Vec<_> = pairs.iter().map(|pair| scope.spawn(move || load(pair))).collect();
        for n in 1..=20 {
            let (status, answer) = b.reload(&text(n));
            assert_eq!((status, &answer["problems"]), (200, &Value::Array(vec![])), "{answer}");
            assert!(answer["applied"].as_array().unwrap().contains(&"deny-peer".into()), "{answer}");
        }
        stop.store(true, SeqCst);
        threads.into_iter().map(|thread| thread.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    });
    assert!(totals.0 > 0 && totals.0 == totals.1, "{totals:?}");
    assert_eq!(metric(b.admin, "backwater_relay_to_peers_total"), totals.0 as u64);
    assert_eq!(metric(b.admin, "backwater_relay_to_clients_total"), totals.1 as u64);
    assert_eq!(metric(b.admin, "backwater_relay_drops_total") + metric(b.admin, "backwater_drops_total"), 0);
    for (mut client, _) in pairs {
        client.request(Method::REFRESH, &|_| ()).unwrap();
    }
    assert_eq!(b.relay.terminate(), Some(0));
}

#[test]
fn removed_user_cannot_allocate_or_refresh_and_the_allocation_goes_on() {
    let mut b = Bench::new(&format!("{OPEN}user = [\"alice:secret\", \"bob:secret\"]\n"));
    let pairs: Vec<_> = ["alice", "bob"].map(|user| pair(&b, user)).into();
    let (status, answer) = b.reload(&format!("{OPEN}user = [\"bob:secret\", \"carol:secret\"]\n"));
    assert_eq!((status, &answer["applied"]), (200, &serde_json::json!(["user"])), "{answer}");
    assert_eq!(b.relay.line("these keys are applied")["keys"], "user");
    for (mut client, peer) in pairs.into_iter().zip([401, 0]).map(|((client, peer), code)| {
        let mut client = client;
        assert_eq!(client.request(Method::REFRESH, &|_| ()).err().unwrap_or(0), code);
        (client, peer)
    }) {
        assert_eq!(exchange(&client, &peer, 2), (16, 16));
        let _ = client.request(Method::REFRESH, &|w| {
            w.attribute(&Lifetime(0)).unwrap();
        });
    }
    assert_eq!(b.client("alice").try_allocate(&|_| ()).unwrap_err(), 401);
    b.client("carol").allocate();
    assert_eq!(b.relay.terminate(), Some(0));
}

#[test]
fn rule_that_denies_a_peer_stops_its_permission() {
    let users = "user = [\"alice:secret\"]\n";
    let b = Bench::new(&format!("{users}{OPEN}"));
    let (mut client, kept) = pair(&b, "alice");
    let denied = UdpSocket::bind("127.0.0.77:0").unwrap();
    denied.set_read_timeout(Some(PATIENCE)).unwrap();
    let addr = denied.local_addr().unwrap();
    client.bind_channel(0x4001, addr).unwrap();
    let mut buffer = [0; 100];
    client.socket.send(&channel_data(0x4001, b"before")).unwrap();
    assert_eq!(denied.recv(&mut buffer).unwrap(), 6);
    let (status, answer) = b.reload(&format!("{users}{OPEN}deny-peer = [\"127.0.0.77\"]\n"));
    assert_eq!(status, 200, "{answer}");
    client.socket.send(&channel_data(0x4001, b"after")).unwrap();
    denied.send_to(b"after", client.relayed()).unwrap();
    // What comes later on the same way has overtaken nothing.
    assert_eq!(exchange(&client, &kept, 1), (8, 8));
    denied.set_nonblocking(true).unwrap();
    assert!(denied.recv(&mut buffer).is_err());
    assert_eq!(metric(b.admin, "backwater_relay_drops_total{reason=\"no_channel\"}"), 1);
    assert_eq!(client.permit(addr).unwrap_err(), 403);
    assert_eq!(b.relay.terminate(), Some(0));
}

#[test]
fn file_that_is_wrong_changes_nothing_and_is_named_in_the_log_and_in_the_answer() {
    let mut b = Bench::new("user = [\"alice:secret\"]\n");
    let (status, answer) = b.reload("user = [\"bob:secret\"]\nmax-lifetime = 1\ndeny-pear = []\n");
    assert_eq!((status, &answer["applied"]), (400, &Value::Array(vec![])), "{answer}");
    let problems: Vec<_> = answer["problems"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    for part in
        [", line 5: max-lifetime: expected a number from 600", ", line 6: deny-pear: unknown; did you mean deny-peer?"]
    {
        assert!(problems.iter().any(|line| line.contains(part)), "{part}: {problems:?}");
        let line = b.relay.line("the configuration file is invalid");
        assert!(problems.iter().any(|problem| line["problem"] == *problem), "{line}");
    }
    assert_eq!(problems.len(), 2, "{problems:?}");
    b.client("alice").allocate();
    assert_eq!(b.client("bob").try_allocate(&|_| ()).unwrap_err(), 401);
    assert_eq!(b.relay.terminate(), Some(0));
}

#[test]
fn what_cannot_be_reloaded_is_named_and_the_rest_is_applied() {
    let mut b = Bench::new("user = [\"alice:secret\"]\n");
    let (status, answer) =
        b.reload("user = [\"bob:secret\"]\nrealm = \"other\"\nports = \"50000-50100\"\nlog-level = \"debug\"\n");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["restart"], serde_json::json!(["ports", "realm"]), "{answer}");
    assert_eq!(answer["applied"], serde_json::json!(["user", "log-level"]), "{answer}");
    assert_eq!(b.relay.line("need a restart")["keys"], "ports, realm");
    // In the old realm, and with the new filter of the log.
    let mut bob = b.client("bob");
    bob.allocate();
    bob.request(Method::REFRESH, &|w| {
        w.attribute(&Lifetime(0)).unwrap();
    })
    .unwrap();
    assert_eq!(b.relay.line("allocation ended")["severity"], "DEBUG");
    let (status, again) =
        b.reload("user = [\"bob:secret\"]\nrealm = \"other\"\nports = \"50000-50100\"\nlog-level = \"debug\"\n");
    assert_eq!((status, &again["applied"], &again["restart"]), (200, &Value::Array(vec![]), &answer["restart"]));
    assert_eq!(b.relay.terminate(), Some(0));
}

/// A port that nobody has at this moment.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn listener_that_is_added_serves_clients_on_all_threads_and_is_no_peer() {
    let users = format!("user = [\"alice:secret\"]\n{OPEN}");
    let listen = |more: &str| BASE.replace("\"127.0.0.1:0\"]\nadmin", &format!("\"127.0.0.1:0\"{more}]\nadmin"));
    let mut b = Bench::new(&users);
    let reload = |b: &Bench, text: &str| {
        b.file.write(text);
        let (status, body) = ask(b.admin, "POST", "/reload", "");
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let (client, data_peer) = pair(&b, "alice");
    // One that another program has: nothing is changed.
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let with_taken = listen(&format!(", \"{}\"", taken.local_addr().unwrap())) + &users.replace("alice", "bob");
    let (status, answer) = reload(&b, &with_taken);
    assert_eq!(status, 400, "{answer}");
    assert!(answer["problems"][0].as_str().unwrap().starts_with("listen: cannot listen on 127.0.0.1:"), "{answer}");
    b.client("alice").allocate();
    // The same file once the port is free.
    drop(taken);
    let (status, answer) = reload(&b, &with_taken);
    assert_eq!((status, &answer["applied"]), (200, &serde_json::json!(["listen", "user"])), "{answer}");

    let second: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let (status, answer) = reload(&b, &(listen(&format!(", \"{second}\"")) + &users));
    assert_eq!(
        (status, &answer["restart"]),
        (200, &serde_json::json!(["listen"])),
        "the first one is left out: {answer}"
    );
    while b.relay.line("listening")["listener"] != second.to_string() {}
    let mut clients: Vec<_> = (0..16).map(|_| Client::new(second, "alice", "secret", "backwater")).collect();
    for client in &mut clients {
        client.allocate();
    }
    assert_eq!(clients[0].bind_channel(0x4000, second).unwrap_err(), 403, "it is no peer");
    let (peer, addr) = peer();
    clients[1].bind_channel(0x4000, addr).unwrap();
    assert_eq!(exchange(&clients[1], &peer, 2), (16, 16));
    assert_eq!(exchange(&client, &data_peer, 2), (16, 16), "the first client goes on");
    let status: Value = serde_json::from_str(&get(b.admin, "/status").1).unwrap();
    assert!(status["uris"].as_array().unwrap().contains(&format!("turn:{second}?transport=udp").into()), "{status}");
    assert_eq!(b.relay.terminate(), Some(0));
}

#[test]
fn reload_without_a_file_is_409() {
    let mut relay = Program::start_with(&["--listen", "127.0.0.1:0", "--user", "a:b", "--admin", "127.0.0.1:0"], &[]);
    let admin = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
    let (status, reason) = ask(admin, "POST", "/reload", "");
    assert_eq!((status, reason.lines().count()), (409, 1), "{reason}");
    assert_eq!(relay.terminate(), Some(0));
}
