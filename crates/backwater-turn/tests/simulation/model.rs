//! The reference: who may send to whom, until when, and what is answered.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use backwater_stun::*;
use backwater_turn::{
    FiveTuple, Now, PerFamily,
    server::{AllocationId, Bound, PortRequest},
};

use crate::{Ask, MAX_ALLOCATIONS, MAX_LIFETIME, PER_USER, Sent, Signed};

/// What the model knows of an allocation.
#[derive(Debug)]
pub struct Held {
    pub id: AllocationId,
    pub user: usize,
    pub request: TransactionId,
    /// The relayed address and its end.
    pub relayed: PerFamily<Option<(SocketAddr, Instant)>>,
    pub permissions: HashMap<IpAddr, Instant>,
    pub channels: HashMap<u16, (SocketAddr, Instant)>,
    pub mobile: bool,
    /// The one that is good, once it has been told.
    pub ticket: Option<Vec<u8>>,
}

impl Held {
    /// A relayed address ends, and takes with it what depends on it.
    pub fn close(&mut self, family: AddressFamily) -> Option<(SocketAddr, Instant)> {
        let stays = |ip: &IpAddr| ip.is_ipv4() != (family == AddressFamily::Ipv4);
        self.permissions.retain(|ip, _| stays(ip));
        self.channels.retain(|_, (peer, _)| stays(&peer.ip()));
        self.relayed.get_mut(family).take()
    }

    /// The right answers to a Refresh request.
    pub fn refreshed(&self, family: Option<AddressFamily>) -> Vec<u16> {
        let gone = family.is_some_and(|family| self.relayed.get(family).is_none());
        vec![if gone { 443 } else { 0 }]
    }

    pub fn is_over(&self) -> bool {
        self.relayed.v4.is_none() && self.relayed.v6.is_none()
    }
}

/// What a request was answered with.
pub struct Answer {
    pub reply: Vec<u8>,
    pub at: Instant,
    /// The client's allocation at that time.
    pub held: Option<AllocationId>,
}

pub const FAMILIES: [AddressFamily; 2] = [AddressFamily::Ipv4, AddressFamily::Ipv6];

/// The reference: everything a server has to remember.
#[derive(Default)]
pub struct Model {
    pub held: HashMap<FiveTuple, Held>,
    /// Answers to authenticated requests.
    pub answered: HashMap<(FiveTuple, TransactionId), Answer>,
    /// Ports that are set aside: whose, and until when.
    pub reserved: HashMap<[u8; 8], (usize, Instant)>,
    /// On their way to their clients' new addresses: nobody's until then.
    pub moving: VecDeque<Held>,
    /// All that were ever told.
    pub tickets: HashSet<Vec<u8>>,
}

/// Among the right codes: no answer yet, but a request for an allocation that is elsewhere.
pub const MOVES: u16 = 1;

/// RFC 8489, section 6.3.1: how long an answer is to be repeated.
pub const REPEATED: Duration = Duration::from_secs(40);

