//! Requests from the hub and the local command line as events, and responses in the words of each.

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::control::{Answer, Command};
use crate::hub::MethodReply;
use crate::update::request::InvalidPayload;
use crate::update::{Code, Event, Failure, Origin, Response, UpdateId, UpdateRequest};

/// Whoever waits for an answer.
#[derive(Debug)]
pub enum Asker {
    /// The caller of a direct method.
    Method(oneshot::Sender<MethodReply>),
    /// A command on the device.
    Local(oneshot::Sender<Answer>),
}

impl Asker {
    /// Answers. Somebody who has gone away in the meantime needs no answer.
    pub fn answer(self, response: &Response) {
        match self {
            Self::Method(reply) => drop(reply.send(method_reply(response))),
            Self::Local(reply) => drop(reply.send(local_answer(response))),
        }
    }
}

/// What a direct method asks for.
#[derive(Debug)]
pub enum MethodRequest {
    /// A change of state.
    Event(Event),
    /// The report as it is now.
    Status,
    /// A reboot.
    Reboot,
    /// A bundle, uploaded.
    Diagnostics,
    /// What the doctor finds.
    Doctor,
}

/// Reads a method call.
///
/// # Errors
/// The answer to a call that is not understood.
pub fn method_request(name: &str, payload: &[u8]) -> Result<MethodRequest, MethodReply> {
    match name {
        "firmwareUpdate" => {
            let request =
                UpdateRequest::from_payload(payload).map_err(|invalid| invalid_payload(&invalid))?;
            Ok(MethodRequest::Event(Event::Requested(request, Origin::Method)))
        }
        "firmwareUpdateStatus" => Ok(MethodRequest::Status),
        "cancelFirmwareUpdate" => {
            let id = cancel_payload(payload).map_err(|invalid| invalid_payload(&invalid))?;
            Ok(MethodRequest::Event(Event::CancelRequested(id)))
        }
        "rebootDevice" => Ok(MethodRequest::Reboot),
        "uploadDiagnostics" => Ok(MethodRequest::Diagnostics),
        "doctor" => Ok(MethodRequest::Doctor),
        unknown => {
            let name: String = unknown.chars().take(64).collect();
            let message = format!(
                "no method `{name}`: firmwareUpdate, firmwareUpdateStatus, cancelFirmwareUpdate, rebootDevice, \
                 uploadDiagnostics, doctor"
            );
            Err(failure_reply(404, &Failure::new(Code::UnknownMethod, message), None))
        }
    }
}

/// Nothing, `null`, or `{"updateId": "..."}`.
fn cancel_payload(payload: &[u8]) -> Result<Option<UpdateId>, InvalidPayload> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Cancel {
        update_id: Option<UpdateId>,
    }
    if payload.trim_ascii().is_empty() || payload.trim_ascii() == br#""""# {
        return Ok(None);
    }
    let cancel: Option<Cancel> = serde_json::from_slice(payload).map_err(|error| InvalidPayload {
        field: Some("updateId".to_owned()),
        message: format!("`cancelFirmwareUpdate` takes nothing, or an `updateId`: {error}"),
    })?;
    Ok(cancel.unwrap_or_default().update_id)
}

/// What a local command asks for.
///
/// # Errors
/// The answer to a command that is not understood, or that the control socket answers by itself.
pub fn local_request(command: Command) -> Result<Event, Answer> {
    match command {
        Command::Install { payload, force } => match UpdateRequest::from_value(&payload) {
            Ok(request) => Ok(Event::Requested(UpdateRequest { force, ..request }, Origin::Local)),
            Err(invalid) => Err(Answer::Refused(Failure::new(Code::InvalidPayload, invalid.message))),
        },
        Command::Cancel { update_id } => Ok(Event::CancelRequested(update_id)),
        Command::Commit => Ok(Event::CommitRequested),
        Command::RollBack => Ok(Event::RollBackRequested),
        Command::Status | Command::Watch => {
            let message = "the status does not come from the agent";
            Err(Answer::Refused(Failure::new(Code::InvalidPayload, message)))
        }
    }
}

fn method_reply(response: &Response) -> MethodReply {
    let done = |text: &str, id: &UpdateId| MethodReply {
        status: 200,
        payload: json!({ "Response": text, "updateId": id.as_str() }),
    };
    match response {
        Response::Started(id) => done("Firmware update started", id),
        Response::AlreadyRunning(id) => done("Firmware update already in progress", id),
        Response::AlreadyCompleted(id) => done("Firmware update already completed", id),
        Response::Cancelled(id) => done("Firmware update cancelled", id),
        Response::Committing(id) => done("Firmware update is being committed", id),
        Response::Settling => {
            MethodReply { status: 200, payload: json!({ "Response": "The running slot is being committed" }) }
        }
        Response::RollingBack(id) => done("Firmware update is being rolled back", id),
        Response::Refused(failure, running) => {
            failure_reply(refusal_status(failure.code), failure, running.as_ref())
        }
    }
}

