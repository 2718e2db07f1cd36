//! WireGuard's protocol with one peer: handshakes, sessions and timers. It has no socket and no clock.
//!
//! Sections are those of the whitepaper (<https://www.wireguard.com/papers/wireguard.pdf>).

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{packet::header::Packet, session_indices::SessionIndices};
use crate::config::Key;

pub(crate) mod guard;
mod handshake;
mod noise;
mod session;

pub(crate) use handshake::Initiation;
use handshake::Pending;
use noise::{MAC, TAG};
use session::Session;

/// The first byte of a message.
pub(crate) mod kind {
    pub(crate) const INITIATION: u8 = 1;
    pub(crate) const RESPONSE: u8 = 2;
    pub(crate) const COOKIE: u8 = 3;
    pub(crate) const DATA: u8 = 4;
}

/// Lengths of messages in bytes: of data messages that of the header, which is followed by the packet and a tag.
pub(crate) const INITIATION: usize = 148;
pub(crate) const RESPONSE: usize = 92;
pub(crate) const COOKIE: usize = 64;
const DATA_HEADER: usize = 16;

/// The age from which on a session is renewed by its initiator when it sends (`REKEY_AFTER_TIME`), and when it receives
/// (`REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT`).
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_AFTER_RECEIVING: Duration = Duration::from_secs(165);

/// The time after which a handshake without an answer is tried again, and for how long that goes on (`REKEY_TIMEOUT`,
/// `REKEY_ATTEMPT_TIME`).
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPTS: Duration = Duration::from_secs(90);

/// The time after which data is answered by an empty message if by nothing else (`KEEPALIVE_TIMEOUT`).
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What is added to a timer at random, so that two sides do not go on at the same moment (section 6.1), in milliseconds.
const JITTER: u64 = 333;

/// How long a cookie is good for (section 5.4.7).
const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// The state of the protocol with a peer.
pub(crate) struct Tunnel {
    /// The number of the peer, whom the indices lead to.
    peer: usize,
    identity: Identity,
    theirs: PublicKey,
    /// Of both static keys; `None`: the peer's public key is none.
    static_shared: Option<Zeroizing<[u8; 32]>>,
    preshared: Zeroizing<[u8; 32]>,
    clock: Clock,
    /// For messages to the peer and from it.
    mac1_keys: [[u8; 32]; 2],
    cookie_key: [u8; 32],
    cookie: Option<([u8; MAC], Instant)>,
    /// The index and the `mac1` of the latest message of a handshake, which a cookie would answer.
    latest_mac1: Option<(u32, [u8; MAC])>,
    /// The timestamp of the latest initiation of the peer; none that is not later is good (section 5.1).
    latest_timestamp: [u8; noise::TIMESTAMP],
    /// Our latest initiation, and the one before it, whose answer may be late.
    pending: [Option<Pending>; 2],
    current: Option<Box<Session>>,
    previous: Option<Box<Session>>,
    /// As the responder: the peer has not used it yet.
    next: Option<Box<Session>>,
    timers: Timers,
    /// Messages that the peer has numbered and that have not come, of all sessions.
    missing: u64,
}

/// This side's keys.
#[derive(Clone)]
struct Identity {
    private: StaticSecret,
    public: PublicKey,
}

/// What is due, and when.
#[derive(Default)]
struct Timers {
    /// When the handshake under way was begun, and when it is tried again.
    attempt: Option<(Instant, Instant)>,
    /// Data was sent, and nothing has come since: when the session is given up for dead.
    handshake_at: Option<Instant>,
    /// Data has come, and nothing was sent since: when an empty message answers it.
    keepalive_at: Option<Instant>,
    /// The session is old, and in use.
    renew: bool,
    /// When an authenticated message came last.
    heard: Option<Instant>,
}

/// The wall clock, for the timestamps of initiations: what it was at one moment of the clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    at: Instant,
    /// Since 1970.
    unix: Duration,
    /// The latest timestamp, in nanoseconds since 1970.
    latest: u128,
}

/// What came from the peer, and is genuine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received<'a> {
    /// There is a new session, which the peer may use once it has heard from this side.
    Response,
    /// Kept for the next message of a handshake. Anyone can send it who saw the latest one: it says nothing about the peer.
    Cookie,
    Keepalive,
    /// An IP packet without padding, and its source.
    Packet(&'a mut [u8], IpAddr),
}

