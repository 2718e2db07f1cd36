//! The way by a relay, to a stock peer that knows nothing of it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::{
    Network, Process, in_namespace, skip,
    traffic::{Echo, Stream, datagrams, transfer, until_answered},
    tunnel::{PROGRAM, Sides, THERE, Tunnel},
};

const PROGRAMS: &[(&str, &str)] = &[
    ("wireguard-go", "wireguard-go"),
    ("wg", "wireguard-tools"),
    ("ping", "iputils-ping"),
    ("nft", "nftables"),
    ("turnserver", "coturn"),
];

/// The peer's endpoint: its address on the link to the relay.
const ENDPOINT: &str = "Endpoint = 10.9.3.2:51820";

/// An allocation and a channel, a handshake that is tried again, and the ways that are looked at within seconds.
const CALL: Duration = Duration::from_secs(10);

/// Our program's relay, which is built with the workspace.
fn relay_program() -> Option<PathBuf> {
    let program = Path::new(PROGRAM).with_file_name("backwater-relay");
    if program.exists() {
        return Some(program);
    }
    skip("backwater-relay is not built (cargo build --bin backwater-relay)");
    None
}

/// Our end and the peer, which are joined, and a relay that is joined to both.
struct Triangle {
    sides: Sides,
    relay: Network,
}

impl Triangle {
    fn new() -> Self {
        let triangle = Self { sides: Sides::new(), relay: Network::new("relay") };
        let Self { sides, relay } = &triangle;
        sides.here.join(relay, 2);
        relay.join(&sides.there, 3);
        // The direct way to the peer's endpoint.
        sides.here.run("ip route add 10.9.3.2/32 via 10.9.1.2 dev fe1");
        triangle
    }

    /// Starts this program's relay, with clients at 10.9.2.2 and peers at 10.9.3.1.
    fn start(&self, program: &Path) -> Process {
        self.relay.start(&format!(
            "{} --listen 10.9.2.2:3478 --listen [fd09:2::2]:3478 --relay-address 10.9.3.1 --allow-peer 10.9.3.0/24 --user alice:hunter2 --secret shared \
             --threads 1",
            program.display()
        ))
    }

    /// Starts coturn at the same addresses.
    fn coturn(&self) -> Process {
        self.relay.start(
            "turnserver -n -L 10.9.2.2 -E 10.9.3.1 -p 3478 -r example.org -u alice:hunter2 --lt-cred-mech --no-tls --no-dtls \
             --no-tcp --no-cli --log-file stdout --pidfile /run/turnserver.pid --userdb /run/turndb",
        )
    }

    /// UDP between our end and the peer goes by the relay alone.
    fn block(&self) {
        let rules = "table inet block {\n\
                     chain in { type filter hook input priority filter; iifname \"fe1\" meta l4proto udp drop; }\n\
                     chain out { type filter hook output priority filter; oifname \"fe1\" meta l4proto udp drop; }\n}\n";
        self.sides.there.run_with("nft -f -", rules);
    }

    fn unblock(&self) {
        self.sides.there.run("nft delete table inet block");
    }

    fn up(&self, login: &str, mode: &str, peer: &str) -> Tunnel<'_> {
        self.up_by("turn:10.9.2.2:3478", login, mode, peer)
    }

    fn up_by(&self, uris: &str, login: &str, mode: &str, peer: &str) -> Tunnel<'_> {
        let relay = format!("[Relay]\nUri = {uris}\n{login}\nMode = {mode}\n");
        self.sides.up_with(&format!("{}{relay}", self.sides.configuration("", &format!("{ENDPOINT}\n{peer}"))), &[])
    }

    /// The kind of the route in use.
    fn route(tunnel: &Tunnel<'_>) -> String {
        let status = tunnel.status();
        let routes = status["peers"][0]["routes"].as_array().unwrap();
        let in_use = routes.iter().find(|route| route["in_use"] == true);
        in_use.map_or("none", |route| route["kind"].as_str().unwrap()).to_owned()
    }

    /// Waits until the route in use is of this kind.
    fn wait_for_route(tunnel: &Tunnel<'_>, kind: &str, idle: Duration) {
        let begin = std::time::Instant::now();
        while Self::route(tunnel) != kind {
            assert!(begin.elapsed() < 10 * idle, "no {kind} route:\n{:#}\n{}", tunnel.status(), tunnel.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{kind} after {:.1?}", begin.elapsed());
    }

    fn endpoints(&self) -> String {
        self.sides.there.run("wg show wg0 endpoints")
    }
}

const LOGIN: &str = "Username = alice\nPassword = hunter2";

fn address(index: usize) -> IpAddr {
    THERE[index]
}

/// Datagrams of all sizes, in both families, and a transfer each way.
fn talk(triangle: &Triangle) {
    let Sides { here, there, .. } = &triangle.sides;
    for index in [0, 1] {
        until_answered(here, address(index), CALL);
        datagrams(here, address(index));
        transfer(here, there, address(index), 8);
    }
    transfer(there, here, crate::support::tunnel::HERE[0], 8);
}

#[test]
fn relay_carries_everything_while_direct_udp_is_blocked() {
    in_namespace("relayed::relay_carries_everything_while_direct_udp_is_blocked", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        let triangle = Triangle::new();
        triangle.block();
        let (_relay, _stock) = (triangle.start(&program), triangle.sides.stock(""));
        let _echo = Echo::new(&triangle.sides.there);
        for login in [LOGIN, "Secret = shared"] {
            let tunnel = triangle.up(login, "always", "");
            talk(&triangle);
            assert!(triangle.endpoints().contains("10.9.3.1:"), "{}", triangle.endpoints());
            assert_eq!(Triangle::route(&tunnel), "relayed");
            let status = tunnel.status();
            assert_eq!(status["relay"]["server"], "10.9.2.2:3478", "{status:#}");
            assert!(status["relay"]["relayed_address"].as_str().unwrap().starts_with("10.9.3.1:"), "{status:#}");
        }
    });
}

