//! Load over a network that loses, reorders, and goes away now and then.
//!
//! `BACKWATER_SOAK_SECONDS` says for how long: 1800 for the long one, 20 otherwise.

use std::{
    env,
    iter::zip,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use crate::support::{
    Network, in_namespace,
    traffic::{Echo, Stream, until_answered},
    tunnel::{HERE, PROGRAMS, Sides, THERE},
};

#[test]
fn load_loss_reordering_and_flaps() {
    in_namespace("soak::load_loss_reordering_and_flaps", PROGRAMS, || {
        let seconds = env::var("BACKWATER_SOAK_SECONDS").map_or(20, |text| text.parse().unwrap());
        let (sides, between) = (Sides::apart(), Network::new("between"));
        sides.here.join(&between, 1);
        between.join(&sides.there, 2);
        let lossy = Lossy::new(&between);
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        let streams =
            [Stream::new(&sides.here, &sides.there, THERE[0]), Stream::new(&sides.there, &sides.here, HERE[1])];
        let bytes = || streams.each_ref().map(Stream::bytes);
        let (begin, mut flaps, mut longest, mut first) = (Instant::now(), 0, Duration::ZERO, None);
        while begin.elapsed() < Duration::from_secs(seconds) {
            let (before, since) = (bytes(), Instant::now());
            sleep(Duration::from_secs(4));
            // TCP may have doubled its timer a few times while the link was down, and the forwarder's short buffer loses more
            // than one in a hundred beside the other stream. That the tunnel itself is back the echoes say, within two seconds.
            while zip(before, bytes()).any(|(before, after)| before == after) {
                assert!(since.elapsed() < Duration::from_secs(60), "flap {flaps}: {before:?} bytes, now {:?}", bytes());
                sleep(Duration::from_millis(100));
            }
            let usage = (tunnel.process.resident(), tunnel.descriptors());
            let (resident, descriptors) = *first.get_or_insert(usage);
            assert!(usage.0 <= resident + (2 << 20), "flap {flaps}: {resident} bytes are now {}", usage.0);
            assert_eq!(usage.1, descriptors, "flap {flaps}: descriptors");

            sides.here.run("ip link set fe1 down");
            sleep(Duration::from_millis(fastrand::u64(100..1500)));
            sides.here.run("ip link set fe1 up");
            longest = longest.max(until_answered(&sides.here, THERE[1], Duration::from_secs(2)));
            flaps += 1;
        }
        let (mebibytes, (resident, descriptors)) = (bytes().map(|bytes| bytes >> 20), first.unwrap());
        eprintln!(
            "{:.0?}: {mebibytes:?} MiB, {flaps} flaps, answers after {longest:.0?} at most; {} bytes resident, {resident} \
             in the beginning, {descriptors} descriptors",
            begin.elapsed(),
            tunnel.process.resident(),
        );
        streams.into_iter().for_each(Stream::finish);
        lossy.finish();
    });
}

/// Forwards between our end and the stock peer: one datagram in a hundred is lost, another one comes after its successor.
struct Lossy {
    done: Arc<AtomicBool>,
    threads: [JoinHandle<()>; 2],
}

impl Lossy {
    fn new(between: &Network) -> Self {
        let (near, far) = between.within(|| {
            let far = UdpSocket::bind("10.9.2.1:0").unwrap();
            far.connect("10.9.2.2:51820").unwrap();
            (UdpSocket::bind("10.9.1.2:51820").unwrap(), far)
        });
        let done = Arc::<AtomicBool>::default();
        let caller = Arc::<Mutex<Option<SocketAddr>>>::default();
        // What is sent may find nobody there: that is a loss, too.
        let up = forward(&near, &done, {
            let (caller, far) = (caller.clone(), far.try_clone().unwrap());
            move |datagram, from| {
                *caller.lock().unwrap() = Some(from);
                let _ = far.send(datagram);
            }
        });
        let down = forward(&far, &done, {
            let near = near.try_clone().unwrap();
            move |datagram, _| {
                if let Some(to) = *caller.lock().unwrap() {
                    let _ = near.send_to(datagram, to);
                }
            }
        });
        Self { done, threads: [up, down] }
    }

    fn finish(self) {
        self.done.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn forward(
    from: &UdpSocket,
    done: &Arc<AtomicBool>,
    mut send: impl FnMut(&[u8], SocketAddr) + Send + 'static,
) -> JoinHandle<()> {
    let (from, done) = (from.try_clone().unwrap(), done.clone());
    from.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    std::thread::spawn(move || {
        let (mut buffer, mut late) = (vec![0; 65_536], None);
        while !done.load(SeqCst) {
            let Ok((len, source)) = from.recv_from(&mut buffer) else { continue };
            let before = late.take();
            match fastrand::u8(..100) {
                0 => {}
                1 => late = Some(buffer[..len].to_vec()),
                _ => send(&buffer[..len], source),
            }
            if let Some(datagram) = before {
                send(&datagram, source);
            }
        }
    })
}
