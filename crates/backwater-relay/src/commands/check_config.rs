//! `check-config`: whether the relay could be started with a configuration, without starting it.

use clap::Command;

use super::file_argument;
use crate::Config;

pub(super) fn command() -> Command {
    Command::new("check-config")
        .about("Checks a configuration without starting the relay: all mistakes at once, exit code 2 if there is one")
        .arg(file_argument("The configuration file [default: that of --config or BACKWATER_RELAY_CONFIG]"))
}

/// Returns one line that says what a relay with this configuration would serve.
pub fn check_config(config: &Config) -> String {
    format!("the configuration is good: {}", config.summary())
}
