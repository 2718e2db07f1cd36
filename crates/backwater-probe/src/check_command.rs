//! The command `check`.

use std::path::PathBuf;

use anyhow::ensure;
use backwater_probe::check::{Transport, Trust, check};
use backwater_turn::Protocol;
use clap::Args;

use crate::{address::CheckAddress, credential, usage};

#[derive(Args)]
#[command(
    after_help = "Exit codes: 0: data went through the server both ways, over one of the transports at least; 1: it did not, as the report says; \
                        2: the command line cannot be used."
)]
pub(crate) struct CheckArgs {
    /// The server, as in a WebRTC configuration: turn:HOST or turn:HOST:PORT for UDP and TCP, with ?transport=udp or ?transport=tcp for one
    /// of them, turns:HOST or turns:HOST:PORT for TLS. HOST or HOST:PORT will do. The default port is 3478, with TLS 5349.
    #[arg(value_name = "SERVER")]
    server: CheckAddress,
    /// The user that logs in. Split at the last colon, so that NAME may be EXPIRY:NAME. Without it, only whether the server can be reached
    /// is checked.
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
    /// The user's password, where it contains a colon.
    #[arg(long, conflicts_with = "secret", requires = "user")]
    password: Option<String>,
    /// The secret that the server shares with us: the user and the password are made from it, and are valid for an hour.
    #[arg(long)]
    secret: Option<String>,
    /// Trust the certificates in this PEM file, and no others, where the server has TLS.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

impl CheckArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let user = if self.user.is_some() || self.secret.is_some() {
            let made = credential(self.user, self.password, self.secret)?;
            let user = backwater_turn::client::Credential::new(&made.user, &made.password);
            Some(user.map_err(|error| usage(error.to_string()))?)
        } else {
            None
        };
        let CheckAddress { text, server, protocols, tls } = self.server;
        let plain = |protocol| match protocol {
            Protocol::Udp => Transport::Udp,
            Protocol::Tcp => Transport::Tcp,
        };
        let mut transports: Vec<_> = protocols.into_iter().map(plain).collect();
        if tls {
            transports.push(Transport::Tls(Trust::new(server.host(), self.ca.as_deref()).map_err(usage)?));
        }
        let report = check(&text, server.resolve()?, &transports, user.as_ref()).await?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            println!("{report}");
        }
        ensure!(report.works, "the server does not work from here: see the report");
        Ok(())
    }
}
