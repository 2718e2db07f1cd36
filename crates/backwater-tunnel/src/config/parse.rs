//! The text of a `.conf` file: first its sections and keys, then what they mean, then whether that fits together.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
};

use ipnet::IpNet;

use super::{
    Config, Dns, Endpoint, Errors, Hook, HookTime, Interface, Key, MAX_PEERS, Mode, Peer, Relay, Table, Warning, relay,
};
use crate::engine::endpoints::canonical;

const INTERFACE: &[&str] =
    &["PrivateKey", "Address", "ListenPort", "MTU", "FwMark", "Table", "DNS", "PreUp", "PostUp", "PreDown", "PostDown"];
const PEER: &[&str] = &["PublicKey", "PresharedKey", "Endpoint", "AllowedIPs", "PersistentKeepalive"];
/// Those that may come again.
const REPEATED: &[&str] = &["Address", "DNS", "AllowedIPs", "Uri", "PreUp", "PostUp", "PreDown", "PostDown"];
/// Those that wg-quick takes without a value, which stands for the default.
const MAY_BE_EMPTY: &[&str] =
    &["Address", "MTU", "Table", "DNS", "AllowedIPs", "PreUp", "PostUp", "PreDown", "PostDown"];

/// Whoever passes something else than a configuration need not see all of it.
const MAX_ERRORS: usize = 1000;

/// No private or public key; a preshared key of zeros is none.
const ZEROS: [u8; 32] = [0; 32];

const PREFIX: &str = "an address or a prefix, such as 10.0.0.1/24 or fd00::1/64";
pub(super) const ENDPOINT: &str = "IPv4:port, [IPv6]:port or name:port";
/// RFC 8200, section 5.
const MIN_MTU_V6: u16 = 1280;

pub(super) fn parse(name: &str, text: &str) -> Result<(Config, Vec<Warning>), Errors> {
    let mut reader = Reader { errors: Vec::new(), warnings: Vec::new() };
    let sections = reader.sections(text.strip_prefix('\u{feff}').unwrap_or(text));
    let (mut interface, mut peers, mut relay) = (None, Vec::new(), None);
    for section in &sections {
        match section.kind {
            Kind::Interface => interface = reader.interface(section),
            Kind::Peer => peers.extend(reader.peer(section)),
            Kind::Relay => relay = reader.relay(section).map(|relay| (section.line_of("Uri"), relay)),
            Kind::Unknown => {}
        }
    }
    reader.one_interface(&sections);
    reader.not_too_many(&sections);
    reader.fit(interface.as_ref(), &peers);
    let Reader { mut errors, warnings } = reader;
    errors.sort_by_key(|(line, _)| *line);
    let more = errors.len().saturating_sub(MAX_ERRORS);
    let lines = errors.into_iter().take(MAX_ERRORS).map(|(line, problem)| format!("{name}:{line}: {problem}"));
    let mut lines: Vec<_> = lines.collect();
    if more > 0 {
        lines.push(format!("{name}: and {more} more"));
    }
    match interface {
        Some(interface) if lines.is_empty() => {
            let mut warnings: Vec<_> =
                warnings.into_iter().map(|(line, problem)| Warning(format!("{name}:{line}: {problem}"))).collect();
            warnings.extend(endpoints_in_routes(name, &interface, &peers, relay.as_ref()));
            let peers = peers.into_iter().map(|placed| placed.peer).collect();
            Ok((Config { interface, peers, relay: relay.map(|(_, relay)| relay) }, warnings))
        }
        _ => Err(Errors(lines)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Interface,
    Peer,
    Relay,
    /// It has been complained of: what is in it is passed over.
    Unknown,
}

pub(super) struct Section<'a> {
    kind: Kind,
    pub(super) line: usize,
    entries: Vec<Entry<'a>>,
}

#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) line: usize,
    /// As the tables above spell it.
    key: &'static str,
    pub(super) value: &'a str,
}

/// A peer, and the lines of what other peers must not have.
struct Placed {
    peer: Peer,
    key_line: usize,
    endpoint_line: usize,
    /// Of each of `allowed_ips`.
    prefix_lines: Vec<usize>,
}

