//! WireGuard's cross-platform configuration protocol (`www.wireguard.com/xplatform`), by which `wg` reads and changes a running tunnel:
//! requests and answers of lines `key=value` that end with an empty line, through a socket named after the tunnel.

mod answer;
mod parse;
mod socket;

use std::{io, sync::Arc, time::Duration};

use rustix::io::Errno;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tracing::debug;
use zeroize::Zeroizing;

pub(crate) use answer::{Answer, Peer};
pub(crate) use parse::{PeerSet, Set};
pub(crate) use socket::Watch;

/// The longest request and its longest line, in bytes. The longest configuration file with the most peers is shorter.
const MAX_REQUEST: usize = 4 << 20;
const MAX_LINE: usize = 1024;

/// Connections at once, at most. Others wait until one ends.
const MAX_CONNECTIONS: usize = 16;

/// Time for a request to come as a whole, and for its answer to be read.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request to the event loop, and where its answer goes.
pub(crate) enum Request {
    Get(oneshot::Sender<Answer>),
    Set(Box<Set>, oneshot::Sender<Result<(), Errno>>),
}

/// A request, as it was read.
enum Read {
    Get,
    Set(Box<Set>),
    /// It is wrong.
    Refused(Errno),
    /// It is wrong, and where the next one begins is not known.
    Broken(Errno),
}

/// A line, as it was read.
enum Line {
    Whole,
    TooLong,
    /// The connection ended before the line did.
    Missing,
}

/// Listens under the tunnel's name. The future answers until it is dropped; the socket's name is removed with it.
///
/// # Errors
/// When another program listens there, others may write to the directory, or the system refuses.
pub(crate) fn serve(
    name: &str,
    requests: mpsc::Sender<Request>,
) -> io::Result<(impl Future<Output = ()> + use<>, Watch)> {
    let listener = socket::Listener::new(name)?;
    let watch = listener.watch();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let serving = async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok(stream) => {
                    let requests = requests.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, requests, PATIENCE).await {
                            debug!(%error, "a UAPI connection was given up");
                        }
                        drop(place);
                    });
                }
                // Out of descriptors, say.
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    };
    Ok((serving, watch))
}

/// Answers one request after the other.
async fn converse(stream: UnixStream, requests: mpsc::Sender<Request>, patience: Duration) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(read) = timeout(patience, read(&mut stream)).await?? else { return Ok(()) };
        let is_last = matches!(read, Read::Broken(_));
        let (text, errno) = answer(read, &requests).await;
        let text = text.as_ref().map_or(&[][..], Answer::as_bytes);
        // As wireguard-go, and as `wg` reads it: the negative number.
        let end = format!("errno={}\n\n", -errno.map_or(0, Errno::raw_os_error));
        let write = async {
            stream.write_all(text).await?;
            stream.write_all(end.as_bytes()).await
        };
        timeout(patience, write).await??;
        if is_last {
            return Ok(());
        }
    }
}

async fn answer(read: Read, requests: &mpsc::Sender<Request>) -> (Option<Answer>, Option<Errno>) {
    // The tunnel is ending.
    let ending = (None, Some(Errno::IO));
    match read {
        Read::Get => {
            let (asker, answer) = oneshot::channel();
            match (requests.send(Request::Get(asker)).await, answer.await) {
                (Ok(()), Ok(answer)) => (Some(answer), None),
                _ => ending,
            }
        }
        Read::Set(set) => {
            let (asker, answer) = oneshot::channel();
            match (requests.send(Request::Set(set, asker)).await, answer.await) {
                (Ok(()), Ok(done)) => (None, done.err()),
                _ => ending,
            }
        }
        Read::Refused(errno) | Read::Broken(errno) => (None, Some(errno)),
    }
}

/// Reads a request up to its empty line. `None`: the connection ended, and nothing of a request that was not whole is done.
async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Read>> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE + 1));
    match read_line(stream, &mut line).await? {
        Line::Missing => return Ok(None),
        Line::TooLong => return Ok(Some(Read::Broken(Errno::INVAL))),
        Line::Whole => {}
    }
    let mut result = match line.as_slice() {
        b"get=1" => Ok(None),
        b"set=1" => Ok(Some(Box::<Set>::default())),
        _ => return Ok(Some(Read::Broken(Errno::INVAL))),
    };
    let mut length = 0;
    loop {
        match read_line(stream, &mut line).await? {
            Line::Missing => return Ok(None),
            Line::TooLong => return Ok(Some(Read::Broken(Errno::TOOBIG))),
            Line::Whole => {}
        }
        if line.is_empty() {
            break;
        }
        length += line.len() + 1;
        if length > MAX_REQUEST {
            return Ok(Some(Read::Broken(Errno::TOOBIG)));
        }
        // After a line that is wrong the others are only read.
        if let Ok(set) = &mut result {
            let taken = set.as_mut().map_or(Err(Errno::INVAL), |set| set.take_line(&line));
            if let Err(errno) = taken {
                result = Err(errno);
            }
        }
    }
    Ok(Some(match result {
        Ok(None) => Read::Get,
        Ok(Some(set)) => Read::Set(set),
        Err(errno) => Read::Refused(errno),
    }))
}

/// Reads a line without its end.
async fn read_line(stream: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    stream.take(MAX_LINE as u64 + 1).read_until(b'\n', line).await?;
    Ok(match line.pop() {
        Some(b'\n') => Line::Whole,
        Some(_) if line.len() == MAX_LINE => Line::TooLong,
        Some(_) | None => Line::Missing,
    })
}

#[cfg(test)]
mod tests;
