//! The text of an answer.

use std::{
    fmt::{Display, Write},
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use zeroize::Zeroizing;

/// Bytes that the lines of the interface, of a peer and of an allowed prefix have at most.
const INTERFACE: usize = 160;
const PEER: usize = 480;
const PREFIX: usize = 64;

/// The lines of a `get` answer but for its end. It has private and preshared keys, and is overwritten when it is dropped.
pub(crate) struct Answer(Zeroizing<String>);

/// A peer, as the answer shows it.
pub(crate) struct Peer<'a, I> {
    pub(crate) public_key: &'a [u8; 32],
    /// Zeros: none.
    pub(crate) preshared_key: &'a [u8; 32],
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) last_handshake: Option<SystemTime>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    /// In seconds; 0: off.
    pub(crate) persistent_keepalive: u16,
    pub(crate) allowed_ips: I,
}

impl Answer {
    /// An empty one, with room for so many peers and prefixes: what a growing buffer leaves behind cannot be overwritten.
    pub(crate) fn new(peers: usize, prefixes: usize) -> Self {
        Self(Zeroizing::new(String::with_capacity(INTERFACE + PEER * peers + PREFIX * prefixes)))
    }

    /// Adds the lines of the interface. A port and a mark of 0 have none.
    pub(crate) fn interface(&mut self, private_key: Option<&[u8; 32]>, listen_port: u16, fwmark: u32) {
        if let Some(key) = private_key {
            self.key("private_key", key);
        }
        if listen_port != 0 {
            self.line("listen_port", listen_port);
        }
        if fwmark != 0 {
            self.line("fwmark", fwmark);
        }
    }

    /// Adds the lines of a peer.
    pub(crate) fn peer(&mut self, peer: Peer<'_, impl Iterator<Item = IpNet>>) {
        self.key("public_key", peer.public_key);
        self.key("preshared_key", peer.preshared_key);
        self.line("protocol_version", 1);
        if let Some(endpoint) = peer.endpoint {
            self.line("endpoint", endpoint);
        }
        let at = peer.last_handshake.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let at = at.unwrap_or(Duration::ZERO);
        self.line("last_handshake_time_sec", at.as_secs());
        self.line("last_handshake_time_nsec", at.subsec_nanos());
        self.line("tx_bytes", peer.bytes_sent);
        self.line("rx_bytes", peer.bytes_received);
        self.line("persistent_keepalive_interval", peer.persistent_keepalive);
        peer.allowed_ips.for_each(|net| self.line("allowed_ip", net));
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn line(&mut self, name: &str, value: impl Display) {
        // Writing into a string does not fail.
        let _ = writeln!(self.0, "{name}={value}");
    }

    fn key(&mut self, name: &str, key: &[u8; 32]) {
        let _ = write!(self.0, "{name}=");
        key.iter().for_each(|byte| {
            let _ = write!(self.0, "{byte:02x}");
        });
        self.0.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_has_the_lines_of_the_published_protocol() {
        let mut answer = Answer::new(2, 2);
        let capacity = answer.0.capacity();
        answer.interface(Some(&[0xe8; 32]), 12912, 7);
        let allowed = ["192.168.4.4/32", "fd00::/64"].map(|net| net.parse().unwrap());
        answer.peer(Peer {
            public_key: &[1; 32],
            preshared_key: &[0x18; 32],
            endpoint: Some("[abcd:23::33%2]:51820".parse().unwrap()),
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 5)),
            bytes_sent: u64::MAX,
            bytes_received: 2224,
            persistent_keepalive: 111,
            allowed_ips: allowed.into_iter(),
        });
        answer.peer(Peer {
            public_key: &[2; 32],
            preshared_key: &[0; 32],
            endpoint: None,
            last_handshake: None,
            bytes_sent: 0,
            bytes_received: 0,
            persistent_keepalive: 0,
            allowed_ips: std::iter::empty(),
        });
        let hex = |pair: &str| pair.repeat(32);
        let expected = format!(
            "private_key={}\nlisten_port=12912\nfwmark=7\npublic_key={}\npreshared_key={}\nprotocol_version=1\n\
             endpoint=[abcd:23::33%2]:51820\nlast_handshake_time_sec=1800000000\nlast_handshake_time_nsec=5\n\
             tx_bytes=18446744073709551615\nrx_bytes=2224\npersistent_keepalive_interval=111\nallowed_ip=192.168.4.4/32\n\
             allowed_ip=fd00::/64\npublic_key={}\npreshared_key={}\nprotocol_version=1\nlast_handshake_time_sec=0\n\
             last_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\n",
            hex("e8"),
            hex("01"),
            hex("18"),
            hex("02"),
            hex("00"),
        );
        assert_eq!(answer.as_bytes(), expected.as_bytes());
        assert_eq!(answer.0.capacity(), capacity, "the buffer has not grown");
        let mut empty = Answer::new(0, 0);
        empty.interface(None, 0, 0);
        assert_eq!(empty.as_bytes(), b"");
    }

    #[test]
    fn longest_answer_fits_the_room_that_it_was_given() {
        let net = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap();
        let mut answer = Answer::new(1, 1);
        let capacity = answer.0.capacity();
        answer.interface(Some(&[0xff; 32]), u16::MAX, u32::MAX);
        answer.peer(Peer {
            public_key: &[0xff; 32],
            preshared_key: &[0xff; 32],
            endpoint: Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap()),
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(1 << 62, 999_999_999)),
            bytes_sent: u64::MAX,
            bytes_received: u64::MAX,
            persistent_keepalive: u16::MAX,
            allowed_ips: std::iter::once(net),
        });
        assert_eq!(answer.0.capacity(), capacity);
    }
}
