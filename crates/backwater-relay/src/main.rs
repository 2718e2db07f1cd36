//! The program around [`backwater_relay`].

#![forbid(unsafe_code)]

use std::{io::Write, process::ExitCode, time::Duration};

use backwater_ops::{Logs, Signal, Signals, hide_memory};
use backwater_relay::{Arguments, Config, Import, Relay, commands};
use backwater_turn::server::DropReason;
use tracing::{error, info, warn};

#[cfg(unix)]
mod descriptors;
#[cfg(target_os = "linux")]
mod systemd;

/// A system without systemd: nobody is told.
#[cfg(not(target_os = "linux"))]
mod systemd {
    pub(crate) fn ready() {}

    pub(crate) fn stopping(_drain: std::time::Duration) {}

    pub(crate) async fn watchdog(_relay: &backwater_relay::Relay) {
        std::future::pending().await
    }
}

/// The configuration cannot be used.
const BAD_CONFIGURATION: u8 = 2;

/// The system does not let it start.
const CANNOT_START: u8 = 1;

/// Something essential of coturn's configuration has no counterpart.
const NOT_IMPORTED: u8 = 1;

/// A part of the relay has failed.
const FAILED: u8 = 3;

fn main() -> ExitCode {
    let matches = match Arguments::command().try_get_matches() {
        Ok(matches) => matches,
        Err(help) if !help.use_stderr() => help.exit(),
        Err(error) => return fail(BAD_CONFIGURATION, Arguments::explain(&error)),
    };
    // These read no configuration.
    let done = match matches.subcommand() {
        Some(("hash-password", command)) => Some(print(commands::hash_password(command))),
        Some(("import", command)) => Some(match commands::import(command) {
            Ok((name, import)) => imported(&name, import),
            Err(error) => fail(BAD_CONFIGURATION, error),
        }),
        Some(("completions", command)) => Some(print(Ok(commands::completions(command)))),
        Some(("man", _)) => Some(print(commands::man())),
        _ => None,
    };
    if let Some(code) = done {
        return code;
    }
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let env = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    let mut config = match Arguments::read(&matches, env).and_then(|a| Config::new(&a)) {
        Ok(config) => config,
        Err(errors) => {
            for error in &errors {
                fail(BAD_CONFIGURATION, error);
            }
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let done = match matches.subcommand() {
        Some(("check-config", _)) => Some(commands::check_config(&config)),
        Some(("credentials", command)) => Some(commands::credentials(&config, command)),
        _ => None,
    };
    if let Some(result) = done {
        if let Some(warning) = config.exposed_secrets() {
            eprintln!("backwater-relay: warning: {warning}");
        }
        return print(result);
    }
    let logs = match Logs::to_stdout(&config.log_level) {
        Ok(logs) => logs,
        Err(error) => return fail(BAD_CONFIGURATION, format_args!("log-level: expected a level or a filter: {error}")),
    };
    if let Some(warning) = config.exposed_secrets() {
        warn!("{warning}");
    }
    if let Err(error) = hide_memory() {
        warn!(%error, "other processes of this user can read the passwords in the relay's memory");
    }
    // Signals are caught before the relay says that it is there.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(CANNOT_START, format_args!("cannot start: {error}")),
    };
    let mut signals = match runtime.block_on(async { Signals::listen() }) {
        Ok(signals) => signals,
        Err(error) => return fail(CANNOT_START, format_args!("cannot catch signals: {error}")),
    };
    #[cfg(unix)]
    descriptors::raise_limit(&config);
    if let Err(error) = config.find_external() {
        return fail(CANNOT_START, error);
    }
    let mut relay = match Relay::start(&config) {
        Ok(relay) => relay,
        Err(error) => return fail(CANNOT_START, error),
    };
    relay.set_log_filter(logs.filter());
    announce(&config, &relay);
    systemd::ready();
    let failed = runtime.block_on(async {
        tokio::select! {
            () = relay.failed() => true,
            () = serve(&relay, &mut signals, config.drain) => false,
            () = systemd::watchdog(&relay) => false,
        }
    });
    if failed {
        error!(
            "a part of the relay has failed: its clients are without service, so the relay ends with exit code {FAILED}"
        );
    }
    relay.stop(Duration::ZERO);
    summarize(&relay);
    if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

/// Runs until a signal ends it and its clients have left, or another signal comes.
async fn serve(relay: &Relay, signals: &mut Signals, drain: Duration) {
    while signals.next().await == Signal::Reload {
        relay.reload();
    }
    let drain = relay.drain_limit().unwrap_or(drain);
    info!(drain_seconds = drain.as_secs(), "stopping; a second signal ends it at once");
    systemd::stopping(drain);
    relay.drain(drain);
    tokio::select! {
        () = relay.drained() => {}
        () = async { while signals.next().await == Signal::Reload {} } => {}
    }
}

/// Prints what coturn's configuration is here.
fn imported(name: &str, Import { config, notes }: Import) -> ExitCode {
    for note in &notes {
        let separator = if note.place.is_some() { ", " } else { ": " };
        eprintln!("{name}{separator}{note}");
    }
    let printed = print(Ok(config.trim_end().to_owned()));
    if notes.iter().any(|note| note.is_essential) { ExitCode::from(NOT_IMPORTED) } else { printed }
}

/// Prints what a command was run for.
fn print(result: Result<String, String>) -> ExitCode {
    let text = match result {
        Ok(text) => text,
        Err(error) => return fail(BAD_CONFIGURATION, error),
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(CANNOT_START, format_args!("cannot write to stdout: {error}")),
    }
}

fn fail(code: u8, message: impl std::fmt::Display) -> ExitCode {
    eprintln!("backwater-relay: {message}");
    ExitCode::from(code)
}

fn announce(config: &Config, relay: &Relay) {
    config.announce(relay.local_addrs(), relay.local_tcp_addrs());
    for addr in relay.local_addrs() {
        info!(listener = %addr, threads = relay.counters().len(), "listening for TURN over UDP");
    }
    for addr in relay.local_tcp_addrs() {
        let over = if relay.has_tls() { "TCP and TLS" } else { "TCP" };
        info!(listener = %addr, threads = relay.counters().len(), "listening for TURN over {over}");
    }
    if let Some(addr) = relay.admin_addr() {
        info!(admin = %addr, "administration: http://{addr}/ and /metrics");
        if !addr.ip().is_loopback() {
            warn!(
                admin = %addr,
                remedy = "let only a TLS proxy reach it, or a network that you trust",
                "the administration is plain HTTP beyond this host: whoever sees the packets learns admin-token"
            );
        }
    }
    let Some(first) = &config.first_run else { return };
    info!(username = first.user, password = first.password, "no user is configured: this one was made up");
    if let Some(addr) = relay.local_addrs().first() {
        let (user, password) = (&first.user, &first.password);
        info!("try it: turnutils_uclient -y -u {user} -w {password} -p {} {}", addr.port(), addr.ip());
    }
    if first.loopback_peers {
        warn!(
            "PEERS ON LOOPBACK ARE ALLOWED for this first run: whoever has the credential reaches what listens on it"
        );
    }
}

fn summarize(relay: &Relay) {
    let total = |f: fn(&backwater_relay::Counters) -> u64| relay.counters().iter().map(|c| f(c)).sum::<u64>();
    info!(
        allocations = total(|c| c.allocations.get()),
        to_peers = total(|c| c.to_peers.get()),
        to_clients = total(|c| c.to_clients.get()),
        forbidden = total(|c| c.forbidden.get()),
        dropped = total(|c| DropReason::ALL.iter().map(|&reason| c.dropped(reason)).sum()),
        "stopped"
    );
}
