//! Datagrams that nobody should have sent, beside a working session and beside a handshake.

#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod support;

use std::{
    fs, iter,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use backwater_tunnel::config::Key;
use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{FixedOutput, Mac, consts::U16},
};
use support::{
    Network, in_namespace,
    traffic::{Echo, Stream, until_answered},
    tunnel::{HERE, PROGRAMS, Sides, THERE, Tunnel, number},
};

const OURS: &str = "10.9.1.1:51820";
const PER_SECOND: u64 = 10_000;

/// The flood goes on until it has sent so many datagrams, and each stream of the session has got so many bytes across.
const AT_LEAST: u64 = 50_000;
const BYTES: u64 = 4 << 20;

/// What takes longer than this hangs: an idle machine takes five seconds for all of it.
const PATIENCE: Duration = Duration::from_secs(60);

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

        let streams =
            [Stream::new(&sides.there, &sides.here, HERE[0]), Stream::new(&sides.here, &sides.there, THERE[1])];
        let bytes = || streams.each_ref().map(Stream::bytes);
        let (before, lost_before) = (counts(&tunnel), lost(&sides));
        let flood = Flood::new(&sides.there, &real);
        let at_first = bytes();
        until("the session goes on beside the flood", || {
            let goes_on = iter::zip(at_first, bytes()).all(|(before, now)| now - before >= BYTES);
            goes_on && flood.sent().iter().sum::<u64>() >= AT_LEAST
        });
        streams.into_iter().for_each(Stream::finish);
        // The peer's own call is not one of too many.
        drop(stock);
        let _stock = sides.stock(&format!("Endpoint = {OURS}"));
        let time = until_answered(&sides.there, HERE[0], SESSION);
        eprintln!("the peer was started in the flood: {time:.1?}");
        let sent = flood.finish();

        // Each was counted once, or found the socket's buffer full, or the link's: the kernel counts those.
        let counters = ["replayed", "invalid", "strange", "handshakes_refused"];
        let sent_as = counters.map(|counter| {
            iter::zip(KINDS, sent).filter(|((_, name), _)| *name == counter).map(|(_, sent)| sent).sum::<u64>()
        });
        until("every datagram of the flood is accounted for", || {
            let after = counts(&tunnel);
            let counted = counters.map(|counter| after(counter) - before(counter));
            eprintln!("{counters:?}: {sent_as:?} sent, {counted:?} counted");
            assert!(iter::zip(sent_as, counted).all(|(sent, counted)| counted <= sent), "one was counted twice");
            assert_eq!(
                after("cookies_sent"),
                before("cookies_sent"),
                "a call that came before is no reason for a cookie"
            );
            sent.iter().sum::<u64>() - counted.iter().sum::<u64>() <= lost(&sides) - lost_before
        });
    });
}

/// Initiations a second, each with a right `mac1`, from senders that know a public key and nothing else.
const INITIATIONS: u64 = 3_000;

/// A session takes less than this on an idle machine, also when an initiation is lost or answered by a cookie: it is repeated after 5 s
/// (`REKEY_TIMEOUT`).
const SESSION: Duration = Duration::from_secs(6);

#[test]
fn peer_has_its_session_beside_a_flood_of_initiations() {
    in_namespace("peer_has_its_session_beside_a_flood_of_initiations", PROGRAMS, || {
        // Without an endpoint nobody knows where the peer is.
        for (sources, endpoint) in [(1, ""), (1000, "Endpoint = 10.9.1.2:51820"), (1000, "")] {
            let sides = Sides::new();
            sides.here.run("ip route add 10.8.0.0/16 via 10.9.1.2");
            let _echo = Echo::new(&sides.here);
            let tunnel = sides.up("ListenPort = 51820", endpoint);
            let flood = Initiations::new(&sides.there, OURS, sides.public_keys()[0], sources);
            until("initiations are answered by cookies", || tunnel.device("cookies_sent") > INITIATIONS);
            let _stock = sides.stock(&format!("Endpoint = {OURS}"));
            let time = until_answered(&sides.there, HERE[0], SESSION);
            let (cookies, refused) = (tunnel.device("cookies_sent"), tunnel.device("handshakes_refused"));
            let sent = flood.finish();
            eprintln!(
                "{sources} sources, {sent} initiations, {cookies} cookies, {refused} refused, {endpoint:?}: a session after {time:.1?}"
            );
            assert!(tunnel.peer("handshakes") >= 1, "{:#}", tunnel.status());
            assert!(cookies + refused <= sent + 10, "one was counted twice");
        }
    });
}