fn refusal_status(code: Code) -> u16 {
    match code {
        Code::Busy | Code::NothingToCancel => 409,
        _ => 412,
    }
}

fn failure_reply(status: u16, failure: &Failure, running: Option<&UpdateId>) -> MethodReply {
    let mut error = json!({ "code": failure.code, "message": failure.message });
    if let (Some(id), Some(fields)) = (running, error.as_object_mut()) {
        fields.insert("updateId".to_owned(), json!(id.as_str()));
    }
    MethodReply { status, payload: json!({ "error": error }) }
}

fn invalid_payload(invalid: &InvalidPayload) -> MethodReply {
    let error = json!({ "code": Code::InvalidPayload, "field": invalid.field, "message": invalid.message });
    MethodReply { status: 400, payload: json!({ "error": error }) }
}

/// The answer to `rebootDevice`.
#[must_use]
pub fn reboot_reply(refusal: Option<&Failure>) -> MethodReply {
    match refusal {
        None => MethodReply { status: 200, payload: json!({ "Response": "Rebooting" }) },
        Some(failure) => failure_reply(refusal_status(failure.code), failure, None),
    }
}

/// The answer to `uploadDiagnostics`: the blob that will be there, or why none will. Nobody waits for it: the hub
/// tells its services when it is, and a caller's limit may be shorter than the upload takes.
#[must_use]
pub fn upload_reply(name: Result<&str, &str>) -> MethodReply {
    match name {
        Ok(name) => {
            let payload = json!({ "Response": "Diagnostics upload started", "blobName": name });
            MethodReply { status: 202, payload }
        }
        Err(why) => failure_reply(409, &Failure::new(Code::Busy, why), None),
    }
}

/// The answer to `doctor` while the one before it is still at work.
#[must_use]
pub fn doctor_is_busy() -> MethodReply {
    failure_reply(409, &Failure::new(Code::Busy, "the doctor is still at work: wait for it"), None)
}

/// The answer to `firmwareUpdateStatus`, and to `doctor`.
#[must_use]
pub fn status_reply(reported: Value) -> MethodReply {
    MethodReply { status: 200, payload: reported }
}

fn local_answer(response: &Response) -> Answer {
    let ok = |message: &str, id: &UpdateId| Answer::Ok {
        message: message.to_owned(),
        update_id: Some(id.clone()),
    };
    match response {
        Response::Started(id) => ok("update started", id),
        Response::AlreadyRunning(id) => ok("this update is already running", id),
        // Nothing is there to be followed: the device may have been at another update since.
        Response::AlreadyCompleted(_) => {
            Answer::Ok { message: "this update is already completed".to_owned(), update_id: None }
        }
        Response::Cancelled(id) => ok("update cancelled", id),
        Response::Committing(id) => ok("committing the running slot", id),
        Response::Settling => {
            Answer::Ok { message: "committing the running slot".to_owned(), update_id: None }
        }
        Response::RollingBack(id) => ok("rolling back; the device reboots if it has to", id),
        Response::Refused(failure, _) => Answer::Refused(failure.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> UpdateId {
        "fw-1".parse().unwrap()
    }

    #[test]
    fn the_tutorials_answer_is_given_word_by_word() {
        let reply = method_reply(&Response::Started(id()));
        assert_eq!(reply.status, 200);
        assert_eq!(reply.payload, json!({"Response": "Firmware update started", "updateId": "fw-1"}));
    }

    #[test]
    fn nothing_is_left_to_follow_of_an_update_that_is_completed_already() {
        let answer = local_answer(&Response::AlreadyCompleted(id()));
        assert!(matches!(answer, Answer::Ok { update_id: None, .. }), "{answer:?}");
        assert!(matches!(
            local_answer(&Response::AlreadyRunning(id())),
            Answer::Ok { update_id: Some(_), .. }
        ));
    }

    #[test]
    fn each_refusal_has_its_status() {
        let status = |code| method_reply(&Response::Refused(Failure::new(code, "m"), Some(id()))).status;
        assert_eq!(status(Code::Busy), 409);
        assert_eq!(status(Code::NothingToCancel), 409);
        assert_eq!(status(Code::Unverifiable), 412);
        assert_eq!(status(Code::RolledBackBefore), 412);
        let reply = method_request("firmwareUpdate", b"{}").unwrap_err();
        assert_eq!((reply.status, &reply.payload["error"]["field"]), (400, &json!("fwPackageUri")));
        let reply = method_request("reformat", b"").unwrap_err();
        assert_eq!((reply.status, &reply.payload["error"]["code"]), (404, &json!("UnknownMethod")));
    }

    #[test]
    fn a_cancel_may_name_the_update() {
        for payload in [&b""[..], b"null", b"{}", b"\"\"", b" "] {
            assert_eq!(cancel_payload(payload).unwrap(), None);
        }
        assert_eq!(cancel_payload(br#"{"updateId":"fw-1"}"#).unwrap(), Some(id()));
        assert!(cancel_payload(br#"{"id":"fw-1"}"#).is_err());
        assert!(cancel_payload(b"3").is_err());
    }
}
