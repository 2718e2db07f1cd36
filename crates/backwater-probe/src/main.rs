//! `backwater-probe`: checks and loads TURN servers, and measures back-pressure on this host.
#![forbid(unsafe_code)]

mod address;
mod check_command;
mod pressure_command;

use std::{
    fmt, io,
    net::SocketAddr,
    pin::pin,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use address::{ServerAddress, Unresolvable, parse_peer};

use anyhow::{Context, bail, ensure};
use backwater_probe::{
    forward::Forwarder,
    load::{Direction, Load, LoadError, MAX_SIZE, MIN_SIZE, Outcome, Session, Setup, Via},
    turn::Credential,
};
use check_command::CheckArgs;
use clap::{Args, Parser, Subcommand};
use pressure_command::PressureArgs;

/// Checks and load-tests TURN servers; measures back-pressure on this host.
#[derive(Parser)]
#[command(name = "backwater-probe", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks a TURN server step by step: says what works from here, how fast, and what to do about the rest.
    ///
    /// A TURN server relays data between computers that cannot reach each other, because of NATs and firewalls between them. This command
    /// uses one as a program would: it logs in, asks for a relayed address, and sends 100 datagrams through it and back. It needs nothing
    /// but the server, and leaves nothing behind.
    Check(CheckArgs),
    /// Sends GSO batches through a TURN server and counts the datagrams that arrive.
    ///
    /// Each client allocates and binds a channel, to a peer that is a socket of this process, or to another client.
    Load(LoadArgs),
    /// Makes allocations with a channel each, and holds them for a time.
    Hold(HoldArgs),
    /// Sends more than the way to an address takes, and reports what the system did and how each policy fared.
    ///
    /// Nothing has to answer at the address. Unless --rate says otherwise, this fills the first queue on the way there, and
    /// whatever else wants to use it waits: choose the address, and the moment, accordingly.
    Pressure(PressureArgs),
    /// Relays and does nothing else: the server for `load --raw`, and the limit of a relay's speed.
    #[command(hide = true)]
    Forward(ForwardArgs),
}

#[derive(Args)]
struct ServerArgs {
    /// The server: HOST, HOST:PORT, or turn:HOST[:PORT]. The default port is 3478; it is spoken to over UDP.
    #[arg(long, value_name = "SERVER", default_value = "127.0.0.1:3478")]
    server: ServerAddress,
    /// The user that allocates. Split at the last colon, so that NAME may be EXPIRY:NAME. Without :PASSWORD where --password
    /// or --secret is given.
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
    /// The user's password, where it contains a colon.
    #[arg(long, conflicts_with = "secret", requires = "user")]
    password: Option<String>,
    /// The secret that the server shares with us: the user and the password are made from it, and are valid for an hour.
    #[arg(long)]
    secret: Option<String>,
    /// How many clients, each with an allocation of its own.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Where the peer is, which is this process. The server must be able to reach it.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0", value_parser = parse_peer)]
    peer: SocketAddr,
    /// From the clients to the peer, down to the clients, or across, from client to client.
    #[arg(long, value_enum, default_value = "up")]
    direction: Direction,
    /// The peer receives datagrams one by one, as one without receive offload does; up only.
    #[arg(long)]
    plain_sink: bool,
}

#[derive(Args)]
struct LoadArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Allocate nothing, for a forwarder that knows no TURN.
    #[arg(long, conflicts_with_all = ["user", "secret"])]
    raw: bool,
    /// Bytes of payload in each datagram.
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// Datagrams in each GSO batch.
    #[arg(long, default_value_t = 8)]
    burst: usize,
    /// Datagrams per second of all clients together; 0 is as fast as possible.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Seconds of the measurement.
    #[arg(long, default_value_t = 2.0)]
    duration: f64,
    /// Seconds of the same load before the measurement.
    #[arg(long, default_value_t = 0.2)]
    warm_up: f64,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct HoldArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// How long, in seconds. Allocations are not refreshed: a server ends them after ten minutes, or an hour where it grants that.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

#[derive(Args)]
struct ForwardArgs {
    #[arg(long, value_parser = parse_peer)]
    listen: SocketAddr,
    #[arg(long, value_parser = parse_peer)]
    peer: SocketAddr,
    #[arg(long, value_enum)]
    direction: Direction,
}

const EXIT_CODES: &str =
    "Exit codes: 0: it worked; 1: it did not, as the error says; 2: the command line cannot be used.";

