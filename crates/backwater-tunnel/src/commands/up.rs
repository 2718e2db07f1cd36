//! `up`: the tunnel itself.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use backwater_ops::{BadFilter, LogFiles, Logs, PolicyText};
use backwater_udp::Backpressure;
use tokio::sync::mpsc;
#[cfg(target_os = "linux")]
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::{
    config::{self, Config, Dns, Errors, HookTime, Warning},
    control,
    device::Link,
    hooks::Hooks,
    io::{event_loop::EventLoop, sockets},
    notices::{Notices, say},
    signals::{Ending, Order, Signals},
};
#[cfg(target_os = "linux")]
use crate::{dns, uapi};

/// Its logs are in its own directory below the user's caches.
const APPLICATION: &str = "dev.backwater.client";

/// Opens a tunnel, in the foreground, until a signal such as SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A WireGuard configuration; its name, without `.conf`, names the tunnel and its device.
    pub file: PathBuf,
    /// What to log: a level, or a list of them by module (`info,backwater_udp=debug`).
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,
    /// What to do with a datagram that the system has no room for: wait, wait:50ms, or drop.
    #[arg(long, value_name = "POLICY", default_value = "wait")]
    pub backpressure: PolicyText,
    /// Leave the resolver as it is, whatever the file says under DNS.
    #[arg(long)]
    pub no_dns: bool,
    /// Run the commands of the file (PreUp, PostUp, PreDown, PostDown) with bash, as the user that runs this. The file must be root's,
    /// and nobody else may write to it.
    #[arg(long)]
    pub allow_hooks: bool,
}

/// Opens the tunnel and returns when it is closed again.
///
/// # Errors
/// [`Errors`], or why it cannot start.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let name = config::tunnel_name(&args.file)?;
    let (mut config, mut warnings, untrusted) = Config::read_with_owner(&args.file)?;
    let hooks = std::mem::take(&mut config.interface.hooks);
    let hooks = match untrusted {
        Some(why) if args.allow_hooks && !hooks.is_empty() => {
            return Err(Errors::of(&format!("--allow-hooks: {}: {why}", args.file.display())).into());
        }
        _ if args.allow_hooks => Hooks::new(&name, hooks),
        _ => {
            warnings.extend(hooks.iter().map(|hook| hook.skipped(&args.file)));
            Hooks::default()
        }
    };
    open(Opening { name, config, hooks, warnings, kind: Kind::File }, &args).await
}

/// A tunnel that is to be opened.
pub(crate) struct Opening {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) hooks: Hooks,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) kind: Kind,
}

/// Who gives the device its addresses and routes, and what ends the tunnel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The program, from its file. A signal ends it.
    File,
    /// Other programs. It ends with its device or its UAPI socket, too.
    #[cfg(target_os = "linux")]
    Device {
        /// When it is up, nothing is written to its output any more.
        detached: bool,
    },
}

/// Opens a tunnel and returns when it is closed again.
///
/// # Errors
/// Why it cannot start.
pub(crate) async fn open(opening: Opening, args: &Args) -> anyhow::Result<ExitCode> {
    // Before there are threads, and before there is anything to leave behind.
    let signals = Signals::take().context("cannot catch signals")?;
    let files = LogFiles::of(APPLICATION);
    let filter = &args.log;
    let logs = match &files {
        Some(files) => Logs::to_files(filter, files),
        // Without a home there is still a service manager that keeps what is printed.
        None => Logs::to_stdout(filter),
    };
    let logs = Arc::new(logs.with_context(|| format!("--log {:?}", args.log))?);
    let place = match (files, logs.file_error()) {
        (Some(files), Some(error)) => format!("its logs cannot be written to {}: {error}", files.directory.display()),
        (Some(files), None) => format!("its logs are in {}", files.directory.display()),
        (None, _) => "its logs are on stdout".to_owned(),
    };
    for warning in &opening.warnings {
        warn!("{warning}");
        // The journal has it already.
        if !logs.is_in_journal() {
            say(&warning.to_string());
        }
    }
    let ended = tunnel(opening, args, &place, logs.clone(), signals).await;
    if let Err(error) = &ended {
        error!("{error:#}");
        if logs.is_in_journal() {
            return Ok(ExitCode::FAILURE);
        }
    }
    ended.map(|()| ExitCode::SUCCESS)
}

