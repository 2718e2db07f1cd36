//! Linux.

use std::{
    cell::Cell,
    fs,
    io::{self, IoSlice},
    net::IpAddr,
    os::fd::AsFd,
    task::{Context, Poll},
};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType},
    stats::{StatsAttribute, StatsFilterMask, StatsMessage},
};
use rustix::io::Errno;
use tun_rs::{AsyncDevice, DeviceBuilder};

use super::{DEFAULT_MTU, Error, default_mtu, is_default, routes};
use crate::config::{Config, Endpoint, Peer, Table};

mod ipv6;
mod monitor;
mod netlink;
mod route_mtu;
mod rules;

pub use monitor::{Monitor, Suspended};
use netlink::Netlink;
use rules::{OURS, Policy};

/// What a program without permission needs.
pub(super) const GRANT: &str = "run it as root, or grant it CAP_NET_ADMIN: once and for all by `setcap cap_net_admin+ep \
     FILE`, or in its unit by AmbientCapabilities=CAP_NET_ADMIN";

/// The TUN device with its addresses, routes and rules. They are gone when it is, and what a run left that was killed
/// is removed by the next.
pub struct Link {
    // Before the device, whose end takes the routes away: a rule must not look in an empty table.
    rules: Rules,
    device: AsyncDevice,
    name: String,
    index: u32,
    mtu: u16,
    fwmark: u32,
    has_udp_offload: bool,
    /// The last read gave a packet.
    may_have_more: Cell<bool>,
}