/// Why a message is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// It belongs to no session or handshake under way.
    Unknown,
    /// It has come before, or is too old to know.
    Replayed,
    /// It is no message, not genuine, or has no IP packet in it.
    Invalid,
}

/// What a timer says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due<'a> {
    Nothing,
    /// An initiation or an empty message is to be sent.
    Send(&'a [u8]),
    /// Nobody has answered for a minute and a half: no further initiation is sent until somebody wants to send.
    Expired,
}

impl Tunnel {
    /// Without a session. `private`: this side's key; `preshared`: zeros if there is none.
    pub(crate) fn new(
        peer: usize,
        private: &StaticSecret,
        theirs: PublicKey,
        preshared: Option<[u8; 32]>,
        clock: Clock,
    ) -> Self {
        let identity = Identity { private: private.clone(), public: PublicKey::from(private) };
        Self {
            peer,
            static_shared: noise::diffie_hellman(private, &theirs).map(Zeroizing::new),
            preshared: Zeroizing::new(preshared.unwrap_or_default()),
            clock,
            mac1_keys: [theirs, identity.public].each_ref().map(noise::mac1_key),
            cookie_key: noise::cookie_key(&theirs),
            identity,
            theirs,
            cookie: None,
            latest_mac1: None,
            latest_timestamp: [0; noise::TIMESTAMP],
            pending: [None, None],
            current: None,
            previous: None,
            next: None,
            timers: Timers::default(),
            missing: 0,
        }
    }

    /// Whether there is a session to send with.
    #[inline]
    pub(crate) fn is_established(&self, now: Instant) -> bool {
        self.current.as_ref().is_some_and(|session| session.is_valid(now))
    }

    /// Returns how many data messages the peer has numbered that have not come. What was lost of the end of a session is not told.
    #[inline]
    pub(crate) fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether an initiation waits for its response.
    pub(crate) fn is_initiating(&self) -> bool {
        self.timers.attempt.is_some()
    }

    /// Takes other keys. There is no session then, and no initiation from before is good.
    pub(crate) fn change_keys(
        &mut self,
        private: &StaticSecret,
        preshared: Option<[u8; 32]>,
        indices: &mut SessionIndices,
    ) {
        self.clear(indices);
        let (latest_timestamp, missing) = (self.latest_timestamp, self.missing);
        *self = Self { latest_timestamp, missing, ..Self::new(self.peer, private, self.theirs, preshared, self.clock) };
    }

