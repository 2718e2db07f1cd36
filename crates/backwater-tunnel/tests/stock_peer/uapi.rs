//! `wg` and `wg-quick` with a running tunnel.

use std::{
    fs,
    io::{Read, Write},
    net::UdpSocket,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::support::{
    Network, Process, in_namespace, keys,
    traffic::{Echo, until_answered},
    tunnel::{NAME, PROGRAM, PROGRAMS, Sides, THERE},
};

const SOCKET: &str = "/run/wireguard/bw0.sock";

/// What a connection answers to this, up to its end.
fn ask(network: &Network, request: &str) -> String {
    let mut stream = UnixStream::connect(network.path(SOCKET)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What `wg showconf` says of the tunnel.
fn showconf(network: &Network) -> String {
    network.run(&format!("wg showconf {NAME}"))
}

#[test]
fn wg_shows_what_the_configuration_says() {
    in_namespace("uapi::wg_shows_what_the_configuration_says", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let [here, there] = sides.public_keys();
        let tunnel =
            sides.up("ListenPort = 51821\nFwMark = 0x77", "Endpoint = 10.9.1.2:51820\nPersistentKeepalive = 25");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        let show = sides.here.run(&format!("wg show {NAME}"));
        for part in [
            &format!("interface: {NAME}"),
            &format!("public key: {here}"),
            "listening port: 51821",
            "fwmark: 0x77",
            &format!("peer: {there}"),
            "endpoint: 10.9.1.2:51820",
            "allowed ips: 10.0.0.2/32, fd00::2/128",
            "latest handshake: ",
            "transfer: ",
            "persistent keepalive: every 25 seconds",
        ] {
            assert!(show.contains(part), "no {part:?} in:\n{show}");
        }
        assert_eq!(sides.here.run("wg show interfaces"), format!("{NAME}\n"));
        let transfer = sides.here.run(&format!("wg show {NAME} transfer"));
        let numbers: Vec<u64> = transfer.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers.len(), 2);
        assert!(numbers[0] <= tunnel.peer("bytes_received") && numbers[0] > 0 && numbers[1] > 0, "{transfer}");
        // The directory and the socket are for root alone.
        assert_eq!(sides.here.run(&format!("stat -c %a /run/wireguard {SOCKET}")), "700\n600\n");

        // What is shown is set again, and shown again.
        let shown = showconf(&sides.here);
        assert!(shown.contains("PrivateKey = ") && shown.contains("ListenPort = 51821"), "{shown}");
        sides.here.run_with(&format!("wg setconf {NAME} /dev/stdin"), &shown);
        assert_eq!(showconf(&sides.here), shown);
        until_answered(&sides.here, THERE[1], Duration::from_secs(10));
        assert_eq!(tunnel.status()["peers"].as_array().unwrap().len(), 1);
    });
}

/// One round trip after the other with the echo of the peer there, until `done`; each datagram must come back.
fn round_trips(sides: &Sides, work: impl FnOnce()) -> u64 {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };
    let done = Arc::<AtomicBool>::default();
    let traffic = sides.here.spawn({
        let done = done.clone();
        move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((THERE[0], Echo::PORT)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let (mut count, mut back) = (0_u64, [0; 1400]);
            while !done.load(SeqCst) {
                let mut sent = [7; 1200];
                sent[..8].copy_from_slice(&count.to_be_bytes());
                socket.send(&sent).unwrap();
                let len = socket.recv(&mut back).unwrap_or_else(|error| panic!("datagram {count} is lost: {error}"));
                assert_eq!(back[..len], sent, "datagram {count}");
                count += 1;
            }
            count
        }
    });
    work();
    done.store(true, SeqCst);
    traffic.join().unwrap()
}

