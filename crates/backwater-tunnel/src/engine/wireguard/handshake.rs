//! The two messages of a handshake (sections 5.4.2 and 5.4.3).

use std::time::Instant;

use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{
    Error, INITIATION, RESPONSE, Tunnel, kind,
    noise::{Symmetric, TAG, TIMESTAMP, diffie_hellman},
    session::Session,
};

/// Where the fields of an initiation are: kind, index, ephemeral key, static key, timestamp, `mac1`, `mac2`.
const EPHEMERAL: usize = 8;
const STATIC: usize = 40;
const TIME: usize = 88;
const TIME_END: usize = TIME + TIMESTAMP + TAG;

/// The same of a response: kind, two indices, ephemeral key, nothing, `mac1`, `mac2`.
const RESPONSE_EPHEMERAL: usize = 12;
const NOTHING: usize = 44;
const NOTHING_END: usize = NOTHING + TAG;

/// An initiation that has no answer yet.
pub(super) struct Pending {
    pub(super) ours: u32,
    pub(super) sent: Instant,
    ephemeral: StaticSecret,
    state: Symmetric,
}

/// An initiation that somebody sent who knows our public key, decrypted as far as tells who says to have sent it.
pub(crate) struct Initiation {
    /// Whose public key is in it. That it is theirs the rest will show.
    pub(crate) public_key: [u8; 32],
    theirs: u32,
    ephemeral: PublicKey,
    state: Symmetric,
    timestamp: [u8; TIMESTAMP + TAG],
}

/// What a response needs of an initiation.
pub(super) struct Verified {
    theirs: u32,
    ephemeral: PublicKey,
    state: Symmetric,
}

fn index(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*message.get(at..)?.first_chunk()?))
}

fn public_key(message: &[u8], at: usize) -> Option<PublicKey> {
    Some(PublicKey::from(*message.get(at..)?.first_chunk::<32>()?))
}

/// A key for one handshake. `None`: the system has no random numbers.
fn ephemeral() -> Option<StaticSecret> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).ok()?;
    Some(StaticSecret::from(*bytes))
}

impl Initiation {
    /// Decrypts the sender's public key. `None`: it is no initiation, or not for this key. Its `mac1` is not looked at.
    pub(crate) fn open(private: &StaticSecret, public: &PublicKey, message: &[u8]) -> Option<Self> {
        if message.len() != INITIATION || *message.first_chunk()? != [kind::INITIATION, 0, 0, 0] {
            return None;
        }
        let ephemeral = public_key(message, EPHEMERAL)?;
        let mut state = Symmetric::new(public);
        state.mix_ephemeral(&ephemeral);
        let key = state.mix_key(&diffie_hellman(private, &ephemeral)?);
        let public_key = state.open(&key, message.get(STATIC..TIME)?)?;
        let timestamp = *message.get(TIME..)?.first_chunk()?;
        Some(Self { public_key, theirs: index(message, 4)?, ephemeral, state, timestamp })
    }

    /// Checks that the sender has the private key, too. Returns the timestamp as well.
    pub(super) fn verify(mut self, tunnel: &Tunnel) -> Result<(Verified, [u8; TIMESTAMP]), Error> {
        if self.public_key != tunnel.theirs.to_bytes() {
            return Err(Error::Invalid);
        }
        let key = self.state.mix_key(tunnel.static_shared.as_ref().ok_or(Error::Invalid)?);
        let timestamp = self.state.open(&key, &self.timestamp).ok_or(Error::Invalid)?;
        Ok((Verified { theirs: self.theirs, ephemeral: self.ephemeral, state: self.state }, timestamp))
    }
}

/// Writes an initiation.
pub(super) fn initiate(tunnel: &mut Tunnel, now: Instant, ours: u32, message: &mut [u8]) -> Option<Pending> {
    let message = message.get_mut(..INITIATION)?;
    let ephemeral = ephemeral()?;
    let public = PublicKey::from(&ephemeral);
    message.get_mut(..4)?.copy_from_slice(&[kind::INITIATION, 0, 0, 0]);
    message.get_mut(4..EPHEMERAL)?.copy_from_slice(&ours.to_le_bytes());
    message.get_mut(EPHEMERAL..STATIC)?.copy_from_slice(public.as_bytes());
    let mut state = Symmetric::new(&tunnel.theirs);
    state.mix_ephemeral(&public);
    let key = state.mix_key(&diffie_hellman(&ephemeral, &tunnel.theirs)?);
    let field = message.get_mut(STATIC..TIME)?;
    field.get_mut(..32)?.copy_from_slice(tunnel.identity.public.as_bytes());
    state.seal(&key, field)?;
    let key = state.mix_key(tunnel.static_shared.as_ref()?);
    let field = message.get_mut(TIME..TIME_END)?;
    field.get_mut(..TIMESTAMP)?.copy_from_slice(&tunnel.clock.timestamp(now));
    state.seal(&key, field)?;
    tunnel.write_macs(now, ours, message);
    Some(Pending { ours, sent: now, ephemeral, state })
}

/// Writes a response. Returns its length, and the session.
pub(super) fn respond(
    tunnel: &mut Tunnel,
    now: Instant,
    initiation: Verified,
    ours: u32,
    message: &mut [u8],
) -> Option<(usize, Box<Session>)> {
    let message = message.get_mut(..RESPONSE)?;
    let Verified { theirs, ephemeral: their_ephemeral, mut state } = initiation;
    let ephemeral = ephemeral()?;
    let public = PublicKey::from(&ephemeral);
    message.get_mut(..4)?.copy_from_slice(&[kind::RESPONSE, 0, 0, 0]);
    message.get_mut(4..8)?.copy_from_slice(&ours.to_le_bytes());
    message.get_mut(8..RESPONSE_EPHEMERAL)?.copy_from_slice(&theirs.to_le_bytes());
    message.get_mut(RESPONSE_EPHEMERAL..NOTHING)?.copy_from_slice(public.as_bytes());
    state.mix_ephemeral(&public);
    state.mix_secret(&diffie_hellman(&ephemeral, &their_ephemeral)?);
    state.mix_secret(&diffie_hellman(&ephemeral, &tunnel.theirs)?);
    let key = state.mix_preshared(&tunnel.preshared);
    state.seal(&key, message.get_mut(NOTHING..NOTHING_END)?)?;
    tunnel.write_macs(now, ours, message);
    let [initiators, responders] = &state.split();
    Some((RESPONSE, Session::new(now, [ours, theirs], false, [responders, initiators])?))
}

/// Takes the response to an initiation of ours. Returns the session; the initiation is still there.
pub(super) fn complete(tunnel: &Tunnel, now: Instant, message: &[u8; RESPONSE]) -> Result<Box<Session>, Error> {
    let ours = index(message, 8).ok_or(Error::Invalid)?;
    let pending = tunnel.pending.iter().flatten().find(|pending| pending.ours == ours).ok_or(Error::Unknown)?;
    let complete = || {
        let their_ephemeral = public_key(message, RESPONSE_EPHEMERAL)?;
        let mut state = pending.state.clone();
        state.mix_ephemeral(&their_ephemeral);
        state.mix_secret(&diffie_hellman(&pending.ephemeral, &their_ephemeral)?);
        state.mix_secret(&diffie_hellman(&tunnel.identity.private, &their_ephemeral)?);
        let key = state.mix_preshared(&tunnel.preshared);
        let [] = state.open(&key, message.get(NOTHING..NOTHING_END)?)?;
        let [initiators, responders] = &state.split();
        Session::new(now, [ours, index(message, 4)?], true, [initiators, responders])
    };
    complete().ok_or(Error::Invalid)
}