    /// Writes an initiation, unless one is under way. `force`: also then, as the network is not what it was.
    pub(crate) fn initiate<'a>(
        &mut self,
        now: Instant,
        force: bool,
        indices: &mut SessionIndices,
        message: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        if self.timers.attempt.is_some() && !force {
            return None;
        }
        self.timers.attempt = None;
        self.write_initiation(now, indices, message)
    }

    /// Writes a data message with a packet, empty for a keepalive. `None`: there is no session, or no room in `message`.
    #[inline]
    pub(crate) fn seal(&mut self, now: Instant, packet: &[u8], message: &mut [u8]) -> Option<usize> {
        let session = self.current.as_mut().filter(|session| session.is_valid(now))?;
        let len = session.seal(packet, message)?;
        let is_old = session.is_initiator && now.saturating_duration_since(session.born) >= REKEY_AFTER;
        self.timers.renew |= is_old || session.has_sent_much();
        self.timers.keepalive_at = None;
        if !packet.is_empty() && self.timers.handshake_at.is_none() {
            self.timers.handshake_at = Some(now + KEEPALIVE + REKEY_TIMEOUT + jitter());
        }
        Some(len)
    }

    /// Takes an initiation of this peer, and writes the response. The session is used once the peer does.
    ///
    /// # Errors
    /// [`Error::Replayed`], [`Error::Invalid`].
    pub(crate) fn respond<'a>(
        &mut self,
        now: Instant,
        initiation: Initiation,
        indices: &mut SessionIndices,
        message: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        let (state, timestamp) = initiation.verify(self)?;
        if timestamp <= self.latest_timestamp {
            return Err(Error::Replayed);
        }
        let ours = indices.assign(self.peer).map_err(|_| Error::Invalid)?;
        let Some((len, session)) = handshake::respond(self, now, state, ours, message) else {
            indices.release(ours);
            return Err(Error::Invalid);
        };
        self.latest_timestamp = timestamp;
        // There was one before it that the peer has never used (as in the kernel's WireGuard, `add_new_keypair`).
        for old in [self.next.replace(session), self.previous.take()].into_iter().flatten() {
            indices.release(old.ours);
        }
        self.on_received(now);
        self.timers.keepalive_at = None;
        Ok(message.get(..len).unwrap_or_default())
    }

    /// Takes a message that is no initiation; `plain` is where a packet goes, and as long as the message at least.
    ///
    /// # Errors
    /// Any [`Error`].
    pub(crate) fn receive<'a>(
        &mut self,
        now: Instant,
        message: &[u8],
        plain: &'a mut [u8],
        indices: &mut SessionIndices,
    ) -> Result<Received<'a>, Error> {
        match message {
            [kind::DATA, 0, 0, 0, rest @ ..] => self.receive_data(now, rest, plain, indices),
            [kind::RESPONSE, 0, 0, 0, ..] => self.receive_response(now, message, indices),
            [kind::COOKIE, 0, 0, 0, ..] => self.receive_cookie(now, message),
            _ => Err(Error::Invalid),
        }
    }

    #[inline]
    fn receive_data<'a>(
        &mut self,
        now: Instant,
        message: &[u8],
        plain: &'a mut [u8],
        indices: &mut SessionIndices,
    ) -> Result<Received<'a>, Error> {
        let (header, sealed) = message.split_first_chunk::<{ DATA_HEADER - 4 }>().ok_or(Error::Invalid)?;
        let &[a, b, c, d, ref counter @ ..] = header;
        let index = u32::from_le_bytes([a, b, c, d]);
        let counter = u64::from_le_bytes(counter.first_chunk().copied().unwrap_or_default());
        if sealed.len() < TAG {
            return Err(Error::Invalid);
        }
        let sessions = [&mut self.current, &mut self.next, &mut self.previous];
        let session = sessions.into_iter().flatten().find(|session| session.ours == index).ok_or(Error::Unknown)?;
        if !session.is_valid(now) {
            return Err(Error::Unknown);
        }
        let (plain, missing) = session.open(counter, sealed, plain)?;
        self.missing = self.missing.saturating_add_signed(missing);
        let is_old = session.is_initiator && now.saturating_duration_since(session.born) >= REKEY_AFTER_RECEIVING;
        let is_due = is_old && !std::mem::replace(&mut session.is_renewed, is_old);
        // What comes late of the session before says nothing of the one in use.
        self.timers.renew |= is_due && self.current.as_ref().is_some_and(|current| current.ours == index);
        self.on_received(now);
        if self.next.as_ref().is_some_and(|next| next.ours == index) {
            self.confirm(indices);
        }
        if plain.is_empty() {
            return Ok(Received::Keepalive);
        }
        let packet = Packet::parse(plain).ok_or(Error::Invalid)?;
        let (len, source) = (packet.bytes().len(), packet.source());
        self.timers.keepalive_at.get_or_insert(now + KEEPALIVE);
        Ok(Received::Packet(plain.get_mut(..len).unwrap_or_default(), source))
    }

    /// The peer uses the session that it has initiated.
    fn confirm(&mut self, indices: &mut SessionIndices) {
        let old = std::mem::replace(&mut self.previous, self.current.take());
        self.current = self.next.take();
        // There is a session: the one that this side wanted is not needed.
        self.timers.attempt = None;
        self.timers.renew = false;
        if let Some(old) = old {
            indices.release(old.ours);
        }
    }

    fn receive_response<'a>(
        &mut self,
        now: Instant,
        message: &[u8],
        indices: &mut SessionIndices,
    ) -> Result<Received<'a>, Error> {
        let message: &[u8; RESPONSE] = message.try_into().map_err(|_| Error::Invalid)?;
        let [_, our_mac1_key] = &self.mac1_keys;
        if !has_mac1(our_mac1_key, message) {
            return Err(Error::Invalid);
        }
        let session = handshake::complete(self, now, message)?;
        // A later initiation stays: the peer makes a session of it, too, and forgets this one if it has not been used by then.
        let [latest, before] = &mut self.pending;
        if latest.as_ref().is_some_and(|pending| pending.ours == session.ours) {
            *latest = None;
            before.take().into_iter().for_each(|pending| indices.release(pending.ours));
        } else {
            *before = None;
        }
        // As in the kernel's WireGuard (`add_new_keypair`).
        let before = match self.next.take() {
            Some(next) => [self.previous.replace(next), self.current.replace(session)],
            None => [std::mem::replace(&mut self.previous, self.current.replace(session)), None],
        };
        before.into_iter().flatten().for_each(|old| indices.release(old.ours));
        self.timers.attempt = None;
        self.timers.renew = false;
        self.on_received(now);
        Ok(Received::Response)
    }

    fn receive_cookie<'a>(&mut self, now: Instant, message: &[u8]) -> Result<Received<'a>, Error> {
        let message: &[u8; COOKIE] = message.try_into().map_err(|_| Error::Invalid)?;
        let (_, rest) = message.split_at(4);
        let field = |at: usize| rest.get(at..).and_then(<[u8]>::first_chunk::<MAC>).copied().unwrap_or_default();
        let Some((index, nonce)) = rest.first_chunk::<4>().zip(rest.get(4..).and_then(<[u8]>::first_chunk)) else {
            return Err(Error::Invalid);
        };
        let (ours, mac1) = self.latest_mac1.ok_or(Error::Unknown)?;
        if ours != u32::from_le_bytes(*index) {
            return Err(Error::Unknown);
        }
        let cookie = noise::open_cookie(&self.cookie_key, nonce, &mac1, field(28), &field(44)).ok_or(Error::Invalid)?;
        self.cookie = Some((cookie, now));
        // One answer to one message: a copy of it is none.
        self.latest_mac1 = None;
        Ok(Received::Cookie)
    }

    /// Returns when [`tick`](Self::tick) has something to do, as far as is known now.
    pub(crate) fn due(&self) -> Option<Instant> {
        let Timers { attempt, handshake_at, keepalive_at, .. } = self.timers;
        let handshake_at = attempt.map_or(handshake_at, |(_, again)| Some(again));
        handshake_at.into_iter().chain(keepalive_at).min()
    }

    /// Does what is due, one thing at a time: call it again while there is something to send.
    pub(crate) fn tick<'a>(&mut self, now: Instant, indices: &mut SessionIndices, message: &'a mut [u8]) -> Due<'a> {
        self.forget(now, indices);
        if let Some((since, again)) = self.timers.attempt.filter(|(_, again)| now >= *again) {
            if now.saturating_duration_since(since) >= REKEY_ATTEMPTS {
                self.give_up(since, indices);
                return Due::Expired;
            }
            debug_assert!(again >= since, "an attempt is repeated after it has begun");
            return self.write_initiation(now, indices, message).map_or(Due::Nothing, Due::Send);
        }
        if self.timers.attempt.is_none() {
            let is_dead = self.timers.handshake_at.is_some_and(|at| now >= at);
            if is_dead || std::mem::take(&mut self.timers.renew) {
                self.timers.handshake_at = None;
                return self.write_initiation(now, indices, message).map_or(Due::Nothing, Due::Send);
            }
        }
        if self.timers.keepalive_at.is_some_and(|at| now >= at) {
            self.timers.keepalive_at = None;
            if let Some(len) = self.seal(now, &[], message) {
                return Due::Send(message.get(..len).unwrap_or_default());
            }
        }
        Due::Nothing
    }

    /// The machine was suspended for so long: sessions are older than the clock says.
    pub(crate) fn age(&mut self, by: Duration) {
        for session in [&mut self.current, &mut self.previous, &mut self.next].into_iter().flatten() {
            // The clock began after that: it is as old as the clock can say.
            session.born = session.born.checked_sub(by).unwrap_or(session.born);
        }
    }

    /// Gives all indices back: the peer is removed, or its keys change.
    pub(crate) fn clear(&mut self, indices: &mut SessionIndices) {
        let sessions = [&mut self.current, &mut self.previous, &mut self.next].map(Option::take);
        sessions.into_iter().flatten().for_each(|session| indices.release(session.ours));
        for pending in &mut self.pending {
            pending.take().into_iter().for_each(|pending| indices.release(pending.ours));
        }
        self.timers = Timers::default();
    }

    /// Forgets the keys of sessions that are over, and initiations that nobody will answer.
    fn forget(&mut self, now: Instant, indices: &mut SessionIndices) {
        for slot in [&mut self.current, &mut self.previous, &mut self.next] {
            if let Some(old) = slot.take_if(|session| !session.is_valid(now)) {
                indices.release(old.ours);
            }
        }
        for slot in &mut self.pending {
            let is_old = |pending: &mut Pending| now.saturating_duration_since(pending.sent) >= REKEY_ATTEMPTS;
            if let Some(old) = slot.take_if(is_old) {
                indices.release(old.ours);
            }
        }
    }

    /// Nobody has answered since `since`. A session over which the peer was heard meanwhile is left.
    fn give_up(&mut self, since: Instant, indices: &mut SessionIndices) {
        let is_heard = self.timers.heard.is_some_and(|heard| heard >= since);
        if is_heard {
            self.timers.attempt = None;
            self.timers.handshake_at = None;
        } else {
            self.clear(indices);
        }
    }

    fn on_received(&mut self, now: Instant) {
        self.timers.heard = Some(now);
        self.timers.handshake_at = None;
    }

    fn write_initiation<'a>(
        &mut self,
        now: Instant,
        indices: &mut SessionIndices,
        message: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let since = self.timers.attempt.map_or(now, |(since, _)| since);
        self.timers.attempt = Some((since, now + REKEY_TIMEOUT + jitter()));
        self.timers.keepalive_at = None;
        let ours = indices.assign(self.peer).ok()?;
        let Some(pending) = handshake::initiate(self, now, ours, message) else {
            indices.release(ours);
            return None;
        };
        let [latest, before] = &mut self.pending;
        if let Some(old) = std::mem::replace(before, latest.replace(pending)) {
            indices.release(old.ours);
        }
        message.get(..INITIATION)
    }

    /// Completes a message of a handshake: all of it but the last two fields is written.
    fn write_macs(&mut self, now: Instant, ours: u32, message: &mut [u8]) {
        let [their_mac1_key, _] = &self.mac1_keys;
        let Some((rest, mac2)) = message.split_last_chunk_mut::<MAC>() else { return };
        let Some((content, mac1)) = rest.split_last_chunk_mut::<MAC>() else { return };
        *mac1 = noise::mac(their_mac1_key, &[content]);
        self.latest_mac1 = Some((ours, *mac1));
        self.cookie = self.cookie.filter(|(_, since)| now.saturating_duration_since(*since) < COOKIE_LIFETIME);
        *mac2 = self.cookie.map_or([0; MAC], |(cookie, _)| noise::mac(&cookie, &[content, &*mac1]));
    }
}