#[test]
fn other_peers_are_set_while_a_peers_traffic_runs() {
    in_namespace("uapi::other_peers_are_set_while_a_peers_traffic_runs", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        let (private, _) = keys();
        let psk = sides.directory.file("psk", &format!("{private}\n"));
        let psk = psk.to_str().unwrap();
        let handshakes = tunnel.peer("handshakes");
        let count = round_trips(&sides, || {
            for round in 0..5 {
                let others: Vec<_> = (0..3).map(|_| keys().1).collect();
                for (number, key) in others.iter().enumerate() {
                    let set = format!("wg set {NAME} peer {key}");
                    sides.here.run(&format!(
                        "{set} endpoint 10.9.1.77:{} allowed-ips 10.5.{number}.0/24,fd05::{number}/128 \
                         persistent-keepalive 1 preshared-key {psk}",
                        1 + number
                    ));
                    sides.here.run(&format!("{set} endpoint [fd09:1::77]:9 persistent-keepalive off"));
                    sides.here.run(&format!("{set} preshared-key /dev/null"));
                }
                // A prefix is at the peer that got it last.
                sides.here.run(&format!("wg set {NAME} peer {} allowed-ips 10.5.1.0/24,10.6.0.0/16", others[0]));
                let allowed = sides.here.run(&format!("wg show {NAME} allowed-ips"));
                assert!(allowed.contains(&format!("{}\t10.5.1.0/24 10.6.0.0/16\n", others[0])), "{allowed}");
                assert!(allowed.contains(&format!("{}\tfd05::1/128\n", others[1])), "{allowed}");
                sides.here.run(&format!("wg set {NAME} fwmark {}", round % 2));
                for key in &others {
                    sides.here.run(&format!("wg set {NAME} peer {key} remove"));
                }
            }
        });
        assert!(count > 0);
        let status = tunnel.status();
        assert_eq!(status["peers"].as_array().unwrap().len(), 1);
        assert_eq!(tunnel.peer("handshakes"), handshakes, "its session stays");
        assert_eq!(tunnel.peer("datagrams_dropped"), 0, "{status:#}");
    });
}

/// A datagram that is under way to the port before may be lost; the peer follows at once.
#[test]
fn peer_is_reached_after_each_thing_that_is_set_of_it() {
    in_namespace("uapi::peer_is_reached_after_each_thing_that_is_set_of_it", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let [here, there] = sides.public_keys().map(str::to_owned);
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        let answered = || until_answered(&sides.here, THERE[0], Duration::from_secs(60));
        answered();
        let (private, public) = keys();
        for (set, also) in [
            ("listen-port 51833".to_owned(), String::new()),
            ("listen-port 0".to_owned(), String::new()),
            ("fwmark 0x99".to_owned(), String::new()),
            (format!("peer {there} endpoint [fd09:1::2]:51820"), String::new()),
            (format!("peer {there} persistent-keepalive 1"), String::new()),
            (format!("peer {there} preshared-key /dev/stdin"), format!("peer {here} preshared-key /dev/stdin")),
            (
                "private-key /dev/stdin".to_owned(),
                format!("peer {public} preshared-key /dev/stdin allowed-ips 10.0.0.1/32,fd00::1/128"),
            ),
            (format!("peer {there} remove"), String::new()),
            (
                format!(
                    "peer {there} preshared-key /dev/stdin endpoint 10.9.1.2:51820 allowed-ips 10.0.0.2/32,fd00::2/128"
                ),
                String::new(),
            ),
        ] {
            let input = format!("{private}\n");
            sides.here.run_with(&format!("wg set {NAME} {set}"), &input);
            if !also.is_empty() {
                sides.there.run_with(&format!("wg set wg0 {also}"), &input);
            }
            if set.ends_with("remove") {
                assert_eq!(sides.here.run(&format!("wg show {NAME} peers")), "");
                assert!(!sides.here.try_run(&format!("ping -c 1 -W 1 {}", THERE[0]), "").0);
            } else {
                answered();
            }
        }
        assert_eq!(sides.here.run(&format!("wg show {NAME} public-key")).trim(), public);
        let port = sides.here.run(&format!("wg show {NAME} listen-port"));
        assert!(sides.here.run("ss -Hlun").contains(&format!(":{} ", port.trim())), "{port}");
        tunnel.wait_for_log("configured by UAPI", Duration::from_secs(60));
    });
}

#[test]
fn syncconf_leaves_the_session_of_a_peer_that_stays() {
    in_namespace("uapi::syncconf_leaves_the_session_of_a_peer_that_stays", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        let handshakes = tunnel.peer("handshakes");
        let stays = showconf(&sides.here);
        let (gone, comes) = (keys().1, keys().1);
        let addconf = format!("[Peer]\nPublicKey = {gone}\nAllowedIPs = 10.7.0.0/16\n");
        sides.here.run_with(&format!("wg addconf {NAME} /dev/stdin"), &addconf);
        let wanted =
            format!("{stays}\n[Peer]\nPublicKey = {comes}\nAllowedIPs = 10.7.0.0/24\nEndpoint = 192.0.2.1:1\n");
        let file = sides.directory.file("sync.conf", &wanted);
        let count = round_trips(&sides, || {
            for _ in 0..5 {
                sides.here.run(&format!("wg syncconf {NAME} {}", file.display()));
            }
        });
        assert!(count > 0);
        let peers = sides.here.run(&format!("wg show {NAME} peers"));
        assert!(peers.contains(&comes) && !peers.contains(&gone) && peers.lines().count() == 2, "{peers}");
        assert_eq!(tunnel.status()["peers"][0]["counters"]["handshakes"], handshakes);
    });
}

