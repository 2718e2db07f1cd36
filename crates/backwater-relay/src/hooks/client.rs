//! A client for one request at a time, by HTTP/1.1.

use std::{fmt, str::FromStr, time::Duration};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode, Uri,
    client::conn::http1,
    header::{CONNECTION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The longest that a request may take, from the look-up of the name to the end of the answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(3);

/// Bytes of an answer at most.
const MAX_ANSWER: usize = 16 * 1024;

/// The URL of a hook: `http://HOST[:PORT][/PATH]`. `Debug` does not show the path, which may have a token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HookUrl {
    host: String,
    port: u16,
    /// As the header `Host` has it.
    authority: String,
    path: String,
}

impl fmt::Debug for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookUrl").field("authority", &self.authority).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl HookUrl {
    pub(super) fn parts(&self) -> (&str, u16, &str) {
        (&self.host, self.port, &self.path)
    }
}

impl FromStr for HookUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.trim().parse().map_err(|_| EXPECTED)?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or(EXPECTED)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err("expected http://: the relay has no TLS for hooks yet"),
            Some(_) | None => return Err(EXPECTED),
        }
        let port = match authority.as_str().strip_prefix(authority.host()).unwrap_or_default() {
            "" => 80,
            port => port.trim_start_matches(':').parse().map_err(|_| EXPECTED)?,
        };
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(EXPECTED);
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            authority: authority.to_string(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

const EXPECTED: &str = "expected a URL such as http://127.0.0.1:8080/turn";

/// Posts JSON, and returns the status and the body of the answer.
///
/// # Errors
/// Why there is no answer, in words.
pub(super) async fn post(url: &HookUrl, json: String) -> Result<(StatusCode, Bytes), String> {
    let exchange = async {
        let stream = TcpStream::connect((&*url.host, url.port)).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let request = Request::post(&url.path)
            .header(HOST, &url.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "close")
            .body(Full::new(Bytes::from(json)))
            .map_err(|error| error.to_string())?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        let (connection, answer) = (std::pin::pin!(connection), std::pin::pin!(answer));
        // The connection does the work of the request; it may end before the answer is read.
        let mut answer = answer;
        tokio::select! {
            answer = &mut answer => return answer,
            ended = connection => ended.map_err(|error| error.to_string())?,
        }
        answer.await
    };
    tokio::time::timeout(DEADLINE, exchange).await.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))
}
