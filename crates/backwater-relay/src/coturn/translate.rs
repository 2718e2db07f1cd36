//! The values of coturn's keys, by what they are about.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use toml::Value;

use super::{
    Counterpart, Given, Note, counterpart,
    ranges::{Range, prefixes},
};

/// Where clients reach coturn by default.
const PORT: u16 = 3478;

/// The same with TLS.
const TLS_PORT: u16 = 5349;

pub(super) struct Translation {
    given: Vec<Given>,
    /// This relay's keys.
    pub(super) values: BTreeMap<&'static str, Value>,
    pub(super) notes: Vec<Note>,
}

impl Translation {
    pub(super) fn new(given: Vec<Given>) -> Self {
        Self { given, values: BTreeMap::new(), notes: Vec::new() }
    }

    fn all(&self, key: &str) -> Vec<Given> {
        self.given.iter().filter(|given| given.key == key).cloned().collect()
    }

    /// Of a key that is given several times, the last counts.
    fn last(&self, key: &str) -> Option<Given> {
        self.all(key).pop()
    }

    fn is_on(&self, key: &str) -> bool {
        self.last(key).is_some_and(|given| given.is_on())
    }

    fn note(&mut self, about: Option<&Given>, reason: impl Into<String>) {
        let place = about.map(|given| (given.line, given.key.clone()));
        self.notes.push(Note { place, reason: reason.into(), is_essential: false });
    }

    fn impossible(&mut self, about: Option<&Given>, reason: impl Into<String>) {
        self.note(about, reason);
        self.notes.last_mut().into_iter().for_each(|note| note.is_essential = true);
    }

    fn list(&mut self, key: &'static str, items: Vec<String>) {
        if !items.is_empty() {
            self.values.insert(key, Value::Array(items.into_iter().map(Value::String).collect()));
        }
    }

    /// The last value of a key as a number; 0 stands for no limit.
    fn number(&mut self, key: &str) -> Option<(Given, u64)> {
        let given = self.last(key)?;
        match given.value.parse() {
            Ok(number) => Some((given, number)),
            Err(_) => {
                self.impossible(Some(&given), format!("expected a number, found {:?}", given.value));
                None
            }
        }
    }

    fn integer(&mut self, key: &'static str, number: u64) {
        self.values.insert(key, Value::Integer(number.try_into().unwrap_or(i64::MAX)));
    }

    /// Names each key that is not translated.
    pub(super) fn keys_without_counterpart(&mut self) {
        for given in self.given.clone() {
            let off = !given.is_on();
            match (given.key.as_str(), counterpart(&given.key)) {
                (_, Some(Counterpart::Key(_))) => {}
                (_, Some(Counterpart::Always(reason) | Counterpart::Without(reason))) => {
                    self.note(Some(&given), reason)
                }
                ("rest-api-separator", _) if given.value == ":" => {}
                ("no-auth" | "stun-only" | "no-udp-relay" | "oauth" | "server-relay", _) if off => {}
                (_, Some(Counterpart::Essential(reason))) => self.impossible(Some(&given), reason),
                (_, None) => self.note(Some(&given), "coturn is not known to have such a key"),
            }
        }
    }

