//! The device with its addresses, routes and rules, in a network of its own.

#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod support;

use std::{
    env,
    future::poll_fn,
    io::{self, BufRead, BufReader, IoSlice, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use backwater_ops::Logs;
use backwater_tunnel::{
    config::{Config, Dns, Interface, Key, Peer, Table},
    device::{Change, Error, Link, Monitor},
};
use ipnet::IpNet;
use support::{block_on, in_namespace, ip};

/// What a test that starts itself again is to do then.
const ROLE: &str = "BACKWATER_TEST_ROLE";

#[test]
fn the_device_is_as_configured_and_leaves_nothing() {
    in_namespace("the_device_is_as_configured_and_leaves_nothing", &[], || {
        let before = state();
        block_on(async {
            let config = Config {
                interface: Interface { mtu: Some(1380), ..config(&["10.1.0.1/24", "fd01::1/64"], &[]).interface },
                ..config(&[], &["10.1.0.7/32", "10.2.0.0/16", "fd01::7/128", "fd02::/32"])
            };
            let link = Link::open(&config, "bw0").unwrap();
            assert_eq!((link.name(), link.mtu(), link.fwmark()), ("bw0", 1380, 0));
            let device = show("addr show dev bw0");
            assert_eq!(device[0]["mtu"], 1380);
            assert!(device[0]["flags"].as_array().unwrap().contains(&"UP".into()));
            let addresses = device[0]["addr_info"].as_array().unwrap();
            let address =
                |i: usize| (addresses[i]["local"].as_str().unwrap(), addresses[i]["prefixlen"].as_u64().unwrap());
            assert_eq!(addresses.len(), 2, "no link-local address: {addresses:?}");
            assert_eq!((address(0), address(1)), (("10.1.0.1", 24), ("fd01::1", 64)));
            assert!(addresses[1].get("tentative").is_none());
            // In use at once.
            UdpSocket::bind("[fd01::1]:0").unwrap();
            assert_eq!(destinations("route show dev bw0"), ["10.1.0.0/24", "10.2.0.0/16"]);
            let mut v6 = destinations("-6 route show dev bw0");
            v6.retain(|net| !net.starts_with("ff00"));
            assert_eq!(v6, ["fd01::/64", "fd02::/32"]);
            assert_ne!(state(), before);
            link.close().unwrap();
        });
        assert_eq!(state(), before);
    });
}

#[test]
fn with_no_table_there_are_no_routes() {
    in_namespace("with_no_table_there_are_no_routes", &[], || {
        block_on(async {
            let mut config = config(&["10.1.0.1/32"], &["0.0.0.0/0", "10.2.0.0/16"]);
            config.interface.table = Table::Off;
            config.interface.fwmark = 7;
            let before = show("rule");
            let link = Link::open(&config, "bw0").unwrap();
            assert_eq!((link.mtu(), link.fwmark()), (1420, 7));
            assert_eq!(destinations("route show dev bw0"), [""; 0]);
            assert_eq!(show("rule"), before);
        });
    });
}

#[test]
fn routes_go_to_the_table_of_that_number_and_no_rule_is_added() {
    in_namespace("routes_go_to_the_table_of_that_number_and_no_rule_is_added", &[], || {
        let before = state();
        block_on(async {
            let mut config = config(&["10.1.0.1/24"], &["0.0.0.0/0", "10.1.0.0/24", "10.2.0.0/16", "fd02::/32"]);
            config.interface.table = Table::Number(1234.try_into().unwrap());
            let rules = show("rule");
            let link = Link::open(&config, "bw0").unwrap();
            assert_eq!(destinations("route show table 1234"), ["10.1.0.0/24", "10.2.0.0/16", "default"]);
            assert_eq!(destinations("-6 route show table 1234"), ["fd02::/32"]);
            assert_eq!(destinations("route show"), ["10.1.0.0/24"], "the device's own prefix");
            assert_eq!((show("rule"), link.fwmark()), (rules, 0));
            link.close().unwrap();
        });
        assert_eq!(state(), before);
    });
}

#[test]
fn without_ipv6_its_addresses_and_routes_are_left_out_with_a_warning() {
    const NAME: &str = "without_ipv6_its_addresses_and_routes_are_left_out_with_a_warning";
    let config = || config(&["10.1.0.1/24", "fd01::1/64"], &["0.0.0.0/0", "::/0"]);
    if env::var_os(ROLE).is_some() {
        let _logs = Logs::to_stdout("warn").unwrap();
        return block_on(async { Link::open(&config(), "bw0").unwrap().close().unwrap() });
    }
    in_namespace(NAME, &[], || {
        for device in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap();
        }
        let before = state();
        let run = again(NAME, "run").output().unwrap();
        let output = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{output}{}", String::from_utf8_lossy(&run.stderr));
        assert!(
            output.contains("IPv6 is switched off") && output.contains("fd01::1/64") && output.contains("::/0"),
            "{output}"
        );
        assert_eq!(state(), before);
        // Where another device has IPv6, its traffic would go past the tunnel.
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0").unwrap();
        uplink();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let before = state();
        block_on(async {
            let error = Link::open(&config(), "bw0").err().unwrap();
            assert!(matches!(error, Error::Ipv6Off) && error.to_string().contains("disable_ipv6"), "{error}");
        });
        assert_eq!(state(), before);
    });
}

#[test]
fn all_goes_into_the_tunnel_but_what_it_sends() {
    in_namespace("all_goes_into_the_tunnel_but_what_it_sends", &[], || {
        uplink();
        let before = state();
        let [v4, v6] = ["198.51.100.1:9", "[2001:db8:ffff::1]:9"];
        let (uplink_v4, uplink_v6) = ("192.0.2.2", "2001:db8::2");
        assert_eq!((source(v4, 0), source(v6, 0)), (uplink_v4.into(), uplink_v6.into()));
        for wanted in [0, 77, 254] {
            block_on(async {
                let mut config = config(&["10.1.0.1/32", "fd01::1/128"], &["0.0.0.0/0", "::/0", "10.2.0.0/16"]);
                config.interface.fwmark = wanted;
                let link = Link::open(&config, "bw0").unwrap();
                let mark = link.fwmark();
                assert_eq!(mark, if wanted == 0 { 51820 } else { wanted });
                assert_eq!((source(v4, 0), source(v6, 0)), ("10.1.0.1".into(), "fd01::1".into()));
                assert_eq!((source(v4, mark), source(v6, mark)), (uplink_v4.into(), uplink_v6.into()));
                // What is near stays near.
                assert_eq!(source("192.0.2.9:9", 0), uplink_v4);
                assert_eq!(source("[2001:db8::9]:9", 0), uplink_v6);
                if wanted == 77 {
                    // Without a word, as on the way out of a panic.
                    drop(link);
                } else {
                    link.close().unwrap();
                }
            });
            assert_eq!(state(), before, "{wanted}");
        }
    });
}

#[test]
fn the_mtu_is_that_of_the_routes_by_which_datagrams_go() {
    in_namespace("the_mtu_is_that_of_the_routes_by_which_datagrams_go", &[], || {
        uplink();
        ip("link set up0 mtu 1480");
        ip("route add 198.51.100.0/24 via 192.0.2.1 mtu 1400");
        ip("-6 route add 2001:db8:1::/48 via 2001:db8::1 mtu 1390");
        // Longer than the device takes.
        ip("route add 203.0.113.0/24 via 192.0.2.1 mtu 9000");
        ip("route add table 7 198.51.100.0/24 via 192.0.2.1 mtu 1300");
        ip("rule add fwmark 7 table 7");
        block_on(async {
            // The routes of the tunnel's own are not those of its datagrams.
            let mut config = config(&["10.1.0.1/32", "fd01::1/128"], &["0.0.0.0/0", "::/0"]);
            config.peers[0].endpoint = Some("203.0.113.1:9".parse().unwrap());
            let link = Link::open(&config, "bw0").unwrap();
            assert_eq!(link.mtu(), 1400);
            let mtu = |to: &str| link.route_mtu(to.parse().unwrap()).ok();
            let routes = ["198.51.100.1", "203.0.113.1", "192.0.2.9", "8.8.8.8", "2001:db8:1::1", "2001:db8::9"];
            assert_eq!(routes.map(mtu), [1400, 1480, 1480, 1480, 1390, 1480].map(Some));
            link.close().unwrap();

            config.interface.fwmark = 7;
            config.peers[0].endpoint = Some("198.51.100.1:9".parse().unwrap());
            let mut link = Link::open(&config, "bw0").unwrap();
            assert_eq!((link.mtu(), link.route_mtu("198.51.100.1".parse().unwrap()).unwrap()), (1280, 1300));
            link.set_mtu(1333).unwrap();
            assert_eq!((link.mtu(), &show("link show dev bw0")[0]["mtu"]), (1333, &1333.into()));
            link.close().unwrap();
        });
    });
}

#[test]
fn two_tunnels_do_not_disturb_each_other() {
    in_namespace("two_tunnels_do_not_disturb_each_other", &[], || {
        uplink();
        block_on(async {
            let before = state();
            let first = Link::open(&config(&["10.1.0.1/32"], &["0.0.0.0/0"]), "bw0").unwrap();
            let with_one = state();
            let second = Link::open(&config(&["fd01::1/128"], &["::/0"]), "bw1").unwrap();
            assert_eq!((first.fwmark(), second.fwmark()), (51820, 51821));
            second.close().unwrap();
            assert_eq!(state(), with_one);
            first.close().unwrap();
            assert_eq!(state(), before);
        });
    });
}

#[test]
fn what_a_killed_run_left_is_removed() {
    const NAME: &str = "what_a_killed_run_left_is_removed";
    let config = || config(&["10.1.0.1/32", "fd01::1/128"], &["0.0.0.0/0", "::/0"]);
    in_namespace(NAME, &[], || {
        if env::var_os(ROLE).is_some() {
            return block_on(async {
                let _link = Link::open(&config(), "bw0").unwrap();
                println!("it is there");
                std::thread::sleep(Duration::from_secs(60));
            });
        }
        // Not ours.
        ip("rule add not fwmark 51820 table 51820");
        let before = state();
        let mut run = again(NAME, "run").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("it is there")));
        run.kill().unwrap();
        run.wait().unwrap();
        let rules = |family: &str| show(&format!("{family} rule")).as_array().unwrap().len();
        let untouched: serde_json::Value = serde_json::from_str(before.lines().last().unwrap()).unwrap();
        assert_eq!(rules("-6"), untouched.as_array().unwrap().len() + 2, "rules are left");
        block_on(async {
            let link = Link::open(&config(), "bw0").unwrap();
            assert_eq!(rules("-6"), untouched.as_array().unwrap().len() + 2, "no more than its own");
            assert_eq!(link.fwmark(), 51820);
            link.close().unwrap();
        });
        assert_eq!(state(), before);
    });
}