impl Model {
    /// The answers that are right: codes, zero for a success.
    pub fn codes(&self, sent: &Sent, now: Now) -> Vec<u16> {
        if let Ask::Binding = sent.ask {
            return vec![0];
        }
        // An allocation answers copies of its own request for as long as it lasts, whatever has become of the nonce.
        let is_copy = |held: &Held| held.request == sent.id && !held.mobile;
        if matches!(sent.ask, Ask::Allocate { .. }) && self.held.get(&sent.from).is_some_and(is_copy) {
            return vec![0];
        }
        let nonce =
            sent.nonce.is_some_and(|(to, at)| to == sent.from && now.unix.as_secs().abs_diff(at.as_secs()) <= 3600);
        match (sent.signed, nonce) {
            (Signed::No, _) | (Signed::Wrongly, true) => return vec![401],
            (Signed::Wrongly, false) => return vec![401, 438],
            (Signed::Well, false) => return vec![438],
            (Signed::Well, true) => {}
        }
        let held = self.held.get(&sent.from);
        if let Ask::Allocate { .. } = sent.ask {
            let (user_full, full) = self.is_full(sent, now.instant);
            return match held {
                Some(held) if held.request == sent.id => vec![0],
                Some(_) => vec![437],
                None if user_full && full => vec![486, 508],
                None if user_full => vec![486],
                None if full => vec![508],
                None => vec![0],
            };
        }
        if let Ask::Refresh { ticket: Some(ticket), .. } = &sent.ask {
            let genuine = self.tickets.contains(ticket);
            match held {
                None => return vec![if genuine { MOVES } else { 400 }],
                Some(held) if held.ticket.as_ref() != Some(ticket) => {
                    let wrong = if genuine { 437 } else { 400 };
                    return if held.user == sent.user { vec![wrong] } else { vec![wrong, 441] };
                }
                Some(_) => {}
            }
        }
        let Some(held) = held else { return vec![437] };
        if held.user != sent.user {
            return vec![441];
        }
        let family = |family: AddressFamily| held.relayed.get(family).is_some();
        if let Ask::Refresh { family, .. } = sent.ask {
            return held.refreshed(family);
        }
        let refusals = |peers: &[SocketAddr]| {
            let mut codes = Vec::new();
            for peer in peers {
                codes.extend((!family(AddressFamily::of(peer))).then_some(443));
                codes.extend(is_denied(*peer).then_some(403));
            }
            codes
        };
        let mut codes = match &sent.ask {
            Ask::Permit { peers } => refusals(peers),
            Ask::Channel { number, peer } => {
                let mut codes = refusals(&[*peer]);
                let live = held.channels.iter().filter(|(_, (_, until))| *until > now.instant);
                let conflict = live.into_iter().any(|(n, (p, _))| (n == number) != (p == peer));
                codes.extend(conflict.then_some(400));
                codes
            }
            _ => Vec::new(),
        };
        if codes.is_empty() {
            codes.push(0);
        }
        codes
    }

    /// Whether the user has no room for what an Allocate asks for, and whether all together have none.
    fn is_full(&self, sent: &Sent, now: Instant) -> (bool, bool) {
        let Ask::Allocate { port, .. } = sent.ask else { panic!("{sent:?} allocates") };
        let all: Vec<_> = self.held.values().chain(&self.moving).map(|held| held.user).collect();
        let reserved: Vec<_> =
            self.reserved.values().filter(|(_, until)| *until > now).map(|(user, _)| *user).collect();
        let of_user = |users: &[usize]| users.iter().filter(|user| **user == sent.user).count();
        let (own, own_reserved) = (of_user(&all), of_user(&reserved));
        let more = match port {
            PortRequest::Reserved(token) if self.has_reserved(sent, token, now) => return (false, false),
            PortRequest::Even { reserve_next: true } => 2,
            _ => 1,
        };
        let user_full = own + own_reserved + more > PER_USER || more == 2 && own_reserved > own;
        (user_full, all.len() + reserved.len() + more > MAX_ALLOCATIONS)
    }

    fn has_reserved(&self, sent: &Sent, token: [u8; 8], now: Instant) -> bool {
        self.reserved.get(&token).is_some_and(|(user, until)| *user == sent.user && *until > now)
    }

    /// Sockets are bound, or not, for an Allocate that is within the quotas.
    pub fn claimed(&mut self, sent: &Sent, bound: &Bound, now: Instant) {
        let Ask::Allocate { port, .. } = sent.ask else { panic!("{sent:?} allocates") };
        if let PortRequest::Reserved(token) = port
            && self.has_reserved(sent, token, now)
        {
            self.reserved.remove(&token);
        }
        if let Some(token) = bound.token
            && (bound.relayed.v4.is_some() || bound.relayed.v6.is_some())
        {
            self.reserved.insert(token, (sent.user, now + Duration::from_secs(30)));
        }
    }

    /// What a copy of this request is answered with, whatever has come in between.
    pub fn answer_to_copy(&self, sent: &Sent, now: Instant) -> Option<&[u8]> {
        let answer = self.answered.get(&(sent.from, sent.id))?;
        (now.duration_since(answer.at) < REPEATED).then_some(&answer.reply)
    }

