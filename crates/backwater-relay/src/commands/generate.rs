//! `completions` and `man`: what packages contain, made of the same grammar as `--help`.

use clap::{Arg, ArgMatches, Command, builder::EnumValueParser};
use clap_complete::Shell;

use crate::Arguments;

/// The name of the program.
const PROGRAM: &str = "backwater-relay";

pub(super) fn completions_command() -> Command {
    Command::new("completions")
        .about("Prints the completions of the command line for a shell")
        .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(EnumValueParser::<Shell>::new()))
}

pub(super) fn man_command() -> Command {
    Command::new("man").about("Prints the manual page, backwater-relay(1)")
}

/// Returns the script for the shell that a command names.
pub fn completions(command: &ArgMatches) -> String {
    let mut script = Vec::new();
    if let Some(&shell) = command.get_one::<Shell>("shell") {
        clap_complete::generate(shell, &mut Arguments::command(), PROGRAM, &mut script);
    }
    String::from_utf8_lossy(&script).trim_end().to_owned()
}

/// Returns the manual page, in roff.
///
/// # Errors
/// That it cannot be rendered.
pub fn man() -> Result<String, String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Arguments::command()).render(&mut page).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&page).trim_end().to_owned())
}
