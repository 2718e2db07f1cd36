//! One allocation, with its permissions and channels.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use backwater_stun::{AddressFamily, ChannelNumber, Code, Integrity, TransactionId};

use super::{DropReason, events::Traffic};
use crate::{
    Families, FiveTuple, PeerAddr, PeerRules, PerFamily, QuotaReason, RelayedAddr,
    auth::Identity,
    quota::{Claim, Kind},
};

/// The lifetime of a permission (RFC 8656 §9).
const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

/// The lifetime of a channel (RFC 8656 §12).
const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// Permissions of one allocation at most, and channels at most. Bounds memory and the time of a look-up.
pub const MAX_PEERS: usize = 256;

pub(super) struct Allocation {
    pub(super) generation: u32,
    pub(super) five_tuple: FiveTuple,
    pub(super) user: Arc<Identity>,
    /// The allocation's share of the quotas.
    pub(super) claim: Claim,
    /// When the relayed address of each family expires.
    pub(super) expires: PerFamily<Option<Instant>>,
    /// Whether the client has asked for mobility (RFC 8016).
    pub(super) mobile: bool,
    /// The time of its entry in the server's queue of expiries. An entry with another time is outdated.
    pub(super) queued_for: Option<Instant>,
    /// The content of the response to the Allocate request, for its retransmissions.
    pub(super) granted: Granted,
    pub(super) traffic: Traffic,
    pub(super) created: Instant,
    /// Sorted by address.
    permissions: Vec<Permission>,
    /// Sorted by number.
    channels: Vec<Channel>,
}

/// The content of the response to an Allocate request.
pub(super) struct Granted {
    pub(super) transaction_id: TransactionId,
    pub(super) integrity: Integrity,
    pub(super) fingerprint: bool,
    pub(super) lifetime: Duration,
    /// Empty until the sockets are bound.
    pub(super) relayed: PerFamily<Option<RelayedAddr>>,
    pub(super) token: Option<[u8; 8]>,
    /// Why the other of two families was not allocated.
    pub(super) refused: Option<(AddressFamily, Code)>,
}

struct Permission {
    ip: IpAddr,
    /// Whether the address was one of the relay's own when the permission was installed.
    own: bool,
    expires: Instant,
}

#[derive(Clone, Copy)]
struct Channel {
    number: ChannelNumber,
    peer: PeerAddr,
    expires: Instant,
}

/// Why a channel was not bound.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BindError {
    /// The channel number or the peer has another binding.
    Conflict,
    Full(QuotaReason),
}