async fn tunnel(
    Opening { name, config, hooks, kind, .. }: Opening,
    args: &Args,
    place: &str,
    logs: Arc<Logs>,
    mut signals: Signals,
) -> anyhow::Result<()> {
    let name = &*name;
    let backpressure = Backpressure::new(args.backpressure.0);
    let (queries, asked) = mpsc::channel(16);
    let controls = control::Controls { backpressure: backpressure.clone(), queries, logs: logs.clone() };
    hooks.run(HookTime::PreUp).await?;
    // The device first: it says what a program without permission is to be granted.
    let link = match kind {
        Kind::File => Link::open(&config, name)?,
        #[cfg(target_os = "linux")]
        Kind::Device { .. } => Link::open_bare(name)?,
    };
    #[cfg_attr(
        not(target_os = "linux"),
        expect(clippy::let_unit_value, unused_variables, reason = "nothing is to be undone")
    )]
    let resolver = set_resolver(&config.interface.dns, name, args.no_dns)?;
    #[cfg(target_os = "linux")]
    let (requests, requested) = mpsc::channel(16);
    let control = control::serve(name, controls).with_context(|| format!("the control socket of {name}"))?;
    let port = config.interface.listen_port;
    let notices = Notices::new(name, logs.is_seen());
    let options = sockets::Options { port, mark: link.fwmark(), backpressure, stats: Arc::default() };
    let event_loop = EventLoop::new(
        name.to_owned(),
        &config,
        link,
        options,
        asked,
        #[cfg(target_os = "linux")]
        requested,
        notices,
    )
    .with_context(|| format!("port {port}"))?;
    let control = tokio::spawn(control);
    #[cfg(target_os = "linux")]
    let (uapi, uapi_gone) = serve_uapi(name, requests, kind)?;
    info!(tunnel = name, peers = config.peers.len(), "up");
    // Its keys are in the sessions.
    drop(config);
    say(&format!("{name} is up; {place}"));
    #[cfg(target_os = "linux")]
    {
        tell_systemd();
        if kind == (Kind::Device { detached: true }) {
            super::device::close_output();
        }
    }
    #[cfg(not(target_os = "linux"))]
    let uapi_gone = std::future::pending::<()>();
    let (mut ending, mut failed) = (None, None);
    let until_ended = async {
        tokio::select! {
            ended = until_ended(&mut signals, &args.log, &logs) => ending = Some(ended),
            Err(error) = hooks.run(HookTime::PostUp) => failed = Some(error),
            () = uapi_gone => {
                ending = Some(Ending { signal: "the end of its UAPI socket".to_owned(), is_ordinary: true });
            }
        }
        hooks.run_at_end(HookTime::PreDown).await;
    };
    let (link, ended) = event_loop.run(until_ended).await;
    #[cfg(target_os = "linux")]
    let ended = ended.or_else(|error| match kind {
        Kind::Device { .. } if Link::is_deleted(&error) => {
            ending = Some(Ending { signal: "the end of its device".to_owned(), is_ordinary: true });
            Ok(())
        }
        Kind::File | Kind::Device { .. } => Err(error),
    });
    #[cfg(target_os = "linux")]
    if let Some(uapi) = uapi {
        uapi.abort();
        let _ = uapi.await;
    }
    control.abort();
    // Its socket's name is removed with it.
    let _ = control.await;
    #[cfg(target_os = "linux")]
    drop(resolver);
    let closed = link.close();
    hooks.run_at_end(HookTime::PostDown).await;
    let reason = match (&ending, &ended, &failed) {
        (_, Err(error), _) => format!("the device: {error}"),
        (_, _, Some(error)) => format!("{error:#}"),
        (Some(Ending { signal, .. }), _, _) => signal.clone(),
        (None, Ok(()), None) => "the loop ended".to_owned(),
    };
    info!(tunnel = name, reason, "down");
    ended.context("the device")?;
    closed?;
    if let Some(error) = failed {
        return Err(error);
    }
    match ending {
        Some(Ending { signal, is_ordinary: false }) => anyhow::bail!("{name} was ended by {signal}"),
        _ => Ok(()),
    }
}

