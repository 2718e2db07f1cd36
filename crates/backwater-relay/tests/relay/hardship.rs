//! What operators fear: floods, storms, nothing left to give, a path that is blocked, and long days. Measured from outside
//! the process.

use std::{
    collections::HashMap,
    fs,
    io::{IoSlice, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use backwater_stun::*;
use backwater_udp::{RecvBatch, Transmit};

use crate::{
    client::{Client, PATIENCE, channel_data, peer},
    program::Program,
    support::{in_namespace, installed, skip, tc},
};

struct Relay {
    program: Program,
    listener: SocketAddr,
    admin: SocketAddr,
}

impl Relay {
    fn start(args: &[&str]) -> Self {
        let base = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--user", "alice:secret", "--drain", "0"];
        let mut program = Program::start(&[&base[..], &["--allow-peer", "127.0.0.0/8"], args].concat(), 0);
        let listener = program.line("listening for TURN")["listener"].as_str().unwrap().parse().unwrap();
        let admin = program.line("administration")["admin"].as_str().unwrap().parse().unwrap();
        Self { program, listener, admin }
    }

    fn client(&self) -> Client {
        Client::new(self.listener, "alice", "secret", "backwater")
    }

    /// A new client gets what it wants.
    fn serves(&self) {
        let mut client = self.client();
        client.allocate();
        release(&mut client);
    }

    /// KiB of memory that are its own, files aside.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.program.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.program.pid())).unwrap().count()
    }

    /// Soon: a connection of the administration's may still be closing.
    fn has_descriptors(&self, wanted: usize) {
        let began = Instant::now();
        while self.descriptors() != wanted {
            assert!(began.elapsed() < PATIENCE, "{} descriptors, not {wanted}", self.descriptors());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn metrics(&self) -> HashMap<String, f64> {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let samples = text.lines().filter(|line| line.starts_with("backwater_"));
        samples.map(|line| line.rsplit_once(' ').unwrap()).map(|(k, v)| (k.to_owned(), v.parse().unwrap())).collect()
    }

    /// All with this name, whatever the labels.
    fn metric(&self, name: &str) -> u64 {
        let all = self.metrics();
        let named: Vec<_> = all.iter().filter(|(key, _)| key.split('{').next() == Some(name)).collect();
        assert!(!named.is_empty(), "there is no {name}");
        named.into_iter().map(|(_, value)| *value as u64).sum()
    }
}

fn release(client: &mut Client) {
    client.request(Method::REFRESH, &|w| put(w, &Lifetime(0))).unwrap();
}

fn put<'a>(w: &mut Writer<'_>, attribute: &impl Attribute<'a>) {
    w.attribute(attribute).unwrap();
}

#[test]
fn a_flood_from_spoofed_sources_costs_no_memory() {
    let relay = Relay::start(&["--threads", "1"]);
    let mut buffer = [0; 200];
    let mut w = Writer::new(&mut buffer, Class::Request, Method::ALLOCATE, TransactionId([7; 12])).unwrap();
    put(&mut w, &RequestedTransport::UDP);
    let request = w.finish().to_vec();
    let flood = |from: u32, to: u32| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = backwater_udp::UdpSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
            let (mut sender, mut receiver, mut batch) = (socket.sender(), socket.receiver(), RecvBatch::new(64));
            let mut answers = 0;
            for i in from..to {
                let source = IpAddr::V4(Ipv4Addr::from(0x7F01_0000 + i));
                let slices = [IoSlice::new(&request)];
                let mut transmit = Transmit::new(relay.listener, &slices).source(Some(source));
                sender.send(&mut transmit).await.unwrap();
                // Not to overrun the receive buffers: each request is to be looked at.
                while answers + 64 <= i - from || i + 1 == to && answers < to - from {
                    tokio::time::timeout(PATIENCE, receiver.recv(&mut batch)).await.expect("an answer").unwrap();
                    answers += batch.datagrams().count() as u32;
                }
            }
        });
    };
    // What is allocated once, on first use, is no source's.
    flood(0, 5_000);
    relay.serves();
    let (before, answered) = (relay.memory(), relay.metric("backwater_relay_replies_total"));
    flood(5_000, 65_000);
    relay.serves();
    let grown = relay.memory().saturating_sub(before);
    assert!(relay.metric("backwater_relay_replies_total") >= answered + 60_000, "they did not arrive");
    assert!(grown < 256, "60,000 sources cost {grown} KiB");
    assert_eq!(relay.program.terminate(), Some(0));
}

