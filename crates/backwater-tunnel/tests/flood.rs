//! Datagrams that nobody should have sent, 50,000 a second, beside a working session.
//!
//! In a binary of its own: what runs beside it would be measured too. An optimised build shows what the flood takes of all
//! that the machine can do: `cargo test --release -p backwater-tunnel --test flood -- --nocapture`. In a debug build, where
//! our own code is several times slower, the session has a hundred megabits a second each way.

#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod support;

use std::{
    fs, iter,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use support::{
    Network, in_namespace,
    traffic::{Echo, Stream, until_answered},
    tunnel::{HERE, PROGRAMS, Sides, THERE, Tunnel, number},
};

const OURS: &str = "10.9.1.1:51820";
const PER_SECOND: u64 = 50_000;
const ROUNDS: u32 = 5;
const ROUND: Duration = Duration::from_secs(1);
/// Bytes a second.
const PACE: Option<u64> = if cfg!(debug_assertions) { Some(12_500_000) } else { None };

/// What is sent, and the counter that has it.
const KINDS: [(&str, &str); 6] = [
    ("data again", "replayed"),
    ("data that says something else", "invalid"),
    ("data cut short", "invalid"),
    ("headers cut short", "strange"),
    ("noise", "strange"),
    ("a call again", "handshakes_refused"),
];

#[test]
fn a_session_goes_on_beside_a_flood() {
    let programs = [PROGRAMS, &[("tcpdump", "tcpdump")]].concat();
    in_namespace("a_session_goes_on_beside_a_flood", &programs, || {
        let sides = Sides::new();
        let file = sides.directory.path.join("real.pcap");
        let line =
            format!("tcpdump -i fe1 --immediate-mode -U -Z root -w {} dst host 10.9.1.1 and udp", file.display());
        let mut capture = sides.here.start(&line);
        capture.wait_for("listening on");
        let tunnel = sides.up("ListenPort = 51820", "");
        let (stock, _echo) = (sides.stock(&format!("Endpoint = {OURS}")), Echo::new(&sides.here));
        until_answered(&sides.there, HERE[0], Duration::from_secs(5));
        sides.there.run(&format!("ping -c 200 -f -s 1300 {}", HERE[0]));
        assert!(capture.stop().success());
        let real = datagrams(&fs::read(file).unwrap());

        let ours = OURS.parse().unwrap();
        // The generator takes its part of the machine in every round: in every other one it sends to a socket that nobody
        // reads.
        let unread = sides.here.within(|| UdpSocket::bind("10.9.1.1:0").unwrap());
        let nowhere = unread.local_addr().unwrap();
        let flood = Flood::new(&sides.there, &real, nowhere);
        let streams = [
            Stream::new(&sides.there, &sides.here, HERE[0], PACE),
            Stream::new(&sides.here, &sides.there, THERE[1], PACE),
        ];
        sleep(ROUND);
        let before = counts(&tunnel);
        // Bytes that arrived, and seconds of processor time that the tunnel took: in the flood, and without.
        let mut rounds = [(0, 0.0); 2];
        for round in 0..2 * ROUNDS {
            let in_flood = round % 2 == 0;
            flood.aim(if in_flood { ours } else { nowhere });
            let measure = || (streams.iter().map(Stream::bytes).sum::<u64>(), tunnel.processor_seconds());
            let begin = measure();
            sleep(ROUND);
            let end = measure();
            let (bytes, seconds) = if in_flood { &mut rounds[0] } else { &mut rounds[1] };
            (*bytes, *seconds) = (*bytes + end.0 - begin.0, *seconds + end.1 - begin.1);
        }
        streams.into_iter().for_each(Stream::finish);
        // The peer's own call is not one of too many.
        flood.aim(ours);
        drop(stock);
        let _stock = sides.stock(&format!("Endpoint = {OURS}"));
        let time = until_answered(&sides.there, HERE[0], Duration::from_secs(2));
        eprintln!("the peer was started in the flood: {time:.1?}");
        let (sent, per_second) = flood.finish();
        // What is in our socket still is soon taken.
        sleep(Duration::from_millis(500));
        let after = counts(&tunnel);

        let [(beside, seconds), (alone, seconds_alone)] = rounds.map(|(bytes, seconds)| (bytes as f64, seconds));
        let each = (seconds - seconds_alone * beside / alone) / sent.iter().sum::<u64>() as f64;
        let megabits = |bytes: f64| bytes * 8e-6 / (f64::from(ROUNDS) * ROUND.as_secs_f64());
        eprintln!(
            "{:.0} of {:.0} Mbit/s ({:.1} %) beside {per_second:.0} datagrams/s, each of which took {:.2} µs",
            megabits(beside),
            megabits(alone),
            100.0 * beside / alone,
            each * 1e6,
        );
        for counter in ["replayed", "invalid", "strange", "handshakes_refused", "cookies_sent"] {
            let sent: u64 =
                iter::zip(KINDS, sent).filter(|((_, name), _)| *name == counter).map(|(_, sent)| sent).sum();
            let counted = after(counter) - before(counter);
            eprintln!("{counter}: {sent} sent, {counted} counted");
            // None is counted twice, but some may find the socket's buffer full.
            assert!(counted <= sent && counted * 10 >= sent * 9, "{counter}: {sent} sent, {counted} counted");
        }
        assert!(per_second > 0.9 * PER_SECOND as f64, "the generator has not kept up: {per_second:.0}/s");
        assert!(beside >= 0.9 * alone, "{beside} of {alone} bytes");
    });
}

/// The counters as they are now.
fn counts(tunnel: &Tunnel<'_>) -> impl Fn(&str) -> u64 + use<> {
    let status = tunnel.status();
    move |name| {
        let of_peer = &status["peers"][0]["counters"];
        number(if of_peer[name].is_null() { &status["device"] } else { of_peer }, name)
    }
}

/// The UDP payloads in a capture of Ethernet and IPv4.
fn datagrams(pcap: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut payloads) = (&pcap[24..], Vec::new());
    while let Some((header, after)) = rest.split_at_checked(16) {
        let (packet, after) = after.split_at(u32::from_ne_bytes(header[8..12].try_into().unwrap()) as usize);
        payloads.push(packet[14 + 20 + 8..].to_vec());
        rest = after;
    }
    payloads
}

