//! The requests.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    handler::Handler,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{MethodFilter, on},
};
use backwater_ops::METRICS_CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::AbortHandle};
use tracing::{debug, info};

use super::{Control, credentials, metrics, policy, reload, sessions, snapshot::Snapshot};

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

/// What the page may do: nothing but what is in it, and requests to this server. A nonce takes the place of the underscore.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'nonce-_'; style-src 'nonce-_'; connect-src 'self'; img-src data:; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Answers until it is dropped.
pub(super) async fn serve(listener: TcpListener, control: Arc<Control>) {
    let (routes, mut connections) = (Routes::new().into_router(control), VecDeque::<AbortHandle>::new());
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

/// The routes, and a list of them.
struct Routes {
    router: Router<Arc<Control>>,
    listed: Vec<(MethodFilter, &'static str)>,
}

impl Routes {
    fn new() -> Self {
        let none = Self { router: Router::new(), listed: vec![] };
        none.on(MethodFilter::GET, "/", page)
            .on(MethodFilter::GET, "/openapi.json", openapi)
            .on(MethodFilter::GET, "/healthz", healthy)
            .on(MethodFilter::GET, "/readyz", ready)
            .on(MethodFilter::GET, "/metrics", exposition)
            .on(MethodFilter::GET, "/status", status)
            .on(MethodFilter::GET, "/sessions", sessions::list)
            .on(MethodFilter::GET, "/sessions/{id}", sessions::one)
            .on(MethodFilter::DELETE, "/sessions/{id}", sessions::end)
            .on(MethodFilter::GET, "/backpressure", backpressure)
            .on(MethodFilter::PUT, "/backpressure", set_backpressure)
            .on(MethodFilter::GET, "/log-filter", log_filter)
            .on(MethodFilter::PUT, "/log-filter", set_log_filter)
            .on(MethodFilter::POST, "/reload", reload::reload)
            .on(MethodFilter::GET, "/credentials", credentials::credentials)
    }

    fn on<T: 'static>(
        mut self,
        method: MethodFilter,
        path: &'static str,
        handler: impl Handler<T, Arc<Control>>,
    ) -> Self {
        self.router = self.router.route(path, on(method, handler));
        self.listed.push((method, path));
        self
    }

    fn into_router(self, control: Arc<Control>) -> Router {
        let paths = self.listed.iter().map(|(_, path)| *path).collect::<Vec<_>>().join(", ");
        let unknown: Arc<str> = format!("no such path; there are {paths}").into();
        self.router
            .fallback(move || async move { refuse(StatusCode::NOT_FOUND, &unknown) })
            .method_not_allowed_fallback(|| async {
                refuse(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method; /openapi.json has all of them")
            })
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .layer(middleware::from_fn_with_state(control.clone(), guard))
            .with_state(control)
    }
}

/// Refuses requests without the token. Where none is configured, it refuses those for a host name: a page in this host's browser could
/// make its own name point here.
async fn guard(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let mut response = match &control.token {
        Some(token) if !is_open(request.uri().path()) && !has_token(request.headers(), token) => {
            let mut refusal =
                refuse(StatusCode::UNAUTHORIZED, "expected the header Authorization: Bearer and admin-token");
            refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            refusal
        }
        None if !request.headers().get(HOST).is_none_or(|h| is_address(h.to_str().unwrap_or_default())) => {
            refuse(StatusCode::BAD_REQUEST, "expected an IP address or localhost in the Host header")
        }
        Some(_) | None => next.run(request).await,
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Paths that say nothing of the relay's users: the page without its data, and what probes ask.
fn is_open(path: &str) -> bool {
    ["/", "/openapi.json", "/healthz", "/readyz"].contains(&path)
}

/// Takes the same time for every wrong token of the right length.
fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let found = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    found.is_some_and(|found| {
        found.len() == token.len() && found.iter().zip(token.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    })
}

fn is_address(host: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok();
    let name = host.rsplit_once(':').filter(|&(_, p)| port(p)).map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

async fn page() -> Response {
    let mut random = [0; 16];
    if let Err(error) = getrandom::fill(&mut random) {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string());
    }
    let nonce = random.map(|byte| format!("{byte:02x}")).concat();
    let policy = PAGE_POLICY.replace('_', &nonce);
    let html = include_str!("page.html").replace("nonce=\"\"", &format!("nonce=\"{nonce}\""));
    ([(HeaderName::from_static("content-security-policy"), policy)], Html(html)).into_response()
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

async fn healthy(State(control): State<Arc<Control>>) -> Response {
    if control.health.has_failed() {
        refuse(StatusCode::SERVICE_UNAVAILABLE, "a part of the relay has failed")
    } else {
        "ok\n".into_response()
    }
}

async fn ready(State(control): State<Arc<Control>>) -> Response {
    if control.draining.load(SeqCst) {
        refuse(StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else {
        "ok\n".into_response()
    }
}

async fn exposition(State(control): State<Arc<Control>>) -> Response {
    ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], metrics::render(&Snapshot::of(&control))).into_response()
}

async fn status(State(control): State<Arc<Control>>) -> Response {
    json(&Snapshot::of(&control))
}

async fn backpressure(State(control): State<Arc<Control>>) -> Response {
    json(&policy::Body::from(control.backpressure.get()))
}

async fn set_backpressure(State(control): State<Arc<Control>>, body: Result<Bytes, BytesRejection>) -> Response {
    match read(body).and_then(|body| policy::Body::read(&body)) {
        Ok(policy) => {
            control.switch(policy, "an HTTP request");
            json(&policy::Body::from(control.backpressure.get()))
        }
        Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason),
    }
}

/// The filter of the log, as `log-level` has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterBody {
    filter: String,
}

async fn log_filter(State(control): State<Arc<Control>>) -> Response {
    match control.log_filter.get() {
        Some(filter) => json(&FilterBody { filter: filter.get() }),
        None => refuse(StatusCode::NOT_FOUND, "the log of this process has no filter"),
    }
}

async fn set_log_filter(State(control): State<Arc<Control>>, body: Result<Bytes, BytesRejection>) -> Response {
    let Some(filter) = control.log_filter.get() else { return log_filter(State(control)).await };
    let wanted = read(body).and_then(|body| {
        serde_json::from_slice::<FilterBody>(&body).map_err(|e| format!("expected {{\"filter\":\"info\"}}: {e}"))
    });
    let before = filter.get();
    match wanted.and_then(|wanted| filter.set(&wanted.filter).map_err(|e| e.to_string())) {
        Ok(()) => {
            info!(filter = filter.get(), before, by = "an HTTP request", "log filter switched");
            log_filter(State(control)).await
        }
        Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason.replace(char::is_control, " ")),
    }
}

fn read(body: Result<Bytes, BytesRejection>) -> Result<Bytes, String> {
    body.map_err(|_| format!("expected a body of at most {MAX_BODY} bytes"))
}

/// The names and values of a query; a value that is not UTF-8 is an error.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = Result<(&str, String), String>> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('+', " ");
        let value = percent_decode_str(&value).decode_utf8().map_err(|_| format!("{name}: expected UTF-8"))?;
        Ok((name, value.into_owned()))
    })
}

/// A body in JSON, which ends with a line break.
pub(super) fn json(body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json + "\n").into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// A refusal, with its reason on one line.
pub(super) fn refuse(status: StatusCode, reason: &str) -> Response {
    (status, format!("{reason}\n")).into_response()
}

#[cfg(test)]
mod tests;
