//! The system side: the TUN device, its addresses, routes and rules, and what changes in the network.
//!
//! # What a system's file has
//!
//! One of the files below this module is the system's, chosen here alone. It has:
//! - **`Link`**, the device. `open` makes it and sets it up as a configuration says, or leaves nothing behind; `close` and dropping remove it
//!   with its addresses, routes and rules. `try_read` and `try_write` deal in one packet, never block, and say `WouldBlock`;
//!   `poll_readable` wakes the task. With `has_offload` each packet begins with a `virtio_net_hdr`. `route_mtu`, `dropped` and
//!   `queue_len` are `Unsupported` where the system does not tell.
//! - **`Monitor`**, from `Link::monitor`: `poll_change` is ready when another device, an address or a route may have changed, and may be ready
//!   without.
//! - **`Suspended`**: `check` returns for how long the system has slept since the last call.
//! - **`GRANT`**: what a program without permission is to be granted, as a clause.
//!
//! What only Linux has (another mark, an MTU that `ip` sets, `open_bare`) is used by what only Linux has, `uapi`.

use std::io;

use ipnet::IpNet;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
mod other;
#[cfg(not(target_os = "linux"))]
use other as system;

pub use system::{Link, Monitor, Suspended};

/// The MTU of a device whose configuration names none, in bytes, until a route to a peer is known: what is left of 1,500 under
/// IPv6 and WireGuard.
pub const DEFAULT_MTU: u16 = 1420;

/// The least default MTU: what IPv6 needs (RFC 8200, section 5).
const LEAST_DEFAULT_MTU: u32 = 1280;

/// What IPv6 (40), UDP (8) and WireGuard (32) add to a packet, in bytes.
const OVERHEAD: u32 = 80;

/// Returns the MTU of a device whose configuration names none, as wg-quick: the largest that a route to a peer carries. `None`: no
/// route is known.
pub(crate) fn default_mtu(routes: impl Iterator<Item = u32>) -> Option<u16> {
    let largest = routes.max()?.min(u16::MAX.into());
    u16::try_from(largest.saturating_sub(OVERHEAD).max(LEAST_DEFAULT_MTU)).ok()
}

/// Why there is no link. The program ends with 1. What the system said is the error's source, and not in its text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program may not do this.
    #[error("no permission to {0}: {grant}", grant = system::GRANT)]
    Permission(&'static str),
    /// The kernel has no TUN devices.
    #[error(
        "there is no /dev/net/tun: load the module (`modprobe tun`), or give the container the device (`--device \
         /dev/net/tun`)"
    )]
    NoTun,
    /// A device cannot have this name.
    #[error("{0:?} cannot be a device's name: 1 to 15 characters, none of them a `/`, `:`, `%` or a space")]
    Name(String),
    /// Another device has it.
    #[error("there is a device {0} already")]
    Taken(String),
    /// The device was refused.
    #[error("the device")]
    Device(#[source] io::Error),
    /// An IPv6 address on a device where IPv6 is switched off, while another device has IPv6: its traffic would go past the
    /// tunnel.
    #[error(
        "IPv6 is switched off for new devices, but other devices have it: set net.ipv6.conf.default.disable_ipv6 to 0, or leave \
         IPv6 out of the configuration"
    )]
    Ipv6Off,
    /// The system refused an address.
    #[error("address {address}")]
    Address {
        /// Which.
        address: IpNet,
        /// What it said.
        source: io::Error,
    },
    /// The system refused a route.
    #[error("route {route}")]
    Route {
        /// Which.
        route: IpNet,
        /// What it said.
        source: io::Error,
    },
    /// The system refused to add, list or remove the rules that choose a routing table.
    #[error("routing rules")]
    Rules(#[source] io::Error),
}

/// What is different in the network since the last time, other than at our own device. It is a reason to look, not
/// more: a router that is heard again changes an address too, by its lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// A device came, went, or changed its state.
    pub link: bool,
    /// An address did.
    pub address: bool,
    /// A route did.
    pub route: bool,
}

/// The prefixes that are to be routes to the device: what the peers may be sent, but for what is routed there already
/// because the device's own addresses have it in their prefixes. The widest come last.
fn routes(addresses: &[IpNet], allowed: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let covered = |net: &IpNet| addresses.iter().any(|address| address.trunc().contains(net));
    let mut routes: Vec<_> = allowed.map(|net| net.trunc()).filter(|net| !covered(net)).collect();
    routes.sort_by_key(|net| (std::cmp::Reverse(net.prefix_len()), *net));
    routes.dedup();
    routes
}

/// Everything: its route is no ordinary one, or it would take what the tunnel itself sends.
fn is_default(net: &IpNet) -> bool {
    net.prefix_len() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn the_default_mtu_is_the_largest_routes_less_80() {
        let default = |routes: &[u32]| default_mtu(routes.iter().copied());
        let routes: [&[u32]; 6] = [&[], &[1500], &[1492, 1460], &[1300, 68], &[65_536], &[u32::MAX]];
        assert_eq!(routes.map(default), [None, Some(1420), Some(1412), Some(1280), Some(65_455), Some(65_455)]);
    }

    #[test]
    fn what_the_system_said_is_in_an_error_once() {
        let said = || io::Error::other("refused by the kernel");
        let net = nets(&["10.0.0.1/24"])[0];
        for error in [
            Error::Device(said()),
            Error::Rules(said()),
            Error::Address { address: net, source: said() },
            Error::Route { route: net, source: said() },
        ] {
            let text = format!("{:#}", anyhow::Error::from(error));
            assert_eq!(text.matches("refused by the kernel").count(), 1, "{text}");
        }
    }

    #[test]
    fn a_route_for_each_allowed_prefix() {
        let addresses = nets(&["10.0.0.1/24", "fd00::1/128"]);
        let allowed = nets(&["0.0.0.0/0", "10.0.0.0/24", "10.0.0.7/32", "10.0.0.0/16", "10.0.3.4/16", "fd00::/64"]);
        let expected = nets(&["fd00::/64", "10.0.0.0/16", "0.0.0.0/0"]);
        assert_eq!(routes(&addresses, allowed.into_iter()), expected);
    }
}
