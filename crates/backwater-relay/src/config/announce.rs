//! What a relay says of itself at its start.

use std::{fmt::Display, net::SocketAddr};

use backwater_turn::PeerRules;
use tracing::{info, warn};

use super::Config;
use crate::{external::container, ports::RelayIp};

impl Config {
    /// Returns what the relay serves, on one line.
    pub(crate) fn summary(&self) -> String {
        let relayed = [self.relay_v4, self.relay_v6].into_iter().flatten();
        let udp = (!self.listen.is_empty()).then(|| format!("TURN over UDP on {}", list(&self.listen)));
        let over = if self.certificate.is_some() { "TCP and TLS" } else { "TCP" };
        let tcp = (!self.listen_tcp.is_empty()).then(|| format!("TURN over {over} on {}", list(&self.listen_tcp)));
        let server =
            self.external_server.as_ref().map(|(host, port)| format!(" (outside: as stun:{host}:{port} says)"));
        let server = server.unwrap_or_default();
        format!(
            "{}, relayed addresses {}{server} with ports {}-{}, realm {}, users {}, secrets {}, threads {}",
            list(udp.into_iter().chain(tcp)),
            list(relayed),
            self.ports.start(),
            self.ports.end(),
            self.credentials.realm(),
            self.credentials.users(),
            self.credentials.secrets(),
            self.threads,
        )
    }

    /// Returns how many relayed sockets there may be at once, and how many listeners there are.
    pub fn sockets(&self) -> (u64, u64) {
        let families = [self.relay_v4, self.relay_v6].iter().flatten().count();
        let most = self.ports.len().min(self.total_limits.allocations);
        ((families * most) as u64, ((self.listen.len() + self.listen_tcp.len()) * self.threads) as u64)
    }

    /// Logs what the relay was started with, on one line, and warns of what will not work.
    pub fn announce(&self, listen: &[SocketAddr], listen_tcp: &[SocketAddr]) {
        let relayed = || [self.relay_v4, self.relay_v6].into_iter().flatten();
        let container = container();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = list(listen),
            listen_tcp = list(listen_tcp),
            tls = self.certificate.is_some(),
            relayed = list(relayed()),
            ports = format!("{}-{}", self.ports.start(), self.ports.end()),
            realm = self.credentials.realm(),
            users = self.credentials.users(),
            secrets = self.credentials.secrets(),
            threads = self.threads,
            file = self.file.as_ref().map_or_else(|| "none".to_owned(), |file| file.path().display().to_string()),
            container = container.as_deref().unwrap_or("none"),
            "backwater-relay started"
        );
        for RelayIp { advertise, .. } in relayed().filter(|ip| !ip.advertise.is_loopback()) {
            // Where the operator allows it, this relay is for a private network.
            if let Err(why) = PeerRules::default().check_ip(advertise)
                && self.peers.check_ip(advertise).is_err()
            {
                let remedy = if container.is_some() {
                    "use the host's network; or publish the listeners and the range ports, each to the same number, and give the host's \
                     outer address as external-address, or stun:HOST:PORT"
                } else {
                    "behind a NAT, give the address that the NAT has outside as external-address, or stun:HOST:PORT"
                };
                warn!(
                    relayed = %advertise,
                    %why,
                    remedy,
                    "the relayed address is private or otherwise special: peers elsewhere cannot reach it, and clients of this \
                     relay that try each other's get 403"
                );
            }
        }
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
