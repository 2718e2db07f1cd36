//! `hash-password`: a value for `hashed-user`.

use std::io::{self, BufRead};

use backwater_turn::{Credentials, HashedPassword};
use clap::{Arg, ArgMatches, Command};

/// The longest line that is read, in bytes: RFC 8489 has no password that is nearly as long.
const LONGEST: u64 = 4096;

pub(super) fn command() -> Command {
    let required = |name: &'static str, help| Arg::new(name).long(name).value_name("NAME").required(true).help(help);
    Command::new("hash-password")
        .about("Reads a password (the first line of standard input) and prints a value for hashed-user")
        .arg(required("name", "The user's name"))
        // Not `realm`: the relay's flag of that name has this id.
        .arg(
            Arg::new("of-realm")
                .long("realm")
                .value_name("NAME")
                .required(true)
                .help("The realm of the relay that the keys are for: with another one they are worth nothing"),
        )
}

/// Reads the password and returns the value.
///
/// # Errors
/// Why there can be none, in a line.
pub fn hash_password(command: &ArgMatches) -> Result<String, String> {
    let text = |id: &str| command.get_one::<String>(id).map(String::as_str).unwrap_or_default();
    let (name, realm) = (text("name"), text("of-realm"));
    Credentials::new(realm).map_err(|error| format!("--realm: expected a realm, but {error}"))?;
    let mut password = String::new();
    io::Read::take(io::stdin().lock(), LONGEST)
        .read_line(&mut password)
        .map_err(|error| format!("standard input: expected a password, but {error}"))?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    let password = password.strip_suffix('\r').unwrap_or(password);
    let keys =
        HashedPassword::new(name, realm, password).map_err(|error| format!("cannot hash this password: {error}"))?;
    Ok(format!("{name}:{keys}"))
}
