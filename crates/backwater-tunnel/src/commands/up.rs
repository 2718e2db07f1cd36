//! `up`: a tunnel, in the foreground.

use std::{fmt, path::Path, process::ExitCode, sync::Arc};

use backwater_ops::termination;
use backwater_udp::{Backpressure, Policy};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{BAD_CONFIGURATION, FAILED};
use crate::{
    config::{self, Config},
    control,
    event_loop::EventLoop,
    link::Link,
    path,
};

/// Brings the tunnel of a file up, and runs it until the process is told to end. `set_log` switches the log's filter.
pub fn run(
    file: &Path,
    policy: Policy,
    set_log: impl Fn(&str) -> Result<(), String> + Clone + Send + Sync + 'static,
) -> ExitCode {
    let read = config::tunnel_name(file).and_then(|name| Ok((name, Config::read(file)?)));
    let (name, (config, warnings)) = match read {
        Ok(read) => read,
        Err(errors) => {
            for error in errors.iter() {
                eprintln!("{error}");
            }
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    for warning in warnings {
        warn!("{warning}");
        eprintln!("{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    runtime.block_on(tunnel(&name, &config, policy, set_log))
}

async fn tunnel(
    name: &str,
    config: &Config,
    policy: Policy,
    set_log: impl Fn(&str) -> Result<(), String> + Clone + Send + Sync + 'static,
) -> ExitCode {
    // Signals are caught before there is anything to leave behind.
    let terminated = match termination() {
        Ok(terminated) => terminated,
        Err(error) => return fail(format_args!("cannot catch signals: {error}")),
    };
    let backpressure = Backpressure::new(policy);
    let (queries, asked) = mpsc::channel(16);
    let controls = control::Controls { backpressure: backpressure.clone(), queries, set_log };
    let control = match control::serve(name, controls) {
        Ok(control) => tokio::spawn(control),
        Err(error) => return fail(format_args!("the control socket of {name}: {error} (is the tunnel up already?)")),
    };
    let link = match Link::open(config, name) {
        Ok(link) => link,
        Err(error) => return fail(error),
    };
    let options = path::Options {
        port: config.interface.listen_port,
        mark: link.fwmark(),
        backpressure,
        stats: Arc::default(),
    };
    let event_loop = match EventLoop::new(name.to_owned(), config, link, options, asked) {
        Ok(event_loop) => event_loop,
        Err(error) => return fail(format_args!("port {}: {error}", config.interface.listen_port)),
    };
    info!(tunnel = name, peers = config.peers.len(), "up");
    eprintln!("{name} is up");
    #[cfg(target_os = "linux")]
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        warn!(%error, "systemd was not told");
    }
    let (link, ended) = event_loop.run(terminated).await;
    control.abort();
    // Its socket's name is removed with it.
    let _ = control.await;
    let closed = link.close();
    info!(tunnel = name, "down");
    match (ended, closed) {
        (Ok(()), Ok(())) => ExitCode::SUCCESS,
        (Err(error), _) => fail(format_args!("the device: {error}")),
        (Ok(()), Err(error)) => fail(error),
    }
}

fn fail(error: impl fmt::Display) -> ExitCode {
    tracing::error!("{error}");
    eprintln!("backwater-tunnel: {error}");
    ExitCode::from(FAILED)
}
