//! `import`: a configuration of coturn's turnserver, translated.

use std::{
    fs::File,
    io::{self, Read},
};

use clap::{ArgMatches, Command};

use super::{FILE, file_argument};
use crate::Import;

/// A file that is longer, in bytes, is something else.
const LONGEST: u64 = 1 << 20;

pub(super) fn command() -> Command {
    Command::new("import")
        .about(
            "Prints the configuration that a turnserver.conf of coturn's is here, and names on standard error what is not in it; exit code 1 if \
             clients depend on that",
        )
        .arg(file_argument("The turnserver.conf").required(true))
}

/// Reads the file and returns its name and what it is here.
///
/// # Errors
/// That it cannot be read, in a line.
pub fn import(command: &ArgMatches) -> Result<(String, Import), String> {
    let name = command.get_one::<String>(FILE).cloned().unwrap_or_default();
    let read = || {
        let mut bytes = Vec::new();
        File::open(&name)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST {
            return Err(io::Error::other(format!("expected a file of at most {LONGEST} bytes")));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().map_err(|error| format!("{name}: cannot be read: {error}"))?;
    let import = crate::import(&text);
    Ok((name, import))
}
