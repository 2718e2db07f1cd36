//! Which peer an address belongs to (WireGuard's cryptokey routing).

use std::net::IpAddr;

use ip_network::IpNetwork;
use ip_network_table::IpNetworkTable;
use ipnet::IpNet;

/// All peers' `AllowedIPs`.
pub(crate) struct Allowed(IpNetworkTable<usize>);

/// The last answer: packets come in runs of one flow, and looking it up takes a tenth of what encryption does.
#[derive(Default)]
pub(crate) struct Last(Option<(IpAddr, Option<usize>)>);

impl Allowed {
    pub(crate) fn new() -> Self {
        Self(IpNetworkTable::new())
    }

    pub(crate) fn insert(&mut self, net: &IpNet, peer: usize) {
        // Both types know a prefix by its network and its length, so this is one.
        if let Ok(net) = IpNetwork::new_truncate(net.addr(), net.prefix_len()) {
            self.0.insert(net, peer);
        }
    }

    /// Whose prefix is the longest that covers the address.
    pub(crate) fn owner(&self, addr: IpAddr, last: &mut Last) -> Option<usize> {
        match last.0 {
            Some((same, owner)) if same == addr => owner,
            _ => {
                let owner = self.0.longest_match(addr).map(|(_, &peer)| peer);
                last.0 = Some((addr, owner));
                owner
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides_and_is_remembered_for_its_address_alone() {
        let mut allowed = Allowed::new();
        for (net, peer) in [("0.0.0.0/0", 0), ("10.0.0.0/8", 1), ("10.1.0.7/16", 2), ("fd00::/64", 3)] {
            allowed.insert(&net.parse().unwrap(), peer);
        }
        let mut last = Last::default();
        for _ in 0..2 {
            for (addr, owner) in [
                ("10.1.2.3", Some(2)),
                ("10.2.0.1", Some(1)),
                ("192.0.2.1", Some(0)),
                ("fd00::7", Some(3)),
                ("fd01::", None),
            ] {
                let addr = addr.parse().unwrap();
                assert_eq!(allowed.owner(addr, &mut last), owner, "{addr}");
                assert_eq!(allowed.owner(addr, &mut last), owner, "{addr} again");
            }
        }
    }
}
