//! The header of the PROXY protocol, version 2: who the client of a load balancer is.

use std::net::{IpAddr, SocketAddr};

/// Bytes of the longest header that is accepted. Addresses take 36 of them; the rest are extensions that nobody reads here.
pub(crate) const MAX_HEADER: usize = 4096;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// The header is not complete yet.
    Incomplete,
    /// A header of this length.
    Complete {
        /// Bytes of the header.
        len: usize,
        /// The client's address and the one that it has connected to. `None` for a connection of the proxy's own, such as a health
        /// check, or of another kind than TCP over IP.
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
    /// No header, or none of version 2.
    Invalid,
}

/// Reads the header.
pub(crate) fn parse(bytes: &[u8]) -> Header {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Header::Invalid;
    }
    let Some(&[version_and_command, family, high, low]) = bytes.get(12..).and_then(<[u8]>::first_chunk) else {
        return Header::Incomplete;
    };
    let len = 16 + usize::from(u16::from_be_bytes([high, low]));
    if !matches!(version_and_command, 0x20 | 0x21) || len > MAX_HEADER {
        return Header::Invalid;
    }
    let Some(body) = bytes.get(16..len) else { return Header::Incomplete };
    let addresses = match (version_and_command, family) {
        (0x21, 0x11) => addresses::<4>(body),
        (0x21, 0x21) => addresses::<16>(body),
        _ => return Header::Complete { len, addresses: None },
    };
    match addresses {
        Some(_) => Header::Complete { len, addresses },
        None => Header::Invalid,
    }
}

fn addresses<const LEN: usize>(body: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; LEN]>,
{
    let (source, rest) = body.split_first_chunk::<LEN>()?;
    let (destination, rest) = rest.split_first_chunk::<LEN>()?;
    let &[a, b, c, d] = rest.first_chunk()?;
    let source = SocketAddr::new(IpAddr::from(*source), u16::from_be_bytes([a, b]));
    Some((source, SocketAddr::new(IpAddr::from(*destination), u16::from_be_bytes([c, d]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        [&SIGNATURE[..], &[command, family], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    #[test]
    fn header_names_the_client_whatever_pieces_it_arrives_in() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x0D, 0x96];
        let mut v6 = [0; 36];
        v6[..2].copy_from_slice(&[0x20, 1]);
        v6[15] = 1;
        v6[31] = 2;
        v6[32..].copy_from_slice(&[0, 5, 0, 6]);
        for (family, body, client, server) in [
            (0x11, &[&v4[..], &[4, 0, 1, 0]].concat()[..], "192.0.2.1:4660", "198.51.100.2:3478"),
            (0x21, &v6[..], "[2001::1]:5", "[::2]:6"),
        ] {
            let bytes = [&header(0x21, family, body)[..], b"data"].concat();
            let len = bytes.len() - 4;
            let addresses = Some((client.parse().unwrap(), server.parse().unwrap()));
            assert_eq!(parse(&bytes), Header::Complete { len, addresses });
            assert!((0..len).all(|cut| parse(&bytes[..cut]) == Header::Incomplete));
        }
    }

    #[test]
    fn connection_of_the_proxy_itself_has_no_other_address() {
        for (command, family, body) in
            [(0x20, 0x11, &[0; 12][..]), (0x20, 0, &[]), (0x21, 0, &[]), (0x21, 0x31, &[0; 216])]
        {
            let bytes = header(command, family, body);
            assert_eq!(parse(&bytes), Header::Complete { len: bytes.len(), addresses: None });
        }
    }

    #[test]
    fn what_is_no_header_is_invalid_at_its_first_wrong_byte() {
        assert_eq!(parse(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"), Header::Invalid);
        assert_eq!(parse(&[0x16]), Header::Invalid);
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIZ"), Header::Invalid);
        assert_eq!(parse(&header(0x11, 0x11, &[0; 12])), Header::Invalid, "another version");
        assert_eq!(parse(&header(0x22, 0x11, &[0; 12])), Header::Invalid, "another command");
        assert_eq!(parse(&header(0x21, 0x11, &[0; 11])), Header::Invalid, "addresses cut short");
        assert_eq!(parse(&header(0x21, 0x21, &[0; 35])), Header::Invalid);
        assert_eq!(parse(&header(0x21, 0x11, &[0; 4081])), Header::Invalid, "too long");
    }
}
