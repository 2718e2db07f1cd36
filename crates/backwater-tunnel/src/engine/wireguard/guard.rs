//! How many initiations are decrypted (section 5.3): a sender that only knows our public key must not cost other peers their
//! handshakes, or this host its processor.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use subtle::ConstantTimeEq;
use x25519_dalek::PublicKey;

use super::{COOKIE, INITIATION, has_mac1, kind, noise};

/// Initiations in a [`PERIOD`] from one source: an IPv4 address, or an IPv6 network of 64 bits. As in the kernel's WireGuard.
const PER_SOURCE: u32 = 20;

/// Initiations in a [`PERIOD`] from all sources of one kind ([`Trust`]). Each takes a Diffie-Hellman operation, of 30 to 300 µs on
/// today's processors.
const OF_ALL: u32 = 200;

const PERIOD: Duration = Duration::from_secs(1);

/// Sources and initiations that are remembered in a period. What comes when there are more counts against [`OF_ALL`] alone.
const MAX_REMEMBERED: usize = 4096;

/// The lifetime of the secret that cookies are made with (section 5.4.7). A cookie is good in the next period of it, too.
const SECRET_PERIOD: u64 = 120;

/// Counts initiations, and answers those that are too many by cookies.
pub(crate) struct Guard {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    secret: [u8; 32],
    began: Instant,
    period_began: Instant,
    of_all: [u32; 3],
    of_sources: HashMap<(Trust, IpAddr), u32>,
    /// The `mac1` of the initiations of this period. A replay is refused, so that it does not use up the sender's share.
    seen: HashSet<[u8; noise::MAC]>,
}

/// What speaks for the source address of an initiation. Each kind has a share of its own, so that none can take the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Trust {
    /// Nothing.
    None,
    /// It is where a peer was heard last, or is configured.
    Known,
    /// The sender has proved by a cookie that it receives what is sent there.
    Proven,
}

/// What is to be done with an initiation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    Decrypt,
    /// There are too many: this is sent instead.
    Cookie([u8; COOKIE]),
    Refuse,
}

impl Guard {
    /// For initiations to the owner of this public key.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(crate) fn new(now: Instant, public: &PublicKey) -> io::Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(Self {
            mac1_key: noise::mac1_key(public),
            cookie_key: noise::cookie_key(public),
            secret,
            began: now,
            period_began: now,
            of_all: [0; 3],
            of_sources: HashMap::new(),
            seen: HashSet::new(),
        })
    }

    /// Guards another key from now on. No cookie that it was answered by was for that.
    pub(crate) fn change_key(&mut self, public: &PublicKey) {
        self.mac1_key = noise::mac1_key(public);
        self.cookie_key = noise::cookie_key(public);
    }

    /// Judges an initiation. `is_known`: whether a peer was heard last at that address, or is configured to be there.
    pub(crate) fn judge(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8],
        is_known: impl FnOnce(IpAddr) -> bool,
    ) -> Judgement {
        if now.saturating_duration_since(self.period_began) >= PERIOD {
            self.period_began = now;
            self.of_all = [0; 3];
            self.of_sources.clear();
            self.seen.clear();
        }
        let Some(mac1) = message.get(116..).and_then(<[u8]>::first_chunk::<{ noise::MAC }>).copied() else {
            return Judgement::Refuse;
        };
        if message.len() != INITIATION || self.seen.contains(&mac1) || !has_mac1(&self.mac1_key, message) {
            return Judgement::Refuse;
        }
        let source_ip = source.ip().to_canonical();
        let may_pass = self.take(Trust::None, source_ip) || is_known(source_ip) && self.take(Trust::Known, source_ip);
        let judgement = if may_pass {
            Judgement::Decrypt
        } else if self.has_mac2(now, source, message) {
            if self.take(Trust::Proven, source_ip) { Judgement::Decrypt } else { Judgement::Refuse }
        } else {
            self.cookie_reply(now, source, message, &mac1).map_or(Judgement::Refuse, Judgement::Cookie)
        };
        // Whoever resends the same after a cookie would be refused for it otherwise.
        if judgement == Judgement::Decrypt && self.seen.len() < MAX_REMEMBERED {
            self.seen.insert(mac1);
        }
        judgement
    }

    /// Counts an initiation of this source. Returns whether it is within the limits.
    fn take(&mut self, trust: Trust, source: IpAddr) -> bool {
        let of_all = &mut self.of_all[trust as usize];
        if *of_all >= OF_ALL {
            return false;
        }
        let key = (trust, network(source));
        if self.of_sources.len() < MAX_REMEMBERED || self.of_sources.contains_key(&key) {
            let of_source = self.of_sources.entry(key).or_default();
            if *of_source >= PER_SOURCE {
                return false;
            }
            *of_source += 1;
        }
        *of_all += 1;
        true
    }

    fn cookie(&self, epoch: u64, source: SocketAddr) -> [u8; noise::MAC] {
        let ip = match source.ip().to_canonical() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        noise::mac(&self.secret, &[&epoch.to_be_bytes(), &ip.octets(), &source.port().to_be_bytes()])
    }

    fn epoch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / SECRET_PERIOD + 1
    }

    /// Whether the sender had a cookie for its address and port.
    fn has_mac2(&self, now: Instant, source: SocketAddr, message: &[u8]) -> bool {
        let Some((content, mac2)) = message.split_last_chunk::<{ noise::MAC }>() else { return false };
        let epoch = self.epoch(now);
        [epoch, epoch - 1].into_iter().any(|epoch| {
            let cookie = self.cookie(epoch, source);
            bool::from(noise::mac(&cookie, &[content]).ct_eq(mac2))
        })
    }

    fn cookie_reply(
        &self,
        now: Instant,
        source: SocketAddr,
        message: &[u8],
        mac1: &[u8; noise::MAC],
    ) -> Option<[u8; COOKIE]> {
        let mut nonce = [0; noise::COOKIE_NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let cookie = self.cookie(self.epoch(now), source);
        let [cookie, tag] = noise::seal_cookie(&self.cookie_key, &nonce, mac1, cookie)?;
        let mut reply = [0; COOKIE];
        reply[0] = kind::COOKIE;
        reply[4..8].copy_from_slice(message.get(4..8)?);
        reply[8..32].copy_from_slice(&nonce);
        reply[32..48].copy_from_slice(&cookie);
        reply[48..].copy_from_slice(&tag);
        Some(reply)
    }
}

/// What one customer of a provider has at least: an IPv4 address, or an IPv6 network of 64 bits.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !0 << 64).into(),
    }
}

#[cfg(test)]
mod tests;
