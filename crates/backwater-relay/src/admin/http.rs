//! The requests.

use std::{collections::VecDeque, net::IpAddr, sync::Arc, sync::atomic::Ordering::SeqCst, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    http::{
        Method, StatusCode,
        header::{CONTENT_TYPE, HOST},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::any,
};
use backwater_ops::{METRICS_CONTENT_TYPE, PolicyText};
use backwater_udp::Policy;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::AbortHandle};
use tracing::debug;

use super::{Control, metrics};

/// Of a request's body, in bytes.
const MAX_BODY: usize = 4096;

/// Of a request's head, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// The next one ends the oldest of these.
const MAX_CONNECTIONS: usize = 64;

/// A client has so long for its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection lasts no longer; it takes one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers until it is dropped.
pub(super) async fn serve(listener: TcpListener, control: Arc<Control>) {
    let (routes, mut connections) = (routes(control), VecDeque::<AbortHandle>::new());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No descriptor is free, or the client has gone already.
                debug!(%error, "no connection for administration");
                match connections.pop_front() {
                    Some(oldest) => oldest.abort(),
                    None => tokio::time::sleep(Duration::from_millis(100)).await,
                }
                tokio::task::yield_now().await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        // Whoever holds connections open keeps nobody from the next one.
        if connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(routes.clone());
        let mut http = http1::Builder::new();
        http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
        let connection = tokio::spawn(async move {
            // A client that breaks off or says nothing is no business of ours.
            let _ =
                tokio::time::timeout(CONNECTION_TIMEOUT, http.serve_connection(TokioIo::new(stream), service)).await;
        });
        connections.push_back(connection.abort_handle());
        // A request that is there already is answered before the next connection is taken.
        tokio::task::yield_now().await;
    }
}

fn routes(control: Arc<Control>) -> Router {
    Router::new()
        .route("/backpressure", any(backpressure))
        .route("/metrics", any(exposition))
        .route("/healthz", any(healthy))
        .route("/readyz", any(ready))
        .fallback(|| async { refuse(StatusCode::BAD_REQUEST, "expected /backpressure, /metrics, /healthz or /readyz") })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(only_by_address))
        .with_state(control)
}

/// A page in this host's browser could make its own name point here: whoever means this server says so by its address.
async fn only_by_address(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    if host.is_none_or(is_address) {
        next.run(request).await
    } else {
        refuse(StatusCode::BAD_REQUEST, "expected an IP address or localhost in the Host header")
    }
}

fn is_address(host: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok();
    let name = host.rsplit_once(':').filter(|&(_, p)| port(p)).map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

async fn backpressure(
    State(control): State<Arc<Control>>,
    method: Method,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    if method == Method::PUT {
        let body = body.map_err(|_| format!("expected a body of at most {MAX_BODY} bytes"));
        match body.and_then(|body| Body::read(&body)) {
            Ok(policy) => control.switch(policy, "an HTTP request"),
            Err(reason) => return refuse(StatusCode::BAD_REQUEST, &reason),
        }
    } else if method != Method::GET {
        return refuse(StatusCode::BAD_REQUEST, "expected GET or PUT");
    }
    Body::from(control.backpressure.get()).into_response()
}

async fn exposition(State(control): State<Arc<Control>>, method: Method) -> Response {
    only_get(&method, || ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], metrics::render(&control)).into_response())
}

async fn healthy(State(control): State<Arc<Control>>, method: Method) -> Response {
    only_get(&method, || {
        if control.health.has_failed() {
            refuse(StatusCode::SERVICE_UNAVAILABLE, "a part of the relay has failed")
        } else {
            "ok\n".into_response()
        }
    })
}

async fn ready(State(control): State<Arc<Control>>, method: Method) -> Response {
    only_get(&method, || {
        if control.draining.load(SeqCst) {
            refuse(StatusCode::SERVICE_UNAVAILABLE, "draining")
        } else {
            "ok\n".into_response()
        }
    })
}

fn only_get(method: &Method, answer: impl FnOnce() -> Response) -> Response {
    if method == Method::GET { answer() } else { refuse(StatusCode::BAD_REQUEST, "expected GET") }
}

