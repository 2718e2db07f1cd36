//! What becomes of TCP in a tunnel whose uplink refuses datagrams: a token bucket before the sender's veth. Both ends are
//! ours but where a stock one sends; the receiving one counts what it misses by the numbers that WireGuard gives to datagrams.
//!
//! `cargo xtask experiment` measures the same with a distance between the ends, other rates, and round-trip times.

#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod support;

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    thread::sleep,
    time::Duration,
};

use backwater_udp::{Ecn, RecvBatch};

use serde_json::Value;
use support::{
    Network, Process, in_namespace, keys,
    tunnel::{Directory, PROGRAM, number},
};

/// What may be sent at once is more than a train, so that none is taken apart by the queue.
const UPLINK: &str = "tc qdisc add dev fe1 root tbf rate 20mbit burst 80000 limit 128000";

const PROGRAMS: &[(&str, &str)] = &[
    ("iperf3", "iperf3"),
    ("ping", "iputils-ping"),
    ("tc", "iproute2"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Ours(&'static str),
    Stock,
}

struct Uplink {
    here: Network,
    there: Network,
    directory: Directory,
    here_keys: (String, String),
    there_keys: (String, String),
}

#[derive(Debug)]
struct Seen {
    /// Datagrams that were numbered and did not arrive.
    missing: u64,
    /// Of these, what the sender says.
    told: u64,
    /// Refusals that the sender came to know of.
    refused: u64,
    device_dropped: u64,
    marked: u64,
    /// By the queue of the tunnel.
    shed: u64,
    retransmitted: u64,
    /// Of these, what had arrived all the same (RFC 2883), as when the machine is busy.
    needlessly: u64,
}

#[test]
fn waiting_with_ecn_loses_nothing() {
    in_namespace("waiting_with_ecn_loses_nothing", PROGRAMS, || {
        let uplink = Uplink::new(true);
        for streams in [1, 4] {
            let seen = uplink.tcp(Sender::Ours("wait"), streams);
            println!("{streams} streams: {seen:?}");
            assert!(seen.refused > 0 && seen.marked > 0, "the path was not the bottleneck: {seen:?}");
            assert_eq!((seen.missing, seen.told, seen.device_dropped, seen.shed), (0, 0, 0, 0));
            assert!(seen.retransmitted <= seen.needlessly, "{seen:?}");
        }
    });
}

#[test]
fn waiting_without_ecn_loses_only_what_the_queue_sheds() {
    in_namespace("waiting_without_ecn_loses_only_what_the_queue_sheds", PROGRAMS, || {
        let seen = Uplink::new(false).tcp(Sender::Ours("wait"), 4);
        println!("{seen:?}");
        assert!(seen.refused > 0 && seen.shed > 0, "the path was not the bottleneck: {seen:?}");
        assert_eq!((seen.missing, seen.told, seen.device_dropped, seen.marked), (0, 0, 0, 0));
    });
}

#[test]
fn dropping_loses_what_it_says_and_others_what_nobody_says() {
    in_namespace("dropping_loses_what_it_says_and_others_what_nobody_says", PROGRAMS, || {
        let uplink = Uplink::new(true);
        let seen = uplink.tcp(Sender::Ours("drop"), 4);
        println!("drop: {seen:?}");
        assert!(seen.missing > 0 && seen.missing == seen.told, "{seen:?}");
        let seen = uplink.tcp(Sender::Stock, 4);
        println!("wireguard-go: {seen:?}");
        assert!(seen.missing > 0, "{seen:?}");
    });
}

/// Packets with ECT(1), as L4S senders have them (RFC 9331): a burst that CoDel lets pass is marked.
#[test]
fn l4s_packets_are_marked_when_they_wait_and_not_when_they_fit() {
    in_namespace("l4s_packets_are_marked_when_they_wait_and_not_when_they_fit", PROGRAMS, || {
        let uplink = Uplink::new(true);
        let _tunnels = uplink.tunnels(Sender::Ours("wait"));
        // Until there is a session, packets wait.
        uplink.here.run("ping -c 1 -w 50 10.0.0.2");
        // 1 Mbit/s of 20.
        assert_eq!(uplink.udp(Ecn::Ect1, 100, Some(Duration::from_millis(8))), (100, 0));
        // A third of it waits in the tunnel, but not for as long as CoDel's interval.
        let classic = uplink.udp(Ecn::Ect0, 300, None);
        let (received, marked) = uplink.udp(Ecn::Ect1, 300, None);
        println!("received and marked: {classic:?} with ECT(0), {received} and {marked} with ECT(1)");
        assert!(received == 300 && marked > 0, "{marked} of {received} are marked");
    });
}

impl Uplink {
    /// Sends UDP packets of 1,028 bytes through the tunnel, one in each interval. Returns how many came, and how many of them with CE.
    fn udp(&self, ecn: Ecn, packets: usize, every: Option<Duration>) -> (usize, usize) {
        let receiver = self.there.within(|| UdpSocket::bind("10.0.0.2:5000").unwrap());
        let receiver = self.there.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = backwater_udp::UdpSocket::builder().from_std(receiver).unwrap();
                let (mut receiver, mut batch, mut seen) = (socket.receiver(), RecvBatch::new(8), (0, 0));
                loop {
                    // Nothing is under way for so long.
                    let patience = Duration::from_secs(if seen.0 == 0 { 60 } else { 3 });
                    let Ok(result) = tokio::time::timeout(patience, receiver.recv(&mut batch)).await else {
                        return seen;
                    };
                    result.unwrap();
                    for datagram in batch.gro_batches().flat_map(|train| train.datagrams()) {
                        assert!(datagram.ecn.is_some(), "the field is left");
                        seen = (seen.0 + 1, seen.1 + usize::from(datagram.ecn == Some(Ecn::Ce)));
                    }
                }
            })
        });
        self.here.within(move || {
            let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
            socket2::SockRef::from(&socket).set_tos_v4(ecn as u32).unwrap();
            for _ in 0..packets {
                socket.send_to(&[0; 1000], SocketAddr::from(([10, 0, 0, 2], 5000))).unwrap();
                every.into_iter().for_each(sleep);
            }
        });
        receiver.join().unwrap()
    }

    fn new(ecn: bool) -> Self {
        let (here, there) = (Network::new("here"), Network::new("there"));
        here.join(&there, 1);
        here.run(UPLINK);
        for network in [&here, &there] {
            network.run_with("tee /proc/sys/net/ipv4/tcp_ecn", if ecn { "1" } else { "0" });
        }
        Self { here, there, directory: Directory::new(), here_keys: keys(), there_keys: keys() }
    }

    /// Opens a tunnel at each end, which last as long as the processes.
    fn tunnels(&self, sender: Sender) -> [Process; 2] {
        let of_there = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\nAddress = 10.0.0.2/24\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.0.0.1/32\n",
            self.there_keys.0, self.here_keys.1
        );
        let there = self.up(&self.there, "there", &of_there, "wait");
        let peer =
            format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.0.0.2/32\nEndpoint = 10.9.1.2:51820\n", self.there_keys.1);
        let interface = format!("[Interface]\nPrivateKey = {}\n", self.here_keys.0);
        let here = match sender {
            Sender::Ours(policy) => {
                self.up(&self.here, "here", &format!("{interface}Address = 10.0.0.1/24\n{peer}"), policy)
            }
            Sender::Stock => self.here.wireguard("here", &format!("{interface}{peer}"), &["10.0.0.1/24"]),
        };
        [here, there]
    }

    /// Sends through new tunnels for some seconds.
    fn tcp(&self, sender: Sender, streams: usize) -> Seen {
        let _tunnels = self.tunnels(sender);
        let server = self.there.start("iperf3 -s -1 --forceflush");
        server.wait_for("listening");
        let needlessly = self.needless();
        // CUBIC, whatever the system's default is: not all heed marks.
        let told: Value =
            serde_json::from_str(&self.here.run(&format!("iperf3 -J -c 10.0.0.2 -t 4 -C cubic -P {streams}"))).unwrap();
        // What is under way arrives.
        std::thread::sleep(std::time::Duration::from_secs(1));
        let there = self.status(&self.there, "there");
        let here = (sender != Sender::Stock).then(|| self.status(&self.here, "here"));
        let of_here = |name: &str| here.as_ref().map_or(0, |here| number(&here["peers"][0]["counters"], name));
        let end = &told["end"];
        Seen {
            missing: number(&there["peers"][0]["counters"], "datagrams_missing"),
            told: of_here("datagrams_dropped"),
            refused: of_here("held"),
            device_dropped: here.as_ref().map_or(0, |here| number(&here["device"], "tx_dropped")),
            marked: of_here("marked"),
            shed: of_here("dropped") + of_here("first_segment_dropped") + of_here("overflowed"),
            retransmitted: number(&end["sum_sent"], "retransmits"),
            needlessly: self.needless() - needlessly,
        }
    }

    fn up(&self, network: &Network, name: &str, configuration: &str, policy: &str) -> Process {
        let file = self.directory.file(&format!("{name}.conf"), configuration);
        let words = ["up", file.to_str().unwrap(), "--backpressure", policy];
        let process = Process::spawn(name, self.program(network, &words));
        process.wait_for(&format!("{name} is up"));
        process
    }

    fn status(&self, network: &Network, name: &str) -> Value {
        let out = self.program(network, &["status", name, "--json"]).output().unwrap();
        serde_json::from_slice(&out.stdout).unwrap()
    }

    fn program(&self, network: &Network, words: &[&str]) -> Command {
        let mut command = network.command_of([&[PROGRAM], words].concat());
        command.env("XDG_CACHE_HOME", &self.directory.path).env("XDG_RUNTIME_DIR", "/run").env_remove("NOTIFY_SOCKET");
        command
    }

    /// Segments that were sent again though they had arrived, as the receiver's TCP has told ours.
    fn needless(&self) -> u64 {
        let text = self.here.run("cat /proc/net/netstat");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, values) = lines.next().zip(lines.next()).unwrap();
        let mut both = names.split_whitespace().zip(values.split_whitespace());
        both.find(|(name, _)| *name == "TCPDSACKRecv").unwrap().1.parse().unwrap()
    }
}