/// The task that serves `wg`, and the end of its socket where that ends the tunnel. Where the file says what the tunnel is, it does
/// without `wg`.
///
/// # Errors
/// Why there is no such socket, where other programs are to configure the tunnel.
#[cfg(target_os = "linux")]
fn serve_uapi(
    name: &str,
    requests: mpsc::Sender<uapi::Request>,
    kind: Kind,
) -> anyhow::Result<(Option<JoinHandle<()>>, impl Future<Output = ()> + use<>)> {
    let (task, watch) = match (uapi::serve(name, requests), kind) {
        (Ok((serving, watch)), Kind::Device { .. }) => (Some(tokio::spawn(serving)), Some(watch)),
        (Ok((serving, _)), Kind::File) => (Some(tokio::spawn(serving)), None),
        (Err(error), Kind::File) => {
            warn!(%error, "`wg` cannot reach this tunnel");
            (None, None)
        }
        (Err(error), Kind::Device { .. }) => {
            return Err(error).with_context(|| format!("the UAPI socket of {name}"));
        }
    };
    let gone = async {
        match watch {
            Some(watch) => {
                if let Err(error) = watch.gone().await {
                    warn!(%error, "the tunnel does not end with its UAPI socket: it cannot be watched");
                    std::future::pending::<()>().await;
                }
            }
            None => std::future::pending().await,
        }
    };
    Ok((task, gone))
}

/// That the tunnel is up; and from then on, if its watchdog is on, twice in its time that the thread goes on.
#[cfg(target_os = "linux")]
fn tell_systemd() {
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        warn!(%error, "systemd was not told");
    }
    let mut micros = 0;
    if sd_notify::watchdog_enabled(false, &mut micros) && micros > 0 {
        tokio::spawn(async move {
            while sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]).is_ok() {
                tokio::time::sleep(std::time::Duration::from_micros(micros / 2)).await;
            }
        });
    }
}

/// Has names resolved as the file says. A resolver that refuses is no reason to be without the tunnel; none at all is an error.
#[cfg(target_os = "linux")]
fn set_resolver(dns: &Dns, device: &str, off: bool) -> anyhow::Result<Option<dns::Applied>> {
    if dns.is_empty() || off {
        return Ok(None);
    }
    match dns::apply(dns, device) {
        Ok(applied) => Ok(Some(applied)),
        Err(error @ dns::Error::NoResolver(_)) => Err(error.into()),
        Err(error @ dns::Error::Refused(..)) => {
            warn!("{error}: names are resolved as before");
            Ok(None)
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn set_resolver(dns: &Dns, _device: &str, off: bool) -> anyhow::Result<()> {
    if !dns.is_empty() && !off {
        warn!("DNS is not handled on this system: names are resolved as before, not by {dns}");
    }
    Ok(())
}

/// Waits for a signal that ends the tunnel, and restores the log filter for those that do not.
async fn until_ended(signals: &mut Signals, filter: &str, logs: &Logs) -> Ending {
    loop {
        match signals.next().await {
            Order::End(ending) => return ending,
            Order::Reload => match set_log_filter(logs, filter) {
                Ok(()) => info!(filter, "SIGHUP: the log filter of the command line is restored"),
                Err(error) => warn!(%error, "SIGHUP: the log filter stays as it is"),
            },
        }
    }
}

/// Switches what is logged.
///
/// # Errors
/// [`BadFilter`]: the filter stays what it was.
pub(crate) fn set_log_filter(logs: &Logs, filter: &str) -> Result<(), BadFilter> {
    logs.set_filter(filter)
}

/// Takes a log filter from the command line.
pub(crate) fn log_filter(filter: &str) -> Result<String, BadFilter> {
    Logs::check_filter(filter).map(|()| filter.to_owned())
}
