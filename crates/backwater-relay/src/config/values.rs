//! The values of keys: how each type is read from text, and what it expects.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
};

use backwater_ops::{Logs, PolicyText, breaker};
use backwater_stun::{Host, Scheme, Uri};
use ipnet::{IpNet, Ipv6Net};

use crate::hooks::HookUrl;

/// A value of a key.
pub(super) trait Value: Sized {
    /// Whether the file may be read by its owner only, and no error may show the value.
    const IS_SECRET: bool = false;

    /// Whether it is `true` or `false` in the file.
    const IS_SWITCH: bool = false;

    /// Reads the value as it is written in a flag, a variable or the file.
    ///
    /// # Errors
    /// What was expected, and what was found instead.
    fn read(text: &str) -> Result<Self, String>;
}

fn expected<T>(what: impl fmt::Display, value: Option<T>, found: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("expected {what}, found {found:?}"))
}

/// Reads a value whose own error says what was expected.
fn parsed<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|error| format!("{error}, found {text:?}"))
}

impl Value for SocketAddr {
    fn read(text: &str) -> Result<Self, String> {
        expected("an address and a port, such as 192.0.2.1:3478 or [2001:db8::1]:3478", text.trim().parse().ok(), text)
    }
}

impl Value for IpAddr {
    fn read(text: &str) -> Result<Self, String> {
        expected("an IP address", text.trim().parse().ok(), text)
    }
}

impl Value for PathBuf {
    fn read(text: &str) -> Result<Self, String> {
        expected("the name of a file", Some(Self::from(text)).filter(|path| !path.as_os_str().is_empty()), text)
    }
}

/// What peers see the relayed addresses as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum External {
    Ip(IpAddr),
    /// A STUN server is asked at the start.
    Server(Box<str>, u16),
}

impl Value for External {
    fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let server = || {
            let uri = Uri::parse(text).ok().filter(|uri| uri.scheme == Scheme::Stun)?;
            let host = match uri.host {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name.to_owned(),
            };
            Some(Self::Server(host.into(), uri.port_or_default()))
        };
        let value = text.parse().ok().map(Self::Ip).or_else(server);
        expected("an IP address, or stun:HOST:PORT", value, text)
    }
}

/// A prefix; an address alone is the prefix with all its bits.
impl Value for IpNet {
    fn read(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let net = trimmed.parse().ok().or_else(|| trimmed.parse::<IpAddr>().ok().map(Self::from));
        expected("an address or a prefix, such as 10.0.0.0/8 or 2001:db8::/32", net, text)
    }
}

/// The prefix of a NAT64 translator (RFC 6052 §2.2).
pub(super) struct Nat64Prefix(pub(super) Ipv6Net);

impl Value for Nat64Prefix {
    fn read(text: &str) -> Result<Self, String> {
        let net = text.trim().parse().ok();
        let net = net.filter(|net: &Ipv6Net| [32, 40, 48, 56, 64, 96].contains(&net.prefix_len()));
        let what = "an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits, such as 2001:db8:64::/96";
        expected(what, net.map(Self), text)
    }
}

/// A number from `MIN` to `MAX`.
#[derive(Clone, Copy)]
pub(super) struct Number<const MIN: u64, const MAX: u64>(pub(super) u64);

impl<const MIN: u64, const MAX: u64> Value for Number<MIN, MAX> {
    fn read(text: &str) -> Result<Self, String> {
        let what = format!("a number from {MIN} to {MAX}");
        match expected(&what, text.trim().parse().ok(), text)? {
            number if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            number => Err(format!("expected {what}, found {number}")),
        }
    }
}

/// Text, such as a name.
impl Value for String {
    fn read(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

/// Text that no error shows, such as a password. Its parts are read by [`credentials`](super::credentials).
pub(super) struct Secret(pub(super) String);

impl Value for Secret {
    const IS_SECRET: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

impl Value for bool {
    const IS_SWITCH: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        let on = match text.trim() {
            "on" | "true" => Some(true),
            "off" | "false" => Some(false),
            _ => None,
        };
        expected("on or off", on, text)
    }
}

/// A range of ports, `FIRST-LAST`.
pub(super) struct Ports(pub(super) RangeInclusive<u16>);

impl Value for Ports {
    fn read(text: &str) -> Result<Self, String> {
        let ports = text.split_once('-').and_then(|(first, last)| {
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (1 <= first && first <= last).then_some(Self(first..=last))
        });
        expected("two ports and a hyphen, such as 49152-65535", ports, text)
    }
}

impl Value for PolicyText {
    fn read(text: &str) -> Result<Self, String> {
        parsed(text)
    }
}

/// The limits of the circuit breaker; `None` for `off`.
pub(super) struct Breaker(pub(super) Option<breaker::Limits>);

impl Value for Breaker {
    fn read(text: &str) -> Result<Self, String> {
        Ok(Self(if text.trim() == "off" { None } else { Some(parsed(text)?) }))
    }
}

/// Where the relay is administered.
pub(super) struct AdminAddr(pub(super) SocketAddr);

impl Value for AdminAddr {
    fn read(text: &str) -> Result<Self, String> {
        expected("an address and a port, such as 127.0.0.1:9479", text.trim().parse().ok().map(Self), text)
    }
}

/// What a request to the administration has to know. `Debug` does not show it.
#[derive(Clone)]
pub(crate) struct Token(pub(crate) Box<str>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

impl Value for Token {
    const IS_SECRET: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() < 16 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("expected 16 or more characters of ASCII without blanks".to_owned());
        }
        Ok(Self(text.into()))
    }
}

impl Value for HookUrl {
    /// The path may have a token.
    const IS_SECRET: bool = true;

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(str::to_owned)
    }
}

/// A filter of the logs.
pub(super) struct LogFilter(pub(super) String);

impl Value for LogFilter {
    fn read(text: &str) -> Result<Self, String> {
        match Logs::check_filter(text) {
            Ok(()) => Ok(Self(text.to_owned())),
            Err(error) => Err(format!("expected a level or a filter: {error}")),
        }
    }
}