/// A mistake in the command line that clap does not find.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn usage(problem: impl Into<String>) -> Usage {
    Usage(problem.into())
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(Cli::parse().command)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("backwater-probe: {e:#}");
            let is_invalid = matches!(e.downcast_ref(), Some(LoadError::Invalid(_)));
            if is_invalid || e.is::<Usage>() || e.is::<Unresolvable>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Check(args) => args.run().await,
        Command::Load(args) => load(args).await,
        Command::Hold(args) => hold(args).await,
        Command::Pressure(args) => args.run().await,
        Command::Forward(ForwardArgs { listen, peer, direction }) => {
            let forwarder = Forwarder::bind(listen, direction, peer).with_context(|| format!("binding to {listen}"))?;
            forwarder.run().await.with_context(|| format!("forwarding from {listen}"))
        }
    }
}

async fn load(args: LoadArgs) -> anyhow::Result<()> {
    let sizes = MIN_SIZE..=MAX_SIZE;
    ensure!(sizes.contains(&args.size), usage(format!("--size must be {MIN_SIZE} to {MAX_SIZE}")));
    ensure!(args.burst > 0, usage("--burst must be at least 1"));
    let load = Load {
        size: args.size,
        burst: args.burst,
        rate: args.rate,
        warm_up: seconds("--warm-up", args.warm_up)?,
        duration: seconds("--duration", args.duration)?,
    };
    let mut stop = pin!(stopped()?);
    let mut session = Session::open_until(&setup(args.server, args.raw)?, stop.as_mut()).await?;
    let ran = tokio::select! {
        ran = session.run(&load, || ()) => ran,
        () = stop => Err(LoadError::Stopped),
    };
    let closed = session.close().await;
    let (outcome, _) = ran?;
    closed?;
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        print(&outcome);
    }
    ensure!(outcome.valid, "the sink itself lost {} datagrams: not a measurement", outcome.sink_dropped.unwrap_or(0));
    Ok(())
}

async fn hold(args: HoldArgs) -> anyhow::Result<()> {
    let wait = seconds("--seconds", args.seconds)?;
    let setup = setup(args.server, false)?;
    let mut stop = pin!(stopped()?);
    let session = Session::open_until(&setup, stop.as_mut()).await?;
    println!("holding {} allocations", setup.clients);
    // Either end is the one that was asked for.
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = stop => {}
    }
    Ok(session.close().await?)
}

/// Resolves when a signal ends the program: SIGINT, SIGTERM or SIGHUP.
#[cfg(unix)]
fn stopped() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let [mut interrupt, mut terminate, mut hangup] =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Resolves when Ctrl-C ends the program.
#[cfg(not(unix))]
fn stopped() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        // Without it the system's own way of ending the program is left.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}

fn setup(args: ServerArgs, raw: bool) -> anyhow::Result<Setup> {
    let ServerArgs { server, user, password, secret, clients, peer, direction, plain_sink } = args;
    let server = server.resolve()?;
    let via = if raw { Via::Forwarder(server) } else { Via::Turn(server, credential(user, password, secret)?) };
    Ok(Setup { via, direction, clients, peer, plain_sink })
}

fn print(o: &Outcome) {
    let show = |us: Option<f64>| us.map_or("–".to_owned(), |us| format!("{us:.0} µs"));
    println!("{} clients, {} bytes, batches of {}, {:.2} s", o.clients, o.size, o.burst, o.seconds);
    println!("sent       {:>12}  {:>10.0}/s  ({} refused)", o.sent, o.sent_per_second, o.refused);
    println!("received   {:>12}  {:>10.0}/s", o.received, o.received_per_second);
    println!("lost       {:>12}  {:.4} %", o.lost, o.loss * 100.0);
    println!("latency    p50 {}  p99 {}", show(o.p50_us), show(o.p99_us));
}

fn seconds(name: &str, value: f64) -> anyhow::Result<Duration> {
    Ok(Duration::try_from_secs_f64(value).map_err(|_| usage(format!("{name} must be a number of seconds")))?)
}

/// How long a credential that is made from a secret is valid.
const VALIDITY: Duration = Duration::from_secs(3600);

fn credential(
    user: Option<String>,
    password: Option<String>,
    secret: Option<String>,
) -> Result<Credential, anyhow::Error> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match (user, password, secret) {
        (Some(user), Some(password), None) => Ok(Credential { user, password }),
        (user, _, Some(secret)) => {
            let name = user.unwrap_or_else(|| "probe".to_owned());
            let problem = "--user with --secret is a NAME alone: the expiry and the password are made";
            ensure!(!name.contains(':'), usage(problem));
            Ok(Credential::time_limited(&secret, &name, now + VALIDITY))
        }
        (Some(user), None, None) => match user.rsplit_once(':') {
            Some((name, password)) => Ok(Credential { user: name.to_owned(), password: password.to_owned() }),
            None => bail!(usage("--user: expected NAME:PASSWORD, or NAME with --password or --secret")),
        },
        (None, ..) => bail!(usage("--user NAME:PASSWORD or --secret SECRET is missing")),
    }
}