impl<'a> Section<'a> {
    pub(super) fn entries(&self, key: &str) -> impl Iterator<Item = Entry<'a>> {
        self.entries.iter().copied().filter(move |entry| entry.key == key)
    }

    fn line_of(&self, key: &str) -> usize {
        self.entries(key).next().map_or(self.line, |entry| entry.line)
    }
}

/// Gathers what is wrong, by line.
pub(super) struct Reader {
    errors: Vec<(usize, String)>,
    warnings: Vec<(usize, String)>,
}

impl Reader {
    pub(super) fn error(&mut self, line: usize, key: &str, found: &str, wanted: &str) {
        self.errors.push((line, format!("{key}: found {found}, wanted {wanted}")));
    }

    fn sections<'a>(&mut self, text: &'a str) -> Vec<Section<'a>> {
        let mut sections: Vec<Section<'a>> = Vec::new();
        let mut relay: Option<Section<'a>> = None;
        for (line, text) in (1..).zip(text.lines()) {
            if let Some(text) = relay_comment(text) {
                let section = relay.get_or_insert(Section { kind: Kind::Relay, line, entries: Vec::new() });
                self.key_and_value(section, line, text);
                continue;
            }
            let text = text.split('#').next().unwrap_or_default().trim();
            if text.is_empty() {
                continue;
            }
            if text.starts_with('[') {
                let kind = match &*without_blanks(text) {
                    text if text.eq_ignore_ascii_case("[Interface]") => Kind::Interface,
                    text if text.eq_ignore_ascii_case("[Peer]") => Kind::Peer,
                    text if text.eq_ignore_ascii_case("[Relay]") => Kind::Relay,
                    _ => {
                        self.error(line, "section", &shown(text), "[Interface], [Peer] or [Relay]");
                        Kind::Unknown
                    }
                };
                sections.push(Section { kind, line, entries: Vec::new() });
                continue;
            }
            let Some(section) = sections.last_mut() else {
                let key = text.split('=').next().unwrap_or_default();
                self.error(line, &label(key.trim()), "it before any section", "[Interface] or [Peer] above it");
                continue;
            };
            self.key_and_value(section, line, text);
        }
        sections.extend(relay);
        sections
    }

    fn key_and_value<'a>(&mut self, section: &mut Section<'a>, line: usize, text: &'a str) {
        let Some((key, value)) = text.split_once('=') else {
            self.error(line, "line", &shown(text), "a key, = and a value");
            return;
        };
        if let Some(entry) = self.entry(section, line, key.trim(), value.trim()) {
            section.entries.push(entry);
        }
    }

    fn entry<'a>(&mut self, section: &Section<'a>, line: usize, key: &str, value: &'a str) -> Option<Entry<'a>> {
        let (here, name) = match section.kind {
            Kind::Interface => (INTERFACE, "[Interface]"),
            Kind::Peer => (PEER, "[Peer]"),
            Kind::Relay => (relay::KEYS, "[Relay]"),
            Kind::Unknown => return None,
        };
        let plain = without_blanks(key);
        let named = |keys: &[&'static str]| keys.iter().copied().find(|known| known.eq_ignore_ascii_case(&plain));
        let Some(known) = named(here) else {
            if section.kind == Kind::Interface && named(&["SaveConfig"]).is_some() {
                if value.eq_ignore_ascii_case("true") {
                    self.warnings.push((line, "SaveConfig: no configuration is written".to_owned()));
                } else if !value.is_empty() && !value.eq_ignore_ascii_case("false") {
                    self.error(line, "SaveConfig", &shown(value), "true or false");
                }
            } else {
                let wanted = format!("one of {}", here.join(", "));
                self.error(line, &label(key), &format!("an unknown key of {name}"), &wanted);
            }
            return None;
        };
        let before = section.entries(known).next();
        if let Some(before) = before.filter(|_| !REPEATED.contains(&known)) {
            self.error(line, known, &format!("it again, after line {}", before.line), "it once");
            return None;
        }
        (!value.is_empty() || !MAY_BE_EMPTY.contains(&known)).then_some(Entry { line, key: known, value })
    }

    /// The value of a key that is there once at most.
    pub(super) fn one<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        wanted: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let entry = section.entries(key).next()?;
        let value = read(entry.value);
        if value.is_none() {
            self.error(entry.line, key, &shown(entry.value), wanted);
        }
        value
    }

    fn number(&mut self, section: &Section<'_>, key: &str, least: u16) -> Option<u16> {
        let wanted = format!("a number from {least} to {}", u16::MAX);
        self.one(section, key, &wanted, |text| decimal(text)?.try_into().ok().filter(|&number: &u16| number >= least))
    }

    /// A key, whatever stands there instead is never shown.
    fn key(&mut self, section: &Section<'_>, key: &str) -> Option<Key> {
        let Entry { line, value, .. } = section.entries(key).next()?;
        let read = Key::from_base64(value);
        if read.is_none() {
            self.error(line, key, &characters(value), wanted_key(key));
        }
        read
    }

    /// As [`key`](Self::key), where there must be one.
    fn needed_key(&mut self, section: &Section<'_>, key: &str) -> Option<Key> {
        if section.entries(key).next().is_none() {
            self.error(section.line, key, "none in this section", wanted_key(key));
        }
        let read = self.key(section, key)?;
        if read.0 == ZEROS {
            self.error(section.line_of(key), key, "32 zeros", wanted_key(key));
            return None;
        }
        Some(read)
    }

    /// The prefixes of all keys of that name, each once, and their lines.
    fn prefixes(
        &mut self,
        section: &Section<'_>,
        key: &str,
        read: impl Fn(&str) -> Option<IpNet>,
    ) -> Vec<(usize, IpNet)> {
        let (mut nets, mut seen) = (Vec::new(), HashSet::new());
        for entry in section.entries(key) {
            for part in entry.value.split(',').map(str::trim) {
                match read(part) {
                    Some(net) if !seen.insert(net) => {}
                    Some(net) => nets.push((entry.line, net)),
                    None => self.error(entry.line, key, &shown(part), PREFIX),
                }
            }
        }
        nets
    }

    fn interface(&mut self, section: &Section<'_>) -> Option<Interface> {
        let private_key = self.needed_key(section, "PrivateKey");
        let addresses = self.prefixes(section, "Address", prefix);
        for (line, net) in &addresses {
            if net.addr().is_unspecified() || net.addr().is_multicast() {
                self.error(*line, "Address", &net.to_string(), "an address of one host");
            }
        }
        let addresses: Vec<_> = addresses.into_iter().map(|(_, net)| net).collect();
        let listen_port = self.number(section, "ListenPort", 0).unwrap_or(0);
        let mtu = self.number(section, "MTU", 576);
        if let Some(mtu) = mtu.filter(|&mtu| mtu < MIN_MTU_V6 && addresses.iter().any(|net| net.addr().is_ipv6())) {
            let wanted = format!("at least {MIN_MTU_V6}, since there is an IPv6 address");
            self.error(section.line_of("MTU"), "MTU", &mtu.to_string(), &wanted);
        }
        let fwmark = self.one(section, "FwMark", "a decimal or 0x hexadecimal number of 32 bits, or off", fwmark);
        let wanted = format!("off, auto or a number from 1 to {}", u32::MAX);
        let table = self.one(section, "Table", &wanted, |text| match text {
            _ if text.eq_ignore_ascii_case("off") => Some(Table::Off),
            _ if text.eq_ignore_ascii_case("auto") => Some(Table::Auto),
            _ => number(text).and_then(NonZeroU32::new).map(Table::Number),
        });
        let dns = self.dns(section);
        let hooks = section.entries.iter().filter_map(|entry| {
            let at = HookTime::ALL.into_iter().find(|at| at.key() == entry.key)?;
            Some(Hook { at, command: entry.value.to_owned() })
        });
        let hooks = hooks.collect();
        Some(Interface {
            private_key: private_key?,
            addresses,
            listen_port,
            mtu,
            fwmark: fwmark.unwrap_or(0),
            table: table.unwrap_or_default(),
            dns,
            hooks,
        })
    }

    /// Addresses of servers, and domains to search, in any order.
    fn dns(&mut self, section: &Section<'_>) -> Dns {
        let mut dns = Dns::default();
        for entry in section.entries("DNS") {
            for part in entry.value.split(',').map(str::trim) {
                if let Ok(server) = part.parse::<IpAddr>() {
                    push_new(&mut dns.servers, server);
                } else if is_domain(part) && !part.starts_with('-') {
                    push_new(&mut dns.search, part.to_owned());
                } else {
                    self.error(entry.line, "DNS", &shown(part), "the address of a server, or a domain to search");
                }
            }
        }
        dns
    }

    fn peer(&mut self, section: &Section<'_>) -> Option<Placed> {
        let public_key = self.needed_key(section, "PublicKey");
        // As in the protocol, zeros stand for none (WireGuard, section 5.2).
        let preshared_key = self.key(section, "PresharedKey").filter(|key| key.0 != ZEROS);
        let endpoint = self.one(section, "Endpoint", ENDPOINT, endpoint);
        let network = |text: &str| prefix(text).map(|net| net.trunc());
        let (prefix_lines, allowed_ips) = self.prefixes(section, "AllowedIPs", network).into_iter().unzip();
        let wanted = format!("seconds from 0 to {}, or off", u16::MAX);
        let keepalive = self.one(section, "PersistentKeepalive", &wanted, |text| {
            if text.eq_ignore_ascii_case("off") { Some(0) } else { decimal(text)?.try_into().ok() }
        });
        let persistent_keepalive = keepalive.and_then(NonZeroU16::new);
        let peer = Peer { public_key: public_key?, preshared_key, endpoint, allowed_ips, persistent_keepalive };
        let (key_line, endpoint_line) = (section.line_of("PublicKey"), section.line_of("Endpoint"));
        Some(Placed { peer, key_line, endpoint_line, prefix_lines })
    }

    fn one_interface(&mut self, sections: &[Section<'_>]) {
        let mut found = sections.iter().filter(|section| section.kind == Kind::Interface);
        if found.next().is_none() {
            self.error(1, "[Interface]", "no such section", "one");
        }
        for again in found {
            self.error(again.line, "[Interface]", "it again", "one such section");
        }
        for again in sections.iter().filter(|section| section.kind == Kind::Relay).skip(1) {
            self.error(again.line, "[Relay]", "it again", "one such section");
        }
    }

    fn not_too_many(&mut self, sections: &[Section<'_>]) {
        let mut peers = sections.iter().filter(|section| section.kind == Kind::Peer);
        if let Some(first) = peers.nth(MAX_PEERS) {
            let found = format!("{} of them", MAX_PEERS + 1 + peers.count());
            self.error(first.line, "[Peer]", &found, &format!("at most {MAX_PEERS}"));
        }
    }

    /// What no peer can say alone: no two have one key or one prefix, and none is this side.
    fn fit(&mut self, interface: Option<&Interface>, peers: &[Placed]) {
        let own = interface.map(|interface| interface.private_key.public());
        let (mut keys, mut prefixes) = (HashMap::new(), HashMap::new());
        for Placed { peer, key_line, prefix_lines, .. } in peers {
            if own.as_ref() == Some(&peer.public_key) {
                self.error(*key_line, "PublicKey", "this side's own", "the peer's");
            }
            if let Some(other) = keys.insert(peer.public_key.0, key_line) {
                self.error(*key_line, "PublicKey", &format!("that of line {other}"), "a key of its own for each peer");
            }
            for (net, line) in peer.allowed_ips.iter().zip(prefix_lines) {
                if let Some(other) = prefixes.insert(net, line) {
                    let found = format!("{net} here and at another peer, line {other}");
                    self.error(*line, "AllowedIPs", &found, "each prefix at one peer");
                }
            }
        }
    }
}

/// Endpoints to which the system's own routes would lead into the tunnel. Default routes do not, since there are rules for
/// what the tunnel sends.
fn endpoints_in_routes(
    name: &str,
    interface: &Interface,
    peers: &[Placed],
    relay: Option<&(usize, Relay)>,
) -> Vec<Warning> {
    let routes = peers.iter().flat_map(|placed| placed.peer.allowed_ips.iter().zip(&placed.prefix_lines));
    let routes: Vec<_> = routes.filter(|(net, _)| interface.table == Table::Auto && net.prefix_len() > 0).collect();
    let warning = |(line, key, endpoint): (usize, &str, &Endpoint)| {
        let Endpoint::Address(endpoint) = endpoint else { return None };
        let (route, route_line) = routes.iter().find(|(net, _)| net.contains(&endpoint.ip()))?;
        Some(Warning(format!(
            "{name}:{line}: {key} {endpoint} is inside the route {route} (line {route_line}): what is sent to it goes \
             into the tunnel itself, unless a more exact route leads elsewhere"
        )))
    };
    // What is reached by the relay alone may be anywhere.
    let peers = peers.iter().filter(|_| relay.is_none_or(|(_, relay)| relay.mode != Mode::Always));
    let peers = peers.filter_map(|placed| Some((placed.endpoint_line, "Endpoint", placed.peer.endpoint.as_ref()?)));
    let relays = relay.into_iter().flat_map(|(line, relay)| relay.servers.iter().map(|server| (*line, "Uri", server)));
    peers.chain(relays).filter_map(warning).collect()
}

fn push_new<T: PartialEq>(all: &mut Vec<T>, new: T) {
    if !all.contains(&new) {
        all.push(new);
    }
}

/// A name of RFC 1035, section 2.3.4, that is no address: its last label is no number.
pub(super) fn is_domain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let last = name.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    (1..=253).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with('.')
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// The key and the value of a comment that stands for a line of the `[Relay]` section: for a file that other programs read, too.
fn relay_comment(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("#@")?.trim_start();
    let (word, rest) = rest.split_once(char::is_whitespace)?;
    word.eq_ignore_ascii_case("relay").then(|| rest.split('#').next().unwrap_or_default().trim())
}

/// As `wg` does with each line.
fn without_blanks(text: &str) -> String {
    text.split_whitespace().collect()
}

fn wanted_key(key: &str) -> &'static str {
    match key {
        "PrivateKey" => "32 bytes in base64, as `wg genkey` prints them",
        "PresharedKey" => "32 bytes in base64, as `wg genpsk` prints them",
        _ => "32 bytes in base64, as `wg pubkey` prints them",
    }
}