#[test]
fn a_filter_that_drops_the_answers_is_told_of() {
    const NAME: &str = "a_filter_that_drops_the_answers_is_told_of";
    if env::var_os(ROLE).is_some() {
        let _logs = Logs::to_stdout("warn").unwrap();
        return block_on(async {
            Link::open(&config(&["10.1.0.1/32"], &["0.0.0.0/0"]), "bw0").unwrap().close().unwrap()
        });
    }
    in_namespace(NAME, &[], || {
        uplink();
        let filter =
            |device, value| std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), value).unwrap();
        for (all, up0, far0) in [("0", "1", "0"), ("1", "2", "1"), ("2", "1", "1")] {
            for (device, value) in [("all", all), ("up0", up0), ("far0", far0)] {
                filter(device, value);
            }
            let run = again(NAME, "run").output().unwrap();
            let output = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success(), "{output}");
            let is_told = |device| output.contains("rp_filter") && output.contains(device);
            // The larger of the two values counts.
            let is_strict = |value: &str| value.max(all) == "1";
            assert_eq!((is_told("up0"), is_told("far0")), (is_strict(up0), is_strict(far0)), "{output}");
        }
    });
}

#[test]
fn what_is_refused_is_named() {
    in_namespace("what_is_refused_is_named", &[], || {
        uplink();
        block_on(async {
            let before = state();
            let open = |addresses: &[&str], allowed: &[&str], name| Link::open(&config(addresses, allowed), name).err();
            for name in ["", "a/b", "a b", "bw%d", "..", "sixteen-letters-"] {
                assert!(matches!(open(&[], &[], name), Some(Error::Name(bad)) if bad == name));
            }
            assert!(matches!(open(&[], &[], "up0"), Some(Error::Taken(name)) if name == "up0"));
            let link = Link::open(&config(&[], &[]), "bw0").unwrap();
            assert!(matches!(open(&[], &[], "bw0"), Some(Error::Taken(name)) if name == "bw0"));
            drop(link);
            let error = open(&["10.1.0.1/24", "10.1.0.1/24"], &[], "bw0").unwrap();
            assert!(
                matches!(&error, Error::Address { address, .. } if address.to_string() == "10.1.0.1/24"),
                "{error}"
            );
            // The rules are there by the time that the next is refused.
            ip("-6 route add default dev up0 table 51820 metric 1024");
            let mut two = config(&["10.1.0.1/24"], &["0.0.0.0/0", "::/0"]);
            two.interface.fwmark = 51820;
            let error = Link::open(&two, "bw0").err().unwrap();
            assert!(matches!(&error, Error::Route { route, .. } if route.to_string() == "::/0"), "{error}");
            ip("-6 route del default dev up0 table 51820");
            let error = open(&["10.1.0.1/24"], &["192.0.2.0/24"], "bw0").unwrap();
            assert_eq!(format!("{:#}", anyhow::Error::from(error)), "route 192.0.2.0/24: File exists (os error 17)");
            assert_eq!(state(), before);
        });
    });
}

