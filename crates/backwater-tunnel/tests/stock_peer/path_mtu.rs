//! The path to the peer carries shorter packets than the device's MTU promises.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    thread::sleep,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{
    Network, in_namespace,
    traffic::{Echo, packets_of, transfer, until_answered},
    tunnel::{HERE, NAME, PROGRAMS, Sides, THERE},
};

const SOON: Duration = Duration::from_secs(20);

/// Sides with a router between them; the link between the router and the peer has this MTU.
fn routed(mtu: u16) -> (Sides, Network) {
    let (sides, router) = (Sides::apart(), Network::new("router"));
    sides.here.join(&router, 1);
    router.join(&sides.there, 2);
    router.run("sysctl -q -w net.ipv4.ip_forward=1");
    router.run("sysctl -q -w net.ipv6.conf.all.forwarding=1");
    sides.here.run("ip route add 10.9.2.0/24 via 10.9.1.2");
    sides.there.run("ip route add 10.9.1.0/24 via 10.9.2.1");
    sides.here.run("ip route add fd09:2::/64 via fd09:1::2");
    sides.there.run("ip route add fd09:1::/64 via fd09:2::1");
    // A router solicits neighbours for others from its link-local address (`ndisc_solicit`): without one, it forgets both ends some
    // seconds after they were last heard.
    for device in ["fe1", "fe2"] {
        router.run(&format!("ip address add fe80::1/64 dev {device} nodad"));
    }
    for network in [&router, &sides.there] {
        network.run(&format!("ip link set fe2 mtu {mtu}"));
    }
    (sides, router)
}

/// The MTU of our device.
fn mtu(sides: &Sides) -> u16 {
    sides.here.run(&format!("cat /sys/class/net/{NAME}/mtu")).trim().parse().unwrap()
}

fn until_mtu(sides: &Sides, expected: u16) {
    let begin = Instant::now();
    while mtu(sides) != expected {
        assert!(begin.elapsed() < SOON, "the device's MTU is {}", mtu(sides));
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_is_too_long_for_the_path_is_told_to_the_local_host() {
    in_namespace("path_mtu::what_is_too_long_for_the_path_is_told_to_the_local_host", PROGRAMS, || {
        let (sides, _router) = routed(1400);
        let _stock = sides.stock("");
        let tunnel = sides.up("", "Endpoint = 10.9.2.2:51820");
        for to in THERE {
            transfer(&sides.here, &sides.there, to, 5);
        }
        assert!(tunnel.device("too_big") > 0, "{:#}", tunnel.status());
    });
}

/// Inside, IPv6 needs 1,280 bytes whatever the path carries (RFC 8200, section 5).
#[test]
fn ipv6_inside_has_1280_bytes_on_a_path_of_1280() {
    in_namespace("path_mtu::ipv6_inside_has_1280_bytes_on_a_path_of_1280", PROGRAMS, || {
        for endpoint in ["10.9.2.2", "[fd09:2::2]"] {
            let (sides, _router) = routed(1280);
            let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
            let tunnel = sides.up("", &format!("Endpoint = {endpoint}:51820"));
            // The path's MTU is learnt.
            transfer(&sides.here, &sides.there, THERE[0], 1);
            assert!(tunnel.device("too_big") > 0, "{:#}", tunnel.status());
            transfer(&sides.here, &sides.there, THERE[1], 3);
            packets_of(&sides.here, THERE[1], 1280);
        }
    });
}

#[test]
fn a_forged_icmp_message_changes_nothing() {
    in_namespace("path_mtu::a_forged_icmp_message_changes_nothing", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("ListenPort = 40000", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[1], SOON);
        // The forger knows addresses and ports, as anyone can who knows the servers that somebody uses, and guesses the rest.
        let index = [0; 4];
        let data = [&[4, 0, 0, 0][..], &index, &[0; 24]].concat();
        for quoted in [&[][..], &data] {
            forge(&sides, vec![fragmentation_needed(1280, quoted)]);
        }
        for to in THERE {
            packets_of(&sides.here, to, 1420);
        }
        assert_eq!(tunnel.device("too_big"), 0);

        // The kernel has believed it. A change of the routes has all of them looked up again.
        let cached = sides.here.run("ip route get 10.9.1.2 sport 40000 dport 51820 ipproto udp");
        assert!(cached.contains("mtu 1280"), "{cached}");
        sides.here.run("ip link set fe1 mtu 1490");
        until_mtu(&sides, 1410);
    });
}

/// The peer is this program too, whose sessions once had the index (number of the peer) × 256 + (number of the handshake).
#[test]
fn a_forged_icmp_message_about_a_guessed_session_changes_nothing() {
    in_namespace("path_mtu::a_forged_icmp_message_about_a_guessed_session_changes_nothing", PROGRAMS, || {
        let sides = Sides::new();
        let (_peer, _echo) = (sides.own_peer(), Echo::new(&sides.there));
        let tunnel = sides.up("ListenPort = 40000", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], SOON);
        let guesses = (0..16u32).flat_map(|index| (0..8u64).map(move |counter| (index, counter)));
        let messages = guesses.map(|(index, counter)| {
            let data = [&[4, 0, 0, 0][..], &index.to_le_bytes(), &counter.to_le_bytes(), &[0; 16]].concat();
            fragmentation_needed(1280, &data)
        });
        forge(&sides, messages.collect());
        for to in THERE {
            packets_of(&sides.here, to, 1420);
        }
        assert_eq!(tunnel.device("too_big"), 0, "{:#}", tunnel.status());
    });
}

