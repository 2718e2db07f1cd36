//! The local socket through which a running tunnel is asked and told: a request and an answer, each a line of JSON.

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod sys;

use std::{
    io::{self, ErrorKind},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use backwater_ops::{Logs, PolicyText};
use backwater_udp::Backpressure;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::{commands::up::set_log_filter, status::Status};

/// The longest request, in bytes.
const MAX_REQUEST: u64 = 4096;

/// The longest answer, in bytes: a thousand peers.
const MAX_ANSWER: u64 = 8 << 20;

/// Who is connected at once, at most.
const MAX_CONNECTIONS: usize = 16;

/// A connection that says nothing for so long is closed; an answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a tunnel can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    Status,
    /// Switches the policy: `wait`, `wait:50ms` or `drop`.
    Backpressure(String),
    /// Switches the log's filter.
    Log(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Done,
    Status(Box<Status>),
    Error(String),
}

/// What requests act on.
#[derive(Clone)]
pub(crate) struct Controls {
    pub(crate) backpressure: Backpressure,
    pub(crate) queries: mpsc::Sender<oneshot::Sender<Status>>,
    pub(crate) logs: Arc<Logs>,
}

/// Listens under the tunnel's name, and answers until it is dropped.
///
/// # Errors
/// When another tunnel of that name listens, or the directory cannot be made.
pub(crate) fn serve(name: &str, controls: Controls) -> io::Result<impl Future<Output = ()> + use<>> {
    let mut listener = sys::Listener::new(name)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    Ok(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok(stream) => {
                    let controls = controls.clone();
                    tokio::spawn(async move {
                        // Whoever asked may go before the answer.
                        let _ = converse(stream, controls).await;
                        drop(place);
                    });
                }
                // Out of descriptors, say.
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    })
}

/// Asks the tunnel of this name how it is.
///
/// # Errors
/// When none runs, or it does not answer within ten seconds.
pub(crate) async fn status(name: &str) -> anyhow::Result<Status> {
    match ask(name, &Request::Status).await? {
        Answer::Status(status) => Ok(*status),
        Answer::Error(error) => Err(anyhow!("{name}: {error}")),
        Answer::Done => Err(anyhow!("{name}: an answer to something else")),
    }
}

/// Has the tunnel of this name change something.
///
/// # Errors
/// When none runs, it does not answer within ten seconds, or it refuses.
pub(crate) async fn change(name: &str, request: &Request) -> anyhow::Result<()> {
    match ask(name, request).await? {
        Answer::Done => Ok(()),
        Answer::Error(error) => Err(anyhow!("{name}: {error}")),
        Answer::Status(_) => Err(anyhow!("{name}: an answer to something else")),
    }
}

/// The names of this user's tunnels that run on this machine.
///
/// # Errors
/// When this user may not see them.
pub(crate) fn running() -> io::Result<Vec<String>> {
    sys::running()
}

async fn ask(name: &str, request: &Request) -> anyhow::Result<Answer> {
    let mut stream = match sys::connect(name).await {
        // A process that was killed leaves its socket.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Err(match running().unwrap_or_default().as_slice() {
                [] => anyhow!("no tunnel {name} is up"),
                others => anyhow!("no tunnel {name} is up; there is {}", others.join(", ")),
            });
        }
        connected => connected.with_context(|| name.to_owned())?,
    };
    let talk = async {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer).await?;
        Ok(serde_json::from_str(&answer)?)
    };
    let answer: io::Result<Answer> = timeout(PATIENCE, talk).await.with_context(|| name.to_owned())?;
    answer.with_context(|| name.to_owned())
}

async fn converse(stream: impl AsyncRead + AsyncWrite, controls: Controls) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(Box::pin(stream));
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        let taken = timeout(PATIENCE, (&mut read).take(MAX_REQUEST).read_line(&mut line)).await??;
        if taken == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line) {
            Ok(request) => obey(request, &controls).await,
            Err(error) => Answer::Error(error.to_string()),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        timeout(PATIENCE, write.write_all(&line)).await??;
    }
}

async fn obey(request: Request, controls: &Controls) -> Answer {
    match request {
        Request::Status => {
            let (asker, answer) = oneshot::channel();
            let asked = controls.queries.send(asker).await;
            match (asked, answer.await) {
                (Ok(()), Ok(status)) => Answer::Status(Box::new(status)),
                _ => Answer::Error("the tunnel is ending".into()),
            }
        }
        Request::Backpressure(policy) => match policy.parse::<PolicyText>() {
            Ok(policy) => {
                controls.backpressure.set(policy.0);
                tracing::info!(backpressure = %policy, "switched");
                Answer::Done
            }
            Err(error) => Answer::Error(format!("{error}")),
        },
        Request::Log(filter) => match set_log_filter(&controls.logs, &filter) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Error(error.to_string()),
        },
    }
}
