//! A network of its own.

use std::{env, process::Command};

use anyhow::Result;

/// A loopback of its own, and room for the descriptors of a thousand clients.
const INSIDE: &str = r#"ip link set lo up && ulimit -n "$(ulimit -Hn)" && exec "$@""#;

/// Starts what is added as arguments in a network namespace; it ends with us. An ordinary user becomes root of a user
/// namespace of their own.
pub(crate) fn command() -> Result<Command> {
    let is_root = crate::output(Command::new("id").arg("-u"))?.trim() == "0";
    let mut command = ends_with_us();
    command.args(["unshare", if is_root { "-n" } else { "-Urn" }]);
    command.args(["sh", "-c", INSIDE, "sh"]);
    command.env("PATH", path());
    Ok(command)
}

/// Where programs are looked for inside it.
pub(crate) fn path() -> String {
    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default())
}

/// Starts a program that the kernel ends when this one has ended, however that came about.
pub(crate) fn ends_with_us() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command
}
