//! The rules of a tunnel that takes everything: policy routing, as `wg-quick` sets it up. Unlike routes and addresses,
//! rules outlive the device.
//!
//! The tunnel's default route is in a routing table of its own. What is not marked looks there, after it has looked in
//! the table `main` for anything more exact than a default route; what the tunnel itself sends is marked and goes as it
//! would without a tunnel.

use std::io;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use rustix::io::Errno;

use super::netlink::Netlink;

/// Who added a rule or a route, `RTA_PROTOCOL`: a number that no routing daemon has in iproute2's `rt_protos`. By it a
/// later run knows what an earlier one left.
pub(super) const OURS: RouteProtocol = RouteProtocol::Other(183);

/// Where the search for a table begins: WireGuard's usual port, and `wg-quick`'s choice.
const FIRST_TABLE: u32 = 51820;

/// The mark of what the tunnel sends, and the table of its default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) mark: u32,
    pub(super) table: u32,
}

impl Policy {
    /// The table has the mark's number. `mark` is what the user wants, 0 to choose one whose table is free.
    pub(super) fn choose(netlink: &Netlink, mark: u32) -> io::Result<Self> {
        // A mark may be any number, but these are the system's tables: RT_TABLE_DEFAULT, _MAIN, _LOCAL.
        if mark != 0 && !(253..=255).contains(&mark) {
            return Ok(Self { mark, table: mark });
        }
        for table in FIRST_TABLE..FIRST_TABLE + 1000 {
            if is_empty(netlink, table)? {
                return Ok(Self { mark: if mark == 0 { table } else { mark }, table });
            }
        }
        Err(io::Error::other("no routing table is free"))
    }

    /// Adds the rules of a family.
    pub(super) fn add(self, netlink: &Netlink, family: AddressFamily) -> io::Result<()> {
        // The kernel puts each before those that are there: `main` is looked at first.
        netlink.add(RouteNetlinkMessage::NewRule(self.rule(family, RuleAttribute::Table(self.table))))?;
        let mut main = self.rule(family, RuleAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
        main.attributes.push(RuleAttribute::SuppressPrefixLen(0));
        netlink.add(RouteNetlinkMessage::NewRule(main))
    }

    /// Removes the rules.
    pub(super) fn remove(self, netlink: &Netlink) -> io::Result<()> {
        remove(netlink, |rule| mark(rule) == Some(self.mark))
    }

    /// A rule for what is not marked.
    fn rule(self, family: AddressFamily, table: RuleAttribute) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = RuleAction::ToTable;
        rule.header.flags = RuleFlags::Invert;
        rule.attributes = vec![RuleAttribute::FwMark(self.mark), table, RuleAttribute::Protocol(OURS)];
        rule
    }
}

/// Removes the rules of runs that had no chance to. Their tables are empty: the routes went with the device.
pub(super) fn remove_leftovers(netlink: &Netlink) -> io::Result<()> {
    let mut used = Vec::new();
    for rule in list(netlink)? {
        let table = table(&rule);
        if table != Some(RouteHeader::RT_TABLE_MAIN.into()) && !is_empty(netlink, table.unwrap_or_default())? {
            used.extend(mark(&rule));
        }
    }
    remove(netlink, |rule| {
        let is_leftover = mark(rule).is_none_or(|mark| !used.contains(&mark));
        if is_leftover {
            tracing::warn!(mark = mark(rule), table = table(rule), "removing a rule that an earlier run left");
        }
        is_leftover
    })
}

fn remove(netlink: &Netlink, wanted: impl Fn(&RuleMessage) -> bool) -> io::Result<()> {
    let mut result = Ok(());
    for rule in list(netlink)?.into_iter().filter(wanted) {
        match netlink.change(RouteNetlinkMessage::DelRule(rule)) {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            // The others are removed all the same.
            Err(error) => result = Err(error),
            Ok(()) => {}
        }
    }
    result
}

/// Our rules, of all families.
fn list(netlink: &Netlink) -> io::Result<Vec<RuleMessage>> {
    let answers = match netlink.list(RouteNetlinkMessage::GetRule(RuleMessage::default())) {
        // A kernel without policy routing has none.
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => return Ok(Vec::new()),
        answers => answers?,
    };
    let ours = |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::Protocol(OURS));
    let rule = |answer| if let RouteNetlinkMessage::NewRule(rule) = answer { Some(rule) } else { None };
    Ok(answers.into_iter().filter_map(rule).filter(ours).collect())
}

fn is_empty(netlink: &Netlink, table: u32) -> io::Result<bool> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.attributes.push(RouteAttribute::Table(table));
        let routes = match netlink.list(RouteNetlinkMessage::GetRoute(request)) {
            Err(error) if is_absent(&error) => continue,
            routes => routes?,
        };
        let is_there = |answer: &RouteNetlinkMessage| matches!(answer, RouteNetlinkMessage::NewRoute(route) if route.attributes.contains(&RouteAttribute::Table(table)));
        if routes.iter().any(is_there) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// There is no such table yet, or no such family.
fn is_absent(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::AFNOSUPPORT, Errno::OPNOTSUPP]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&error.raw_os_error())
}

fn mark(rule: &RuleMessage) -> Option<u32> {
    rule.attributes
        .iter()
        .find_map(|attribute| if let RuleAttribute::FwMark(mark) = attribute { Some(*mark) } else { None })
}

fn table(rule: &RuleMessage) -> Option<u32> {
    rule.attributes
        .iter()
        .find_map(|attribute| if let RuleAttribute::Table(table) = attribute { Some(*table) } else { None })
}