impl Link {
    /// Makes the device and sets everything up as the configuration says. What had been done is undone on an error.
    /// Blocks for some milliseconds.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open(config: &Config, name: &str) -> Result<Self, Error> {
        let interface = &config.interface;
        check_name(name)?;
        let netlink = Netlink::open().map_err(Error::Device)?;
        rules::remove_leftovers(&netlink).map_err(|error| refused(error, "remove a routing rule", Error::Rules))?;
        let mtu = interface.mtu.unwrap_or_else(|| mtu_by_routes(config, &netlink));
        let mut link = Self::create(name, mtu, netlink)?;
        link.fwmark = interface.fwmark;
        let allowed = config.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied());
        let mut addresses = interface.addresses.clone();
        let mut routes = match interface.table {
            Table::Auto => routes(&addresses, allowed),
            // The routes of the device's own prefixes are not in that table.
            Table::Number(_) => routes(&[], allowed),
            Table::Off => Vec::new(),
        };
        if addresses.iter().chain(&routes).any(|net| net.addr().is_ipv6()) && !ipv6::is_on(name) {
            if ipv6::is_used() {
                return Err(Error::Ipv6Off);
            }
            let off = list(addresses.extract_if(.., |net| net.addr().is_ipv6()));
            let not_routed = list(routes.extract_if(.., |net| net.addr().is_ipv6()));
            tracing::warn!(addresses = off, routes = not_routed, "IPv6 is switched off on this host: left out");
        }
        link.configure(&addresses)?;
        match interface.table {
            Table::Auto => link.add_routes(&routes)?,
            Table::Number(table) => routes.iter().try_for_each(|route| link.add_route(*route, table.get()))?,
            Table::Off => {}
        }
        Ok(link)
    }

    /// Makes the device alone, which is not up: another program gives it addresses and routes and sets it up.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open_bare(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let link = Self::create(name, DEFAULT_MTU, Netlink::open().map_err(Error::Device)?)?;
        link.want_no_link_local();
        Ok(link)
    }

    /// Removes the rules, and the device with its addresses and routes. Dropping it does so too, but tells of no error.
    pub fn close(mut self) -> Result<(), Error> {
        self.rules.remove().map_err(|error| refused(error, "remove a routing rule", Error::Rules))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's MTU in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Sets the device's MTU in bytes, at least 1,280 where it has an IPv6 address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mtu(&mut self, mtu: u16) -> io::Result<()> {
        let mut link = self.message();
        link.attributes.push(LinkAttribute::Mtu(mtu.into()));
        self.rules.netlink.change(RouteNetlinkMessage::SetLink(link))?;
        self.mtu = mtu;
        Ok(())
    }

    /// Asks the system for the device's MTU. Returns whether it is another than before.
    pub fn refresh_mtu(&mut self) -> bool {
        let mtu = self.device.mtu().unwrap_or(self.mtu);
        std::mem::replace(&mut self.mtu, mtu) != mtu
    }

    /// The MTU of the route by which the tunnel's datagrams go to this address, in bytes.
    ///
    /// # Errors
    /// The kernel's; `NotFound` if it does not say.
    pub fn route_mtu(&self, destination: IpAddr) -> io::Result<u32> {
        route_mtu::route_mtu(&self.rules.netlink, destination, self.fwmark)
    }

    /// The mark (`SO_MARK`) that the tunnel's sockets must have, 0 if they need none: without it what they send would
    /// go into the tunnel again.
    pub fn fwmark(&self) -> u32 {
        self.fwmark
    }

    /// Changes the mark that the tunnel's sockets are said to have.
    pub fn set_fwmark(&mut self, mark: u32) {
        self.fwmark = mark;
    }

    /// The mark that the rules need, if there are rules.
    pub fn fwmark_of_rules(&self) -> Option<u32> {
        self.rules.policy.map(|policy| policy.mark)
    }

    /// Whether an error of [`try_read`](Self::try_read) says that the device was deleted.
    pub fn is_deleted(error: &io::Error) -> bool {
        error.raw_os_error() == Some(Errno::BADFD.raw_os_error())
    }

    /// Whether each packet read or written begins with a `virtio_net_hdr` of 10 bytes, and may be a whole train of TCP.
    pub fn has_offload(&self) -> bool {
        self.device.tcp_gso()
    }

    /// Whether it may be a train of UDP datagrams too (Linux 6.2).
    pub fn has_udp_offload(&self) -> bool {
        self.has_udp_offload
    }

    /// Ready when there may be a packet to read, or the device is gone: reading says which. The task of the last call
    /// is woken.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.device.poll_readable(cx)
    }

    /// Reads one packet, after the header if there [is one](Self::has_offload). What does not fit is lost: at most
    /// 10 + 65,535 bytes come. `WouldBlock`: there is none, and [`poll_readable`](Self::poll_readable) waits for one.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if self.may_have_more.get() {
            // Not by the C library's function, which is a point where a thread may be cancelled: that costs a fifteenth of the
            // call. That there is no more, the reactor learns from an attempt of its own.
            match rustix::io::read(self.device.as_fd(), &mut *buf) {
                Err(Errno::AGAIN) => {}
                read => return Ok(read?),
            }
        }
        let read = self.device.try_recv(buf);
        self.may_have_more.set(read.is_ok());
        read
    }

    /// Writes one packet, after the header if there [is one](Self::has_offload), from at most 1,024 slices. The kernel
    /// takes it at once or refuses it (`tun_get_user`); it is lost then.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(self.device.as_fd(), slices)?)
    }

    /// How many packets may wait to be read (`txqueuelen`).
    pub fn queue_len(&self) -> io::Result<u32> {
        self.device.tx_queue_len()
    }

    /// How many packets the kernel has dropped since they found that queue full (`tx_dropped`).
    pub fn dropped(&self) -> io::Result<u64> {
        let mut request = StatsMessage::default();
        request.header.ifindex = self.index;
        request.header.filter_mask = StatsFilterMask::Link64;
        for answer in self.rules.netlink.ask(RouteNetlinkMessage::GetStats(request))? {
            if let RouteNetlinkMessage::NewStats(stats) = answer {
                for attribute in stats.attributes {
                    if let StatsAttribute::Link64(counters) = attribute {
                        return Ok(counters.tx_dropped);
                    }
                }
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Watches the network, but for this device.
    pub fn monitor(&self) -> io::Result<Monitor> {
        Monitor::new(self.index)
    }

    fn create(name: &str, mtu: u16, netlink: Netlink) -> Result<Self, Error> {
        let device = create(name, mtu)?;
        Ok(Self {
            rules: Rules { netlink, policy: None },
            has_udp_offload: device.udp_gso(),
            index: device.if_index().map_err(Error::Device)?,
            device,
            name: name.to_owned(),
            mtu,
            fwmark: 0,
            may_have_more: Cell::new(false),
        })
    }

    /// No link-local address, and so no router is sought in the tunnel. There may be no IPv6.
    fn want_no_link_local(&self) {
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let mut quiet = self.message();
        quiet.attributes.push(LinkAttribute::AfSpecUnspec(vec![mode]));
        if let Err(error) = self.rules.netlink.change(RouteNetlinkMessage::SetLink(quiet)) {
            tracing::debug!(%error, "the device will have a link-local address");
        }
    }

    fn configure(&self, addresses: &[IpNet]) -> Result<(), Error> {
        let netlink = &self.rules.netlink;
        self.want_no_link_local();
        for &address in addresses {
            add_address(netlink, self.index, address)
                .map_err(|error| refused(error, "add an address", |source| Error::Address { address, source }))?;
        }
        let mut link = self.message();
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        netlink
            .change(RouteNetlinkMessage::SetLink(link))
            .map_err(|error| refused(error, "set the device up", Error::Device))
    }

    fn message(&self) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = self.index;
        link
    }

    fn add_route(&self, route: IpNet, table: u32) -> Result<(), Error> {
        add_route(&self.rules.netlink, self.index, route, table)
            .map_err(|error| refused(error, "add a route", |source| Error::Route { route, source }))
    }

    fn add_routes(&mut self, routes: &[IpNet]) -> Result<(), Error> {
        for &route in routes.iter().filter(|route| !is_default(route)) {
            self.add_route(route, RouteHeader::RT_TABLE_MAIN.into())?;
        }
        let defaults: Vec<_> = routes.iter().copied().filter(is_default).collect();
        if defaults.is_empty() {
            return Ok(());
        }
        let rules = |error| refused(error, "add a routing rule", Error::Rules);
        let policy = Policy::choose(&self.rules.netlink, self.fwmark).map_err(rules)?;
        self.fwmark = policy.mark;
        // From here on they are removed, whatever happens.
        self.rules.policy = Some(policy);
        for route in defaults {
            self.add_route(route, policy.table)?;
            policy.add(&self.rules.netlink, family(route.addr())).map_err(rules)?;
        }
        warn_of_strict_filters();
        Ok(())
    }
}

/// The MTU of a device whose configuration names none.
fn mtu_by_routes(config: &Config, netlink: &Netlink) -> u16 {
    let address = |peer: &Peer| if let Some(Endpoint::Address(addr)) = peer.endpoint { Some(addr.ip()) } else { None };
    let endpoints = config.peers.iter().filter_map(address);
    let routes = endpoints.filter_map(|ip| route_mtu::route_mtu(netlink, ip, config.interface.fwmark).ok());
    default_mtu(routes).unwrap_or(DEFAULT_MTU)
}

/// The rules of this run, removed with it.
struct Rules {
    netlink: Netlink,
    policy: Option<Policy>,
}

impl Rules {
    fn remove(&mut self) -> io::Result<()> {
        self.policy.take().map_or(Ok(()), |policy| policy.remove(&self.netlink))
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::error!(%error, "routing rules are left; the next run removes them");
        }
    }
}

