//! What is wrong with values only beside those of other keys.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use backwater_turn::Limits as Quota;
use ipnet::IpNet;

use super::{
    ConfigError,
    keys::{Setting, Settings},
    values::{AdminAddr, External, Number, Token},
};
use crate::{ingress::stream::tls::CertificateFiles, ports::RelayIp};

/// The limits of all users together, and those of one.
pub(super) fn limits(s: &Settings, errors: &mut Vec<ConfigError>) -> (Quota, Quota) {
    fn number<const MIN: u64, const MAX: u64>(setting: &Setting<Number<MIN, MAX>>) -> Option<u64> {
        setting.values.last().map(|&Number(number)| number)
    }
    /// A limit of one user's that is above that of all users would never be met.
    fn both<const MIN: u64, const MAX: u64>(
        [all, user]: [&Setting<Number<MIN, MAX>>; 2],
        errors: &mut Vec<ConfigError>,
    ) -> [Option<u64>; 2] {
        let (of_all, of_user) = (number(all), number(user));
        if let (Some(total), Some(found)) = (of_all, of_user)
            && found > total
        {
            errors.push(user.error(format!("expected at most the {total} of {}, found {found}", all.key.name)));
        }
        [of_all, of_user]
    }
    let allocations = both([&s.max_allocations, &s.max_allocations_per_user], errors);
    let permissions = both([&s.max_permissions, &s.max_permissions_per_user], errors);
    let channels = both([&s.max_channels, &s.max_channels_per_user], errors);
    let bytes = both([&s.max_bytes_per_second, &s.max_bytes_per_second_per_user], errors);
    let quota = |which: usize| {
        let count = |limits: [Option<u64>; 2]| limits[which].map_or(usize::MAX, |limit| limit as usize);
        Quota {
            allocations: count(allocations),
            permissions: count(permissions),
            channels: count(channels),
            bytes_per_second: bytes[which],
        }
    };
    (quota(0), quota(1))
}

/// Denied wins: what is allowed inside it is a mistake.
pub(super) fn no_overlap(allow: &Setting<IpNet>, deny: &Setting<IpNet>, errors: &mut Vec<ConfigError>) {
    for allowed in &allow.values {
        if let Some(denied) = deny.values.iter().find(|denied| denied.contains(allowed)) {
            let problem = format!("{allowed} can never be allowed, since {} has {denied}", deny.key.name);
            errors.push(allow.error(problem));
        }
    }
}

/// Returns where to listen for datagrams and for connections.
pub(super) fn listeners(s: &Settings, errors: &mut Vec<ConfigError>) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let (udp, tcp) = (each_once(&s.listen, errors), each_once(&s.listen_tcp, errors));
    (if s.listen.is_given() || s.listen_tcp.is_given() { udp } else { loopback() }, tcp)
}

/// Returns the files of the certificate.
pub(super) fn certificate(s: &Settings, errors: &mut Vec<ConfigError>) -> Option<CertificateFiles> {
    let (chain, key) = (s.tls_certificate.values.last().cloned(), s.tls_key.values.last().cloned());
    if let (None, Some(_)) | (Some(_), None) = (&chain, &key) {
        let given = if chain.is_some() { &s.tls_certificate } else { &s.tls_key };
        errors.push(given.error("expected both tls-certificate and tls-key, found one of them"));
    }
    if s.listen_tcp.values.is_empty() && chain.is_some() && key.is_some() {
        errors.push(s.tls_certificate.error("expected listen-tcp too, where clients use TLS"));
    }
    Some(CertificateFiles { chain: chain?, key: key? })
}

/// Reads the list of load balancers. Each of them can name any address as a client's.
pub(super) fn proxies(s: &Settings, errors: &mut Vec<ConfigError>) -> Vec<IpNet> {
    let proxies = &s.proxy_protocol_from;
    if let Some(all) = proxies.values.iter().find(|net| net.prefix_len() == 0) {
        errors.push(proxies.error(format!("expected the addresses of load balancers, found everybody: {all}")));
    }
    if proxies.is_given() && s.listen_tcp.values.is_empty() {
        errors.push(proxies.error("expected listen-tcp too, where load balancers connect to"));
    }
    proxies.values.clone()
}