    /// Whether the client has another allocation than when this request was answered.
    pub fn is_overtaken(&self, sent: &Sent) -> bool {
        let now = self.held.get(&sent.from).map(|held| held.id);
        now.is_some() && self.answered.get(&(sent.from, sent.id)).is_some_and(|answer| answer.held != now)
    }

    /// Where the allocation is that a client comes for with a ticket, or why it does not get it.
    pub fn gives(&self, sent: &Sent) -> Result<FiveTuple, Vec<u16>> {
        let Ask::Refresh { family, ticket, .. } = &sent.ask else { panic!("{sent:?} moves") };
        let (from, held) = self.held.iter().find(|(_, held)| held.ticket == *ticket).ok_or(vec![437])?;
        let mut codes = Vec::new();
        codes.extend((held.user != sent.user).then_some(441));
        codes.extend(family.is_some_and(|family| held.relayed.get(family).is_none()).then_some(443));
        if codes.is_empty() { Ok(*from) } else { Err(codes) }
    }

    /// The right answer to one that came with what was given, or not.
    pub fn taken(&self, sent: &Sent, given: Option<u16>) -> u16 {
        match (given, self.held.contains_key(&sent.from)) {
            (Some(code), _) => code,
            (None, true) => 437,
            (None, false) => 0,
        }
    }

    pub fn permitted(&self, from: &FiveTuple, peer: SocketAddr, now: Instant) -> bool {
        self.held.get(from).is_some_and(|held| held.permissions.get(&peer.ip()).is_some_and(|until| *until > now))
    }

    /// Where ChannelData goes.
    pub fn channel(&self, from: &FiveTuple, number: u16, now: Instant) -> Option<SocketAddr> {
        let (peer, until) = self.held.get(from)?.channels.get(&number)?;
        (*until > now).then_some(*peer)
    }

    /// What a success changes.
    pub fn succeeded(&mut self, sent: &Sent, now: Instant) {
        let seconds = Duration::from_secs;
        let Some(held) = self.held.get_mut(&sent.from) else { return };
        match &sent.ask {
            Ask::Refresh { lifetime: Some(0), family, .. } => {
                // From now on the answer to its Allocate is remembered for as long as any other.
                if let Some(answer) = self.answered.get_mut(&(sent.from, held.request)).filter(|_| !held.mobile) {
                    answer.at = now;
                }
                for gone in FAMILIES.into_iter().filter(|f| family.is_none_or(|family| family == *f)) {
                    held.close(gone);
                }
                if held.is_over() {
                    self.held.remove(&sent.from);
                }
            }
            Ask::Refresh { lifetime, family, .. } => {
                for f in FAMILIES {
                    if let Some((_, until)) = held.relayed.get_mut(f)
                        && family.is_none_or(|family| family == f)
                    {
                        *until = now + granted(*lifetime);
                    }
                }
            }
            Ask::Permit { peers } => {
                held.permissions.extend(peers.iter().map(|peer| (peer.ip(), now + seconds(300))));
            }
            Ask::Channel { number, peer } => {
                held.permissions.insert(peer.ip(), now + seconds(300));
                held.channels.retain(|_, (_, until)| *until > now);
                held.channels.insert(*number, (*peer, now + seconds(600)));
            }
            Ask::Binding | Ask::Allocate { .. } | Ask::Send { .. } | Ask::Data { .. } => {}
        }
    }

    /// When the next relayed address ends.
    pub fn next_expiry(&self) -> Option<Instant> {
        let ends = self.held.values().flat_map(|held| held.relayed.v4.into_iter().chain(held.relayed.v6));
        ends.map(|(_, until)| until).min()
    }
}

pub fn granted(lifetime: Option<u32>) -> Duration {
    Duration::from_secs(lifetime.unwrap_or(600).clamp(600, MAX_LIFETIME).into())
}

pub fn is_denied(peer: SocketAddr) -> bool {
    peer.ip() == IpAddr::from([203, 0, 113, 66]) || peer.ip().is_loopback()
}