#[test]
fn broken_request_has_its_errno_and_changes_nothing() {
    in_namespace("uapi::broken_request_has_its_errno_and_changes_nothing", PROGRAMS, || {
        let sides = Sides::new();
        let _tunnel = sides.up("ListenPort = 51821", "Endpoint = 10.9.1.2:51820\nAllowedIPs = 0.0.0.0/0");
        let _taken = sides.here.within(|| UdpSocket::bind("0.0.0.0:51822").unwrap());
        let before = showconf(&sides.here);
        let key = "01".repeat(32);
        let many: String = (0..1025).map(|number| format!("public_key={number:064x}\n")).collect();
        let good = format!("private_key={key}\nreplace_peers=true\npublic_key={key}\nallowed_ip=10.0.0.2/32\n");
        for (request, errno) in [
            (format!("{good}endpoint=nowhere\n"), -22),
            (format!("{good}no line\n"), -71),
            // Taken by another socket.
            (format!("listen_port=51822\n{good}"), -98),
            // The rules of the default route need theirs.
            (format!("fwmark=1\nlisten_port=51823\n{good}"), -16),
            (format!("private_key={key}\nreplace_peers=true\n{many}"), -28),
        ] {
            assert_eq!(
                ask(&sides.here, &format!("set=1\n{request}\n")),
                format!("errno={errno}\n\n"),
                "{request:.300}"
            );
            assert_eq!(showconf(&sides.here), before, "{request:.300}");
        }
        // A request that is not whole is none.
        assert_eq!(ask(&sides.here, &format!("set=1\n{good}")), "");
        assert_eq!(showconf(&sides.here), before);
        let (succeeded, said) = sides.here.try_run(&format!("wg set {NAME} listen-port 51822"), "");
        assert!(!succeeded && said.contains("Address already in use"), "{said}");
        // As `wg setconf` does without a mark: the rules keep theirs.
        assert_eq!(ask(&sides.here, "set=1\nfwmark=0\n\n"), "errno=0\n\n");
        assert_eq!(showconf(&sides.here), before);
        assert_eq!(ask(&sides.here, &format!("set=1\n{good}\nget=1\n\n")).matches("errno=0\n\n").count(), 2);
        assert!(showconf(&sides.here) != before);
    });
}

/// Of a program that was killed it is removed, of one that listens it is not.
#[test]
fn socket_of_another_program_is_left_alone() {
    in_namespace("uapi::socket_of_another_program_is_left_alone", PROGRAMS, || {
        let sides = Sides::new();
        sides.here.run("mkdir -m 700 /run/wireguard");
        let other = UnixListener::bind(sides.here.path(SOCKET)).unwrap();
        let (code, _, said) = sides.output([NAME, "--foreground"]);
        assert!(code == 1 && said.contains("the UAPI socket of bw0: Address already in use"), "{said}");
        assert!(!sides.here.run("ip link").contains(NAME));
        // A tunnel with a file does without.
        let mut tunnel = sides.up("", "");
        tunnel.wait_for_log("`wg` cannot reach this tunnel", Duration::from_secs(60));
        assert!(tunnel.process.stop().success());
        assert!(UnixStream::connect(sides.here.path(SOCKET)).is_ok());

        drop(other);
        let mut tunnel = sides.up("", "");
        sides.here.run(&format!("wg show {NAME}"));
        assert!(tunnel.process.stop().success());
        assert!(!sides.here.path(SOCKET).exists());
        // Where others may write is no place for it.
        sides.here.run("chmod 777 /run/wireguard");
        let (code, _, said) = sides.output([NAME, "-f"]);
        assert!(code == 1 && said.contains("/var/run/wireguard has the mode 0777: chmod 700 it"), "{said}");
    });
}

#[test]
fn device_without_a_file_ends_with_its_device_or_its_socket() {
    in_namespace("uapi::device_without_a_file_ends_with_its_device_or_its_socket", PROGRAMS, || {
        let sides = Sides::new();
        for end in [&format!("ip link del {NAME}"), &format!("rm {SOCKET}")] {
            let mut process = Process::spawn("device", sides.program([NAME, "--foreground"]));
            process.wait_for(&format!("{NAME} is up; "));
            let link = sides.here.run(&format!("ip -j link show {NAME}"));
            assert!(!link.contains("\"UP\""), "{link}");
            let conf = showconf(&sides.here);
            assert!(!conf.contains("PrivateKey") && !conf.contains("Peer") && conf.contains("ListenPort"), "{conf}");
            assert_eq!(sides.output(["status", NAME]).0, 0);
            // Its key can be taken away again.
            let (private, public) = keys();
            sides.here.run_with(&format!("wg set {NAME} private-key /dev/stdin"), &private);
            assert_eq!(sides.here.run(&format!("wg show {NAME} public-key")).trim(), public);
            sides.here.run(&format!("wg set {NAME} private-key /dev/null"));
            assert!(!showconf(&sides.here).contains("PrivateKey"));
            sides.here.run(end);
            assert!(process.wait().success(), "{end}");
            assert!(!sides.here.run("ip link").contains(NAME));
            assert_eq!(sides.here.run("find /run -type s"), "");
        }
        let (code, _, said) = sides.output(["not/a/name"]);
        assert!(code == 2 && said.contains("wanted a command or 1 to 15 of the characters"), "{said}");
        // The one in the background says why it has ended.
        sides.here.run(&format!("ip link add {NAME} type veth peer name other"));
        let (code, _, said) = sides.output([NAME]);
        assert!(code == 1 && said.contains(&format!("there is a device {NAME} already")), "{said}");
    });
}