/// Of a header of IPv6 and ChannelData's a packet of full length leaves no byte of the link.
#[test]
fn relay_is_reached_by_ipv6_and_by_name_beside_one_that_is_dead() {
    in_namespace("relayed::relay_is_reached_by_ipv6_and_by_name_beside_one_that_is_dead", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        let triangle = Triangle::new();
        triangle.block();
        let Sides { here, there, directory, .. } = &triangle.sides;
        let hosts = directory.file("hosts", "fd09:2::2 relay.example\n");
        here.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
        let (_relay, _stock) = (triangle.start(&program), triangle.sides.stock(""));
        let _echo = Echo::new(there);
        let tunnel = triangle.up_by("turn:10.9.2.9, turn:relay.example", LOGIN, "always", "");
        talk(&triangle);
        let status = tunnel.status();
        assert_eq!(status["relay"]["server"], "[fd09:2::2]:3478", "{status:#}");
        assert!(here.run("ip link show dev bw0").contains("mtu 1416"), "{}", here.run("ip link show dev bw0"));
        let log = tunnel.log();
        assert!(!log.contains("fragmented"), "{log}");
    });
}

#[test]
fn coturn_carries_everything_while_direct_udp_is_blocked() {
    in_namespace("relayed::coturn_carries_everything_while_direct_udp_is_blocked", PROGRAMS, || {
        let triangle = Triangle::new();
        triangle.block();
        let (_relay, _stock) = (triangle.coturn(), triangle.sides.stock(""));
        let _echo = Echo::new(&triangle.sides.there);
        let tunnel = triangle.up(LOGIN, "always", "");
        talk(&triangle);
        assert!(triangle.endpoints().contains("10.9.3.1:"), "{}", triangle.endpoints());
        assert_eq!(Triangle::route(&tunnel), "relayed");
    });
}

/// No peer sees our address, though the direct way is open.
#[test]
fn nothing_goes_directly_in_mode_always() {
    in_namespace("relayed::nothing_goes_directly_in_mode_always", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        let triangle = Triangle::new();
        let (_relay, _stock) = (triangle.start(&program), triangle.sides.stock("PersistentKeepalive = 1"));
        let _echo = Echo::new(&triangle.sides.there);
        let counted = "table inet count {\n\
                       chain in { type filter hook input priority filter; iifname \"fe1\" meta l4proto udp counter; }\n}\n";
        triangle.sides.there.run_with("nft -f -", counted);
        let tunnel = triangle.up(LOGIN, "always", "PersistentKeepalive = 1");
        talk(&triangle);
        let key = triangle.sides.there.run("wg show wg0 peers");
        // Also when the peer is told to send directly: nothing of ours answers it by that way.
        triangle.sides.there.run(&format!(
            "wg set wg0 peer {} endpoint 10.9.1.1:{}",
            key.trim(),
            tunnel.status()["listen_port"]
        ));
        until_answered(&triangle.sides.here, address(0), CALL);
        let rules = triangle.sides.there.run("nft list table inet count");
        assert!(rules.contains("counter packets 0 bytes 0"), "{rules}");
        assert_eq!(Triangle::route(&tunnel), "relayed");
    });
}

/// TCP goes on while the direct way is blocked, opened and blocked again.
#[test]
fn tcp_survives_each_change_of_the_way() {
    in_namespace("relayed::tcp_survives_each_change_of_the_way", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        let triangle = Triangle::new();
        triangle.block();
        let (_relay, _stock) = (triangle.start(&program), triangle.sides.stock(""));
        let _echo = Echo::new(&triangle.sides.there);
        let tunnel = triangle.up(LOGIN, "auto", "");
        let Sides { here, there, .. } = &triangle.sides;
        until_answered(here, address(0), CALL);
        assert_eq!(Triangle::route(&tunnel), "relayed");
        let stream = Stream::new(here, there, address(0));
        for _ in 0..2 {
            triangle.unblock();
            Triangle::wait_for_route(&tunnel, "direct", Duration::from_secs(33));
            let before = stream.bytes();
            until_answered(here, address(0), CALL);
            assert!(triangle.endpoints().contains("10.9.1.1:"), "{}", triangle.endpoints());
            triangle.block();
            Triangle::wait_for_route(&tunnel, "relayed", Duration::from_secs(10));
            until_answered(here, address(0), CALL);
            let begin = std::time::Instant::now();
            while stream.bytes() <= before {
                assert!(begin.elapsed() < 10 * CALL, "the stream has stopped:\n{:#}", tunnel.status());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        stream.finish();
    });
}

#[test]
fn direct_way_is_used_where_it_works() {
    in_namespace("relayed::direct_way_is_used_where_it_works", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        let triangle = Triangle::new();
        let (_relay, _stock) = (triangle.start(&program), triangle.sides.stock(""));
        let _echo = Echo::new(&triangle.sides.there);
        let tunnel = triangle.up(LOGIN, "auto", "");
        until_answered(&triangle.sides.here, address(0), CALL);
        // The relay may have been first.
        until_answered(&triangle.sides.here, address(1), CALL);
        Triangle::wait_for_route(&tunnel, "direct", CALL);
    });
}

