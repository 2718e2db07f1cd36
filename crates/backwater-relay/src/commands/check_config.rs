//! `check-config`: whether the relay could be started with a configuration, without starting it.

use clap::Command;

use super::file_argument;
use crate::{Config, ingress::stream::tls::CertificateFiles};

pub(super) fn command() -> Command {
    Command::new("check-config")
        .about("Checks a configuration without starting the relay: all mistakes at once, exit code 2 if there is one")
        .arg(file_argument("The configuration file [default: that of --config or BACKWATER_RELAY_CONFIG]"))
}

/// Returns one line that says what a relay with this configuration would serve.
///
/// # Errors
/// That the certificate cannot be used.
pub fn check_config(config: &Config) -> Result<String, String> {
    let certificate = config.certificate.as_ref().map(CertificateFiles::read).transpose();
    certificate.map_err(|problem| format!("tls-certificate: {problem}"))?;
    Ok(format!("the configuration is good: {}", config.summary()))
}