    pub(super) fn listeners(&mut self) {
        let (Some(port), Some(tls_port)) =
            (self.port("listening-port", PORT), self.port("tls-listening-port", TLS_PORT))
        else {
            return;
        };
        let mut listen: Vec<SocketAddr> =
            self.addresses("listening-ip").into_iter().map(|(_, ip)| SocketAddr::new(ip, port)).collect();
        if listen.is_empty() && self.last("listening-ip").is_none() {
            listen.push((Ipv4Addr::UNSPECIFIED, port).into());
            if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
                listen.push((Ipv6Addr::UNSPECIFIED, port).into());
            }
        }
        for given in self.all("aux-server") {
            match given.value.parse() {
                Ok(addr) => listen.push(addr),
                Err(_) => {
                    self.impossible(Some(&given), format!("expected an address and a port, found {:?}", given.value));
                }
            }
        }
        let (udp, tcp, tls) = (!self.is_on("no-udp"), !self.is_on("no-tcp"), self.certificate());
        let of_tls = listen.iter().filter(|addr| addr.port() == port).map(|addr| SocketAddr::new(addr.ip(), tls_port));
        let of_tcp = listen.iter().copied().filter(|_| tcp).chain(of_tls.filter(|_| tls)).collect::<Vec<_>>();
        self.list("listen", each_once(listen.iter().filter(|_| udp)));
        self.list("listen-tcp", each_once(&of_tcp));
        if !udp && of_tcp.is_empty() {
            let given = self.last("no-udp");
            self.impossible(given.as_ref(), "neither UDP nor TCP nor TLS is left to listen on");
        }
        self.relayed(&listen);
    }

    /// A port; `None` if it is none, of which there is a note then.
    fn port(&mut self, key: &str, default: u16) -> Option<u16> {
        let Some(given) = self.last(key) else { return Some(default) };
        match given.value.parse() {
            Ok(0) => Some(default),
            Ok(port) => Some(port),
            Err(_) => {
                self.impossible(Some(&given), format!("expected a port, found {:?}", given.value));
                None
            }
        }
    }

    /// Whether there is TLS.
    fn certificate(&mut self) -> bool {
        let files = [self.last("cert"), self.last("pkey")].map(|given| given.filter(|given| !given.value.is_empty()));
        match files {
            // The certificate is often named where nobody uses it.
            _ if self.is_on("no-tls") => false,
            [None, None] => false,
            [Some(chain), Some(key)] => {
                self.values.insert("tls-certificate", Value::String(chain.value));
                self.values.insert("tls-key", Value::String(key.value));
                true
            }
            [one, other] => {
                self.impossible(one.or(other).as_ref(), "expected both cert and pkey, found one of them");
                false
            }
        }
    }

    fn addresses(&mut self, key: &str) -> Vec<(Given, IpAddr)> {
        let mut addresses = Vec::new();
        for given in self.all(key) {
            match given.value.parse() {
                Ok(ip) => addresses.push((given, ip)),
                Err(_) => self.impossible(Some(&given), format!("expected an IP address, found {:?}", given.value)),
            }
        }
        addresses
    }

    /// One relayed address of each family.
    fn relayed(&mut self, listen: &[SocketAddr]) {
        let mut relayed: Vec<IpAddr> = Vec::new();
        for (given, ip) in self.addresses("relay-ip") {
            match relayed.iter().find(|other| other.is_ipv4() == ip.is_ipv4()) {
                None => relayed.push(ip),
                Some(other) => {
                    let reason = format!(
                        "the relay has one relayed address of each family: this one is left out, {other} is taken"
                    );
                    self.note(Some(&given), reason);
                }
            }
        }
        let mut external: Vec<IpAddr> = Vec::new();
        for given in self.all("external-ip") {
            let (outside, inside) = given.value.split_once('/').map_or((&*given.value, None), |(o, i)| (o, Some(i)));
            let (Ok(outside), Ok(inside)) = (outside.parse::<IpAddr>(), inside.map(str::parse::<IpAddr>).transpose())
            else {
                let reason = format!("expected an IP address, or two with a slash, found {:?}", given.value);
                self.impossible(Some(&given), reason);
                continue;
            };
            let own = relayed.iter().find(|ip| ip.is_ipv4() == outside.is_ipv4()).copied();
            let is_of_another = inside.is_some_and(|inside| own.is_some_and(|own| own != inside));
            if is_of_another || external.iter().any(|ip| ip.is_ipv4() == outside.is_ipv4()) {
                self.note(Some(&given), "the relay has one external address of each family: this one is left out");
                continue;
            }
            external.push(outside);
            relayed.extend(inside.filter(|_| own.is_none()));
        }
        let wildcard = listen.iter().all(|addr| addr.ip().is_unspecified());
        if wildcard && relayed.is_empty() && external.is_empty() {
            match own_address() {
                Some(ip) => {
                    relayed.push(ip);
                    let reason = format!(
                        "coturn relays from the address that a client has reached; relay-address is {ip}, by which this host reaches others: change \
                         it if the relay runs elsewhere"
                    );
                    self.note(None, reason);
                }
                None => self.impossible(
                    None,
                    "relay-address: expected the address that peers reach: give listening-ip or relay-ip",
                ),
            }
        }
        let texts = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect();
        self.list("relay-address", texts(&relayed));
        self.list("external-address", texts(&external));
    }

    pub(super) fn ports(&mut self) {
        if self.last("min-port").or(self.last("max-port")).is_none() {
            return;
        }
        let first = self.number("min-port").map_or(49_152, |(_, port)| port);
        let last = self.number("max-port").map_or(65_535, |(_, port)| port);
        self.values.insert("ports", Value::String(format!("{first}-{last}")));
    }

    pub(super) fn credentials(&mut self) {
        let realm = self.last("realm");
        if let Some(given) = realm.clone().filter(|given| !given.value.is_empty()) {
            self.values.insert("realm", Value::String(given.value));
        } else {
            self.note(None, "coturn takes the host's domain for the realm; here it is backwater");
        }
        let mut secrets: Vec<String> = Vec::new();
        for Given { value, .. } in self.all("static-auth-secret") {
            if !value.is_empty() && !secrets.contains(&value) {
                secrets.push(value);
            }
        }
        if let Some(given) = self.last("use-auth-secret").filter(|given| given.is_on() && secrets.is_empty()) {
            self.impossible(Some(&given), "the secret is in a database: put it into secret");
        }
        let (mut users, mut hashed) = (BTreeMap::new(), BTreeMap::new());
        for given in self.all("user") {
            let Some((name, password)) = given.value.split_once(':') else {
                self.impossible(Some(&given), "expected NAME:PASSWORD, found no colon");
                continue;
            };
            let (name, key) = (name.to_owned(), password.strip_prefix("0x"));
            if !secrets.is_empty() {
                self.note(Some(&given), "coturn has no such users beside a secret");
            } else if let Some(key) = key {
                if key.len() != 32 || realm.is_none() {
                    self.impossible(Some(&given), "expected a key of MD5, and the realm that it is made for");
                }
                users.remove(&name);
                hashed.insert(name, key.to_owned());
            } else {
                hashed.remove(&name);
                users.insert(name, password.to_owned());
            }
        }
        if secrets.is_empty() && users.is_empty() && hashed.is_empty() {
            self.impossible(None, "there is neither a user nor a secret: the relay serves nobody without a credential");
        }
        let pairs = |map: BTreeMap<String, String>| map.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        self.list("user", pairs(users));
        self.list("hashed-user", pairs(hashed));
        self.list("secret", secrets);
    }

    /// coturn lets `allowed-peer-ip` win, this relay `deny-peer`.
    pub(super) fn peers(&mut self) {
        let [allowed, denied] = ["allowed-peer-ip", "denied-peer-ip"].map(|key| {
            let mut ranges = Vec::new();
            for given in self.all(key) {
                match Range::read(&given.value) {
                    Some(range) => ranges.push(range),
                    None => {
                        let reason = format!("expected an address or two with a hyphen, found {:?}", given.value);
                        self.impossible(Some(&given), reason);
                    }
                }
            }
            ranges
        });
        let mut allow = allowed.clone();
        if self.is_on("allow-loopback-peers") {
            let loopback = ["127.0.0.0/8", "::1"].into_iter().filter_map(Range::read);
            allow.extend(loopback.flat_map(|range| range.without(&denied)));
        }
        let deny = denied.iter().flat_map(|range| range.without(&allowed));
        let texts = |ranges| prefixes(ranges).iter().map(ToString::to_string).collect();
        let (allow, deny) = (texts(allow), texts(deny.collect()));
        self.list("allow-peer", allow);
        self.list("deny-peer", deny);
        self.note(
            None,
            "coturn lets clients reach private addresses (10.0.0.0/8, 192.168.0.0/16 and others) unless they are denied: here they are refused \
             unless allow-peer opens them",
        );
    }

    pub(super) fn limits(&mut self) {
        if let Some((_, quota @ 1..)) = self.number("user-quota") {
            self.integer("max-allocations-per-user", quota);
        }
        if let Some((given, quota @ 1..)) = self.number("total-quota") {
            let port = |key: &str, default| self.last(key).and_then(|g| g.value.parse().ok()).unwrap_or(default);
            let (first, last): (u64, u64) = (port("min-port", 49_152), port("max-port", 65_535));
            let ports = (last + 1).saturating_sub(first);
            if quota > ports {
                self.note(Some(&given), format!("there are {ports} ports, and never more allocations of a family"));
            } else {
                self.integer("max-allocations", quota);
            }
        }
        if let Some((given, bytes @ 1..)) = self.number("bps-capacity") {
            // coturn counts each direction by itself.
            self.integer("max-bytes-per-second", bytes.saturating_mul(2).max(1000));
            self.note(Some(&given), "max-bytes-per-second is twice as much, since it counts both directions together");
        }
        if let Some((given, seconds @ 1..)) = self.number("max-allocate-lifetime") {
            let possible = seconds.clamp(600, 86_400);
            if possible != seconds {
                self.note(Some(&given), format!("max-lifetime is {possible}, the closest that is possible"));
            }
            self.integer("max-lifetime", possible);
        }
        if let Some((_, threads)) = self.number("relay-threads") {
            self.integer("threads", threads.max(1));
        }
    }

    pub(super) fn logs_and_administration(&mut self) {
        let levels =
            [("debug", "debug"), ("info", "info"), ("control", "info"), ("warning", "warn"), ("error", "error")];
        if let Some(given) = self.last("log-min-level") {
            match levels.iter().find(|(theirs, _)| given.value.eq_ignore_ascii_case(theirs)) {
                Some((_, ours)) => drop(self.values.insert("log-level", Value::String((*ours).to_owned()))),
                None => self.note(Some(&given), "coturn has no such level, and ignores it"),
            }
        }
        let is_verbose = self.is_on("Verbose");
        if is_verbose {
            self.values.insert("log-level", Value::String("debug".to_owned()));
        }
        if is_verbose || self.is_on("verbose") {
            self.values.insert("log-allocations", Value::String("on".to_owned()));
        }
        if !self.is_on("prometheus") {
            return;
        }
        let port = self.number("prometheus-port").map_or(9641, |(_, port)| port);
        let given = self.last("prometheus-address");
        let ip = given.as_ref().and_then(|given| given.value.parse::<IpAddr>().ok()).filter(IpAddr::is_loopback);
        let ip = ip.unwrap_or(Ipv4Addr::LOCALHOST.into());
        if given.as_ref().is_none_or(|given| given.value != ip.to_string()) {
            let about = given.or(self.last("prometheus"));
            self.note(about.as_ref(), format!("metrics are on loopback only, here at http://{ip}:{port}/metrics"));
        }
        let host = if ip.is_ipv4() { ip.to_string() } else { format!("[{ip}]") };
        self.values.insert("admin", Value::String(format!("{host}:{port}")));
    }
}

fn each_once<'a>(addrs: impl IntoIterator<Item = &'a SocketAddr>) -> Vec<String> {
    let mut texts = Vec::new();
    for text in addrs.into_iter().map(ToString::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

/// Returns the address by which this host reaches the internet. Nothing is sent: a connected UDP socket has it from the routes.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}
