//! The `[Relay]` section: the TURN server by which peers are reached where UDP to them is blocked.

use std::{
    fmt::{self, Write},
    net::SocketAddr,
};

use backwater_stun::{Host, Scheme, Transport, Uri};
use backwater_turn::client::Credential;
use zeroize::Zeroizing;

use super::{
    Endpoint,
    parse::{Entry, Reader, Section, characters, shown},
};
use crate::engine::endpoints::canonical;

pub(super) const KEYS: &[&str] = &["Uri", "Username", "Password", "Secret", "Mode"];

const URI: &str = "turn:host or turn:host:port (UDP)";

/// URIs that are tried, at most.
pub(super) const MAX_URIS: usize = 8;

/// A TURN server (RFC 8656), and when it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// `Uri`: where its addresses are, one at least.
    pub servers: Vec<Endpoint>,
    /// `Username`, and `Password` or `Secret`.
    pub login: Login,
    /// `Mode`.
    pub mode: Mode,
}

/// How the tunnel authenticates at the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// With a user's name and password.
    Password {
        /// `Username`.
        username: String,
        /// `Password`.
        password: Secret,
    },
    /// With time-limited credentials, which the tunnel makes itself of the secret that it shares with the relay.
    Secret {
        /// `Username`, which may be empty.
        username: String,
        /// `Secret`.
        secret: Secret,
    },
}

/// When the relay is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// While there is no direct way.
    #[default]
    Auto,
    /// For all datagrams: no peer sees this host's address.
    Always,
    /// Not at all.
    Never,
}

/// A password. `Debug` does not show it, and it is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Zeroizing<String>);

impl Relay {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let Self { servers, login, mode } = self;
        writeln!(out, "\n[Relay]")?;
        for server in servers {
            writeln!(out, "Uri = turn:{server}")?;
        }
        let (username, key, secret) = match login {
            Login::Password { username, password } => (username, "Password", password),
            Login::Secret { username, secret } => (username, "Secret", secret),
        };
        if !username.is_empty() {
            writeln!(out, "Username = {username}")?;
        }
        writeln!(out, "{key} = {}\nMode = {mode}", *secret.0)
    }
}

impl Mode {
    const ALL: [Self; 3] = [Self::Auto, Self::Always, Self::Never];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Reader {
    pub(super) fn relay(&mut self, section: &Section<'_>) -> Option<Relay> {
        let mut servers = Vec::new();
        for entry in section.entries("Uri") {
            for part in entry.value.split(',').map(str::trim) {
                match server(part) {
                    Some(server) if servers.contains(&server) => {}
                    Some(_) if servers.len() == MAX_URIS => {
                        self.error(entry.line, "Uri", "one more", &format!("at most {MAX_URIS}"));
                    }
                    Some(server) => servers.push(server),
                    None => self.error(entry.line, "Uri", &shown(part), URI),
                }
            }
        }
        if section.entries("Uri").next().is_none() {
            self.error(section.line, "Uri", "none in this section", URI);
        }
        let login = self.login(section);
        let mode = self.one(section, "Mode", "auto, always or never", |text| {
            Mode::ALL.into_iter().find(|mode| text.eq_ignore_ascii_case(&mode.to_string()))
        });
        Some(Relay { servers, login: login?, mode: mode.unwrap_or_default() })
    }

    fn login(&mut self, section: &Section<'_>) -> Option<Login> {
        let one = |key| section.entries(key).next();
        let username = one("Username").map(|entry| entry.value.to_owned());
        let secret = |entry: Entry<'_>| Secret(Zeroizing::new(entry.value.to_owned()));
        match (one("Password"), one("Secret")) {
            (Some(password), None) => {
                let Some(username) = username else {
                    self.error(section.line, "Username", "none in this section", "the name that goes with Password");
                    return None;
                };
                if Credential::new(&username, password.value).is_err() {
                    let found = format!("{} and {}", characters(&username), characters(password.value));
                    let wanted = "a user name of 509 bytes at most and a password, without control characters";
                    self.error(password.line, "Password", &found, wanted);
                    return None;
                }
                Some(Login::Password { username, password: secret(password) })
            }
            (None, Some(entry)) => {
                Some(Login::Secret { username: username.unwrap_or_default(), secret: secret(entry) })
            }
            (Some(_), Some(entry)) => {
                self.error(entry.line, "Secret", "it beside Password", "one of the two");
                None
            }
            (None, None) => {
                self.error(section.line, "Password", "none in this section", "Password or Secret");
                None
            }
        }
    }
}

/// A TURN server that is reached by UDP.
fn server(text: &str) -> Option<Endpoint> {
    let uri = Uri::parse(text).ok()?;
    let by_udp = uri.scheme == Scheme::Turn && matches!(uri.transport, None | Some(Transport::Udp));
    let port = uri.port_or_default();
    if !by_udp || port == 0 {
        return None;
    }
    match uri.host {
        Host::Ip(ip) => Some(Endpoint::Address(canonical(SocketAddr::new(ip, port)))),
        Host::Name(name) => super::parse::is_domain(name).then(|| Endpoint::Name(name.to_owned(), port)),
    }
}