/// The same with the roles changed: wireguard-go is flooded, and asks this side for a cookie if it is under load.
#[test]
fn we_have_our_session_with_a_peer_that_is_flooded() {
    in_namespace("we_have_our_session_with_a_peer_that_is_flooded", PROGRAMS, || {
        let sides = Sides::new();
        sides.there.run("ip route add 10.8.0.0/16 via 10.9.1.1");
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let flood = Initiations::new(&sides.here, "10.9.1.2:51820", sides.public_keys()[1], 1000);
        until("the flood has begun", || flood.sent.load(SeqCst) > INITIATIONS);
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        let time = until_answered(&sides.here, THERE[0], SESSION);
        eprintln!("{} initiations to wireguard-go: a session after {time:.1?}", flood.finish());
        assert!(tunnel.peer("handshakes") >= 1, "{:#}", tunnel.status());
    });
}

/// Sends [`INITIATIONS`] a second from so many addresses of 10.8.0.0/16, as long as the machine lets it.
struct Initiations {
    done: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Initiations {
    fn new(from: &Network, to: &'static str, public_key: &str, sources: u32) -> Self {
        from.run("ip route add local 10.8.0.0/16 dev lo");
        let key = Blake2s256::new().chain_update(b"mac1----").chain_update(Key::from_base64(public_key).unwrap().0);
        let key: [u8; 32] = key.finalize().into();
        let (done, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = from.spawn({
            let (done, sent) = (done.clone(), sent.clone());
            move || {
                let to: SocketAddr = to.parse().unwrap();
                let first = u32::from(Ipv4Addr::new(10, 8, 0, 1));
                let bind = |number| UdpSocket::bind((Ipv4Addr::from(first + number), 0)).unwrap();
                let sockets: Vec<_> = (0..sources).map(bind).collect();
                let (begin, mut count) = (Instant::now(), 0u64);
                for socket in sockets.iter().cycle() {
                    if done.load(SeqCst) {
                        break;
                    }
                    // The receiver's queue may be full.
                    let _ = socket.send_to(&initiation(&key), to);
                    count = sent.fetch_add(1, SeqCst) + 1;
                    sleep(Duration::from_micros(count * 1_000_000 / INITIATIONS).saturating_sub(begin.elapsed()));
                }
                assert!(count > 0);
            }
        });
        Self { done, sent, thread }
    }

    /// Ends it. Returns how many were sent.
    fn finish(self) -> u64 {
        self.done.store(true, SeqCst);
        self.thread.join().unwrap();
        self.sent.load(SeqCst)
    }
}

/// What nobody but the owner of the private key can tell from an initiation, and only by decrypting it.
fn initiation(mac1_key: &[u8; 32]) -> [u8; 148] {
    let mut message = [0; 148];
    fastrand::fill(&mut message[..116]);
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    let mut mac = <Blake2sMac<U16> as Mac>::new_from_slice(mac1_key).unwrap();
    Mac::update(&mut mac, &message[..116]);
    message[116..132].copy_from_slice(&mac.finalize_fixed());
    message
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(100));
    }
}

/// Datagrams that found a receive buffer full at our end, or the link's queue at the other end.
fn lost(sides: &Sides) -> u64 {
    let text = sides.here.run("cat /proc/net/snmp");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).unwrap();
    let mut both = iter::zip(names.split(' '), values.split(' '));
    let buffer: u64 = both.find(|(name, _)| *name == "RcvbufErrors").unwrap().1.parse().unwrap();
    let link: u64 = sides.there.run("cat /sys/class/net/fe1/statistics/tx_dropped").trim().parse().unwrap();
    buffer + link
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
    done: Arc<AtomicBool>,
    /// By kind.
    sent: Arc<[AtomicU64; KINDS.len()]>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn new(from: &Network, real: &[Vec<u8>]) -> Self {
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
        let done = Arc::<AtomicBool>::default();
        let sent = Arc::new([const { AtomicU64::new(0) }; KINDS.len()]);
        let thread = from.spawn({
            let (done, sent) = (done.clone(), sent.clone());
            move || {
                let socket = UdpSocket::bind("10.9.1.2:0").unwrap();
                socket.connect(OURS).unwrap();
                let (begin, mut count) = (Instant::now(), 0u64);
                let mut datagrams = datagrams.iter().cycle();
                while !done.load(SeqCst) {
                    for (datagram, sent) in datagrams.by_ref().take(10).flat_map(|kinds| iter::zip(kinds, &*sent)) {
                        socket.send(datagram).unwrap();
                        count += 1;
                        sent.fetch_add(1, SeqCst);
                    }
                    sleep(Duration::from_micros(count * 1_000_000 / PER_SECOND).saturating_sub(begin.elapsed()));
                }
            }
        });
        Self { done, sent, thread }
    }

    /// What was sent by kind.
    fn sent(&self) -> [u64; KINDS.len()] {
        self.sent.each_ref().map(|sent| sent.load(SeqCst))
    }

    /// Ends it. What was sent by kind.
    fn finish(self) -> [u64; KINDS.len()] {
        self.done.store(true, SeqCst);
        self.thread.join().unwrap();
        self.sent.each_ref().map(|sent| sent.load(SeqCst))
    }
}
