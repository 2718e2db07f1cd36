//! The permissions and channels that the caller wants, and what the server has granted of them.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use backwater_stun::ChannelNumber;

/// How long a permission is valid (RFC 8656 §9). A channel has one too, so that it is refreshed as often.
const PERMISSION: Duration = Duration::from_secs(300);

/// How long an unused number cannot be bound to another peer: the ten minutes of the binding, and five more (RFC 8656 §12).
const RELEASED: Duration = Duration::from_secs(900);

/// Permissions at most, and channels at most.
pub const MAX_PEERS: usize = 256;

/// Channels that were released and may still be bound at the server, at most.
const MAX_RELEASED: usize = 1024;

/// No more permissions or channels: see [`MAX_PEERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has as many permissions or channels as it can have")]
pub struct TooManyPeers;

/// What is wanted of the server for one peer, and until when it is granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    /// The end of what the server has granted, in the worst case.
    until: Option<Instant>,
    /// When to ask, for the first time or again. `None`: the server has refused.
    due: Option<Instant>,
    /// Whether a request is in flight.
    pub(super) asked: bool,
}

pub(super) struct Permission {
    pub(super) ip: IpAddr,
    pub(super) grant: Grant,
}

pub(super) struct Channel {
    pub(super) number: ChannelNumber,
    pub(super) peer: SocketAddr,
    pub(super) grant: Grant,
}

/// The permissions and channels of a client.
#[derive(Default)]
pub(super) struct Peers {
    /// Sorted by address.
    permissions: Vec<Permission>,
    /// Sorted by number.
    channels: Vec<Channel>,
    /// Numbers and peers that the server may still have bound to each other, and until when.
    released: VecDeque<(ChannelNumber, SocketAddr, Instant)>,
    /// How many numbers have been used. The next one is the count, modulo the size of the range.
    numbers: u16,
}

impl Grant {
    fn wanted(now: Instant) -> Self {
        Self { until: None, due: Some(now), asked: false }
    }

    pub(super) fn is_granted(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.asked && self.due.is_some_and(|due| due <= now)
    }

    /// Records a success for a request that began at `began`. Returns whether the grant is new.
    pub(super) fn granted(&mut self, now: Instant, began: Instant) -> bool {
        let is_new = !self.is_granted(now);
        *self = Self { until: Some(began + PERMISSION), due: Some(began + PERMISSION / 2), asked: false };
        is_new
    }

    /// Records that the server has refused, or has not answered: asks again at `due`. What was granted stays until it expires.
    pub(super) fn not_granted(&mut self, due: Option<Instant>) {
        (self.due, self.asked) = (due, false);
    }

    /// Asks again now, if the server has not refused.
    fn renew(&mut self, now: Instant) {
        self.asked = false;
        self.due = self.due.map(|_| now);
    }

    /// When something changes by time alone.
    fn next(&self) -> Option<Instant> {
        self.due.filter(|_| !self.asked)
    }
}

impl Peers {
    /// Wants a permission for an address, or asks again for one that was refused.
    pub(super) fn permit(&mut self, now: Instant, ip: IpAddr) -> Result<(), TooManyPeers> {
        match self.permissions.binary_search_by_key(&ip, |permission| permission.ip) {
            Ok(at) => {
                if let Some(Permission { grant, .. }) = self.permissions.get_mut(at)
                    && grant.due.is_none()
                {
                    grant.due = Some(now);
                }
            }
            Err(_) if self.permissions.len() >= MAX_PEERS => return Err(TooManyPeers),
            Err(at) => self.permissions.insert(at, Permission { ip, grant: Grant::wanted(now) }),
        }
        Ok(())
    }

    /// Wants a channel to a peer, or asks again for one that was refused. Returns its number.
    pub(super) fn bind(&mut self, now: Instant, peer: SocketAddr) -> Result<ChannelNumber, TooManyPeers> {
        if let Some(channel) = self.channels.iter_mut().find(|channel| channel.peer == peer) {
            if channel.grant.due.is_none() {
                channel.grant.due = Some(now);
            }
            return Ok(channel.number);
        }
        if self.channels.len() >= MAX_PEERS {
            return Err(TooManyPeers);
        }
        self.forget_released(now);
        // The server still has the peer's earlier channel, and would refuse it another one.
        let number = match self.released.iter().position(|(_, released, _)| *released == peer) {
            Some(at) => self.released.remove(at).map(|(number, ..)| number),
            None => self.unused_number(),
        };
        let number = number.ok_or(TooManyPeers)?;
        let at = self.channels.partition_point(|channel| channel.number < number);
        self.channels.insert(at, Channel { number, peer, grant: Grant::wanted(now) });
        Ok(number)
    }

    pub(super) fn forget_permission(&mut self, ip: IpAddr) {
        self.permissions.retain(|permission| permission.ip != ip);
    }

    /// Forgets a channel. Its number is not used for another peer before the server has forgotten it too.
    pub(super) fn release(&mut self, now: Instant, number: ChannelNumber) {
        if let Ok(at) = self.channels.binary_search_by_key(&number, |channel| channel.number) {
            let Channel { number, peer, .. } = self.channels.remove(at);
            if self.released.len() >= MAX_RELEASED {
                self.released.pop_front();
            }
            self.released.push_back((number, peer, now + RELEASED));
        }
    }

    /// Asks for everything again, of a server that has none of it: the allocation is new.
    pub(super) fn reset(&mut self, now: Instant) {
        self.released.clear();
        for grant in self.grants() {
            // What one server has refused, another address of it may grant.
            *grant = Grant::wanted(now);
        }
    }