/// Sends ICMP messages from the peer's host to ours.
fn forge(sides: &Sides, messages: Vec<Vec<u8>>) {
    sides.there.within(move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        let to = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 9, 1, 1), 0));
        for message in messages {
            socket.send_to(&message, &to.into()).unwrap();
        }
    });
}

/// ICMP type 3, code 4 (RFC 1191), about a datagram from 10.9.1.1:40000 to 10.9.1.2:51820 that begins with these bytes.
fn fragmentation_needed(mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend([0x45, 0, 0x05, 0xc8, 0, 0, 0x40, 0, 63, 17, 0, 0, 10, 9, 1, 1, 10, 9, 1, 2]);
    message.extend([40_000u16, 51_820, 1_460, 0].map(u16::to_be_bytes).concat());
    message.extend(quoted);
    let sum = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

#[test]
fn the_default_mtu_is_that_of_the_route_less_80() {
    in_namespace("path_mtu::the_default_mtu_is_that_of_the_route_less_80", PROGRAMS, || {
        for (endpoint, outside, inside) in
            [("10.9.1.2", 1460, 1380), ("[fd09:1::2]", 1492, 1412), ("10.9.1.2", 1300, 1280)]
        {
            let sides = Sides::new();
            sides.here.run(&format!("ip link set fe1 mtu {outside}"));
            sides.there.run(&format!("ip link set fe1 mtu {outside}"));
            let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
            let tunnel = sides.up("", &format!("Endpoint = {endpoint}:51820"));
            assert_eq!(mtu(&sides), inside, "{endpoint} by {outside}");
            let fits = inside.min(outside - 60);
            packets_of(&sides.here, THERE[0], fits);
            packets_of(&sides.here, THERE[1], inside);
            for to in THERE {
                transfer(&sides.here, &sides.there, to, 5);
            }
            assert_eq!(tunnel.peer("datagrams_dropped"), 0, "{:#}", tunnel.status());
        }
    });
}

#[test]
fn a_configured_mtu_that_the_route_does_not_carry_is_fragmented_outside() {
    in_namespace("path_mtu::a_configured_mtu_that_the_route_does_not_carry_is_fragmented_outside", PROGRAMS, || {
        for endpoint in ["10.9.1.2", "[fd09:1::2]"] {
            let sides = Sides::new();
            let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
            sides.there.run("ip link set wg0 mtu 1500");
            let tunnel = sides.up("MTU = 1500", &format!("Endpoint = {endpoint}:51820"));
            for to in THERE {
                packets_of(&sides.here, to, 1500);
                transfer(&sides.here, &sides.there, to, 5);
                transfer(&sides.there, &sides.here, HERE[usize::from(to.is_ipv6())], 5);
            }
            assert_eq!((tunnel.peer("datagrams_dropped"), tunnel.device("too_big")), (0, 0), "{:#}", tunnel.status());
        }
    });
}

#[test]
fn the_mtu_follows_the_route_while_the_tunnel_runs() {
    in_namespace("path_mtu::the_mtu_follows_the_route_while_the_tunnel_runs", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], SOON);
        assert_eq!(mtu(&sides), 1420);
        for (outside, inside) in [(1400, 1320), (1500, 1420)] {
            sides.here.run(&format!("ip link set fe1 mtu {outside}"));
            until_mtu(&sides, inside);
            for to in THERE {
                packets_of(&sides.here, to, inside);
            }
        }
        assert!(tunnel.log().contains("1320"), "{}", tunnel.log());
    });
}
