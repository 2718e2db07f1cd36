//! `set`: what can be changed while a tunnel runs.

use std::{fmt, process::ExitCode};

use super::FAILED;
use crate::control::{self, Answer, Flag, Request};

/// Switches the policy. Without a name it is that of the one tunnel that runs.
pub async fn backpressure(name: Option<&str>, flag: Flag) -> ExitCode {
    send(name, Request::Backpressure(flag)).await
}

/// Switches the log's filter.
pub async fn log(name: Option<&str>, filter: &str) -> ExitCode {
    send(name, Request::Log(filter.to_owned())).await
}

async fn send(name: Option<&str>, request: Request) -> ExitCode {
    let name = match (name, control::running().as_slice()) {
        (Some(name), _) => name.to_owned(),
        (None, [only]) => only.clone(),
        (None, []) => return fail("no tunnel is up"),
        (None, several) => return fail(format_args!("which tunnel? --tunnel {}", several.join("|"))),
    };
    match control::ask(&name, &request).await {
        Ok(Answer::Done) => ExitCode::SUCCESS,
        Ok(Answer::Error(error)) => fail(format_args!("{name}: {error}")),
        Ok(Answer::Status(_)) => fail(format_args!("{name}: an answer to something else")),
        Err(error) => fail(format_args!("{name}: {error}")),
    }
}

fn fail(error: impl fmt::Display) -> ExitCode {
    eprintln!("backwater-tunnel: {error}");
    ExitCode::from(FAILED)
}
