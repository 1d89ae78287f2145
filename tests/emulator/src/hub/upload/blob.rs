//! The storage that devices upload to: as much of Azure's Blob service as its client libraries use for a block blob.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::Method;

use super::{CONTAINER, Upload};
use crate::hub::clock;
use crate::hub::https::{Call, Reply};
use crate::hub::policy::Permission;
use crate::hub::random;
use crate::hub::sas::Token;
use crate::hub::state::State;

/// The largest body: Python's library sends up to this in one request.
pub(in crate::hub) const BODY_LIMIT_BYTES: usize = 64 << 20;
/// The version of the service's API that the emulator follows.
const VERSION: &str = "2018-03-28";

/// A refusal, as the storage words it.
struct Refusal(u16, &'static str);

/// Whether a path is the storage's.
pub(in crate::hub) fn is_path(segments: &[&str]) -> bool {
    segments.first() == Some(&CONTAINER)
}

/// Carries out a request: of a device, to write, or of a service, to read.
pub(in crate::hub) fn respond(state: &mut State, call: &Call) -> Reply {
    let reply = if call.head.method == Method::GET { read(state, call) } else { write(state, call) };
    reply.unwrap_or_else(refuse).with("x-ms-version", VERSION)
}

fn refuse(Refusal(status, code): Refusal) -> Reply {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    );
    Reply::text(status, "application/xml", body).with("x-ms-error-code", code)
}

/// The emulator's own: here a token of the hub is good for the storage too.
fn read(state: &State, call: &Call) -> Result<Reply, Refusal> {
    let token = call.header("authorization").and_then(Token::parse);
    let good = token.is_some_and(|token| {
        let signer = state.policies.signer(&token);
        signer.is_some_and(|policy| policy.allows(Permission::ServiceConnect))
            && token.is_for(&state.host_names)
            && token.covers(&call.segments.join("/"))
            && clock::until(token.expiry).is_some()
    });
    let [_, device, name @ ..] = call.segments else { return Err(Refusal(404, "ContainerNotFound")) };
    let file = good.then(|| state.uploads.newest(device, &name.join("/")));
    let file = file.ok_or(Refusal(403, "AuthenticationFailed"))?.ok_or(Refusal(404, "BlobNotFound"))?;
    Ok(Reply::text(200, "application/octet-stream", file.clone()))
}

fn write(state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    if state.faults.away {
        return Err(Refusal(503, "ServerBusy"));
    }
    let query = query(call);
    let parameter = |name: &str| query.get(name).map(String::as_str);
    let [_, device, name @ ..] = call.segments else { return Err(Refusal(404, "ContainerNotFound")) };
    let upload = state.uploads.signed_by(device, &name.join("/"), parameter("sig").unwrap_or_default());
    let upload = upload.ok_or(Refusal(403, "AuthenticationFailed"))?;
    if call.head.method != Method::PUT {
        return Err(Refusal(405, "UnsupportedHttpVerb"));
    }
    match (parameter("comp"), parameter("blockid")) {
        (None, _) if call.header("x-ms-blob-type") == Some("BlockBlob") => put(upload, call.body.clone()),
        (None, _) => return Err(Refusal(400, "MissingRequiredHeader")),
        (Some("block"), Some(id)) => {
            upload.blocks.insert(id.to_owned(), call.body.clone());
        }
        (Some("blocklist"), _) => commit(upload, call.body)?,
        _ => return Err(Refusal(400, "InvalidQueryParameterValue")),
    }
    tracing::info!(
        device = upload.device_id,
        name = upload.name,
        bytes = call.body.len(),
        "upload: received"
    );
    state.uploads.make_room();
    Ok(Reply::empty(201)
        .with("etag", format!("\"0x{}\"", random::hex(8)))
        .with("x-ms-request-server-encrypted", "true"))
}

fn put(upload: &mut Upload, body: Bytes) {
    upload.blocks.clear();
    upload.bytes = Some(body);
}

/// Puts the file together from blocks. The list names them in XML; ids are base64, so nothing in it is escaped.
fn commit(upload: &mut Upload, list: &[u8]) -> Result<(), Refusal> {
    let list = std::str::from_utf8(list).map_err(|_| Refusal(400, "InvalidXmlDocument"))?;
    let mut bytes = Vec::new();
    for element in list.split('<') {
        let Some((tag, id)) = element.split_once('>') else { continue };
        if matches!(tag, "Latest" | "Uncommitted" | "Committed") {
            bytes.extend_from_slice(upload.blocks.get(id.trim()).ok_or(Refusal(400, "InvalidBlockList"))?);
        }
    }
    put(upload, bytes.into());
    Ok(())
}

fn query(call: &Call) -> BTreeMap<String, String> {
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = call.head.uri.query().unwrap_or_default().split('&');
    let pairs = pairs.filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decoded(key), decoded(value))).collect()
}
