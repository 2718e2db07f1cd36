//! A clock that jumps while the relay runs, by libfaketime.

use std::{
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use backwater_stun::*;
use serde_json::Value;

use crate::{
    client::{Client, channel_data, peer},
    program::Program,
    support::skip,
};

/// Until 2100, of the secret "hush".
const LIMITED: (&str, &str) = ("4102444800:bob", "2QMwgfmMcAz/ppR8DP9W/j3UGFQ=");

/// A relay, and what its clock is off by.
struct Faked {
    relay: Program,
    addr: SocketAddr,
    dir: PathBuf,
    /// They stay: a port that is used again would be the 5-tuple of an allocation that is there already.
    past: Vec<Client>,
}

impl Faked {
    fn start(name: &str, library: &Path, more: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("backwater-clock-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        set(&dir, "+0");
        let file = dir.join("offset");
        let env = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
        ];
        let args = ["--listen", "127.0.0.1:0", "--user", "alice:secret", "--secret", "hush", "--threads", "2"];
        let args =
            [&args[..], &["--allow-peer", "127.0.0.0/8", "--drain", "0", "--log-level", "backwater_relay=debug"]]
                .concat();
        let mut relay = Program::start_with(&args, &[&env, more].concat());
        let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
        Self { relay, addr, dir, past: Vec::new() }
    }

    fn client(&self, (user, password): (&str, &str)) -> Client {
        Client::new(self.addr, user, password, "backwater")
    }

    /// A new client is served: with an allocation, a permission, a channel and data both ways.
    fn serves_new_ones(&mut self) {
        let mut client = self.client(("alice", "secret"));
        let relayed = client.allocate();
        let (peer, peer_addr) = peer();
        client.bind_channel(0x4000, peer_addr).unwrap();
        carries(&client, relayed, &peer);
        self.past.push(client);
    }

    /// The line that the relay logs about an allocation now.
    fn logged(&mut self) -> Value {
        let mut client = self.client(("alice", "secret"));
        let relayed = client.allocate().to_string();
        self.past.push(client);
        loop {
            let line = self.relay.line("allocation made");
            if line["relayed"] == relayed {
                return line;
            }
        }
    }

    fn stop(self) {
        assert_eq!(self.relay.terminate(), Some(0));
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// At once: the relay must not read half of it.
fn set(dir: &Path, offset: &str) {
    std::fs::write(dir.join("new"), offset).unwrap();
    std::fs::rename(dir.join("new"), dir.join("offset")).unwrap();
}

/// Data goes both ways over the channel.
fn carries(client: &Client, relayed: SocketAddr, peer: &UdpSocket) {
    let mut buffer = [0; 100];
    client.socket.send(&channel_data(0x4000, b"up")).unwrap();
    assert_eq!(peer.recv_from(&mut buffer).unwrap(), (2, relayed));
    peer.send_to(b"down", relayed).unwrap();
    let len = client.socket.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..len], channel_data(0x4000, b"down"));
}

/// Waits until an allocation's port is free, that is, until it has expired.
fn until_free(relayed: SocketAddr, mut meanwhile: impl FnMut()) {
    let limit = Instant::now() + Duration::from_secs(100);
    while UdpSocket::bind(relayed).is_err() {
        assert!(Instant::now() < limit, "an allocation has outlived its end");
        meanwhile();
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn code(reply: &[u8]) -> u16 {
    Message::parse(reply).unwrap().get::<ErrorCode<'_>>().unwrap().map_or(0, |error| error.code.number())
}

/// The library for programs with threads, wherever the system has it.
fn library() -> Option<PathBuf> {
    let found = std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    found.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file())
}

const MISSING: &str = "libfaketime is not installed (package faketime)";

/// Both ways, by more than a nonce lives, beyond the end of a time-limited credential, and to before 1970: whoever is there
/// goes on, if with a new nonce, and whoever comes is served, unless the credential has expired.
#[test]
fn the_wall_clock_may_be_set_while_the_relay_runs() {
    let Some(library) = library() else { return skip(MISSING) };
    let mut faked = Faked::start("wall", &library, &[("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
    let clients = [("alice", "secret"), LIMITED].map(|who| {
        let mut client = faked.client(who);
        let relayed = client.allocate();
        let (peer, peer_addr) = peer();
        client.bind_channel(0x4000, peer_addr).unwrap();
        (client, relayed, peer)
    });
    let mut clients = clients;
    let this_year = faked.logged()["time"].as_str().unwrap()[..4].parse::<u16>().unwrap();
    for (offset, years, expired) in [
        ("+5400", 0, false),
        ("-5400", 0, false),
        ("+80y", 80, true),
        ("+0", 0, false),
        ("-50y", -50, false),
        ("-70y", -57, false),
        ("+0", 0, false),
    ] {
        set(&faked.dir, offset);
        for (client, relayed, peer) in &mut clients {
            carries(client, *relayed, peer);
            // That the clock has jumped the client knows by its nonce.
            assert_eq!(code(&client.exchange(Method::REFRESH, &|_| ())), 438, "{offset}");
            client.request(Method::REFRESH, &|_| ()).unwrap();
            client.bind_channel(0x4000, peer.local_addr().unwrap()).unwrap();
            carries(client, *relayed, peer);
        }
        faked.serves_new_ones();
        let mut limited = faked.client(LIMITED);
        let allocated = limited.try_allocate(&|_| ()).map(drop);
        faked.past.push(limited);
        assert_eq!(allocated, if expired { Err(401) } else { Ok(()) }, "{offset}");
        let line = faked.logged();
        let year = line["time"].as_str().unwrap()[..4].parse::<i32>().unwrap();
        assert!((year - i32::from(this_year) - years).abs() <= 1, "{offset}: {line}");
    }
    faked.stop();
}

/// As when a virtual machine was stopped for a while: what should have expired meanwhile does, and nothing else.
#[test]
fn the_monotonic_clock_may_jump_forwards_while_the_relay_runs() {
    let Some(library) = library() else { return skip(MISSING) };
    let mut faked = Faked::start("monotonic", &library, &[]);
    let (mut short, mut long) = (faked.client(("alice", "secret")), faked.client(("alice", "secret")));
    let was_short = short.allocate();
    let hour: crate::client::Fill<'_> = &|w| {
        w.attribute(&Lifetime(3600)).unwrap();
    };
    let reply = long.try_allocate(hour).unwrap();
    let relayed = Message::parse(&reply).unwrap().get::<XorRelayedAddress>().unwrap().unwrap().0;
    let (peer, peer_addr) = peer();
    long.bind_channel(0x4000, peer_addr).unwrap();
    carries(&long, relayed, &peer);

    set(&faked.dir, "+1800");
    // A thread sees it when something wakes it: the kernel spreads these over both.
    until_free(was_short, || faked.serves_new_ones());
    assert_eq!(short.request(Method::REFRESH, &|_| ()).unwrap_err(), 437);
    // The channel and the permission have expired, the allocation has not.
    long.socket.send(&channel_data(0x4000, b"too late")).unwrap();
    long.request(Method::REFRESH, hour).unwrap();
    peer.set_nonblocking(true).unwrap();
    peer.recv_from(&mut [0; 100]).unwrap_err();
    peer.set_nonblocking(false).unwrap();
    long.bind_channel(0x4000, peer_addr).unwrap();
    carries(&long, relayed, &peer);

    // Without anything from outside, and asleep already: it looks by itself, every ten seconds by the true clock.
    std::thread::sleep(Duration::from_millis(200));
    set(&faked.dir, "+5430");
    until_free(relayed, || ());
    faked.serves_new_ones();
    long.allocate();
    faked.stop();
}
