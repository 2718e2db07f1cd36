//! The command `check`.

use anyhow::ensure;
use backwater_probe::check::check;
use clap::Args;

use crate::{address::CheckAddress, credential, usage};

#[derive(Args)]
#[command(
    after_help = "Exit codes: 0: data went through the server both ways, over UDP or over TCP; 1: it did not, as the report says; \
                        2: the command line cannot be used."
)]
pub(crate) struct CheckArgs {
    /// The server, as in a WebRTC configuration: turn:HOST, turn:HOST:PORT, either with ?transport=udp or ?transport=tcp to check only
    /// that. HOST or HOST:PORT will do. The default port is 3478.
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
        let CheckAddress { text, server, protocols } = self.server;
        let report = check(&text, server.resolve()?, &protocols, user.as_ref()).await?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            println!("{report}");
        }
        ensure!(report.works, "the server does not work from here: see the report");
        Ok(())
    }
}
