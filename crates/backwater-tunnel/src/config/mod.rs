//! A tunnel's configuration: WireGuard's `.conf` files.

use std::{
    fmt::{self, Write},
    fs::File,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    path::Path,
    str::FromStr,
};

use backwater_ops::{exposed_mode, why_not_roots_alone};
use base64::{Engine, prelude::BASE64_STANDARD};
use ipnet::IpNet;
use x25519_dalek as x25519;
use zeroize::{Zeroize, Zeroizing};

mod parse;
mod relay;

pub use relay::{Login, Mode, Relay, Secret};

/// What a `.conf` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its `[Interface]` section.
    pub interface: Interface,
    /// Its `[Peer]` sections, in the order of the file.
    pub peers: Vec<Peer>,
    /// Its `[Relay]` section, or the comments `#@ relay` that stand for it.
    pub relay: Option<Relay>,
}

/// This side of the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `PrivateKey`.
    pub private_key: Key,
    /// `Address`: addresses of the device, each with its prefix's length.
    pub addresses: Vec<IpNet>,
    /// `ListenPort`; 0: any.
    pub listen_port: u16,
    /// `MTU` of the device in bytes, 576–65,535; `None`: 1,420.
    pub mtu: Option<u16>,
    /// `FwMark`: the mark of what the tunnel sends; 0: none.
    pub fwmark: u32,
    /// `Table`.
    pub table: Table,
    /// `DNS`.
    pub dns: Dns,
    /// `PreUp`, `PostUp`, `PreDown` and `PostDown`, in the order of the file.
    pub hooks: Vec<Hook>,
}

/// Who resolves names while the tunnel is up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// The servers.
    pub servers: Vec<IpAddr>,
    /// Domains that are tried behind a name that has no dot.
    pub search: Vec<String>,
}

/// A command of the file, as wg-quick runs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// When it is run.
    pub at: HookTime,
    /// For a shell; `%i` stands for the device's name.
    pub command: String,
}

/// When a hook is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookTime {
    /// Before there is a device.
    PreUp,
    /// When the tunnel is up.
    PostUp,
    /// While it is still up.
    PreDown,
    /// When the device is gone.
    PostDown,
}

/// Who adds the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Table {
    /// The program: each of the peers' `AllowedIPs` is a route to the device.
    #[default]
    Auto,
    /// Nobody.
    Off,
    /// The program, in this table, which rules of the operator's own look up; no rule is added.
    Number(NonZeroU32),
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `PublicKey`.
    pub public_key: Key,
    /// `PresharedKey`.
    pub preshared_key: Option<Key>,
    /// `Endpoint`; `None`: learnt when the peer calls.
    pub endpoint: Option<Endpoint>,
    /// `AllowedIPs`: what is sent to it, and what it may send.
    pub allowed_ips: Vec<IpNet>,
    /// `PersistentKeepalive` in seconds; `None`: off.
    pub persistent_keepalive: Option<NonZeroU16>,
}

/// Where a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An address.
    Address(SocketAddr),
    /// A name to resolve, and a port.
    Name(String, u16),
}

/// 32 bytes: a private, public or preshared key. `Debug` shows nothing but its kind, so that no log has one. It is
/// overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

/// What is to be said about a configuration that can be used: one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(String);

/// All that is wrong with a configuration, in the order of the file: `file:line: key: found this, wanted that`. Nothing
/// in it tells a private or preshared key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors(Vec<String>);

/// A file that is longer is something else than a configuration.
const MAX_LEN: u64 = 1 << 20;

/// Peers of a tunnel, at most.
pub(crate) const MAX_PEERS: usize = 1024;

/// Linux's `IFNAMSIZ`, without the zero at the end.
const MAX_NAME: usize = 15;

const NAME: &str = "1 to 15 of the characters a-z A-Z 0-9 _ = + . -";

impl Config {
    /// Reads a file of at most 1 MiB. On Unix there is a warning when others than its owner can read it.
    ///
    /// # Errors
    /// All that is wrong with it; or why it cannot be read.
    pub fn read(path: &Path) -> Result<(Self, Vec<Warning>), Errors> {
        Self::read_with_owner(path).map(|(config, warnings, _)| (config, warnings))
    }