#[test]
fn relay_that_is_killed_and_started_again_is_used_again() {
    in_namespace("relayed::relay_that_is_killed_and_started_again_is_used_again", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        let triangle = Triangle::new();
        triangle.block();
        let (mut relay, _stock) = (triangle.start(&program), triangle.sides.stock(""));
        let _echo = Echo::new(&triangle.sides.there);
        let _tunnel = triangle.up(LOGIN, "always", "");
        until_answered(&triangle.sides.here, address(0), CALL);
        relay.signal(rustix::process::Signal::KILL);
        relay.wait();
        let _relay = triangle.start(&program);
        // Four seconds until the silence is noticed, and a request that is sent again.
        until_answered(&triangle.sides.here, address(0), Duration::from_secs(20));
    });
}

/// The relay has no address of IPv6, by which the peer's name is resolved first.
#[test]
fn peer_with_both_families_is_reached_by_a_relay_that_has_one() {
    in_namespace("relayed::peer_with_both_families_is_reached_by_a_relay_that_has_one", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        for mode in ["always", "auto"] {
            let triangle = Triangle::new();
            triangle.block();
            let Sides { here, there, directory, .. } = &triangle.sides;
            here.run("ip -6 route add fd09:3::2/128 via fd09:1::2 dev fe1");
            let hosts = directory.file("hosts", "fd09:3::2 peer.example\n10.9.3.2 peer.example\n");
            here.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
            let (_relay, _stock) = (triangle.start(&program), triangle.sides.stock(""));
            let _echo = Echo::new(there);
            let relay = format!("[Relay]\nUri = turn:10.9.2.2\n{LOGIN}\nMode = {mode}\n");
            let text = triangle.sides.configuration("", "Endpoint = peer.example:51820\nPersistentKeepalive = 25");
            let tunnel = triangle.sides.up_with(&format!("{text}{relay}"), &[]);
            until_answered(here, address(0), 2 * CALL);
            assert_eq!(
                (Triangle::route(&tunnel), &tunnel.status()["peers"][0]["endpoint"]),
                ("relayed".into(), &"10.9.3.2:51820".into())
            );
        }
    });
}

/// The sockets are bound anew, and the allocation is another one.
#[test]
fn our_address_changes_towards_the_relay() {
    in_namespace("relayed::our_address_changes_towards_the_relay", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        let triangle = Triangle::new();
        triangle.block();
        let (_relay, _stock) = (triangle.start(&program), triangle.sides.stock(""));
        let _echo = Echo::new(&triangle.sides.there);
        let here = &triangle.sides.here;
        let tunnel = triangle.up(LOGIN, "always", "");
        until_answered(here, address(0), CALL);
        let relayed = |tunnel: &Tunnel<'_>| tunnel.status()["relay"]["relayed_address"].to_string();
        let before = relayed(&tunnel);
        here.run("ip address del 10.9.2.1/24 dev fe2");
        here.run("ip address add 10.9.2.3/24 dev fe2");
        until_answered(here, address(0), CALL);
        let after = relayed(&tunnel);
        assert!(after != before && triangle.endpoints().contains(after.trim_matches('"')), "{before} {after}");
        assert_eq!(tunnel.peer("handshakes"), 1, "the session goes on");
    });
}

#[test]
fn refused_credentials_are_told_once() {
    in_namespace("relayed::refused_credentials_are_told_once", PROGRAMS, || {
        let Some(program) = relay_program() else { return };
        let triangle = Triangle::new();
        triangle.block();
        let (_relay, _stock) = (triangle.start(&program), triangle.sides.stock(""));
        let tunnel = triangle.up("Username = alice\nPassword = wrong", "always", "PersistentKeepalive = 1");
        tunnel.process.wait_for("does not accept the user name and the password");
        // The pause after the first try is five seconds.
        std::thread::sleep(Duration::from_secs(8));
        let said = tunnel.process.output();
        assert_eq!(said.matches("does not accept").count(), 1, "{said}");
        assert_eq!(tunnel.log().matches("\"WARN\"").count(), 1, "{}", tunnel.log());
        let problem = tunnel.status()["relay"]["problem"].to_string();
        assert!(problem.contains("does not accept"), "{problem}");
    });
}
