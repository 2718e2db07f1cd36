//! `stun:` and `turn:` URIs (RFC 7064, RFC 7065).

use core::fmt;
use core::net::{IpAddr, Ipv6Addr};

/// A parsed `stun:`, `stuns:`, `turn:` or `turns:` URI.
///
/// ```
/// use backwater_stun::{Host, Scheme, Transport, Uri};
///
/// let uri = Uri::parse("turn:turn.example.org?transport=tcp")?;
/// assert_eq!((uri.scheme, uri.host), (Scheme::Turn, Host::Name("turn.example.org")));
/// assert_eq!((uri.port_or_default(), uri.transport), (3478, Some(Transport::Tcp)));
/// assert_eq!(uri.to_string(), "turn:turn.example.org?transport=tcp");
/// # Ok::<(), backwater_stun::UriError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uri<'a> {
    /// The scheme.
    pub scheme: Scheme,
    /// The host of the server.
    pub host: Host<'a>,
    /// The port, if the URI names one: see [`port_or_default`](Self::port_or_default).
    pub port: Option<u16>,
    /// The transport to the server, which only `turn:` and `turns:` can name.
    pub transport: Option<Transport<'a>>,
}

/// The service, and whether it is over TLS or DTLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `stun:`
    Stun,
    /// `stuns:`
    Stuns,
    /// `turn:`
    Turn,
    /// `turns:`
    Turns,
}

/// The host of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Host<'a> {
    /// An address; IPv6 stands in brackets.
    Ip(IpAddr),
    /// A domain name, which may have SRV and NAPTR records (RFC 5928). Percent-encoding is left unchanged.
    Name(&'a str),
}

/// The transport to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport<'a> {
    /// `udp`: plain with `turn:`, DTLS with `turns:`.
    Udp,
    /// `tcp`: plain with `turn:`, TLS with `turns:`.
    Tcp,
    /// A transport that RFC 7065 does not name.
    Other(&'a str),
}

/// Why a text is not a STUN or TURN URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UriError {
    /// The scheme is not `stun`, `stuns`, `turn` or `turns`.
    Scheme,
    /// There is no host, or it has forbidden characters. These URIs have no `//` and no user.
    Host,
    /// The port is not a number up to 65,535.
    Port,
    /// The query is not `?transport=…`, or the scheme is `stun:` or `stuns:`.
    Query,
}

impl<'a> Uri<'a> {
    /// Parses a URI. The scheme, the query and the names of transports may be in either case.
    ///
    /// # Errors
    /// See [`UriError`].
    pub fn parse(uri: &'a str) -> Result<Self, UriError> {
        let (scheme, rest) = uri.split_once(':').ok_or(UriError::Scheme)?;
        let scheme = Scheme::ALL.into_iter().find(|s| s.name().eq_ignore_ascii_case(scheme)).ok_or(UriError::Scheme)?;
        let (authority, query) = match rest.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (rest, None),
        };
        let (host, port) = parse_host(authority)?;
        Ok(Self { scheme, host, port: parse_port(port)?, transport: parse_query(scheme, query)? })
    }

    /// Returns the port; without one in the URI, 3478, or 5349 over TLS and DTLS.
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(match self.scheme {
            Scheme::Stun | Scheme::Turn => 3478,
            Scheme::Stuns | Scheme::Turns => 5349,
        })
    }
}

impl Scheme {
    const ALL: [Self; 4] = [Self::Stun, Self::Stuns, Self::Turn, Self::Turns];

    /// Returns the name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stun => "stun",
            Self::Stuns => "stuns",
            Self::Turn => "turn",
            Self::Turns => "turns",
        }
    }
}

impl fmt::Display for Uri<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme.name())?;
        match self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}")?,
            Host::Name(name) => f.write_str(name)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match self.transport {
            Some(Transport::Udp) => f.write_str("?transport=udp"),
            Some(Transport::Tcp) => f.write_str("?transport=tcp"),
            Some(Transport::Other(name)) => write!(f, "?transport={name}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme => "the scheme is not stun, stuns, turn or turns",
            Self::Host => "no host, or not a valid one",
            Self::Port => "the port is not a number up to 65535",
            Self::Query => "only turn and turns take a query, and only ?transport=",
        })
    }
}

impl core::error::Error for UriError {}