    /// The allocation is gone, and with it what was granted.
    pub(super) fn revoke(&mut self) {
        for grant in self.grants() {
            (grant.until, grant.asked) = (None, false);
        }
    }

    /// Asks for everything again, of a server that has it.
    pub(super) fn renew(&mut self, now: Instant) {
        self.grants().for_each(|grant| grant.renew(now));
    }

    /// Forgets the requests in flight, which the client has dropped.
    pub(super) fn nothing_asked(&mut self) {
        self.grants().for_each(|grant| grant.asked = false);
    }

    #[inline]
    pub(super) fn channel(&self, number: ChannelNumber) -> Option<&Channel> {
        let at = self.channels.binary_search_by_key(&number, |channel| channel.number).ok()?;
        self.channels.get(at)
    }

    pub(super) fn channel_mut(&mut self, number: ChannelNumber) -> Option<&mut Channel> {
        let at = self.channels.binary_search_by_key(&number, |channel| channel.number).ok()?;
        self.channels.get_mut(at)
    }

    pub(super) fn permission_mut(&mut self, ip: IpAddr) -> Option<&mut Permission> {
        let at = self.permissions.binary_search_by_key(&ip, |permission| permission.ip).ok()?;
        self.permissions.get_mut(at)
    }

    /// Returns whether the server accepts data for this address: by a permission, or by that of a channel.
    pub(super) fn is_permitted(&self, now: Instant, ip: IpAddr) -> bool {
        self.of_address(ip).any(|grant| grant.is_granted(now))
    }

    /// Returns whether the caller wants to hear from this address.
    pub(super) fn is_wanted(&self, ip: IpAddr) -> bool {
        self.of_address(ip).next().is_some()
    }

    /// Returns the number of a channel that is to be asked for now.
    pub(super) fn due_channel(&self, now: Instant) -> Option<(ChannelNumber, SocketAddr)> {
        let due = self.channels.iter().find(|channel| channel.grant.is_due(now));
        due.map(|channel| (channel.number, channel.peer))
    }

    /// Returns the address of a permission that is to be asked for now.
    pub(super) fn due_permission(&self, now: Instant) -> Option<IpAddr> {
        self.permissions.iter().find(|permission| permission.grant.is_due(now)).map(|permission| permission.ip)
    }

    /// Returns when the next permission or channel is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let (permissions, channels) = (self.permissions.iter(), self.channels.iter());
        let next = permissions.map(|p| &p.grant).chain(channels.map(|c| &c.grant)).filter_map(Grant::next);
        next.min()
    }

    fn grants(&mut self) -> impl Iterator<Item = &mut Grant> {
        let (permissions, channels) = (self.permissions.iter_mut(), self.channels.iter_mut());
        permissions.map(|p| &mut p.grant).chain(channels.map(|c| &mut c.grant))
    }

    fn of_address(&self, ip: IpAddr) -> impl Iterator<Item = &Grant> {
        let at = self.permissions.binary_search_by_key(&ip, |permission| permission.ip).ok();
        let permission = at.and_then(|at| self.permissions.get(at)).map(|permission| &permission.grant);
        let channels = self.channels.iter().filter(move |channel| channel.peer.ip() == ip);
        permission.into_iter().chain(channels.map(|channel| &channel.grant))
    }

    fn forget_released(&mut self, now: Instant) {
        self.released.retain(|(_, _, until)| *until > now);
    }

    /// Returns a number that is not bound; `None` if there is none.
    fn unused_number(&mut self) -> Option<ChannelNumber> {
        let size = ChannelNumber::MAX.number() - ChannelNumber::MIN.number() + 1;
        for _ in 0..size {
            let number = ChannelNumber::new(ChannelNumber::MIN.number() + self.numbers % size)?;
            self.numbers = (self.numbers + 1) % size;
            let is_released = self.released.iter().any(|(released, ..)| *released == number);
            if !is_released && self.channel(number).is_none() {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 7], n))
    }

    #[test]
    fn released_channel_keeps_its_peer_for_fifteen_minutes() {
        let now = Instant::now();
        let mut peers = Peers::default();
        let first = peers.bind(now, peer(1)).unwrap();
        assert_eq!(peers.bind(now, peer(1)), Ok(first));
        peers.release(now, first);
        // The server would answer 400 to another number for this peer.
        assert_eq!(peers.bind(now, peer(1)), Ok(first));
        peers.release(now, first);
        for n in 2..5000 {
            let number = peers.bind(now, peer(n)).unwrap();
            assert_ne!(number, first);
            peers.release(now, number);
            // As time passes, the earliest numbers are free again.
            if n > 900 {
                break;
            }
        }
        assert_eq!(peers.bind(now + RELEASED, peer(1)).map(|number| number != first), Ok(true));
    }

    #[test]
    fn channels_and_permissions_are_bounded() {
        let now = Instant::now();
        let mut peers = Peers::default();
        for n in 0..MAX_PEERS as u16 {
            peers.bind(now, peer(n)).unwrap();
            peers.permit(now, IpAddr::from([10, 0, (n >> 8) as u8, n as u8])).unwrap();
        }
        assert_eq!(peers.bind(now, peer(9999)), Err(TooManyPeers));
        assert_eq!(peers.permit(now, IpAddr::from([10, 1, 0, 0])), Err(TooManyPeers));
        assert!(peers.bind(now, peer(7)).is_ok() && peers.permit(now, IpAddr::from([10, 0, 0, 7])).is_ok());
    }
}
