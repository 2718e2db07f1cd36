//! Which peer has initiated a handshake.

use std::{collections::HashSet, io};

use backwater_udp::RecvDatagram;
use boringtun::{
    noise::{Packet, TunnResult, handshake::parse_handshake_anon, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};

use super::messages::{MAX_MESSAGE, Messages};
use crate::config::Key;

/// Initiations that are remembered until the next tick, at most: more than are answered in a second.
const MAX_REMEMBERED: usize = 1024;

/// The sender of a handshake initiation.
pub(super) enum Initiator {
    /// Its public key, which the initiation proves.
    Known([u8; 32]),
    /// There are too many handshakes: a cookie was sent.
    Doubtful,
    Nobody,
}

/// The private key; instead of zeros, which stand for none, a random one that nobody knows: no handshake succeeds with it.
///
/// # Errors
/// When the system has no random numbers.
pub(super) fn private_key(key: &Key) -> io::Result<StaticSecret> {
    if key.0 == [0; 32] {
        return Ok(StaticSecret::from(Key::generate()?.0));
    }
    Ok(StaticSecret::from(key.0))
}

/// Identifies the initiator: the initiation has its public key, encrypted for this side. `seen`: `mac1` of the initiations
/// since the last tick.
pub(super) fn of(
    limiter: &RateLimiter,
    seen: &mut HashSet<[u8; 16]>,
    private_key: &StaticSecret,
    public_key: &PublicKey,
    datagram: RecvDatagram<'_>,
    messages: &mut Messages,
) -> Initiator {
    let Some(&mac1) = datagram.payload.get(116..).and_then(<[u8]>::first_chunk) else { return Initiator::Nobody };
    if seen.contains(&mac1) {
        return Initiator::Nobody;
    }
    let mut cookie = [0; MAX_MESSAGE];
    let initiator = match limiter.verify_packet(Some(datagram.source.ip()), datagram.payload, &mut cookie) {
        Ok(Packet::HandshakeInit(initiation)) => match parse_handshake_anon(private_key, public_key, &initiation) {
            Ok(half) => Initiator::Known(half.peer_static_public),
            Err(_) => Initiator::Nobody,
        },
        Err(TunnResult::WriteToNetwork(cookie)) => {
            messages.push(datagram.source, cookie);
            Initiator::Doubtful
        }
        Ok(_) | Err(_) => return Initiator::Nobody,
    };
    // A sender whose code is right knows our public key.
    if seen.len() < MAX_REMEMBERED {
        seen.insert(mac1);
    }
    initiator
}
