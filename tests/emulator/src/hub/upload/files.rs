//! `/devices/{id}/files`: how a device begins and ends an upload.

use hyper::Method;
use hyper::header::{AUTHORIZATION, HOST};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{CONTAINER, Upload, UploadNotification};
use crate::hub::admission;
use crate::hub::clock;
use crate::hub::failure::Failure;
use crate::hub::https::{Call, Reply, check_api_version};
use crate::hub::state::State;

const NAME_LIMIT: usize = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Start {
    blob_name: String,
}

/// Carries out a request. Node's kit puts the correlation id into the path, Python's into the body.
pub(in crate::hub) fn respond(state: &mut State, call: &Call, device: &str, rest: &[&str]) -> Reply {
    let allowed = authorize(state, call, device).and_then(|()| check_api_version(&call.head.uri));
    let result = allowed.and_then(|()| match (&call.head.method, rest) {
        (&Method::POST, []) => start(state, call, device),
        (&Method::POST, ["notifications"]) => {
            let body: Value = json(call)?;
            let id = body.get("correlationId").and_then(Value::as_str).unwrap_or_default();
            finish(state, call, device, id)
        }
        (&Method::POST, ["notifications", id]) => finish(state, call, device, id),
        _ => Err(Failure::new(404, "GenericNotFound", "There is nothing here but files and notifications.")),
    });
    result.unwrap_or_else(|failure| {
        let reply = Reply::json(failure.status, &failure.body());
        reply.with("iothub-errorcode", failure.symbol)
    })
}

fn authorize(state: &State, call: &Call, device: &str) -> Result<(), Failure> {
    if state.faults.away {
        return Err(Failure::new(503, "ServiceUnavailable", "The hub is away."));
    }
    let password = call.header(AUTHORIZATION.as_str()).unwrap_or_default();
    let admitted = admission::check_credentials(state, device, password, call.chain);
    let refuse = |_| Failure::new(401, "IotHubUnauthorizedAccess", "These are not the device's credentials.");
    admitted.map(drop).map_err(refuse)
}

fn start(state: &mut State, call: &Call, device: &str) -> Result<Reply, Failure> {
    let Start { blob_name } = json(call)?;
    let fits = (1..=NAME_LIMIT).contains(&blob_name.len());
    if !fits || blob_name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(Failure::bad_argument("blobName is not a name for a blob."));
    }
    let upload = state.uploads.start(device, &blob_name)?;
    tracing::info!(device, blob_name, "upload: begun");
    Ok(Reply::json(
        200,
        &json!({
            "correlationId": upload.correlation_id,
            // The storage is where the device found the hub.
            "hostName": call.header(HOST.as_str()).unwrap_or("localhost"),
            "containerName": CONTAINER,
            "blobName": format!("{device}/{blob_name}"),
            "sasToken": sas_token(upload),
        }),
    ))
}

fn sas_token(upload: &Upload) -> String {
    let expiry = clock::text(upload.expiry.saturating_mul(1000));
    let expiry = utf8_percent_encode(&expiry, NON_ALPHANUMERIC);
    format!("?sv=2018-03-28&sr=b&sig={}&se={expiry}&sp=rw", upload.signature)
}

fn finish(state: &mut State, call: &Call, device: &str, id: &str) -> Result<Reply, Failure> {
    let notification: UploadNotification = json(call)?;
    tracing::info!(device, ?notification, "upload: ended");
    state.uploads.finish(device, id, notification)?;
    Ok(Reply::empty(204))
}

fn json<T: for<'a> Deserialize<'a>>(call: &Call) -> Result<T, Failure> {
    let refuse = |error| Failure::bad_argument(format!("The body is not understood: {error}"));
    serde_json::from_slice(call.body).map_err(refuse)
}