impl Clock {
    /// `wall`: what the wall clock shows at `at`.
    pub(crate) fn new(at: Instant, wall: SystemTime) -> Self {
        Self { at, unix: wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(), latest: 0 }
    }

    /// Returns a TAI64N timestamp (as the kernel's WireGuard and wireguard-go have it: ten seconds from UTC), later than all before.
    fn timestamp(&mut self, now: Instant) -> [u8; noise::TIMESTAMP] {
        const SECOND: u128 = 1_000_000_000;
        let nanos = (self.unix + now.saturating_duration_since(self.at)).as_nanos();
        self.latest = nanos.max(self.latest + 1);
        let mut timestamp = [0; noise::TIMESTAMP];
        let seconds = (1 << 62) + 10 + (self.latest / SECOND) as u64;
        timestamp[..8].copy_from_slice(&seconds.to_be_bytes());
        timestamp[8..].copy_from_slice(&((self.latest % SECOND) as u32).to_be_bytes());
        timestamp
    }
}

/// The private key; instead of zeros, which stand for none, a random one that nobody knows: no handshake succeeds with it.
///
/// # Errors
/// When the system has no random numbers.
pub(crate) fn private_key(key: &Key) -> io::Result<StaticSecret> {
    if key.0 == [0; 32] {
        return Ok(StaticSecret::from(Key::generate()?.0));
    }
    Ok(StaticSecret::from(key.0))
}

/// Whether the `mac1` of a message of a handshake is right, so that its sender knows our public key.
fn has_mac1(key: &[u8; 32], message: &[u8]) -> bool {
    let parts = message.split_last_chunk::<MAC>().and_then(|(rest, _)| rest.split_last_chunk::<MAC>());
    parts.is_some_and(|(content, mac1)| noise::mac(key, &[content]).ct_eq(mac1).into())
}

fn jitter() -> Duration {
    Duration::from_millis(fastrand::u64(..=JITTER))
}

#[cfg(test)]
mod tests;
