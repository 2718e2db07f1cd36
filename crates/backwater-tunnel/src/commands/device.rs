//! `backwater-tunnel NAME`: a device that other programs configure, as wg-quick wants it of `WG_QUICK_USERSPACE_IMPLEMENTATION`.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context;
use backwater_ops::PolicyText;
use backwater_udp::Policy;

use super::up::{self, Kind, Opening};
use crate::{
    config::{Config, Interface, Key, Table, device_name},
    device::DEFAULT_MTU,
    hooks::Hooks,
    notices::say,
};

/// Makes a device, which `wg` and `ip` configure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A device to make, without addresses, routes and peers; `wg` and `ip` configure it. It ends when the device is deleted or its UAPI
    /// socket is removed.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Stay in the foreground; else the program returns when the device and its UAPI socket are there.
    #[arg(short, long, requires = "name")]
    pub foreground: bool,
    /// The process in the background, which the one in the foreground starts.
    #[arg(long, hide = true, requires = "name")]
    pub detached: bool,
}

/// Makes the device. Returns when it is there, or in the foreground when it has ended.
///
/// # Errors
/// [`Errors`](crate::config::Errors) if it is no name of a device, or why it cannot start.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let name = device_name(args.name.as_deref().unwrap_or_default())?;
    if !args.foreground && !args.detached {
        return start(&name);
    }
    if args.detached {
        rustix::process::setsid().context("cannot leave the terminal")?;
        env::set_current_dir("/").context("/")?;
    }
    let interface = Interface {
        // Zeros: none.
        private_key: Key([0; 32]),
        addresses: Vec::new(),
        listen_port: 0,
        // wg-quick sets another.
        mtu: Some(DEFAULT_MTU),
        fwmark: 0,
        table: Table::Off,
        dns: Default::default(),
        hooks: Vec::new(),
    };
    let opening = Opening {
        config: Config { interface, peers: Vec::new(), relay: None },
        hooks: Hooks::default(),
        warnings: Vec::new(),
        kind: Kind::Device { detached: args.detached },
        name,
    };
    let defaults = up::Args {
        file: Default::default(),
        log: "info".to_owned(),
        backpressure: PolicyText(Policy::default()),
        no_dns: true,
        allow_hooks: false,
    };
    up::open(opening, &defaults).await
}

/// Starts the program again in the background. Returns when that says that it is up, or has ended.
fn start(name: &str) -> anyhow::Result<ExitCode> {
    let program = env::current_exe().context("where is this program?")?;
    let mut child = Command::new(&program)
        .args([name, "--detached"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| program.display().to_string())?;
    let up = format!("{name} is up; ");
    for line in child.stderr.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line?;
        say(&line);
        if line.starts_with(&up) {
            return Ok(ExitCode::SUCCESS);
        }
    }
    // It has said why.
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code != 0);
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// From now on what is written to the output and the error output is lost: whoever reads them need not wait for the tunnel's end.
pub(crate) fn close_output() {
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}
