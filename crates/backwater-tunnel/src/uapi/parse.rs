//! The lines of a set request. They are all understood before any of them has an effect.

use std::{net::SocketAddr, str};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::{config::Key, engine::endpoints::canonical};

/// What a set request changes. What is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Set {
    /// `private_key`; zeros: there is none any more.
    pub(crate) private_key: Option<Key>,
    /// `listen_port`; 0: any.
    pub(crate) listen_port: Option<u16>,
    /// `fwmark`; 0: none.
    pub(crate) fwmark: Option<u32>,
    /// `replace_peers`: the peers that the tunnel has are removed first.
    pub(crate) replace_peers: bool,
    /// The peers to change, one after the other. One may come again.
    pub(crate) peers: Vec<PeerSet>,
}

/// What is changed of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerSet {
    /// `public_key`.
    pub(crate) public_key: Key,
    /// `remove`: the peer is removed, and nothing else is done.
    pub(crate) remove: bool,
    /// `update_only`: nothing is done if the tunnel has no such peer. Else it is added.
    pub(crate) update_only: bool,
    /// `preshared_key`; zeros: none.
    pub(crate) preshared_key: Option<Key>,
    /// `endpoint`.
    pub(crate) endpoint: Option<SocketAddr>,
    /// `persistent_keepalive_interval` in seconds; 0: off.
    pub(crate) persistent_keepalive: Option<u16>,
    /// `replace_allowed_ips`: those that the peer has are removed first.
    pub(crate) replace_allowed_ips: bool,
    /// `allowed_ip`: prefixes to add (`true`) and to remove, in this order.
    pub(crate) allowed_ips: Vec<(IpNet, bool)>,
}

impl Set {
    /// Takes a line between `set=1` and the empty line, without its end.
    ///
    /// # Errors
    /// `EPROTO` if it is no `key=value`, `EINVAL` if the key is unknown or the value is not one of the key.
    pub(super) fn take_line(&mut self, line: &[u8]) -> Result<(), Errno> {
        let (key, value) = str::from_utf8(line).ok().and_then(|line| line.split_once('=')).ok_or(Errno::PROTO)?;
        if key == "public_key" {
            self.peers.push(PeerSet::new(key_of(value)?));
            return Ok(());
        }
        match self.peers.last_mut() {
            Some(peer) => peer.take(key, value),
            None => self.take(key, value),
        }
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), Errno> {
        match key {
            "private_key" => self.private_key = Some(key_of(value)?),
            "listen_port" => self.listen_port = Some(number(value)?),
            "fwmark" => self.fwmark = Some(number(value)?),
            "replace_peers" => self.replace_peers = yes(value)?,
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }
}

impl PeerSet {
    fn new(public_key: Key) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), Errno> {
        match key {
            "remove" => self.remove = yes(value)?,
            "update_only" => self.update_only = yes(value)?,
            "preshared_key" => self.preshared_key = Some(key_of(value)?),
            "endpoint" => {
                let endpoint: SocketAddr = value.parse().map_err(|_| Errno::INVAL)?;
                if endpoint.port() == 0 {
                    return Err(Errno::INVAL);
                }
                self.endpoint = Some(canonical(endpoint));
            }
            "persistent_keepalive_interval" => self.persistent_keepalive = Some(number(value)?),
            "replace_allowed_ips" => {
                self.replace_allowed_ips = yes(value)?;
                self.allowed_ips.clear();
            }
            "allowed_ip" => {
                let (prefix, adds) = value.strip_prefix('-').map_or((value, true), |prefix| (prefix, false));
                let net: IpNet = prefix.parse().map_err(|_| Errno::INVAL)?;
                self.allowed_ips.push((net.trunc(), adds));
            }
            "protocol_version" if value == "1" => {}
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }
}

/// The only value that flags have.
fn yes(value: &str) -> Result<bool, Errno> {
    if value == "true" { Ok(true) } else { Err(Errno::INVAL) }
}

/// Decimal digits.
fn number<T: str::FromStr>(value: &str) -> Result<T, Errno> {
    let is_decimal = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| is_decimal).ok_or(Errno::INVAL)
}

/// 64 hexadecimal digits.
fn key_of(value: &str) -> Result<Key, Errno> {
    let mut key = Key([0; 32]);
    if value.len() != 2 * key.0.len() {
        return Err(Errno::INVAL);
    }
    for (byte, digits) in key.0.iter_mut().zip(value.as_bytes().chunks(2)) {
        for &digit in digits {
            let digit =
                char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or(Errno::INVAL)?;
            *byte = *byte << 4 | digit;
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests;