    /// As [`read`](Self::read); and why the file's commands must not be run, if others than root could have written them.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn read_with_owner(path: &Path) -> Result<(Self, Vec<Warning>, Option<String>), Errors> {
        let name = path.display().to_string();
        let cannot = |error: io::Error| Errors(vec![format!("{name}: cannot be read: {error}")]);
        let file = File::open(path).map_err(cannot)?;
        let (exposed, untrusted) = (exposed_mode(&file), why_not_roots_alone(&file));
        // Of its full length from the start: what a growing buffer leaves behind cannot be wiped.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN as usize + 2));
        file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.len() as u64 > MAX_LEN {
            return Err(Errors(vec![format!("{name}: found more than {MAX_LEN} bytes, wanted a configuration")]));
        }
        let text = str::from_utf8(&bytes).map_err(|error| {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + good.iter().filter(|&&byte| byte == b'\n').count();
            Errors(vec![format!("{name}:{line}: found bytes that are no text, wanted UTF-8")])
        })?;
        let (config, mut warnings) = Self::parse(&name, text)?;
        if let Some(mode) = exposed {
            let problem = format!("{name}: others can read the private key in it (mode {mode:04o}): chmod 600 it");
            warnings.insert(0, Warning(problem));
        }
        Ok((config, warnings, untrusted))
    }

    /// Understands the text of a file of that name.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<(Self, Vec<Warning>), Errors> {
        parse::parse(name, text)
    }

    /// The text of a file that says this, **with its private and preshared keys and the relay's password**: [`parse`](Self::parse) makes the
    /// same of it. (So it is not `Display`.)
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::new());
        // Writing into a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let Interface { private_key, addresses, listen_port, mtu, fwmark, table, dns, hooks } = &self.interface;
        writeln!(out, "[Interface]\nPrivateKey = {}", *Zeroizing::new(private_key.to_base64()))?;
        if !addresses.is_empty() {
            writeln!(out, "Address = {}", list(addresses.iter()))?;
        }
        if *listen_port != 0 {
            writeln!(out, "ListenPort = {listen_port}")?;
        }
        if let Some(mtu) = mtu {
            writeln!(out, "MTU = {mtu}")?;
        }
        if *fwmark != 0 {
            writeln!(out, "FwMark = {fwmark:#x}")?;
        }
        match table {
            Table::Auto => {}
            Table::Off => writeln!(out, "Table = off")?,
            Table::Number(number) => writeln!(out, "Table = {number}")?,
        }
        if !dns.is_empty() {
            writeln!(out, "DNS = {dns}")?;
        }
        for Hook { at, command } in hooks {
            writeln!(out, "{at} = {command}")?;
        }
        for Peer { public_key, preshared_key, endpoint, allowed_ips, persistent_keepalive } in &self.peers {
            writeln!(out, "\n[Peer]\nPublicKey = {}", public_key.to_base64())?;
            if let Some(key) = preshared_key {
                writeln!(out, "PresharedKey = {}", *Zeroizing::new(key.to_base64()))?;
            }
            if let Some(endpoint) = endpoint {
                writeln!(out, "Endpoint = {endpoint}")?;
            }
            if !allowed_ips.is_empty() {
                writeln!(out, "AllowedIPs = {}", list(allowed_ips.iter()))?;
            }
            if let Some(seconds) = persistent_keepalive {
                writeln!(out, "PersistentKeepalive = {seconds}")?;
            }
        }
        self.relay.as_ref().map_or(Ok(()), |relay| relay.write(out))
    }
}

/// The tunnel's name, which is also the device's: the file's, without `.conf`, as with wg-quick. 1–15 of the characters
/// `a-zA-Z0-9_=+.-`.
///
/// # Errors
/// When the file's name is no such name.
pub fn tunnel_name(path: &Path) -> Result<String, Errors> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.strip_suffix(".conf").unwrap_or(name);
    if is_name(name) {
        return Ok(name.to_owned());
    }
    let wanted = format!("{NAME} before .conf");
    Err(Errors(vec![format!("{}: the file's name names the tunnel: found {name:?}, wanted {wanted}", path.display())]))
}

/// The name of a tunnel without a file.
///
/// # Errors
/// When it is no such name as [`tunnel_name`] has.
#[cfg(target_os = "linux")]
pub(crate) fn device_name(name: &str) -> Result<String, Errors> {
    // What begins like an option is none that `ip` and `wg` would take.
    if is_name(name) && !name.starts_with('-') {
        return Ok(name.to_owned());
    }
    Err(Errors::of(&format!("the device's name: found {name:?}, wanted a command or {NAME}")))
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_=+.-".contains(c);
    // "." and ".." are no names of devices either.
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(allowed) && name.chars().any(|c| c != '.')
}

impl Key {
    /// A new private or preshared key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(io::Error::from)?;
        Ok(Self(bytes))
    }

    /// Reads what [`to_base64`](Self::to_base64) writes: 44 characters.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text).ok()?);
        bytes.as_slice().try_into().ok().map(Self)
    }

    /// RFC 4648's base64 with padding, as in `.conf` files. The only way to show a key.
    pub fn to_base64(&self) -> String {
        BASE64_STANDARD.encode(self.0)
    }

    /// The public key of this private key (RFC 7748, X25519).
    pub fn public(&self) -> Self {
        Self(x25519::PublicKey::from(&x25519::StaticSecret::from(self.0)).to_bytes())
    }
}

impl Dns {
    /// Whether the file says nothing about it.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.search.is_empty()
    }
}

impl Hook {
    /// That it is not run, for a file that has it.
    pub(crate) fn skipped(&self, path: &Path) -> Warning {
        let Self { at, command } = self;
        Warning(format!("{}: {at} is not run (--allow-hooks runs it): {}", path.display(), parse::shown(command)))
    }
}

impl HookTime {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::PreUp, Self::PostUp, Self::PreDown, Self::PostDown];

    /// The key in the file.
    pub fn key(self) -> &'static str {
        match self {
            Self::PreUp => "PreUp",
            Self::PostUp => "PostUp",
            Self::PreDown => "PreDown",
            Self::PostDown => "PostDown",
        }
    }
}

impl Errors {
    /// One, of something else than a file.
    pub(crate) fn of(problem: &str) -> Self {
        Self(vec![problem.to_owned()])
    }

    /// All of them.
    pub(crate) fn joined(all: impl IntoIterator<Item = Option<Self>>) -> Self {
        Self(all.into_iter().flatten().flat_map(|Self(lines)| lines).collect())
    }

    /// The lines.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Errors {}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.servers.iter().map(ToString::to_string);
        f.write_str(&list(servers.chain(self.search.iter().cloned())))
    }
}

impl fmt::Display for HookTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// Reads `IPv4:port`, `[IPv6]:port` or `name:port`; the port is not 0.
    fn from_str(text: &str) -> Result<Self, String> {
        parse::endpoint(text).ok_or_else(|| format!("expected {}", parse::ENDPOINT))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
