//! One client's path is slow, or leads nowhere. Another client loses nothing by waiting that dropping would have delivered.

use std::{
    io::IoSlice,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use backwater_stun::*;
use backwater_udp::Transmit;

use crate::{
    client::{Client, PATIENCE, channel_data},
    program::Program,
    support::{TAKE_LINKS_DOWN, block_on, in_namespace, installed, ip, path, receive_buffer_errors, skip},
};

/// A network for the relay, with two links to the test's. The relay's end of each is `10.7.n.1`, the test's `10.7.n.2` to `10.7.n.9`.
struct Host {
    holder: Child,
}

const FAST: u8 = 0;
const SLOW: u8 = 1;

/// Sends until it is told to stop.
struct Sending {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

/// What became of a client's datagrams that an echo was to send back.
struct Echoes {
    /// How long each took that came back within a second.
    times: Vec<Duration>,
    sent: usize,
}

impl Host {
    fn new() -> Self {
        let holder = Command::new("unshare").args(["-n", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap();
        let host = Self { holder };
        let is_own = || std::fs::read_link(format!("/proc/{}/ns/net", host.pid())).ok() != own_network();
        until("the relay's network is there", is_own);
        host.run("ip link set lo up");
        for link in [FAST, SLOW] {
            ip(&format!(
                "link add test{link} address 02:00:00:00:0{link}:02 type veth \
                 peer name relay{link} address 02:00:00:00:0{link}:01"
            ));
            ip(&format!("link set relay{link} netns {}", host.pid()));
            ip(&format!("link set test{link} up arp off"));
            host.run(&format!("ip address add 10.7.{link}.1/24 dev relay{link}"));
            host.run(&format!("ip link set relay{link} up"));
            for end in 2..10 {
                ip(&format!("address add 10.7.{link}.{end}/24 dev test{link}"));
                host.run(&format!(
                    "ip neighbor add 10.7.{link}.{end} lladdr 02:00:00:00:0{link}:02 dev relay{link} nud permanent"
                ));
            }
            ip(&format!("neighbor add 10.7.{link}.1 lladdr 02:00:00:00:0{link}:01 dev test{link} nud permanent"));
        }
        host
    }

    fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn enter(&self) -> Vec<String> {
        ["nsenter", "-n", "-t"].map(str::to_owned).into_iter().chain([self.pid().to_string()]).collect()
    }

    fn run(&self, command: &str) {
        drop(self.output(command));
    }

    fn output(&self, command: &str) -> String {
        let words: Vec<_> = self.enter().into_iter().chain(command.split_whitespace().map(str::to_owned)).collect();
        let out = Command::new(&words[0]).args(&words[1..]).env("PATH", path()).output().unwrap();
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Takes its links away.
    fn end(self) {
        for link in [FAST, SLOW] {
            ip(&format!("link delete test{link}"));
        }
    }

    /// Whether the queue of the slow link has dropped something.
    fn has_dropped(&self) -> bool {
        let statistics = self.output("tc -s qdisc show dev relay1");
        numbers_after(&statistics, "(dropped ").any(|dropped| dropped > 0)
    }

    /// Whether a listener's datagrams, or those of a socket with its port, take up nine tenths of the send buffer.
    fn has_a_full_send_buffer(&self) -> bool {
        let sockets = self.output("ss -uanm sport = :3478");
        numbers_after(&sockets, ",t").zip(numbers_after(&sockets, ",tb")).any(|(used, of)| used > of / 10 * 9)
    }

    /// A relay of one thread on all addresses, with this policy.
    fn relay(&self, policy: &str) -> Program {
        let args = ["--listen", "0.0.0.0:3478", "--relay-address", "10.7.0.1", "--user"];
        let args = [&args[..], &["alice:secret", "--drain", "0", "--allow-peer", "10.7.0.0/16", "--threads", "1"]];
        let args = [&args.concat()[..], &["--backpressure", policy]].concat();
        let mut program = Program::start_within(&self.enter(), &args);
        program.line("listening for TURN over UDP");
        program
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let enter = self.enter();
        let _ =
            Command::new(&enter[0]).args(&enter[1..]).args(["sh", "-c", TAKE_LINKS_DOWN]).env("PATH", path()).status();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Sending {
    /// Sends `datagram` to `to`, so many a second as far as the machine goes, in bursts of 5 ms.
    fn start(from: SocketAddr, to: SocketAddr, datagram: Vec<u8>, a_second: u32) -> Self {
        let (stop, socket) = (Arc::new(AtomicBool::new(false)), UdpSocket::bind(from).unwrap());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (began, mut sent) = (Instant::now(), 0);
            while !stopped.load(Relaxed) {
                while sent < (began.elapsed().as_secs_f64() * f64::from(a_second)) as u64 {
                    socket.send_to(&datagram, to).unwrap();
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        Self { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

impl Echoes {
    fn lost(&self) -> usize {
        self.sent - self.times.len()
    }

    /// Median and 99th percentile.
    fn text(&self) -> String {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
        let ms = |share| at(share).as_secs_f64() * 1e3;
        format!("{} of {} came back, after {:.1} ms (p99 {:.1} ms)", times.len(), self.sent, ms(0.5), ms(0.99))
    }
}

/// The numbers that stand behind `word`.
fn numbers_after<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = u64> {
    text.split(word).skip(1).filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
}

fn own_network() -> Option<std::path::PathBuf> {
    std::fs::read_link("/proc/self/ns/net").ok()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn address(link: u8, end: u8, port: u16) -> SocketAddr {
    ([10, 7, link, end], port).into()
}

/// A client at this end of a link, with an allocation and a channel to a peer.
fn client(link: u8, end: u8, peer: SocketAddr) -> Client {
    let mut client = Client::at(address(link, end, 0), address(link, 1, 3478), "alice", "secret", "backwater");
    client.allocate();
    client.bind_channel(0x4000, peer).unwrap();
    client
}

/// Sends back what it gets.
fn echo() -> (SocketAddr, Sending) {
    let socket = UdpSocket::bind(address(FAST, 9, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let (addr, stop) = (socket.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        let (mut buffer, mut count) = ([0; 2000], 0);
        while !stopped.load(Relaxed) {
            if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..len], from).unwrap();
                count += 1;
            }
        }
        count
    });
    (addr, Sending { stop, thread })
}

/// Sends datagrams to an echo for so long, each when the last has come back or has not for a second.
fn echoes(client: &Client, so_long: Duration) -> Echoes {
    let (mut buffer, mut echoes) = ([0; 2000], Echoes { times: vec![], sent: 0 });
    client.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let began = Instant::now();
    while began.elapsed() < so_long {
        let sent = channel_data(0x4000, &echoes.sent.to_be_bytes());
        let at = Instant::now();
        client.socket.send(&sent).unwrap();
        echoes.sent += 1;
        while let Ok(len) = client.socket.recv(&mut buffer) {
            if buffer[..len] == sent {
                echoes.times.push(at.elapsed());
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    client.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    echoes
}

/// For how long the other client is looked at.
const A_WHILE: Duration = Duration::from_secs(3);

/// Has the other client, at `good`, send to an echo while so many datagrams a second of 1,000 bytes go to the client at `bad`: alone
/// first, then beside it with each policy.
fn beside(name: &str, shape: impl Fn(&Host), good: u8, a_second: u32) {
    in_namespace(&format!("paths::{name}"), || {
        if !installed("nsenter") {
            return skip("nsenter is not installed (package util-linux)");
        }
        let mut lost = vec![];
        for policy in ["drop", "wait"] {
            let host = Host::new();
            shape(&host);
            let relay = host.relay(policy);
            let (peer, echoing) = echo();
            let good = client(good, 2, peer);
            let alone = echoes(&good, A_WHILE / 6);
            let flooder = address(FAST, 8, 5000);
            let bad = client(SLOW, 3, flooder);
            let flood = Sending::start(flooder, bad.relayed(), vec![7; 1000], a_second);
            until("the path is full", || host.has_dropped() || host.has_a_full_send_buffer());
            std::thread::sleep(Duration::from_millis(200));
            let before = receive_buffer_errors();
            let beside = echoes(&good, A_WHILE);
            println!("{name}, {policy}: alone {}; beside {}", alone.text(), beside.text());
            assert!(flood.end() > 0);
            let missed = (receive_buffer_errors() - before) as usize;
            lost.push(beside.lost().saturating_sub(missed));
            echoing.end();
            assert_eq!(relay.terminate(), Some(0));
            host.end();
        }
        assert_eq!(lost[1], 0, "lost with `wait`; with `drop`: {}", lost[0]);
    });
}

#[test]
fn a_slow_second_interface_costs_the_clients_of_the_first_nothing() {
    let shape = |host: &Host| host.run("tc qdisc add dev relay1 root tbf rate 200kbit burst 3k limit 12k");
    beside("a_slow_second_interface_costs_the_clients_of_the_first_nothing", shape, FAST, 200);
}

#[test]
fn a_slow_class_of_an_interface_costs_its_other_clients_nothing() {
    let shape = |host: &Host| {
        host.run("tc qdisc add dev relay1 root handle 1: htb default 10");
        host.run("tc class add dev relay1 parent 1: classid 1:10 htb rate 10gbit");
        host.run("tc class add dev relay1 parent 1: classid 1:20 htb rate 200kbit ceil 200kbit burst 3k");
        host.run("tc qdisc add dev relay1 parent 1:20 bfifo limit 12000");
        host.run("tc filter add dev relay1 parent 1: protocol ip u32 match ip dst 10.7.1.3 flowid 1:20");
    };
    beside("a_slow_class_of_an_interface_costs_its_other_clients_nothing", shape, SLOW, 200);
}

#[test]
fn a_download_at_twice_the_uplink_costs_another_client_no_datagram() {
    let shape = |host: &Host| host.run("tc qdisc add dev relay1 root tbf rate 20mbit burst 20k limit 120k");
    beside("a_download_at_twice_the_uplink_costs_another_client_no_datagram", shape, SLOW, 5000);
}

/// The queue holds far more than the send buffer of a socket, so that one client's datagrams fill that.
#[test]
fn a_slow_interface_with_a_deep_queue_costs_the_clients_of_the_other_nothing() {
    let shape = |host: &Host| host.run("tc qdisc add dev relay1 root tbf rate 200kbit burst 3k limit 100mb");
    beside("a_slow_interface_with_a_deep_queue_costs_the_clients_of_the_other_nothing", shape, FAST, 5000);
}

/// Requests seem to come from addresses of a link at which nobody is: answers wait for a neighbour who never says where he is, until the
/// neighbour table is full.
#[test]
fn answers_to_neighbours_that_do_not_exist_cost_clients_nothing() {
    in_namespace("paths::answers_to_neighbours_that_do_not_exist_cost_clients_nothing", || {
        if !installed("nsenter") {
            return skip("nsenter is not installed (package util-linux)");
        }
        let host = Host::new();
        host.run("ip address add 10.8.0.1/16 dev relay1");
        // The test's end may send from any address of that network.
        ip("route add local 10.8.0.0/16 dev test1");
        ip("neighbor add 10.8.0.1 lladdr 02:00:00:00:01:01 dev test1 nud permanent");
        ip("route add 10.8.0.1/32 dev test1");
        let mut lost = vec![];
        for policy in ["drop", "wait"] {
            let relay = host.relay(policy);
            let (peer, echoing) = echo();
            let good = client(FAST, 2, peer);
            let flood = spoofed_bindings("10.7.1.1:3478".parse().unwrap(), 2000);
            std::thread::sleep(Duration::from_secs(1));
            let before = receive_buffer_errors();
            let beside = echoes(&good, A_WHILE);
            let sent = flood.end();
            println!("spoofed requests, {policy}: {}, beside {sent} requests", beside.text());
            let missed = (receive_buffer_errors() - before) as usize;
            lost.push(beside.lost().saturating_sub(missed));
            echoing.end();
            assert_eq!(relay.terminate(), Some(0));
        }
        assert_eq!(lost[1], 0, "lost with `wait`; with `drop`: {}", lost[0]);
    });
}

/// Binding requests, each from another address.
fn spoofed_bindings(to: SocketAddr, a_second: u32) -> Sending {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        block_on(async {
            let mut buffer = [0; 100];
            let w = Writer::new(&mut buffer, Class::Request, Method::BINDING, TransactionId([7; 12])).unwrap();
            let request = w.finish().to_vec();
            let socket = backwater_udp::UdpSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
            let (mut sender, began, mut sent) = (socket.sender(), Instant::now(), 0);
            while !stopped.load(Relaxed) {
                while sent < (began.elapsed().as_secs_f64() * f64::from(a_second)) as u32 {
                    let source = Ipv4Addr::from(0x0A08_0100 + sent % 60_000);
                    let slices = [IoSlice::new(&request)];
                    sender.send(&mut Transmit::new(to, &slices).source(Some(source.into()))).await.unwrap();
                    sent += 1;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            u64::from(sent)
        })
    });
    Sending { stop, thread }
}
