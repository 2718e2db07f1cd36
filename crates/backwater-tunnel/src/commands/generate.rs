//! `generate`: a pair of configurations that work together.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    num::NonZeroU16,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{Config, Dns, Endpoint, Errors, Interface, Key, Peer, Table};

/// Makes a pair of configurations that work together, server.conf and client.conf, with new keys.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the client reaches the server: an address or a name of it, and the port that it listens on. Without this,
    /// the address that this host has towards the Internet, and port 51820.
    #[arg(long, value_name = "HOST:PORT")]
    pub endpoint: Option<Endpoint>,
    /// Where to write the two files; none is ever overwritten.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// A network inside the tunnel, of which the two get the first addresses; one of each family at most. Of a family
    /// without one, a random private network.
    #[arg(long, value_name = "NET", value_parser = network)]
    pub network: Vec<IpNet>,
}

const PORT: u16 = 51820;

/// Below what home routers and carriers forget a mapping of UDP after.
const KEEPALIVE: Option<NonZeroU16> = NonZeroU16::new(25);

/// Writes the pair, for their owner alone, and prints what to do with it.
///
/// # Errors
/// When a file is there already or cannot be written, or the arguments do not fit together. Nothing is left then.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let endpoint = args.endpoint.clone().map_or_else(own_endpoint, Ok)?;
    let networks = networks(&args.network)?;
    let (server, client) = pair(endpoint.clone(), &networks)?;
    let paths = ["server.conf", "client.conf"].map(|name| args.dir.join(name));
    let [server_path, client_path] = &paths;
    create(server_path, &server)?;
    if let Err(error) = create(client_path, &client) {
        let _ = fs::remove_file(server_path);
        return Err(error);
    }
    let (server_path, client_path) = (server_path.display(), client_path.display());
    println!("{server_path}: for the host that is reached at {endpoint} (UDP)");
    println!("{client_path}: for the other one; whoever has the file has its keys");
    println!("On each: backwater-tunnel up FILE, or wg-quick up FILE");
    if let Some(address) = server.interface.addresses.first() {
        println!("Then, on the client: ping {}", address.addr());
    }
    Ok(ExitCode::SUCCESS)
}

/// The server's and the client's.
fn pair(endpoint: Endpoint, networks: &[IpNet]) -> anyhow::Result<(Config, Config)> {
    let key = || Key::generate().context("the system has no randomness");
    let (server_key, client_key, preshared_key) = (key()?, key()?, key()?);
    let (mut server, mut client, mut client_alone) = (Vec::new(), Vec::new(), Vec::new());
    for net in networks {
        let (first, second) = first_two(*net).with_context(|| format!("--network {net}: no room for two addresses"))?;
        server.push(IpNet::new(first, net.prefix_len())?);
        client.push(IpNet::new(second, net.prefix_len())?);
        client_alone.push(IpNet::from(second));
    }
    let listen_port = match endpoint {
        Endpoint::Address(addr) => addr.port(),
        Endpoint::Name(_, port) => port,
    };
    let interface = |private_key: &Key, addresses, listen_port| {
        let private_key = private_key.clone();
        Interface {
            private_key,
            addresses,
            listen_port,
            mtu: None,
            fwmark: 0,
            table: Table::Auto,
            dns: Dns::default(),
            hooks: Vec::new(),
        }
    };
    let peer = |key: &Key, endpoint, allowed_ips, persistent_keepalive| {
        let (public_key, preshared_key) = (key.public(), Some(preshared_key.clone()));
        Peer { public_key, preshared_key, endpoint, allowed_ips, persistent_keepalive }
    };
    let all = networks.iter().map(IpNet::trunc).collect();
    let of_server = Config {
        interface: interface(&server_key, server, listen_port),
        peers: vec![peer(&client_key, None, client_alone, None)],
        relay: None,
    };
    let of_client = Config {
        interface: interface(&client_key, client, 0),
        peers: vec![peer(&server_key, Some(endpoint), all, KEEPALIVE)],
        relay: None,
    };
    Ok((of_server, of_client))
}

/// The first two addresses for hosts.
fn first_two(net: IpNet) -> Option<(IpAddr, IpAddr)> {
    match net {
        IpNet::V4(net) => {
            let at = |n: u32| IpAddr::V4((u32::from(net.network()) + n).into());
            (net.prefix_len() <= 30).then(|| (at(1), at(2)))
        }
        // The first of all is the routers' (RFC 4291, section 2.6.1).
        IpNet::V6(net) => {
            let at = |n: u128| IpAddr::V6((u128::from(net.network()) + n).into());
            (net.prefix_len() <= 126).then(|| (at(1), at(2)))
        }
    }
}

/// Reads a network whose addresses two hosts can have.
fn network(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| "expected a prefix, such as 10.0.0.0/24 or fd00::/64".to_owned())?;
    let refused = |what: &str| Err(format!("expected addresses of hosts, found {what}"));
    match net.network() {
        IpAddr::V4(first) if first.octets()[0] == 0 => refused("unspecified ones"),
        IpAddr::V4(first) if first.is_loopback() => refused("loopback"),
        IpAddr::V4(first) if first.is_multicast() => refused("multicast"),
        IpAddr::V4(first) if first.octets()[0] >= 240 => refused("reserved ones and broadcast"),
        IpAddr::V6(_) if net.contains(&IpAddr::V6(Ipv6Addr::LOCALHOST)) && net.prefix_len() > 0 => refused("loopback"),
        IpAddr::V6(first) if first.is_unspecified() => refused("unspecified ones"),
        IpAddr::V6(first) if first.is_multicast() => refused("multicast"),
        IpAddr::V4(_) | IpAddr::V6(_) if first_two(net).is_none() => {
            Err("expected room for two hosts: at most /30, or /126 with IPv6".to_owned())
        }
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(net),
    }
}