fn refuse(status: StatusCode, reason: &str) -> Response {
    (status, format!("{reason}\n")).into_response()
}

/// The policy in JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    policy: Kind,
    /// Only with `wait`; its default is that of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Wait,
    Drop,
}

impl Body {
    /// The policy, or why it is none, on one line.
    fn read(json: &[u8]) -> Result<Policy, String> {
        let body: Self = serde_json::from_slice(json)
            .map_err(|e| format!("expected a policy such as {EXAMPLE}: {e}").replace(char::is_control, " "))?;
        match (body.policy, body.deadline_ms) {
            (Kind::Wait, None) => Ok(Policy::default()),
            (Kind::Wait, Some(ms)) => {
                PolicyText::wait(Duration::from_millis(ms)).map_err(|e| format!("deadline_ms: {e}"))
            }
            (Kind::Drop, None) => Ok(Policy::Drop),
            (Kind::Drop, Some(_)) => Err("expected no deadline_ms with the policy drop".to_owned()),
        }
    }
}

const EXAMPLE: &str = r#"{"policy":"wait","deadline_ms":100} or {"policy":"drop"}"#;

impl From<Policy> for Body {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Wait { deadline } => {
                Self { policy: Kind::Wait, deadline_ms: Some(deadline.as_millis().try_into().unwrap_or(u64::MAX)) }
            }
            Policy::Drop => Self { policy: Kind::Drop, deadline_ms: None },
        }
    }
}

impl IntoResponse for Body {
    fn into_response(self) -> Response {
        match serde_json::to_string(&self) {
            Ok(json) => ([(CONTENT_TYPE, "application/json")], json + "\n").into_response(),
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_written_as_it_is_read() {
        let wait = |ms| Policy::Wait { deadline: Duration::from_millis(ms) };
        for (json, policy) in [
            (r#"{"policy":"wait","deadline_ms":100}"#, wait(100)),
            (r#"{"policy":"wait","deadline_ms":60000}"#, wait(60_000)),
            (r#"{"policy":"drop"}"#, Policy::Drop),
        ] {
            assert_eq!(Body::read(json.as_bytes()), Ok(policy));
            assert_eq!(serde_json::to_string(&Body::from(policy)).unwrap(), json);
        }
        assert_eq!(Body::read(br#" {"policy": "wait"} "#), Ok(Policy::default()));
    }

    #[test]
    fn what_is_no_policy_has_its_reason_on_one_line() {
        for (json, reason) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("[]", "expected a policy"),
            ("{}", "missing field `policy`"),
            (r#"{"policy":"maybe"}"#, "unknown variant"),
            ("{\"policy\":\"a\\nb\"}", "unknown variant"),
            (r#"{"policy":"wait","deadline_ms":0}"#, "from 1ms to 60s"),
            (r#"{"policy":"wait","deadline_ms":60001}"#, "from 1ms to 60s"),
            (r#"{"policy":"wait","deadline_ms":18446744073709551615}"#, "from 1ms to 60s"),
            (r#"{"policy":"wait","deadline_ms":18446744073709551616}"#, "expected u64"),
            (r#"{"policy":"wait","deadline_ms":-1}"#, "expected u64"),
            (r#"{"policy":"wait","deadline_ms":"50"}"#, "expected u64"),
            (r#"{"policy":"drop","deadline_ms":50}"#, "no deadline_ms"),
            (r#"{"policy":"wait","deadline":50}"#, "unknown field"),
            (r#"{"policy":"wait"} x"#, "trailing"),
        ] {
            let found = Body::read(json.as_bytes()).unwrap_err();
            assert!(found.contains(reason) && !found.contains('\n'), "{json}: {found}");
        }
        Body::read(b"\xff\xfe").unwrap_err();
    }

    #[test]
    fn a_host_is_an_address_or_localhost() {
        for host in ["127.0.0.1", "127.0.0.1:9479", "[::1]", "[::1]:9479", "localhost", "LocalHost:80"] {
            assert!(is_address(host), "{host}");
        }
        for host in ["", "example.org", "example.org:9479", "127.0.0.1.example.org", "localhost.example.org:1"] {
            assert!(!is_address(host), "{host}");
        }
    }
}