/// As `dev_valid_name` of the kernel, and without a `%`, which would be a pattern.
fn check_name(name: &str) -> Result<(), Error> {
    let is_valid = (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| "/:%\0".contains(c) || c.is_whitespace());
    if is_valid { Ok(()) } else { Err(Error::Name(name.to_owned())) }
}

fn create(name: &str, mtu: u16) -> Result<AsyncDevice, Error> {
    // The kernel would give us a TUN device that is there and has no owner at the moment.
    if fs::exists(format!("/proc/sys/net/ipv4/conf/{name}")).unwrap_or(false) {
        return Err(Error::Taken(name.to_owned()));
    }
    let device = DeviceBuilder::new().name(name).offload(true).mtu(mtu).inherit_enable_state().build_async();
    device.map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Error::NoTun,
        Some(Errno::BUSY) => Error::Taken(name.to_owned()),
        Some(Errno::ACCESS) => Error::Permission("open /dev/net/tun"),
        _ => refused(error, "make a TUN device", Error::Device),
    })
}

fn add_address(netlink: &Netlink, index: u32, address: IpNet) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        // In use at once: without it an IPv6 address waits for a worker of the kernel to find that on this device there
        // can be no duplicate (`addrconf_dad_begin`).
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    netlink.add(RouteNetlinkMessage::NewAddress(message))
}

fn add_route(netlink: &Netlink, index: u32, route: IpNet, table: u32) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.addr());
    message.header.destination_prefix_length = route.prefix_len();
    message.header.protocol = OURS;
    message.header.scope = if route.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Table(table)];
    if !is_default(&route) {
        message.attributes.push(RouteAttribute::Destination(match route.addr() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }));
    }
    netlink.add(RouteNetlinkMessage::NewRoute(message))
}

fn list(nets: impl Iterator<Item = IpNet>) -> String {
    nets.map(|net| net.to_string()).collect::<Vec<_>>().join(", ")
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn refused(error: io::Error, what: &'static str, otherwise: impl FnOnce(io::Error) -> Error) -> Error {
    if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) { Error::Permission(what) } else { otherwise(error) }
}

/// The answers to what the tunnel sends come from where an unmarked packet would not go to. A device that is strict
/// about that (`rp_filter` 1, RFC 3704 section 2.2) drops them.
fn warn_of_strict_filters() {
    let value = |device: &str| -> Option<u8> {
        fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter")).ok()?.trim().parse().ok()
    };
    // The larger of the two counts (Documentation/networking/ip-sysctl.rst).
    let all = value("all").unwrap_or(0);
    for entry in fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten() {
        let device = entry.file_name().to_string_lossy().into_owned();
        let is_one = !matches!(device.as_str(), "all" | "default" | "lo");
        if is_one && value(&device).is_some_and(|value| value.max(all) == 1) {
            tracing::warn!(device, "its rp_filter is strict (1) and drops the peers' answers; set it to 2");
        }
    }
}