#[test]
fn without_descriptors_clients_get_508_and_the_rest_goes_on() {
    if !installed("prlimit") {
        return skip("prlimit is not installed (package util-linux)");
    }
    let relay = Relay::start(&["--threads", "1"]);
    let pid = relay.program.pid().to_string();
    let limit = (relay.descriptors() + 12).to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}:{limit}")]).status().unwrap();
    assert!(limited.success());
    let (peer, peer_addr) = peer();
    let mut first = relay.client();
    let relayed = first.allocate();
    first.bind_channel(0x4000, peer_addr).unwrap();
    let mut clients: Vec<_> = (0..30).map(|_| relay.client()).collect();
    let refused: Vec<_> = clients.iter_mut().filter_map(|client| client.try_allocate(&|_| ()).err()).collect();
    assert!(!refused.is_empty() && refused.iter().all(|code| *code == 508), "{refused:?}");
    let mut buffer = [0; 100];
    first.socket.send(&channel_data(0x4000, b"still here")).unwrap();
    assert_eq!(peer.recv_from(&mut buffer).unwrap(), (10, relayed));
    for client in &mut clients {
        let _ = client.request(Method::REFRESH, &|w| put(w, &Lifetime(0)));
    }
    relay.serves();
    assert_eq!(relay.program.terminate(), Some(0));
}

#[test]
fn a_storm_of_retransmissions_makes_one_allocation() {
    let relay = Relay::start(&["--threads", "1"]);
    let mut client = relay.client();
    // The nonce is learnt first.
    let _ = client.request(Method::REFRESH, &|_| ());
    let request = client.encode(Method::ALLOCATE, &|w| put(w, &RequestedTransport::UDP));
    let (descriptors, mut answers) = (relay.descriptors(), 0);
    let mut reply = [0; 2000];
    for i in 0..20_000 {
        client.socket.send(&request).unwrap();
        if i % 16 == 15 {
            answers += (0..16).map_while(|_| client.socket.recv(&mut reply).ok()).count();
        }
    }
    assert_eq!(answers, 20_000, "were answered");
    assert_eq!(relay.metric("backwater_relay_allocations_total"), 1);
    relay.has_descriptors(descriptors + 1);
    relay.serves();
    assert_eq!(relay.program.terminate(), Some(0));
}

/// Sends so many datagrams there and back, with an echo behind the relay: each when the last has come back. On a busy machine
/// one may find a receive buffer full beside a flood; it is sent again after a second.
fn round_trips(client: &Client, rounds: usize) {
    let mut buffer = [0; 200];
    client.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for round in 0..rounds {
        let sent = channel_data(0x4000, &round.to_be_bytes());
        let mut come_back = || loop {
            match client.socket.recv(&mut buffer) {
                Ok(len) if buffer[..len] == sent => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        };
        let came_back = (0..10).any(|_| client.socket.send(&sent).is_ok() && come_back());
        assert!(came_back, "datagram {round} did not come back");
        thread::sleep(Duration::from_micros(500));
    }
    client.socket.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Sends back what it gets, until told to stop.
fn echo(addr: &str, stop: Arc<AtomicBool>) -> (SocketAddr, thread::JoinHandle<u64>) {
    let socket = UdpSocket::bind(addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let addr = socket.local_addr().unwrap();
    let echoed = thread::spawn(move || {
        let (mut buffer, mut count) = ([0; 2000], 0);
        while !stop.load(Relaxed) {
            if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..len], from).unwrap();
                count += 1;
            }
        }
        count
    });
    (addr, echoed)
}

