//! Which peer an address belongs to (WireGuard's cryptokey routing).

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ip_network::IpNetwork;
use ip_network_table::IpNetworkTable;
use ipnet::IpNet;

/// All peers' `AllowedIPs`: each prefix is at one peer.
pub(crate) struct Allowed {
    table: IpNetworkTable<usize>,
    /// The same by the peer.
    of_peers: HashMap<usize, BTreeSet<IpNet>>,
}

/// The last answer: packets come in runs of one flow, and looking it up takes a tenth of what encryption does.
#[derive(Default)]
pub(crate) struct Last(Option<(IpAddr, Option<usize>)>);

impl Allowed {
    pub(crate) fn new() -> Self {
        Self { table: IpNetworkTable::new(), of_peers: HashMap::new() }
    }

    /// Gives the prefix to a peer. Another one that has it loses it.
    pub(crate) fn insert(&mut self, net: &IpNet, peer: usize) {
        let Some(key) = key(net) else { return };
        if let Some(before) = self.table.insert(key, peer) {
            self.of_peers.entry(before).or_default().remove(&net.trunc());
        }
        self.of_peers.entry(peer).or_default().insert(net.trunc());
    }

    /// Takes the prefix away from the peer, if it has it.
    pub(crate) fn remove(&mut self, net: &IpNet, peer: usize) {
        let has_it = self.of_peers.get_mut(&peer).is_some_and(|nets| nets.remove(&net.trunc()));
        if let Some(key) = key(net).filter(|_| has_it) {
            self.table.remove(key);
        }
    }

    /// Takes all prefixes away from the peer.
    pub(crate) fn remove_all(&mut self, peer: usize) {
        for key in self.of_peers.remove(&peer).iter().flatten().filter_map(key) {
            self.table.remove(key);
        }
    }

    /// Returns the peer's prefixes, sorted.
    pub(crate) fn of(&self, peer: usize) -> impl Iterator<Item = IpNet> {
        self.of_peers.get(&peer).into_iter().flatten().copied()
    }

    /// Returns the number of all prefixes.
    pub(crate) fn len(&self) -> usize {
        let (v4, v6) = self.table.len();
        v4 + v6
    }

    /// Whose prefix is the longest that covers the address.
    pub(crate) fn owner(&self, addr: IpAddr, last: &mut Last) -> Option<usize> {
        match last.0 {
            Some((same, owner)) if same == addr => owner,
            _ => {
                let owner = self.table.longest_match(addr).map(|(_, &peer)| peer);
                last.0 = Some((addr, owner));
                owner
            }
        }
    }
}

/// Both types know a prefix by its network and its length, so this is always one.
fn key(net: &IpNet) -> Option<IpNetwork> {
    IpNetwork::new_truncate(net.addr(), net.prefix_len()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_moves_to_the_last_peer_that_got_it_and_is_removed_from_its_own_alone() {
        let [outer, inner, v6] = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/64"].map(|net| net.parse::<IpNet>().unwrap());
        let mut allowed = Allowed::new();
        [(outer, 0), (inner, 0), (v6, 0), (inner, 1)].iter().for_each(|(net, peer)| allowed.insert(net, *peer));
        assert_eq!((allowed.len(), allowed.of(0).collect::<Vec<_>>()), (3, vec![outer, v6]));
        let owner = |allowed: &Allowed| allowed.owner("10.1.0.1".parse().unwrap(), &mut Last::default());
        assert_eq!(owner(&allowed), Some(1));
        allowed.remove(&inner, 0);
        assert_eq!(owner(&allowed), Some(1), "it is the other's");
        allowed.remove(&inner, 1);
        assert_eq!(owner(&allowed), Some(0));
        allowed.insert(&inner, 1);
        allowed.remove_all(0);
        assert_eq!((allowed.len(), owner(&allowed), allowed.of(0).count()), (1, Some(1), 0));
    }

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
