//! What is seen outside.

use std::{fs, net::UdpSocket, path::Path, time::Duration};

use crate::support::{
    Network, Process, in_namespace,
    traffic::{Echo, datagrams, transfer, until_answered},
    tunnel::{HERE, NAME, Sides, THERE},
};

const MARKER: &[u8; 16] = b"inside the house";

#[test]
fn a_capture_shows_nothing_of_the_inside() {
    let programs = [super::support::tunnel::PROGRAMS, &[("tcpdump", "tcpdump")]].concat();
    in_namespace("secrecy::a_capture_shows_nothing_of_the_inside", &programs, || {
        let sides = Sides::new();
        let [inside, outside] = ["inside.pcap", "outside.pcap"].map(|name| sides.directory.path.join(name));
        // From the handshake on.
        let mut outer = capture(&sides.here, "fe1", &outside);
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let _tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        let mut inner = capture(&sides.here, NAME, &inside);
        for family in [0, 1] {
            until_answered(&sides.here, THERE[family], Duration::from_secs(5));
            sides.here.within(move || {
                let any = if family == 0 { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).unwrap();
                for len in 1..60 {
                    socket.send_to(&MARKER.repeat(len), (THERE[family], Echo::PORT)).unwrap();
                }
            });
            let pattern = MARKER.map(|byte| format!("{byte:02x}")).concat();
            sides.here.run(&format!("ping -c 3 -i 0.1 -p {pattern} {}", THERE[family]));
            datagrams(&sides.here, THERE[family]);
            transfer(&sides.here, &sides.there, THERE[family], 1);
        }
        // It writes what it has when it is told to end.
        assert!(outer.stop().success() && inner.stop().success());
        let (inside, outside) = (fs::read(inside).unwrap(), fs::read(outside).unwrap());
        assert!(outside.len() > 2 << 20, "{} bytes", outside.len());
        let address = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(address) => address.octets().to_vec(),
            std::net::IpAddr::V6(address) => address.octets().to_vec(),
        };
        let header = |family: usize| [address(HERE[family]), address(THERE[family])].concat();
        for (what, bytes) in
            [("the marker", MARKER.to_vec()), ("IPv4 addresses", header(0)), ("IPv6 addresses", header(1))]
        {
            assert!(contains(&inside, &bytes), "{what} are not even inside");
            assert!(!contains(&outside, &bytes), "{what} are seen outside");
        }
    });
}

fn capture(network: &Network, device: &str, file: &Path) -> Process {
    let process = network.start(&format!("tcpdump -i {device} --immediate-mode -U -Z root -w {}", file.display()));
    process.wait_for("listening on");
    process
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
