//! `DNS =`: the servers and search domains of a tunnel, given to the host's resolver while the tunnel is up.

use std::{fs, io, path::Path};

use tracing::{info, warn};

use crate::{config::Dns, programs};

/// It is there while systemd-resolved runs.
const RESOLVED: &str = "/run/systemd/resolve";

/// How Debian's resolvconf orders what it is given: by patterns of names.
const INTERFACE_ORDER: &str = "/etc/resolvconf/interface-order";

/// What was set. It is taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct Applied {
    device: String,
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// systemd-resolved, which `resolvectl` reaches by D-Bus. It forgets what belongs to a device that is gone.
    Resolved,
    /// resolvconf or openresolv.
    Resolvconf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "DNS = {0}: neither systemd-resolved nor resolvconf is here: install one of them, or use --no-dns, which leaves the resolver as it is"
    )]
    NoResolver(Dns),
    #[error("DNS = {0}: {1}: {2} (--no-dns leaves the resolver as it is)")]
    Refused(Dns, &'static str, io::Error),
}

/// Has the host's resolver ask the tunnel's servers, for all names, and try its search domains. The device must be there. Blocks.
///
/// # Errors
/// [`Error`].
pub(crate) fn apply(dns: &Dns, device: &str) -> Result<Applied, Error> {
    let by = if Path::new(RESOLVED).is_dir() { By::Resolved } else { By::Resolvconf };
    match set(by, dns, device) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NoResolver(dns.clone())),
        Err(error) => {
            let program = if by == By::Resolved { "resolvectl" } else { "resolvconf" };
            Err(Error::Refused(dns.clone(), program, error))
        }
        Ok(()) => {
            info!(%dns, device, ?by, "names are resolved by the tunnel's servers");
            Ok(Applied { device: device.to_owned(), by })
        }
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        if let Err(error) = unset(self.by, &self.device) {
            warn!(%error, device = self.device, "the resolver was not restored");
        }
    }
}

fn set(by: By, dns: &Dns, device: &str) -> io::Result<()> {
    match by {
        By::Resolved => {
            let servers: Vec<_> = dns.servers.iter().map(ToString::to_string).collect();
            let mut command = vec!["resolvectl", "dns", device];
            command.extend(servers.iter().map(String::as_str));
            programs::run(&command, "")?;
            let mut command = vec!["resolvectl", "domain", device];
            // Leads all names to this device's servers.
            command.extend((!servers.is_empty()).then_some("~."));
            command.extend(dns.search.iter().map(String::as_str));
            programs::run(&command, "").inspect_err(|_| drop(unset(by, device)))
        }
        By::Resolvconf => {
            // Of one metric, and exclusive, as wg-quick has it.
            programs::run(&["resolvconf", "-a", &record(device), "-m", "0", "-x"], &resolv_conf(dns))
        }
    }
}

fn unset(by: By, device: &str) -> io::Result<()> {
    match by {
        By::Resolved => programs::run(&["resolvectl", "revert", device], ""),
        By::Resolvconf => programs::run(&["resolvconf", "-d", &record(device), "-f"], ""),
    }
}

/// The lines of resolv.conf(5).
fn resolv_conf(dns: &Dns) -> String {
    let mut lines: String = dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !dns.search.is_empty() {
        lines += &format!("search {}\n", dns.search.join(" "));
    }
    lines
}

/// The name under which resolvconf keeps a device's servers: in front of the others, where it orders by name.
fn record(device: &str) -> String {
    let order = fs::read_to_string(INTERFACE_ORDER).unwrap_or_default();
    first_prefix(&order).map_or_else(|| device.to_owned(), |prefix| format!("{prefix}.{device}"))
}

/// Of the first pattern that is a name and a star.
fn first_prefix(order: &str) -> Option<&str> {
    order.lines().find_map(|line| {
        let prefix = line.trim().strip_suffix('*')?;
        let is_name = !prefix.is_empty() && prefix.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        is_name.then_some(prefix)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn resolvconf_gets_lines_of_its_file() {
        let dns = Dns {
            servers: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            search: vec!["home".to_owned(), "example.org".to_owned()],
        };
        assert_eq!(resolv_conf(&dns), "nameserver 10.0.0.1\nnameserver fd00::1\nsearch home example.org\n");
        assert_eq!(resolv_conf(&Dns { servers: Vec::new(), ..dns }), "search home example.org\n");
    }

    #[test]
    fn a_record_is_named_by_the_first_pattern() {
        assert_eq!(first_prefix("# interface-order(5)\nlo.inet6\nlo.@(dhclient|dns)\ntun*\ntap*\n*\n"), Some("tun"));
        assert_eq!(first_prefix("lo\n*\n"), None);
        assert_eq!(first_prefix(""), None);
    }
}