/// One of each family: as given, else a random private one.
fn networks(given: &[IpNet]) -> anyhow::Result<[IpNet; 2]> {
    let (v4, v6): (Vec<_>, Vec<_>) = given.iter().copied().partition(|net| net.addr().is_ipv4());
    if v4.len() > 1 || v6.len() > 1 {
        return Err(Errors::of("--network: expected one of each family at most").into());
    }
    let [a, b] = fastrand::u16(..).to_be_bytes();
    // RFC 4193, section 3.2.
    let [c, d, e] = [(); 3].map(|()| fastrand::u16(..));
    let random_v4 = Ipv4Net::new([10, a, b, 0].into(), 24)?;
    let random_v6 = Ipv6Net::new([0xfd00 | (c & 0xff), d, e, 0, 0, 0, 0, 0].into(), 64)?;
    let one = |nets: Vec<IpNet>, random| nets.first().copied().unwrap_or(random);
    Ok([one(v4, random_v4.into()), one(v6, random_v6.into())])
}

/// Where this host is reached, if nothing translates its address. Nothing is sent.
fn own_endpoint() -> anyhow::Result<Endpoint> {
    let towards = |any: &str, documentation: &str| -> io::Result<IpAddr> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(documentation)?;
        Ok(socket.local_addr()?.ip())
    };
    // The addresses are those of examples (RFC 5737, RFC 3849), which are routed by default.
    let ip = towards("0.0.0.0:0", "192.0.2.1:9").or_else(|_| towards("[::]:0", "[2001:db8::1]:9"));
    let ip = ip.context("--endpoint: expected HOST:PORT, since this host has no route to the Internet")?;
    Ok(Endpoint::Address(SocketAddr::new(ip, PORT)))
}

/// A new file, which no other user can read. (On Windows it has the access list of its directory.)
fn create(path: &Path, config: &Config) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let made = options.write(true).create_new(true).open(path);
    let mut file: File = made.with_context(|| format!("{}: cannot be made", path.display()))?;
    if let Err(error) = file.write_all(config.to_text().as_bytes()) {
        let _ = fs::remove_file(path);
        return Err(error).with_context(|| format!("{}: cannot be written", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_two_fit_together() {
        let networks = networks(&[net("10.1.2.0/30"), net("fd00::/126")]).unwrap();
        let (server, client) = pair("vpn.example.org:7".parse().unwrap(), &networks).unwrap();
        for config in [&server, &client] {
            let (read, warnings) = Config::parse("t.conf", &config.to_text()).unwrap();
            assert_eq!((&read, warnings), (config, vec![]));
        }
        let ([to_client], [to_server]) = (&server.peers[..], &client.peers[..]) else { panic!("one peer each") };
        assert_eq!(to_client.public_key, client.interface.private_key.public());
        assert_eq!(to_server.public_key, server.interface.private_key.public());
        assert_eq!(to_client.preshared_key, to_server.preshared_key);
        assert!(to_client.preshared_key.is_some());
        assert_eq!(server.interface.addresses, [net("10.1.2.1/30"), net("fd00::1/126")]);
        assert_eq!(client.interface.addresses, [net("10.1.2.2/30"), net("fd00::2/126")]);
        assert_eq!(to_client.allowed_ips, [net("10.1.2.2/32"), net("fd00::2/128")]);
        assert_eq!(to_server.allowed_ips, [net("10.1.2.0/30"), net("fd00::/126")]);
        assert_eq!((server.interface.listen_port, client.interface.listen_port), (7, 0));
        assert_eq!(to_server.endpoint, Some(Endpoint::Name("vpn.example.org".to_owned(), 7)));
        assert_eq!((to_server.persistent_keepalive, to_client.persistent_keepalive), (NonZeroU16::new(25), None));
    }

    #[test]
    fn keys_and_networks_are_new_each_time() {
        let of = || pair("a:1".parse().unwrap(), &networks(&[]).unwrap()).unwrap();
        let ((a, a_client), (b, _)) = (of(), of());
        assert_ne!(a.interface.private_key, b.interface.private_key);
        assert_ne!(a.interface.private_key, a_client.interface.private_key);
        assert_ne!(a.peers[0].preshared_key, b.peers[0].preshared_key);
        assert_ne!(a.interface.addresses[1], b.interface.addresses[1]);
        assert!(net("10.0.0.0/8").contains(&a.interface.addresses[0]));
        assert!(net("fd00::/8").contains(&a.interface.addresses[1]));
    }

    #[test]
    fn networks_without_room_are_refused() {
        for (v4, v6) in
            [("10.0.0.0/31", "fd00::/64"), ("10.0.0.0/24", "fd00::/127"), ("255.255.255.255/32", "fd00::/64")]
        {
            let error = pair("a:1".parse().unwrap(), &[net(v4), net(v6)]).unwrap_err();
            assert!(error.to_string().contains("no room"), "{error}");
        }
        assert!(networks(&[net("10.0.0.0/8"), net("11.0.0.0/8")]).is_err());
    }
}
