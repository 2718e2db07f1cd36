//! gotatun on Backwater's sockets, against stock WireGuard.
#![allow(missing_docs)]

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use backwater_udp::{Backpressure, GotatunSockets, Policy, Stats, UdpSocket};
use bench_quic::{
    support::{in_namespace, installed, ip, path, skip},
    veth::Veth,
};
use gotatun::{
    device::Peer,
    x25519::{PublicKey, StaticSecret},
};

/// For what is done at once on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes in each direction.
const BYTES: usize = 10_000_000;

/// wireguard-go, which has its control socket in a `/run` of its own. It ends with the value.
struct WireguardGo(Child);

impl WireguardGo {
    /// Makes the device in the network of the calling thread.
    fn start(device: &str) -> Self {
        let script = format!("mount -t tmpfs tmpfs /run && exec wireguard-go -f {device}");
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]).env("PATH", path()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Configures the device, once it is there (<https://www.wireguard.com/xplatform>).
    fn set(&self, device: &str, keys: &str) {
        let path = format!("/proc/{}/root/run/wireguard/{device}.sock", self.0.id());
        let began = Instant::now();
        let mut socket = loop {
            match UnixStream::connect(&path) {
                Ok(socket) => break socket,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{path}: {error}"),
            }
            sleep(Duration::from_millis(20));
        };
        write!(socket, "set=1\n{keys}\n").unwrap();
        let mut answer = [0; 64];
        let len = socket.read(&mut answer).unwrap();
        assert_eq!(std::str::from_utf8(&answer[..len]), Ok("errno=0\n\n"));
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Sends as many bytes as it receives, and says whether those that it received are the right ones.
fn exchange(mut stream: TcpStream, own: u8, others: u8) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut reading = stream.try_clone().unwrap();
    let received = std::thread::spawn(move || {
        let mut all = vec![0; BYTES];
        reading.read_exact(&mut all).unwrap();
        all.iter().all(|byte| *byte == others)
    });
    stream.write_all(&vec![own; BYTES]).unwrap();
    received.join().unwrap()
}

#[test]
fn tcp_between_gotatun_and_wireguard_go_loses_nothing_before_a_slow_link() {
    const NAME: &str = "tcp_between_gotatun_and_wireguard_go_loses_nothing_before_a_slow_link";
    if !installed("wireguard-go") {
        return skip("wireguard-go is not installed (package wireguard-go)");
    }
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        return skip(&format!("/dev/net/tun: {error}"));
    }
    in_namespace(NAME, || {
        let veth = Veth::new(0);
        veth.shape("rate 20mbit burst 70000 limit 140000");
        let secrets = [StaticSecret::from([1; 32]), StaticSecret::from([2; 32])];
        let [near_key, far_key] = secrets.each_ref().map(PublicKey::from);

        let port = 51820;
        let keys = format!(
            "private_key={}\nlisten_port={port}\npublic_key={}\nallowed_ip=10.8.0.1/32\n",
            hex(secrets[1].as_bytes()),
            hex(near_key.as_bytes())
        );
        let far = veth.at_far_end(move |_| {
            let program = WireguardGo::start("wg0");
            program.set("wg0", &keys);
            ip("address add 10.8.0.2/24 dev wg0");
            ip("link set wg0 up");
            (program, TcpListener::bind("10.8.0.2:7000").unwrap())
        });
        let (_program, listener) = far.join().unwrap();

        let stats = Arc::new(Stats::default());
        let wait = Backpressure::new(Policy::Wait { deadline: Duration::from_secs(10) });
        let sockets = GotatunSockets::new(UdpSocket::builder().backpressure(wait).stats(stats.clone()));
        let peer = Peer::new(far_key)
            .with_endpoint(veth.far(false, port))
            .with_allowed_ip("10.8.0.2/32".parse().unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let device = runtime.block_on(async {
            let [secret, _] = secrets;
            let builder = gotatun::device::build().with_udp(sockets).create_tun("gt0").unwrap();
            builder.with_private_key(secret).with_peer(peer).build().await.unwrap()
        });
        ip("address add 10.8.0.1/24 dev gt0");
        ip("link set gt0 up mtu 1420");

        let server = veth.at_far_end(move |_| exchange(listener.accept().unwrap().0, 2, 1));
        let to = SocketAddr::from(([10, 8, 0, 2], 7000));
        let client = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        assert!(exchange(client, 1, 2), "gotatun has changed bytes");
        assert!(server.join().unwrap(), "wireguard-go has changed bytes");
        runtime.block_on(device.stop());

        let stats = stats.snapshot();
        assert_eq!((stats.dropped_total(), stats.held), (0, 0), "{stats:?}");
        assert!(stats.sent as usize > BYTES / 1420 && stats.no_buffers_total() > 0, "never full: {stats:?}");
    });
}