/// Sends all [`KINDS`] in turn, from the peer's address but not its port.
struct Flood {
    port: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    /// By kind, to our port.
    sent: Arc<[AtomicU64; KINDS.len()]>,
    thread: JoinHandle<f64>,
}

impl Flood {
    fn new(from: &Network, real: &[Vec<u8>], aim: SocketAddr) -> Self {
        let call = real.iter().find(|datagram| datagram.len() == 148 && datagram[0] == 1).unwrap();
        let mut datagrams: Vec<[Vec<u8>; KINDS.len()]> = Vec::new();
        for data in real.iter().filter(|datagram| datagram[0] == 4 && datagram.len() > 1000) {
            let mut other = data.clone();
            // A counter that is still to come, so that it is decrypted.
            other[12] = 1;
            // No type of message begins so.
            let noise = iter::repeat_with(|| fastrand::u8(5..)).take(fastrand::usize(..1400)).collect();
            let short = |bytes| data[..fastrand::usize(bytes)].to_vec();
            datagrams.push([data.clone(), other, short(16..32), short(1..8), noise, call.clone()]);
        }
        assert!(datagrams.len() >= 100, "{} datagrams were captured", datagrams.len());
        let (port, done) = (Arc::new(AtomicU64::new(aim.port().into())), Arc::<AtomicBool>::default());
        let sent = Arc::new([const { AtomicU64::new(0) }; KINDS.len()]);
        let thread = from.spawn({
            let (port, done, sent) = (port.clone(), done.clone(), sent.clone());
            move || {
                let socket = UdpSocket::bind("10.9.1.2:0").unwrap();
                let (begin, mut count) = (Instant::now(), 0u64);
                let mut datagrams = datagrams.iter().cycle();
                let ours: SocketAddr = OURS.parse().unwrap();
                while !done.load(SeqCst) {
                    let to = SocketAddr::new(ours.ip(), port.load(SeqCst) as u16);
                    for (datagram, sent) in datagrams.by_ref().take(10).flat_map(|kinds| iter::zip(kinds, &*sent)) {
                        socket.send_to(datagram, to).unwrap();
                        count += 1;
                        sent.fetch_add(u64::from(to == ours), SeqCst);
                    }
                    sleep(Duration::from_micros(count * 1_000_000 / PER_SECOND).saturating_sub(begin.elapsed()));
                }
                count as f64 / begin.elapsed().as_secs_f64()
            }
        });
        Self { port, done, sent, thread }
    }

    fn aim(&self, at: SocketAddr) {
        self.port.store(at.port().into(), SeqCst);
    }

    /// What was sent to our port by kind, and how much was sent a second.
    fn finish(self) -> ([u64; KINDS.len()], f64) {
        self.done.store(true, SeqCst);
        let per_second = self.thread.join().unwrap();
        (self.sent.each_ref().map(|sent| sent.load(SeqCst)), per_second)
    }
}