/// Over a path that takes a datagram a second, one client sends far more than that, and what the path refuses may wait for a
/// minute. A thousand datagrams of another client, on the same thread of the relay, go there and back meanwhile: if they
/// waited for the path, the first of them would not be back in time.
#[test]
fn a_blocked_path_holds_up_only_its_own_traffic() {
    in_namespace("hardship::a_blocked_path_holds_up_only_its_own_traffic", || {
        tc("qdisc add dev lo root handle 1: htb default 10");
        tc("class add dev lo parent 1: classid 1:10 htb rate 20gbit");
        tc("class add dev lo parent 1: classid 1:20 htb rate 8kbit ceil 8kbit burst 4k");
        tc("qdisc add dev lo parent 1:20 bfifo limit 20000");
        tc("filter add dev lo parent 1: protocol ip u32 match ip dst 127.0.0.2 flowid 1:20");
        let relay = Relay::start(&["--threads", "1", "--backpressure", "wait:60s"]);
        let stop = Arc::new(AtomicBool::new(false));
        let (near, echoing) = echo("127.0.0.1:0", stop.clone());
        let mut good = relay.client();
        good.allocate();
        good.bind_channel(0x4000, near).unwrap();
        // What is allocated on first use is nobody's.
        round_trips(&good, 100);

        let blocked = UdpSocket::bind("127.0.0.2:0").unwrap();
        let mut bad = relay.client();
        bad.allocate();
        bad.bind_channel(0x4000, blocked.local_addr().unwrap()).unwrap();
        let before = relay.memory();
        let flooding = {
            let (stop, socket) = (stop.clone(), bad.socket.try_clone().unwrap());
            let datagram = channel_data(0x4000, &[0; 1000]);
            thread::spawn(move || {
                while !stop.load(Relaxed) {
                    drop(socket.send(&datagram));
                    thread::sleep(Duration::from_millis(1));
                }
            })
        };
        let began = Instant::now();
        while relay.metric("backwater_held") == 0 {
            assert!(began.elapsed() < PATIENCE, "the path is not blocked");
        }
        round_trips(&good, 1000);
        relay.serves();
        assert!(relay.metric("backwater_held") > 0, "the path is not blocked any more");
        let grown = relay.memory().saturating_sub(before);
        stop.store(true, Relaxed);
        flooding.join().unwrap();
        echoing.join().unwrap();
        assert!(grown < 4096, "{grown} KiB are held");
        assert_eq!(relay.program.terminate(), Some(0));
    });
}

#[test]
fn a_peer_that_floods_one_allocation_leaves_room_for_the_others() {
    let relay = Relay::start(&["--threads", "1"]);
    let stop = Arc::new(AtomicBool::new(false));
    let (near, echoing) = echo("127.0.0.1:0", stop.clone());
    let mut good = relay.client();
    good.allocate();
    good.bind_channel(0x4000, near).unwrap();
    let mut victim = relay.client();
    let relayed = victim.allocate();
    let (flooder, flooder_addr) = peer();
    victim.bind_channel(0x4000, flooder_addr).unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let flooding = {
        let (stop, sent) = (stop.clone(), sent.clone());
        thread::spawn(move || {
            let datagram = [0; 200];
            while !stop.load(Relaxed) {
                sent.fetch_add(u64::from(flooder.send_to(&datagram, relayed).is_ok()), Relaxed);
            }
        })
    };
    while sent.load(Relaxed) < 1000 {
        thread::sleep(Duration::from_millis(1));
    }
    let (before, sent_before) = (relay.memory(), sent.load(Relaxed));
    round_trips(&good, 1000);
    (0..10).for_each(|_| relay.serves());
    let (grown, beside) = (relay.memory().saturating_sub(before), sent.load(Relaxed) - sent_before);
    stop.store(true, Relaxed);
    flooding.join().unwrap();
    echoing.join().unwrap();
    assert!(beside > 1000, "{beside} datagrams are no flood");
    assert!(grown < 4096, "{grown} KiB");
    assert_eq!(relay.program.terminate(), Some(0));
}