/// Deletes a device, and so ends the program in the background, whatever becomes of the test.
struct Deleted<'a>(&'a Network, &'a str);

impl Drop for Deleted<'_> {
    fn drop(&mut self) {
        self.0.try_run(&format!("ip link delete {}", self.1), "");
    }
}

/// The processes in the background for this device.
fn processes(name: &str) -> Vec<String> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.to_owned()));
    let wanted = format!("\0{name}\0--detached\0");
    processes
        .filter(|id| fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.ends_with(&wanted)))
        .collect()
}

/// Debian's script, beside an `ip` that has no WireGuard: the script takes the programs beside it first. The kernel's own would be used
/// otherwise, where it has one.
fn wg_quick(sides: &Sides) -> PathBuf {
    let directory = sides.directory.path.join("bin");
    fs::create_dir(&directory).unwrap();
    let program = |name: &str| {
        let found = sides.here.run(&format!("which {name}"));
        found.trim().to_owned()
    };
    fs::copy(program("wg-quick"), directory.join("wg-quick")).unwrap();
    let ip = format!("#!/bin/sh\ncase \"$*\" in *\"type wireguard\") exit 2;; esac\nexec {} \"$@\"\n", program("ip"));
    fs::write(directory.join("ip"), ip).unwrap();
    for name in ["wg-quick", "ip"] {
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    // As if the kernel had no such module.
    sides.here.run("mount -t tmpfs tmpfs /sys/module");
    directory.join("wg-quick")
}

#[test]
fn wg_quick_brings_it_up_and_down_and_nothing_is_left() {
    let programs =
        [PROGRAMS, &[("wg-quick", "wireguard-tools"), ("nft", "nftables"), ("which", "debianutils")]].concat();
    in_namespace("uapi::wg_quick_brings_it_up_and_down_and_nothing_is_left", &programs, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let wg_quick = wg_quick(&sides);
        let name = format!("bwq{:x}", std::process::id());
        let _deleted = Deleted(&sides.here, &name);
        let quick = |what: &str, file: &PathBuf| {
            let words = ["timeout", "60", wg_quick.to_str().unwrap(), what, file.to_str().unwrap()];
            let mut command = sides.here.command_of(words);
            sides.environment(&mut command);
            // The output is read to its end: nothing in the background may hold it.
            let out = command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", PROGRAM).output().unwrap();
            let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            assert!(out.status.success(), "wg-quick {what}: {said}");
            said
        };
        let state = || {
            ["link", "address", "-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"]
                .map(|what| sides.here.run(&format!("ip -j {what}")))
                .into_iter()
                .chain([sides.here.run("find /run -type s"), sides.here.run("nft list tables")])
                .collect::<Vec<_>>()
        };
        let before = state();
        for (interface, peer) in [("MTU = 1380", ""), ("", "AllowedIPs = 0.0.0.0/0\nPersistentKeepalive = 5")] {
            let configuration = sides.configuration(interface, &format!("Endpoint = 10.9.1.2:51820\n{peer}"));
            let file = sides.directory.file(&format!("{name}.conf"), &configuration);
            let said = quick("up", &file);
            assert!(said.contains(&format!("{name} is up; ")), "{said}");
            assert_eq!(processes(&name).len(), 1);
            for there in THERE {
                until_answered(&sides.here, there, Duration::from_secs(10));
            }
            let show = sides.here.run(&format!("wg show {name}"));
            assert!(show.contains("latest handshake: ") && show.contains("endpoint: 10.9.1.2:51820"), "{show}");
            assert_eq!(sides.output(["status", &name]).0, 0);
            quick("down", &file);
            let end = Instant::now() + Duration::from_secs(60);
            while !processes(&name).is_empty() {
                assert!(Instant::now() < end, "the program is left");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(state(), before);
        }
    });
}
