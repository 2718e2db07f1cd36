//! The commands beside running the relay: each reads something, prints something, and ends.

use clap::{Arg, ArgMatches, Command};

mod check_config;
pub(crate) mod credentials;
mod generate;
mod hash_password;
mod import;

pub use check_config::check_config;
pub use credentials::credentials;
pub use generate::{completions, man};
pub use hash_password::hash_password;
pub use import::import;

/// The name of the argument that stands for `--config` in a command.
pub(crate) const FILE: &str = "file";

/// Returns the grammar of each command.
pub(crate) fn commands() -> [Command; 6] {
    [
        check_config::command(),
        credentials::command(),
        hash_password::command(),
        import::command(),
        generate::completions_command(),
        generate::man_command(),
    ]
}

/// Returns the configuration file that a command has as its argument.
pub(crate) fn file(matches: &ArgMatches) -> Option<&String> {
    let (_, command) = matches.subcommand()?;
    command.try_get_one(FILE).ok().flatten()
}

fn file_argument(help: &'static str) -> Arg {
    Arg::new(FILE).value_name("FILE").help(help)
}
