//! The MTU of this host's route to an address.

use std::{io, net::IpAddr};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric},
};

use super::{family, netlink::Netlink};

/// Returns the MTU of the route to `destination` in bytes, IP header included: that of the route (`ip route … mtu`) or that of its
/// interface, whichever is less. `mark`: the firewall mark of the datagrams, 0 if they have none.
///
/// The route table is asked, and not the route cache: an ICMP message that anyone may have sent changes the cache only.
pub(super) fn route_mtu(netlink: &Netlink, destination: IpAddr, mark: u32) -> io::Result<u32> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(destination);
    request.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    request.header.flags = RouteFlags::FibMatch;
    request.attributes.push(RouteAttribute::Destination(match destination {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => address.into(),
    }));
    if mark != 0 {
        request.attributes.push(RouteAttribute::Mark(mark));
    }
    let answers = netlink.ask(RouteNetlinkMessage::GetRoute(request))?;
    let route = answers
        .into_iter()
        .find_map(|answer| if let RouteNetlinkMessage::NewRoute(route) = answer { Some(route) } else { None });
    let (mut least, mut interfaces) = (None, Vec::new());
    for attribute in route.into_iter().flat_map(|route| route.attributes) {
        if let RouteAttribute::Oif(index) = attribute {
            interfaces.push(index);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            interfaces.extend(hops.iter().map(|hop| hop.interface_index));
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            least =
                metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
        }
    }
    for index in interfaces {
        let mtu = interface_mtu(netlink, index)?;
        least = Some(least.map_or(mtu, |least| least.min(mtu)));
    }
    least.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn interface_mtu(netlink: &Netlink, index: u32) -> io::Result<u32> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    for answer in netlink.ask(RouteNetlinkMessage::GetLink(request))? {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            let mtu =
                |attribute: &LinkAttribute| if let LinkAttribute::Mtu(mtu) = attribute { Some(*mtu) } else { None };
            return link.attributes.iter().find_map(mtu).ok_or_else(|| io::ErrorKind::NotFound.into());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
