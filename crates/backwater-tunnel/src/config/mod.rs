//! A tunnel's configuration: WireGuard's `.conf` files.

use std::{fmt, net::SocketAddr, num::NonZeroU16};

use ipnet::IpNet;

/// What a `.conf` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its `[Interface]` section.
    pub interface: Interface,
    /// Its `[Peer]` sections, in the order of the file.
    pub peers: Vec<Peer>,
}

/// This side of the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `PrivateKey`.
    pub private_key: Key,
    /// `Address`: addresses of the device, each with its prefix's length.
    pub addresses: Vec<IpNet>,
    /// `ListenPort`; 0: any.
    pub listen_port: u16,
    /// `MTU` of the device in bytes, 576–65,535; `None`: 1,420.
    pub mtu: Option<u16>,
    /// `FwMark`: the mark of what the tunnel sends; 0: none.
    pub fwmark: u32,
    /// `Table`.
    pub table: Table,
}

/// Who adds the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Table {
    /// The program: each of the peers' `AllowedIPs` is a route to the device.
    #[default]
    Auto,
    /// Nobody.
    Off,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `PublicKey`.
    pub public_key: Key,
    /// `PresharedKey`.
    pub preshared_key: Option<Key>,
    /// `Endpoint`; `None`: learnt when the peer calls.
    pub endpoint: Option<Endpoint>,
    /// `AllowedIPs`: what is sent to it, and what it may send.
    pub allowed_ips: Vec<IpNet>,
    /// `PersistentKeepalive` in seconds; `None`: off.
    pub persistent_keepalive: Option<NonZeroU16>,
}

/// Where a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An address.
    Address(SocketAddr),
    /// A name to resolve, and a port.
    Name(String, u16),
}

/// 32 bytes: a private, public or preshared key. Shown as nothing but its kind, so that no log has one.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}