/// Returns the addresses. The system would let two sockets share one, unless it picks their ports.
fn each_once(listen: &Setting<SocketAddr>, errors: &mut Vec<ConfigError>) -> Vec<SocketAddr> {
    if listen.is_given() && listen.values.is_empty() && errors.is_empty() {
        errors.push(listen.error("expected at least one address and port, found none"));
    }
    let mut seen = HashSet::new();
    for addr in listen.values.iter().filter(|addr| addr.port() != 0) {
        if !seen.insert(addr) {
            errors.push(listen.error(format!("expected each address once, found {addr} twice")));
        }
    }
    listen.values.clone()
}

/// The relayed address of a family: as given, or that of a listener.
pub(super) fn relay_ip(
    listen: &[SocketAddr],
    relay: &Setting<IpAddr>,
    external: &Setting<External>,
    v4: bool,
    errors: &mut Vec<ConfigError>,
) -> Option<RelayIp> {
    let of_family = |ips: &mut dyn Iterator<Item = IpAddr>| ips.filter(|ip| ip.is_ipv4() == v4).collect::<Vec<_>>();
    let relay_ips = of_family(&mut relay.values.iter().copied());
    let external_ips = of_family(&mut external.values.iter().filter_map(|external| match external {
        External::Ip(ip) => Some(*ip),
        External::Server(..) => None,
    }));
    let (one, is_asked) = ("expected one address of each family", external_server(external).is_some());
    if relay_ips.len() > 1 {
        errors.push(relay.error(one));
    }
    if external_ips.len() > 1 {
        errors.push(external.error(one));
    }
    let (relay_ip, external_ip) = (relay_ips.first().copied(), external_ips.first().copied());
    let mut listeners = listen.iter().map(SocketAddr::ip).filter(|ip| ip.is_ipv4() == v4);
    let own = listeners.clone().find(|ip| !ip.is_unspecified());
    // Peers know the wildcard by the external address.
    let wildcard = listeners.next().filter(|_| external_ip.is_some() || is_asked);
    let Some(bind) = relay_ip.or(own).or(wildcard) else {
        if let Some(found) = external_ip {
            let family = if v4 { "IPv6" } else { "IPv4" };
            let problem = format!("expected an {family} address, as listen and relay-address are, found {found}");
            errors.push(external.error(problem));
        }
        return None;
    };
    if bind.is_unspecified() && external_ip.is_none() && !is_asked {
        errors.push(relay.error("expected an address that clients can be told, found the wildcard"));
    }
    Some(RelayIp { bind, advertise: external_ip.unwrap_or(bind) })
}

/// Returns where the relay is administered. Whoever reaches it from elsewhere has to know the token.
pub(super) fn admin(
    admin: &Setting<AdminAddr>,
    token: &Setting<Token>,
    errors: &mut Vec<ConfigError>,
) -> Option<SocketAddr> {
    let addr = admin.values.last().map(|&AdminAddr(addr)| addr)?;
    if !addr.ip().is_loopback() && !token.is_given() {
        let problem =
            format!("expected an address on loopback, such as 127.0.0.1:9479, or an {}, found {addr}", token.key.name);
        errors.push(admin.error(problem));
    }
    Some(addr)
}

/// Returns the STUN server that says what peers see the relayed addresses as.
pub(super) fn external_server(external: &Setting<External>) -> Option<(Box<str>, u16)> {
    external.values.iter().find_map(|external| match external {
        External::Server(host, port) => Some((host.clone(), *port)),
        External::Ip(_) => None,
    })
}

/// Loopback in the families that this host has.
fn loopback() -> Vec<SocketAddr> {
    let all = [SocketAddr::from(([127, 0, 0, 1], 3478)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 3478))];
    all.into_iter().filter(|addr| addr.is_ipv4() || UdpSocket::bind((addr.ip(), 0)).is_ok()).collect()
}
