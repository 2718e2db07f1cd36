//! What to do about a step that does not work, for someone who has never heard of TURN.

use std::{io, net::SocketAddr};

use backwater_stun::Code;
use backwater_turn::PeerRules;

pub(super) const UNANSWERED: &str = "Try again in a minute: servers ignore a client for a while that has sent too many requests or wrong \
    passwords. If it stays so, the program on this port may be a STUN server, which answers questions but relays nothing, or a \
    firewall drops longer datagrams.";

pub(super) const DATA: &str = "The server accepts everything and relays nothing. Look at its log, and at the firewall of its host: \
    the ports that it relays from must be open for UDP, in both directions.";

/// Returns the advice for a server that cannot be reached. `error`: what the system says, if it says anything.
pub(super) fn of_connection(transport: &str, error: Option<&io::Error>) -> Option<String> {
    let name = transport.to_uppercase();
    // Windows reports an ICMP message about a datagram as a connection that was reset.
    let is_icmp = |kind: &io::ErrorKind| transport == "udp" && *kind == io::ErrorKind::ConnectionReset;
    let kind =
        error.map(io::Error::kind).map(|kind| if is_icmp(&kind) { io::ErrorKind::ConnectionRefused } else { kind });
    let advice = match kind {
        Some(io::ErrorKind::ConnectionRefused) => format!(
            "The host is there, and no program listens on this port for {name}. Check the port, and whether the server runs and \
             listens for {name}."
        ),
        Some(io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => {
            "This host has no way to that address. Check the network, and whether it has the address's family (IPv4 or IPv6)."
                .to_owned()
        }
        Some(io::ErrorKind::PermissionDenied) => {
            "A firewall of this host does not permit it. Check the rules for outgoing datagrams.".to_owned()
        }
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            "The server has closed the connection. It may expect TLS on this port (turns:), or not be a TURN server.".to_owned()
        }
        Some(io::ErrorKind::InvalidData) if transport == "tls" => {
            "If it is about the certificate: programs refuse this server too. The certificate must be valid now, for the name that programs \
             use, and issued by an authority that this system trusts (--ca FILE trusts another one for this check). Else the program on this \
             port does not speak TLS."
                .to_owned()
        }
        Some(io::ErrorKind::InvalidData) => "The program on this port does not speak TURN. Check the port.".to_owned(),
        Some(_) | None => format!(
            "Check the address and the port. If they are right, something on the way blocks {name}: a firewall of this network, or of \
             the server's. From another network, such as a phone's, it may work."
        ),
    };
    Some(advice)
}

/// Returns the advice for an error code.
pub(super) fn of_refusal(code: Code) -> Option<String> {
    let advice = match code {
        Code::UNAUTHENTICATED => {
            "Check the user name and the password. A user name that begins with a number and a colon is valid until that time (seconds \
             since 1970); --secret makes a fresh one from the server's shared secret."
        }
        Code::FORBIDDEN => {
            "The server does not relay to this address: most refuse private addresses. To allow it, use allow-peer on Backwater's relay, \
             or allowed-peer-ip on coturn."
        }
        Code::ALLOCATION_MISMATCH => "Try again: a former allocation of this port is still there.",
        Code::ADDRESS_FAMILY_NOT_SUPPORTED | Code::PEER_ADDRESS_FAMILY_MISMATCH => {
            "The server does not relay this address family. Use its address of the other family (IPv4 or IPv6)."
        }
        Code::ALLOCATION_QUOTA_REACHED => {
            "This user has as many allocations as the server grants. End some, wait ten minutes, or raise the server's limit."
        }
        Code::INSUFFICIENT_CAPACITY => {
            "The server has no port or other resource left, or is about to stop. Widen its range of ports, or try later."
        }
        Code::SERVER_ERROR => "The server has failed for the moment. Try later, and look at its log.",
        _ => "Look at the server's log, which may say more.",
    };
    Some(advice.to_owned())
}

/// Returns the advice for a relayed address that nothing can be sent to.
pub(super) fn of_relayed(relayed: SocketAddr) -> String {
    if PeerRules::default().check_ip(relayed.ip()).is_err() && !relayed.ip().is_loopback() {
        return format!(
            "The server tells peers to send to {}, which is not an address of the internet. Behind a NAT, it must be told its public \
             address: external-address on Backwater's relay, external-ip on coturn.",
            relayed.ip()
        );
    }
    DATA.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_without_a_program_is_told_from_a_server_that_hangs_up() {
        let advice = |transport, kind: io::ErrorKind| of_connection(transport, Some(&kind.into())).unwrap();
        for kind in [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset] {
            assert!(advice("udp", kind).contains("no program listens on this port for UDP"));
        }
        assert!(advice("tcp", io::ErrorKind::ConnectionReset).contains("has closed the connection"));
        assert!(of_connection("tcp", None).unwrap().contains("blocks TCP"));
    }

    #[test]
    fn relayed_address_of_a_private_network_is_explained() {
        assert!(of_relayed("10.0.0.7:50000".parse().unwrap()).contains("must be told its public address"));
        assert_eq!(of_relayed("1.2.3.4:50000".parse().unwrap()), DATA);
        assert!(Code::REGISTERED.iter().all(|code| of_refusal(*code).is_some()));
    }
}