/// Splits the host from the port.
fn parse_host(authority: &str) -> Result<(Host<'_>, Option<&str>), UriError> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (ip, port) = rest.split_once(']').ok_or(UriError::Host)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_| UriError::Host)?;
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return Err(UriError::Host),
            some => some,
        };
        return Ok((Host::Ip(ip.into()), port));
    }
    let (name, port) = match authority.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (authority, None),
    };
    if let Ok(ip) = name.parse() {
        return Ok((Host::Ip(IpAddr::V4(ip)), port));
    }
    if name.is_empty() || !is_reg_name(name.as_bytes()) {
        return Err(UriError::Host);
    }
    Ok((Host::Name(name), port))
}

/// RFC 3986 allows a colon without digits.
fn parse_port(port: Option<&str>) -> Result<Option<u16>, UriError> {
    match port {
        None | Some("") => Ok(None),
        // `u16::from_str` would take a sign.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().map(Some).map_err(|_| UriError::Port)
        }
        Some(_) => Err(UriError::Port),
    }
}

fn parse_query(scheme: Scheme, query: Option<&str>) -> Result<Option<Transport<'_>>, UriError> {
    let Some(query) = query else { return Ok(None) };
    let (key, value) = query.split_once('=').ok_or(UriError::Query)?;
    let takes_transport = matches!(scheme, Scheme::Turn | Scheme::Turns);
    if !takes_transport || !key.eq_ignore_ascii_case("transport") || value.is_empty() {
        return Err(UriError::Query);
    }
    if value.eq_ignore_ascii_case("udp") {
        Ok(Some(Transport::Udp))
    } else if value.eq_ignore_ascii_case("tcp") {
        Ok(Some(Transport::Tcp))
    } else if value.bytes().all(is_unreserved) {
        Ok(Some(Transport::Other(value)))
    } else {
        Err(UriError::Query)
    }
}

/// RFC 3986 §3.2.2: unreserved characters, percent-encoded ones and sub-delimiters.
fn is_reg_name(mut name: &[u8]) -> bool {
    loop {
        name = match name {
            [] => return true,
            [b'%', a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if is_unreserved(*byte) || b"!$&'()*+,;=".contains(byte) => rest,
            [..] => return false,
        }
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn uri_round_trips(
            text in r"(stun|turn|TURN)s?:[a-z0-9.%:\[\]é]{0,12}(:[0-9]{0,6})?(\?transport=[a-z]{0,4})?",
            noise: String,
        ) {
            for text in [text, noise] {
                if let Ok(uri) = Uri::parse(&text) {
                    let printed = uri.to_string();
                    prop_assert_eq!(Uri::parse(&printed), Ok(uri), "{}", text);
                }
            }
        }
    }

    #[test]
    fn uris_of_the_rfcs_parse() {
        // RFC 7064 appendix B and RFC 7065 appendix B.
        for text in [
            "stun:example.org",
            "stuns:example.org",
            "stun:example.org:8000",
            "turn:example.org",
            "turns:example.org",
            "turn:example.org:8000",
            "turn:example.org?transport=udp",
            "turns:example.org?transport=tcp",
            "turn:192.0.2.1:3478?transport=sctp",
            "turn:[2001:db8::1]:3478?transport=tcp",
        ] {
            assert_eq!(Uri::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn case_is_ignored_and_ports_have_defaults() {
        let uri = Uri::parse("TURNS:[::1]?Transport=UDP").unwrap();
        assert_eq!(uri.to_string(), "turns:[::1]?transport=udp");
        assert_eq!(uri.port_or_default(), 5349);
        assert_eq!(Uri::parse("stun:a:").unwrap().port_or_default(), 3478);
        assert_eq!(Uri::parse("stun:a:5").unwrap().port_or_default(), 5);
    }

    #[test]
    fn malformed_uri_is_refused() {
        for (text, error) in [
            ("", UriError::Scheme),
            ("example.org", UriError::Scheme),
            ("http:example.org", UriError::Scheme),
            ("turn:", UriError::Host),
            ("turn://example.org", UriError::Host),
            ("turn:user@example.org", UriError::Host),
            ("turn:a%4", UriError::Host),
            ("turn:[::1", UriError::Host),
            ("turn:[::1]3478", UriError::Host),
            ("turn:[v1.a]", UriError::Host),
            ("turn:\u{e9}.example", UriError::Host),
            ("turn:a:65536", UriError::Port),
            ("turn:a:+1", UriError::Port),
            ("turn:::1", UriError::Host),
            ("stun:a?transport=udp", UriError::Query),
            ("turn:a?", UriError::Query),
            ("turn:a?transport=", UriError::Query),
            ("turn:a?proto=udp", UriError::Query),
            ("turn:a?transport=u&b", UriError::Query),
        ] {
            assert_eq!(Uri::parse(text), Err(error), "{text}");
        }
    }
}
