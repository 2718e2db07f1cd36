//! `GET /credentials`: a time-limited credential, as the command `credentials` prints it.

use std::sync::{Arc, PoisonError};

use axum::{
    extract::{RawQuery, State},
    http::StatusCode,
    response::Response,
};

use super::{
    Control,
    http::{json, pairs, refuse},
};
use crate::commands::credentials::{Wanted, read_ttl, read_uri};

pub(super) async fn credentials(State(control): State<Arc<Control>>, RawQuery(query): RawQuery) -> Response {
    let made = read(&query.unwrap_or_default()).and_then(|mut wanted| {
        if wanted.urls.is_empty() {
            wanted.urls.clone_from(&control.uris.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let credentials = control.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        wanted.ice_servers(&credentials).map_err(|error| error.to_string())
    });
    match made {
        Ok(servers) => json(&servers),
        Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason),
    }
}

/// Reads a query, such as `name=alice&ttl=1h&url=turn:turn.example.org`.
fn read(query: &str) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    for pair in pairs(query) {
        let (name, value) = pair?;
        match name {
            "name" => wanted.name = value,
            "ttl" => wanted.ttl = read_ttl(&value).map_err(|reason| format!("ttl: {reason}"))?,
            "secret-id" => wanted.secret_id = Some(value),
            "url" => wanted.urls.push(read_uri(&value).map_err(|reason| format!("url: {reason}"))?),
            _ => return Err("expected name, ttl, secret-id or url".to_owned()),
        }
    }
    Ok(wanted)
}