/// A limit is reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Allocation {
    /// Makes an allocation without permissions, which is not in a server yet.
    pub(super) fn new(
        five_tuple: FiveTuple,
        families: Families,
        (user, claim): (Arc<Identity>, Claim),
        granted: Granted,
        now: Instant,
    ) -> Self {
        Self {
            generation: 0,
            five_tuple,
            user,
            claim,
            expires: families.map(|asked| asked.then_some(now + granted.lifetime)),
            mobile: false,
            queued_for: None,
            granted,
            traffic: Traffic::default(),
            created: now,
            permissions: Vec::new(),
            channels: Vec::new(),
        }
    }

    /// Returns whether the sockets are bound.
    pub(super) fn is_bound(&self) -> bool {
        self.granted.relayed.v4.is_some() || self.granted.relayed.v6.is_some()
    }

    /// Returns the families of the relayed addresses.
    pub(super) fn families(&self) -> Families {
        self.expires.map(|at| at.is_some())
    }

    /// Returns when the first relayed address expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expires.v4.into_iter().chain(self.expires.v6).min()
    }

    /// Returns the numbers of permissions and channels, including expired ones that are not removed yet.
    pub(super) fn peers(&self) -> (usize, usize) {
        (self.permissions.len(), self.channels.len())
    }

    /// Removes these families, with their permissions and channels. Returns whether a family is left.
    pub(super) fn close(&mut self, families: Families) -> bool {
        let stays = |ip: IpAddr| !if ip.is_ipv4() { families.v4 } else { families.v6 };
        self.retain(|p| stays(p.ip), |c| stays(c.peer.0.ip()));
        for family in families.iter() {
            *self.expires.get_mut(family) = None;
        }
        self.families().any()
    }

    /// Checks whether data may be exchanged with a peer: it has a permission, and is not a listener of the relay.
    #[inline]
    pub(super) fn check_peer(
        &self,
        PeerAddr(peer): PeerAddr,
        now: Instant,
        rules: &PeerRules,
    ) -> Result<(), DropReason> {
        let at = self.permissions.binary_search_by_key(&peer.ip(), |p| p.ip).map_err(|_| DropReason::NoPermission)?;
        match self.permissions.get(at).filter(|p| p.expires > now) {
            None => Err(DropReason::NoPermission),
            Some(p) if p.own && rules.is_listener_port(peer.port()) => Err(DropReason::Peer),
            Some(_) => Ok(()),
        }
    }

    /// Returns the peer of a channel.
    #[inline]
    pub(super) fn channel_peer(&self, number: ChannelNumber, now: Instant) -> Option<&PeerAddr> {
        let at = self.channels.binary_search_by_key(&number, |c| c.number).ok()?;
        self.channels.get(at).filter(|c| c.expires > now).map(|c| &c.peer)
    }

    /// Returns the channel of a peer.
    #[inline]
    pub(super) fn peer_channel(&self, peer: PeerAddr, now: Instant) -> Option<ChannelNumber> {
        self.channels.iter().find(|c| c.peer == peer && c.expires > now).map(|c| c.number)
    }

    /// Counts payload bytes against the limit. It is not inlined, so that it costs nothing where there is no limit.
    #[cold]
    pub(super) fn spend(&self, now: Instant, bytes: usize) -> Result<(), DropReason> {
        if self.claim.spend(now, bytes) { Ok(()) } else { Err(DropReason::Bandwidth) }
    }

    /// Installs or refreshes all these permissions, or none.
    pub(super) fn permit(&mut self, peers: &[IpAddr], now: Instant, rules: &PeerRules) -> Result<(), Full> {
        let reserved = self.reserve_permissions(peers).or_else(|Full| {
            self.purge(now);
            self.reserve_permissions(peers)
        })?;
        let expires = now + PERMISSION_LIFETIME;
        let before = self.permissions.len();
        for &ip in peers {
            match self.permissions.binary_search_by_key(&ip, |p| p.ip) {
                Ok(at) => {
                    let permission = &mut self.permissions[at];
                    if permission.expires <= now {
                        permission.own = rules.is_own(ip);
                    }
                    permission.expires = expires;
                }
                Err(at) => self.permissions.insert(at, Permission { ip, own: rules.is_own(ip), expires }),
            }
        }
        self.claim.give_back(Kind::Permissions, before + reserved - self.permissions.len());
        Ok(())
    }

    /// Binds or refreshes a channel, and installs or refreshes its permission (RFC 8656 §12.2).
    pub(super) fn bind(
        &mut self,
        number: ChannelNumber,
        peer: PeerAddr,
        now: Instant,
        rules: &PeerRules,
    ) -> Result<(), BindError> {
        self.purge(now);
        let conflict = self.channels.iter().any(|c| (c.number == number) != (c.peer == peer));
        if conflict {
            return Err(BindError::Conflict);
        }
        let expires = now + CHANNEL_LIFETIME;
        match self.channels.binary_search_by_key(&number, |c| c.number) {
            Ok(at) => {
                self.permit(&[peer.0.ip()], now, rules).map_err(|Full| BindError::Full(QuotaReason::Permissions))?;
                self.channels[at].expires = expires;
            }
            Err(_) if self.channels.len() >= MAX_PEERS => return Err(BindError::Full(QuotaReason::Channels)),
            Err(at) => {
                self.claim.take(Kind::Channels, 1).map_err(|_| BindError::Full(QuotaReason::Channels))?;
                if self.permit(&[peer.0.ip()], now, rules) == Err(Full) {
                    self.claim.give_back(Kind::Channels, 1);
                    return Err(BindError::Full(QuotaReason::Permissions));
                }
                self.channels.insert(at, Channel { number, peer, expires });
            }
        }
        Ok(())
    }

    /// Ends the permissions and channels of peers that these rules refuse. Returns the number of permissions that were judged.
    pub(super) fn review(&mut self, rules: &PeerRules) -> usize {
        let judged = self.permissions.len();
        self.retain(|p| rules.check_ip(p.ip).is_ok(), |c| rules.check(c.peer).is_ok());
        for permission in &mut self.permissions {
            permission.own = rules.is_own(permission.ip);
        }
        judged
    }

    /// Removes expired permissions and channels.
    pub(super) fn purge(&mut self, now: Instant) {
        self.retain(|p| p.expires > now, |c| c.expires > now);
    }

    /// Counts the permissions that these addresses lack against the quota, and returns their number. An address that is listed twice
    /// counts twice.
    fn reserve_permissions(&self, peers: &[IpAddr]) -> Result<usize, Full> {
        let new = peers.iter().filter(|ip| self.permissions.binary_search_by_key(ip, |p| &p.ip).is_err()).count();
        if self.permissions.len() + new > MAX_PEERS {
            return Err(Full);
        }
        self.claim.take(Kind::Permissions, new).map(|()| new).map_err(|_| Full)
    }

    fn retain(&mut self, permission: impl Fn(&Permission) -> bool, channel: impl Fn(&Channel) -> bool) {
        let (permissions, channels) = (self.permissions.len(), self.channels.len());
        self.permissions.retain(permission);
        self.channels.retain(channel);
        self.claim.give_back(Kind::Permissions, permissions - self.permissions.len());
        self.claim.give_back(Kind::Channels, channels - self.channels.len());
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.retain(|_| false, |_| false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClientAddr, Limits, Quotas};

    fn allocation(now: Instant) -> Allocation {
        let client = ClientAddr("192.0.2.1:1".parse().unwrap());
        let five_tuple = FiveTuple::udp(client, "192.0.2.2:3478".parse().unwrap());
        let granted = Granted {
            transaction_id: TransactionId([0; 12]),
            integrity: Integrity::Sha1,
            fingerprint: false,
            lifetime: Duration::ZERO,
            relayed: PerFamily::default(),
            token: None,
            refused: None,
        };
        let mut credentials = crate::Credentials::new("r").unwrap();
        credentials.add_user("u", "p").unwrap();
        let user = credentials.identities("u", crate::auth::Algorithm::Md5, Duration::ZERO).next().unwrap();
        let claim = Quotas::new(Limits::default(), Limits::default(), now)
            .claim(user, crate::server::PortRequest::Any, now)
            .unwrap();
        let user = (claim.1, claim.0);
        Allocation::new(five_tuple, Families::only(AddressFamily::Ipv4), user, granted, now)
    }

    fn rules() -> PeerRules {
        PeerRules::default()
    }

    fn is_permitted(a: &Allocation, last: u32, now: Instant) -> bool {
        a.check_peer(peer(last), now, &rules()).is_ok()
    }

    fn ip(last: u32) -> IpAddr {
        IpAddr::V4((0xC633_0000 + last).into())
    }

    fn peer(last: u32) -> PeerAddr {
        PeerAddr((ip(last), 9).into())
    }

    fn number(n: u16) -> ChannelNumber {
        ChannelNumber::new(0x4000 + n).unwrap()
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn permissions_last_five_minutes() {
        let now = Instant::now();
        let mut a = allocation(now);
        assert!(!is_permitted(&a, 1, now));
        a.permit(&[ip(2), ip(1), ip(2)], now, &rules()).unwrap();
        assert!(is_permitted(&a, 1, now + 299 * S) && is_permitted(&a, 2, now));
        assert!(!is_permitted(&a, 1, now + 300 * S));
        a.permit(&[ip(1)], now + 299 * S, &rules()).unwrap();
        assert!(is_permitted(&a, 1, now + 598 * S) && !is_permitted(&a, 2, now + 598 * S));
    }

    #[test]
    fn expired_permissions_and_channels_make_room() {
        let now = Instant::now();
        let mut a = allocation(now);
        let all: Vec<_> = (0..MAX_PEERS as u32).map(ip).collect();
        a.permit(&all, now, &rules()).unwrap();
        assert_eq!(a.permit(&[ip(999)], now, &rules()), Err(Full));
        assert_eq!(a.permit(&[ip(5)], now, &rules()), Ok(()));
        assert_eq!(a.permit(&[ip(999)], now + 300 * S, &rules()), Ok(()));
        assert!(a.permissions.len() < 3);
        for i in 0..MAX_PEERS as u16 {
            a.bind(number(i), peer(u32::from(i) / 200), now + 400 * S, &rules()).ok();
        }
        let mut a = allocation(now);
        for i in 0..MAX_PEERS as u16 {
            a.bind(number(i), PeerAddr((ip(1), i + 1).into()), now, &rules()).unwrap();
        }
        assert_eq!(a.bind(number(999), peer(2), now, &rules()), Err(BindError::Full(QuotaReason::Channels)));
        assert_eq!(a.bind(number(999), peer(2), now + 600 * S, &rules()), Ok(()));
    }

    #[test]
    fn a_channel_has_one_peer_and_a_peer_one_channel() {
        let now = Instant::now();
        let mut a = allocation(now);
        a.bind(number(1), peer(1), now, &rules()).unwrap();
        assert_eq!(a.bind(number(1), peer(2), now, &rules()), Err(BindError::Conflict));
        assert_eq!(a.bind(number(2), peer(1), now, &rules()), Err(BindError::Conflict));
        a.bind(number(1), peer(1), now + 599 * S, &rules()).unwrap();
        assert_eq!(a.channel_peer(number(1), now + 1198 * S), Some(&peer(1)));
        assert_eq!(a.peer_channel(peer(1), now + 1198 * S), Some(number(1)));
        assert_eq!(a.channel_peer(number(1), now + 1199 * S), None);
        assert_eq!(a.peer_channel(peer(1), now + 1199 * S), None);
        a.bind(number(2), peer(1), now + 1199 * S, &rules()).unwrap();
        assert!(is_permitted(&a, 1, now + 1199 * S), "a binding permits");
    }
}