/// Clients come, talk and go; `BACKWATER_SOAK_SECONDS` says for how long (default: 5).
#[test]
fn long_days() {
    let seconds = std::env::var("BACKWATER_SOAK_SECONDS").map_or(5, |text| text.parse().unwrap());
    let relay = Relay::start(&["--threads", "2"]);
    let (stop, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (near, echoing) = echo("127.0.0.1:0", over.clone());
    // Every kind of client once: what is allocated on first use stays.
    let turns = |turns: usize| {
        for _ in 0..turns {
            talk(relay.listener, near, 50);
        }
    };
    turns(20);
    let descriptors = relay.descriptors();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, listener) = (stop.clone(), relay.listener);
            thread::spawn(move || {
                let (mut sent, mut answered, mut turns) = (0, 0, 0);
                while !stop.load(Relaxed) {
                    let (s, a) = talk(listener, near, 2000);
                    (sent, answered, turns) = (sent + s, answered + a, turns + 1);
                }
                (sent, answered, turns)
            })
        })
        .collect();
    let began = Instant::now();
    // What is remembered for a while (deletions, for 40 seconds) has to fill first.
    let (mut settled, mut highest, mut looked) = (None, 0, 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(Duration::from_millis(250));
        if began.elapsed() >= Duration::from_secs(seconds) / 4 {
            highest = highest.max(relay.memory());
            settled.get_or_insert(highest);
        }
        looked += 1;
        if looked % 240 == 0 {
            println!("{:>5.0} s: {} KiB", began.elapsed().as_secs_f64(), relay.memory());
        }
    }
    stop.store(true, Relaxed);
    let all: Vec<(u64, u64, u64)> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let sum = all.iter().fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
    over.store(true, Relaxed);
    let echoed = echoing.join().unwrap();
    let to_peers = relay.metric("backwater_relay_to_peers_total");
    let to_clients = relay.metric("backwater_relay_to_clients_total");
    println!("{sum:?} sent, answered, clients; {settled:?} KiB at first, {highest} at most; {echoed} echoed");
    assert_eq!((to_peers, to_clients), (echoed, echoed), "what went in came out, both ways");
    assert_eq!(sum.0 + 20 * 50, echoed);
    // Eight datagrams at a time fit into every buffer on the way.
    assert_eq!(sum.0, sum.1, "were sent and came back");
    assert!(sum.2 > 0, "no client has come and gone");
    assert!(settled.is_some_and(|settled| highest < settled + 1024), "{settled:?} KiB at first, {highest} at most");
    relay.has_descriptors(descriptors);
    assert_eq!(relay.metric("backwater_relay_allocations_total"), sum.2 + 20);
    assert_eq!(relay.program.terminate(), Some(0));
}

/// One client's life: so many datagrams there and back, eight at a time. How many it sent, and how many came back.
fn talk(listener: SocketAddr, peer: SocketAddr, datagrams: u64) -> (u64, u64) {
    let mut client = Client::new(listener, "alice", "secret", "backwater");
    client.allocate();
    client.bind_channel(0x4000, peer).unwrap();
    let (mut answered, mut buffer) = (0, [0; 2000]);
    let datagram = channel_data(0x4000, &[7; 100]);
    for burst in 0..datagrams.div_ceil(8) {
        let now = 8.min(datagrams - burst * 8);
        for _ in 0..now {
            client.socket.send(&datagram).unwrap();
        }
        for _ in 0..now {
            answered += u64::from(client.socket.recv(&mut buffer).is_ok());
        }
    }
    release(&mut client);
    (datagrams, answered)
}
