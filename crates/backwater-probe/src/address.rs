//! Addresses as a user writes them: hosts with and without a port, and `turn:` URIs.

use std::{
    fmt,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    str::FromStr,
};

use backwater_stun::{Host, Scheme, Transport, Uri, UriError};
use backwater_turn::Protocol;

/// The port of a TURN server that names none (RFC 8656 §18).
const TURN: u16 = 3478;

/// A TURN server that is reached over UDP: `HOST`, `HOST:PORT`, or `turn:HOST[:PORT][?transport=udp]` (RFC 7065).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    host: String,
    port: u16,
}

/// A TURN server to check: as [`ServerAddress`], over UDP and TCP or over what the URI names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckAddress {
    pub(crate) text: String,
    pub(crate) server: ServerAddress,
    /// Without TLS.
    pub(crate) protocols: Vec<Protocol>,
    pub(crate) tls: bool,
}

/// An address that cannot be resolved. It is the user's mistake, like a wrong flag.
#[derive(Debug, thiserror::Error)]
#[error("{0} is no address, and no host that can be found")]
pub(crate) struct Unresolvable(pub(crate) String);

impl ServerAddress {
    /// The name or the IP address.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Resolves the name with the system's resolver. Returns the first address.
    pub(crate) fn resolve(&self) -> Result<SocketAddr, Unresolvable> {
        let found = (self.host.as_str(), self.port).to_socket_addrs().ok().and_then(|mut found| found.next());
        found.ok_or_else(|| Unresolvable(self.to_string()))
    }
}

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri = match Uri::parse(text) {
            Ok(uri) => uri,
            Err(UriError::Scheme) => {
                let (host, port) = split(text).ok_or("expected HOST, HOST:PORT or turn:HOST:PORT")?;
                return Ok(Self { host: host.to_owned(), port: port.unwrap_or(TURN) });
            }
            Err(error) => return Err(error.to_string()),
        };
        if uri.scheme != Scheme::Turn || !matches!(uri.transport, None | Some(Transport::Udp)) {
            return Err("only TURN over UDP is spoken here: expected turn:HOST[:PORT][?transport=udp]".to_owned());
        }
        let host = match uri.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.to_owned(),
        };
        Ok(Self { host, port: uri.port_or_default() })
    }
}

impl FromStr for CheckAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (bare, protocols, tls) = match Uri::parse(text) {
            Ok(Uri { scheme: Scheme::Turns, transport: Some(Transport::Udp), .. }) => {
                return Err("TURN over DTLS is not checked: expected turns:HOST[:PORT]".to_owned());
            }
            Ok(uri @ Uri { scheme: Scheme::Turns, transport: None | Some(Transport::Tcp), .. }) => {
                let port = Some(uri.port_or_default());
                (Uri { scheme: Scheme::Turn, port, transport: None, ..uri }.to_string(), vec![], true)
            }
            Ok(uri @ Uri { transport: Some(Transport::Tcp), .. }) => {
                (Uri { transport: None, ..uri }.to_string(), vec![Protocol::Tcp], false)
            }
            Ok(Uri { transport: Some(Transport::Udp), .. }) => (text.to_owned(), vec![Protocol::Udp], false),
            Ok(_) | Err(_) => (text.to_owned(), vec![Protocol::Udp, Protocol::Tcp], false),
        };
        Ok(Self { text: text.to_owned(), server: bare.parse()?, protocols, tls })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Parses the address of a socket of this process.
pub(crate) fn parse_peer(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an IP address of this host and a port, such as 192.0.2.7:0 or [2001:db8::7]:0 (port 0: any)"
            .to_owned()
    })
}

/// Returns the first address of a host, with the port `default` if the text has none; `None` for an unknown host.
pub(crate) fn resolve(text: &str, default: u16) -> Option<SocketAddr> {
    let (host, port) = split(text)?;
    (host, port.unwrap_or(default)).to_socket_addrs().ok()?.next()
}

/// Splits the host, without brackets, from the port. Port 0 is refused, since no datagram can be sent to it.
fn split(text: &str) -> Option<(&str, Option<u16>)> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() {
        return Some((bare, None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
        None => (text, None),
    };
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_a_port() {
        for (text, want) in [
            ("192.0.2.1", "192.0.2.1:9"),
            ("192.0.2.1:5000", "192.0.2.1:5000"),
            ("::1", "[::1]:9"),
            ("[::1]", "[::1]:9"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(resolve(text, 9), Some(want.parse().unwrap()), "{text}");
        }
        for bad in ["", ":", "no such host", "192.0.2.1:0", "192.0.2.1:70000", "[::1", "a:b:1", "[]:1"] {
            assert_eq!(resolve(bad, 9), None, "{bad}");
        }
    }

    #[test]
    fn a_server_is_a_host_or_a_turn_uri() {
        for (text, want) in [
            ("192.0.2.1", "192.0.2.1:3478"),
            ("192.0.2.1:5000", "192.0.2.1:5000"),
            ("[2001:db8::1]:5000", "[2001:db8::1]:5000"),
            ("2001:db8::1", "[2001:db8::1]:3478"),
            ("turn.example.org", "turn.example.org:3478"),
            ("turn.example.org:443", "turn.example.org:443"),
            ("turn:turn.example.org", "turn.example.org:3478"),
            ("TURN:turn.example.org:443?transport=UDP", "turn.example.org:443"),
            ("turn:[2001:db8::1]", "[2001:db8::1]:3478"),
        ] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), want, "{text}");
        }
        for bad in [
            "",
            "turn.example.org:0",
            "turns:turn.example.org",
            "stun:turn.example.org",
            "turn:turn.example.org?transport=tcp",
            "turn:",
            "turn://turn.example.org",
        ] {
            let error = bad.parse::<ServerAddress>().unwrap_err();
            assert!(!error.contains('\n'), "{bad}: {error}");
        }
    }

    #[test]
    fn uri_names_the_protocols_to_check() {
        let both = vec![Protocol::Udp, Protocol::Tcp];
        for (text, server, protocols) in [
            ("turn:192.0.2.1", "192.0.2.1:3478", both.clone()),
            ("192.0.2.1:443", "192.0.2.1:443", both),
            ("turn:192.0.2.1?transport=udp", "192.0.2.1:3478", vec![Protocol::Udp]),
            ("turn:[2001:db8::1]:5000?transport=tcp", "[2001:db8::1]:5000", vec![Protocol::Tcp]),
        ] {
            let address = text.parse::<CheckAddress>().unwrap();
            assert_eq!((address.server.to_string(), address.protocols), (server.to_owned(), protocols), "{text}");
            assert_eq!((&*address.text, address.tls), (text, false));
        }
        let address = "turns:turn.example.org".parse::<CheckAddress>().unwrap();
        assert_eq!((address.server.to_string(), address.tls), ("turn.example.org:5349".to_owned(), true));
        for bad in ["turns:192.0.2.1?transport=udp", "stun:192.0.2.1", "turn:192.0.2.1?transport=sctp", "turn:"] {
            assert!(bad.parse::<CheckAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_resolved() {
        let found = "turn:localhost:7".parse::<ServerAddress>().unwrap().resolve().unwrap();
        assert!(found.ip().is_loopback() && found.port() == 7, "{found}");
        let error = "turn:host.invalid".parse::<ServerAddress>().unwrap().resolve().unwrap_err();
        assert_eq!(error.to_string(), "host.invalid:3478 is no address, and no host that can be found");
    }
}