/// An address alone stands for itself.
fn prefix(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Digits and nothing else: no sign.
fn decimal(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn fwmark(text: &str) -> Option<u32> {
    if text.eq_ignore_ascii_case("off") {
        return Some(0);
    }
    number(text)
}

/// Decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+')),
        None => decimal(text),
    }
}

pub(super) fn endpoint(text: &str) -> Option<Endpoint> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return (addr.port() != 0).then(|| Endpoint::Address(canonical(addr)));
    }
    let (name, port) = text.rsplit_once(':')?;
    let port = decimal(port)?.try_into().ok().filter(|&port: &u16| port != 0)?;
    // What ends in a number is an address, only not a good one.
    is_domain(name).then(|| Endpoint::Name(name.to_owned(), port))
}

/// A value in an error, on one line and not too long; what might be a key, or a piece of one, is only counted.
pub(super) fn shown(text: &str) -> String {
    let of_key = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
    match text {
        "" => "nothing".to_owned(),
        _ if text.chars().count() > 60 => characters(text),
        _ if text.split(|c| !of_key(c)).any(|run| run.len() >= 20) => characters(text),
        _ => format!("{text:?}"),
    }
}

/// An unknown key's name, as the values are.
fn label(key: &str) -> String {
    let plain = (1..20).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain { key.to_owned() } else { shown(key) }
}

pub(super) fn characters(text: &str) -> String {
    match text.chars().count() {
        0 => "nothing".to_owned(),
        1 => "1 character".to_owned(),
        count => format!("{count} characters"),
    }
}
