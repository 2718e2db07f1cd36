//! `POST /reload`.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Control,
    http::{json, refuse},
    watch::Outcome,
};

/// Reloads that may wait for the one that goes on.
const MAX_RELOADS: usize = 8;

/// A request to read the configuration file again, and where to say what came of it: `None` without a file.
pub(crate) type ReloadRequest = Option<oneshot::Sender<Option<Outcome>>>;

pub(crate) fn channel() -> (mpsc::Sender<ReloadRequest>, mpsc::Receiver<ReloadRequest>) {
    mpsc::channel(MAX_RELOADS)
}

/// Reads the configuration file again and answers what came of it.
pub(super) async fn reload(State(control): State<Arc<Control>>) -> Response {
    let (answer, outcome) = oneshot::channel();
    if control.reload.try_send(Some(answer)).is_err() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "other reloads are not finished yet: try again");
    }
    let outcome = match outcome.await {
        Ok(Some(outcome)) => outcome,
        Ok(None) => return refuse(StatusCode::CONFLICT, "there is no configuration file to read again"),
        Err(_) => return refuse(StatusCode::SERVICE_UNAVAILABLE, "the relay stops"),
    };
    let status = match (outcome.problems.is_empty(), outcome.late) {
        (false, _) => StatusCode::BAD_REQUEST,
        (true, true) => StatusCode::SERVICE_UNAVAILABLE,
        (true, false) => StatusCode::OK,
    };
    (status, json(&outcome)).into_response()
}