#[test]
fn without_permission_it_says_what_to_grant() {
    const NAME: &str = "without_permission_it_says_what_to_grant";
    if env::var_os(ROLE).is_some() {
        return block_on(async {
            let error = Link::open(&config(&["10.1.0.1/24"], &[]), "bw0").err().unwrap();
            assert!(matches!(error, Error::Permission(_)), "{error:?}");
            assert!(error.to_string().contains("setcap cap_net_admin+ep"), "{error}");
            println!("refused: {error}");
        });
    }
    in_namespace(NAME, &[], || {
        let mut users = vec![vec!["--bounding-set=-all", "--inh-caps=-all"]];
        // In a user namespace there is no other user.
        if std::fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().eq(["0", "0", "4294967295"]) {
            users.push(vec!["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
        }
        for user in users {
            let this = again(NAME, "run");
            // Another user may have no way to where it is.
            let file = std::fs::File::open(this.get_program()).unwrap();
            let run = Command::new("setpriv")
                .args(&user)
                .arg("/proc/self/fd/0")
                .args(this.get_args())
                .envs(this.get_envs().filter_map(|(key, value)| Some((key, value?))))
                .stdin(file)
                .output()
                .unwrap();
            let output = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
            assert!(run.status.success() && output.contains("refused: no permission"), "{user:?}: {output}");
        }
    });
}

#[test]
fn trains_come_and_go_in_one_piece() {
    in_namespace("trains_come_and_go_in_one_piece", &[], || {
        block_on(async {
            let link = Link::open(&config(&["10.1.0.1/24", "fd01::1/64"], &[]), "bw0").unwrap();
            assert!(link.has_offload());
            for (near, far) in [("10.1.0.1", "10.1.0.2"), ("fd01::1", "fd01::2")].map(|(a, b)| (ip_of(a), ip_of(b))) {
                let listener = TcpListener::bind((near, 0)).unwrap();
                let addr = SocketAddr::new(far, listener.local_addr().unwrap().port());
                let data: Vec<u8> = (0..4 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
                let sent = data.clone();
                let sender = std::thread::spawn(move || TcpStream::connect(addr).unwrap().write_all(&sent).unwrap());
                let receiver = std::thread::spawn(move || {
                    let mut received = Vec::new();
                    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
                    received
                });
                let mut longest = (0, 0, 0);
                while !receiver.is_finished() {
                    let turn = tokio::time::timeout(
                        Duration::from_secs(10),
                        mirror(&link, |length, header| {
                            // `gso_type` and `gso_size` of the virtio_net_hdr.
                            longest = longest.max((length, header[1], u16::from_ne_bytes([header[4], header[5]])));
                        }),
                    );
                    // The end of the connection may be the last that is seen.
                    let _ = tokio::time::timeout(Duration::from_millis(100), turn).await;
                }
                sender.join().unwrap();
                assert!(receiver.join().unwrap() == data, "what arrived is something else");
                let (length, kind, size) = longest;
                // VIRTIO_NET_HDR_GSO_TCPV4 and _TCPV6; ECN is a bit of its own.
                assert_eq!(kind & !0x80, if near.is_ipv4() { 1 } else { 4 });
                assert!(length > 8 * 1420, "{length}");
                assert!((1280..1420).contains(&size), "{size}");
            }
        });
    });
}

#[test]
fn what_is_not_read_is_counted_when_it_is_dropped() {
    in_namespace("what_is_not_read_is_counted_when_it_is_dropped", &[], || {
        block_on(async {
            let link = Link::open(&config(&["10.1.0.1/24"], &[]), "bw0").unwrap();
            let mut short = Command::new("ip");
            assert!(short.args(["link", "set", "bw0", "txqueuelen", "10"]).status().unwrap().success());
            assert_eq!(link.queue_len().unwrap(), 10);
            assert_eq!(link.dropped().unwrap(), 0);
            let socket = UdpSocket::bind("10.1.0.1:0").unwrap();
            for _ in 0..50 {
                socket.send_to(b"datagram", "10.1.0.2:9").unwrap();
            }
            let mut buf = [0; 2000];
            poll_fn(|cx| link.poll_readable(cx)).await.unwrap();
            let mut read = 0;
            let error = loop {
                match link.try_read(&mut buf) {
                    // A header, IPv4, UDP.
                    Ok(length) => assert_eq!((length, buf[10]), (10 + 20 + 8 + 8, 0x45)),
                    Err(error) => break error,
                }
                read += 1;
            };
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(link.dropped().unwrap() + read, 50);
            assert!((10..20).contains(&read), "{read}");
            // The readiness is gone with the last packet, and comes again with the next.
            let ready = poll_fn(|cx| link.poll_readable(cx));
            assert!(tokio::time::timeout(Duration::from_millis(50), ready).await.is_err());
            socket.send_to(b"datagram", "10.1.0.2:9").unwrap();
            tokio::time::timeout(Duration::from_secs(10), poll_fn(|cx| link.poll_readable(cx))).await.unwrap().unwrap();
            link.try_read(&mut buf).unwrap();
        });
    });
}

#[test]
fn a_device_that_is_taken_away_is_noticed() {
    in_namespace("a_device_that_is_taken_away_is_noticed", &[], || {
        block_on(async {
            let link = Link::open(&config(&["10.1.0.1/24"], &[]), "bw0").unwrap();
            ip("link del bw0");
            tokio::time::timeout(Duration::from_secs(10), poll_fn(|cx| link.poll_readable(cx))).await.unwrap().unwrap();
            let error = link.try_read(&mut [0; 2000]).unwrap_err();
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
            assert!(link.try_write(&[IoSlice::new(&[0; 10]), IoSlice::new(&[0x45; 20])]).is_err());
            link.close().unwrap();
        });
    });
}

#[test]
fn changes_are_told_but_not_those_of_our_own() {
    in_namespace("changes_are_told_but_not_those_of_our_own", &[], || {
        uplink();
        block_on(async {
            let link = Link::open(&config(&["10.1.0.1/24", "fd01::1/64"], &["10.2.0.0/16"]), "bw0").unwrap();
            let mut monitor = link.monitor().unwrap();
            ip("link set bw0 mtu 1300");
            ip("link set bw0 down");
            ip("link set bw0 up");
            ip("address add 10.3.0.1/24 dev bw0");
            ip("-6 address add fd03::1/64 dev bw0 nodad");
            ip("route add 10.4.0.0/24 dev bw0");
            ip("route del 10.4.0.0/24 dev bw0");
            ip("address del 10.3.0.1/24 dev bw0");
            assert_eq!(within(&mut monitor, 300).await, None);

            let change = |link, address, route| Change { link, address, route };
            for (what, expected) in [
                ("link set up0 alias another", change(true, false, false)),
                ("route add 198.51.100.0/24 via 192.0.2.1", change(false, false, true)),
                ("-6 route add 2001:db8:1::/48 via 2001:db8::1", change(false, false, true)),
                // Each address is a route to this machine as well.
                ("address add 192.0.2.3/32 dev up0", change(false, true, true)),
                ("-6 address add 2001:db8::3/128 dev up0 nodad", change(false, true, true)),
                ("link set up0 down", change(true, true, true)),
                ("link set up0 up", change(true, false, true)),
            ] {
                ip(what);
                let mut seen = within(&mut monitor, 10_000).await.unwrap();
                // What comes after the first is told together.
                while let Some(more) = within(&mut monitor, 300).await {
                    let Change { link, address, route } = more;
                    seen = change(seen.link | link, seen.address | address, seen.route | route);
                }
                assert_eq!(seen, expected, "{what}");
            }
        });
    });
}

#[test]
fn many_changes_are_one_and_none_is_missed() {
    in_namespace("many_changes_are_one_and_none_is_missed", &[], || {
        uplink();
        block_on(async {
            let link = Link::open(&config(&["10.1.0.1/24"], &[]), "bw0").unwrap();
            let mut monitor = link.monitor().unwrap();
            // More than the socket has room for.
            let flood = || {
                let routes: String =
                    (0..4000).map(|i| format!("route add 10.{}.{}.0/24 dev up0\n", 20 + i / 256, i % 256)).collect();
                let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
                child.stdin.take().unwrap().write_all(routes.as_bytes()).unwrap();
                assert!(child.wait().unwrap().success());
            };
            flood();
            let change = within(&mut monitor, 10_000).await.unwrap();
            assert_eq!(change, Change { link: true, address: true, route: true }, "some were missed: it could be any");
            let mut told = 0;
            while within(&mut monitor, 500).await.is_some() {
                told += 1;
            }
            assert!(told <= 2, "{told}");
            // And it goes on.
            ip("address add 192.0.2.3/32 dev up0");
            assert!(within(&mut monitor, 10_000).await.unwrap().address);
            let began = Instant::now();
            let mut told = 0;
            while began.elapsed() < Duration::from_secs(1) {
                ip("link set up0 alias one");
                ip("link set up0 alias two");
                told += usize::from(within(&mut monitor, 10).await.is_some());
            }
            // One at once, and then one in a fifth of a second at most.
            let most = 2 + began.elapsed().as_millis() as usize / 190;
            assert!((1..=most).contains(&told), "{told} of at most {most}");
        });
    });
}

/// The next change, if it comes within so many milliseconds.
async fn within(monitor: &mut Monitor, milliseconds: u64) -> Option<Change> {
    let change = poll_fn(|cx| monitor.poll_change(cx));
    tokio::time::timeout(Duration::from_millis(milliseconds), change).await.ok()
}

/// Reads what is there and writes it back with its addresses exchanged, so that whoever sends to the far end talks to
/// the near one. Sums of what is exchanged stay as they are.
async fn mirror(link: &Link, mut seen: impl FnMut(usize, &[u8])) {
    let mut buf = vec![0; 10 + 65535];
    loop {
        poll_fn(|cx| link.poll_readable(cx)).await.unwrap();
        let length = match link.try_read(&mut buf) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => panic!("{error}"),
        };
        let (header, packet) = buf[..length].split_at_mut(10);
        seen(packet.len(), header);
        let (from, size) = if packet[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
        let (source, rest) = packet[from..].split_at_mut(size);
        source.swap_with_slice(&mut rest[..size]);
        let (first, second) = packet.split_at(from);
        let slices = [&*header, first, second].map(IoSlice::new);
        assert_eq!(link.try_write(&slices).unwrap(), length);
    }
}

fn config(addresses: &[&str], allowed: &[&str]) -> Config {
    let nets = |list: &[&str]| -> Vec<IpNet> { list.iter().map(|net| net.parse().unwrap()).collect() };
    Config {
        interface: Interface {
            private_key: Key([1; 32]),
            addresses: nets(addresses),
            listen_port: 0,
            mtu: None,
            fwmark: 0,
            table: Table::Auto,
            dns: Dns::default(),
            hooks: Vec::new(),
        },
        peers: vec![Peer {
            public_key: Key([2; 32]),
            preshared_key: None,
            endpoint: None,
            allowed_ips: nets(allowed),
            persistent_keepalive: None,
        }],
        relay: None,
    }
}

/// A device with default routes, and nobody at the other end.
fn uplink() {
    ip("link add up0 type veth peer name far0");
    for device in ["up0", "far0"] {
        ip(&format!("link set {device} addrgenmode none"));
        ip(&format!("link set {device} up"));
    }
    ip("address add 192.0.2.2/24 dev up0");
    ip("address add 2001:db8::2/64 dev up0 nodad");
    ip("route add default via 192.0.2.1");
    ip("-6 route add default via 2001:db8::1");
    // Workers of the kernel do the rest: the devices are in use when both are, and the address when it has its route.
    let is_up = |device: &serde_json::Value| device["operstate"] == "UP";
    let all_up = || show("link show type veth").as_array().unwrap().iter().all(is_up);
    let has_route = || destinations("-6 route show table local dev up0").iter().any(|net| net == "2001:db8::2");
    let end = Instant::now() + Duration::from_secs(10);
    while !(all_up() && has_route()) {
        assert!(Instant::now() < end, "the devices do not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The address from which a socket with this mark reaches another.
fn source(to: &str, mark: u32) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket2::SockRef::from(&socket).set_mark(mark).unwrap();
    socket.connect(to).unwrap();
    socket.local_addr().unwrap().ip().to_string()
}

/// All that a link may leave, as `ip` tells it, a line of JSON for each.
fn state() -> String {
    ["link", "addr", "route show table all", "-6 route show table all", "rule", "-6 rule"]
        .map(|what| show(what).to_string())
        .join("\n")
}

fn destinations(what: &str) -> Vec<String> {
    let routes = show(what);
    let mut destinations: Vec<_> =
        routes.as_array().unwrap().iter().map(|route| route["dst"].as_str().unwrap().to_owned()).collect();
    destinations.sort();
    destinations
}

fn show(what: &str) -> serde_json::Value {
    let out = Command::new("ip").arg("-j").args(what.split(' ')).env("PATH", support::path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    if out.stdout.is_empty() { serde_json::json!([]) } else { serde_json::from_slice(&out.stdout).unwrap() }
}

fn ip_of(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// The calling test once more, in the same network.
fn again(name: &str, role: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}
