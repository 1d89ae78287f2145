//! A job: one method call or one twin update for every device that meets a condition.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clock;
use super::failure::Failure;
use super::method;
use super::twin::{Twin, Write};

/// A job may be planned this far ahead.
const START_LIMIT_MILLIS: i64 = 168 * 3600 * 1000;
/// What Microsoft's Node kit sends if its user gives none.
const MAX_EXECUTION_SECS: u64 = 3600;

/// What to do with each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Kind {
    ScheduleDeviceMethod,
    ScheduleUpdateTwin,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum JobStatus {
    /// Its time has come.
    Queued,
    /// Its time is yet to come.
    Scheduled,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl JobStatus {
    /// Whether the job takes one of the places that a hub has for jobs.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Queued | Self::Scheduled | Self::Running)
    }

    /// Whether nothing was done yet.
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Queued | Self::Scheduled)
    }
}

/// How far a job is with one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum RowStatus {
    Pending,
    Running,
    Completed,
    Failed,
}

/// What became of one device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    pub status: RowStatus,
    started: Option<String>,
    ended: Option<String>,
    updated: String,
    /// The device's answer to the method, with status and payload.
    response: Value,
    /// Symbol and description.
    error: Option<(String, String)>,
}

impl Row {
    fn new(now: String) -> Self {
        let status = RowStatus::Pending;
        Self { status, started: None, ended: None, updated: now, response: Value::Null, error: None }
    }

    pub fn begin(&mut self, now: String) {
        self.status = RowStatus::Running;
        self.started = Some(now.clone());
        self.updated = now;
    }

    /// `outcome` is the device's answer, or null for a twin update.
    pub fn end(&mut self, outcome: Result<Value, Failure>, now: String) {
        self.ended = Some(now.clone());
        self.updated = now;
        match outcome {
            Ok(response) => {
                self.status = RowStatus::Completed;
                self.response = response;
            }
            Err(failure) => {
                self.status = RowStatus::Failed;
                self.error = Some((failure.symbol.to_owned(), failure.message));
            }
        }
    }
}

/// A job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    pub kind: Kind,
    /// The method as [`method::Call::from_body`] reads it, or the twin with an `etag`.
    pub content: Value,
    pub query_condition: String,
    created: String,
    /// When it is to begin, in milliseconds since 1970.
    pub start_millis: i64,
    pub max_execution_secs: u64,
    pub status: JobStatus,
    ended: Option<String>,
    failure_reason: Option<String>,
    /// By device.
    pub rows: BTreeMap<String, Row>,
}

/// What a service sends.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Body {
    job_id: Option<String>,
    #[serde(rename = "type")]
    kind: Kind,
    cloud_to_device_method: Option<Value>,
    update_twin: Option<Value>,
    query_condition: Option<String>,
    start_time: Option<String>,
    #[serde(rename = "maxExecutionTimeInSeconds")]
    max_execution_secs: Option<u64>,
}

impl Job {
    /// Makes a job. Whether the condition is one is seen only when the job begins.
    pub fn new(id: &str, body: Body) -> Result<Self, Failure> {
        if !is_id(id) || body.job_id.is_some_and(|named| named != id) {
            return Err(Failure::bad_argument(format!("'{id}' is not a job ID, or not that of the body.")));
        }
        let missing = |what: &str| Failure::bad_argument(format!("{what} is missing."));
        let content = match body.kind {
            Kind::ScheduleDeviceMethod => {
                let method = body.cloud_to_device_method.ok_or_else(|| missing("cloudToDeviceMethod"))?;
                method::Call::from_body(&method)?;
                method
            }
            Kind::ScheduleUpdateTwin => {
                let twin = body.update_twin.ok_or_else(|| missing("updateTwin"))?;
                Twin::new("").write(Write::Patch, &twin, "")?;
                twin
            }
        };
        let now_millis = clock::now_millis();
        let start_millis = match body.start_time {
            Some(text) => {
                clock::millis(&text).ok_or_else(|| Failure::bad_argument("startTime is no time."))?
            }
            None => now_millis,
        };
        if start_millis.saturating_sub(now_millis) > START_LIMIT_MILLIS {
            return Err(Failure::bad_argument("startTime is more than 168 hours ahead."));
        }
        Ok(Self {
            kind: body.kind,
            content,
            query_condition: body.query_condition.ok_or_else(|| missing("queryCondition"))?,
            created: clock::now_text(),
            start_millis,
            max_execution_secs: body.max_execution_secs.unwrap_or(MAX_EXECUTION_SECS),
            status: if start_millis > now_millis { JobStatus::Scheduled } else { JobStatus::Queued },
            ended: None,
            failure_reason: None,
            rows: BTreeMap::new(),
        })
    }

    /// Begins with these devices.
    pub fn begin(&mut self, devices: &[String]) {
        let now = clock::now_text();
        self.status = JobStatus::Running;
        self.rows = devices.iter().map(|device| (device.clone(), Row::new(now.clone()))).collect();
    }

    /// Ends; what is not done with by then has failed.
    pub fn end(&mut self, status: JobStatus, failure_reason: Option<String>) {
        let now = clock::now_text();
        self.status = status;
        self.ended = Some(now.clone());
        let unfinished = |row: &&mut Row| matches!(row.status, RowStatus::Pending | RowStatus::Running);
        for row in self.rows.values_mut().filter(unfinished) {
            let failure = Failure::new(500, "JobCancelled", "The job ended before.");
            row.end(Err(failure), now.clone());
        }
        self.failure_reason = failure_reason;
    }

    /// The answer of `/jobs/v2/{id}`.
    pub fn for_service(&self, id: &str) -> Value {
        let (method, twin) = match self.kind {
            Kind::ScheduleDeviceMethod => (payload_as_bytes(&self.content), Value::Null),
            Kind::ScheduleUpdateTwin => (Value::Null, self.content.clone()),
        };
        json!({
            "jobId": id,
            "type": self.kind,
            "status": self.status,
            "cloudToDeviceMethod": method,
            "updateTwin": twin,
            "queryCondition": self.query_condition,
            "createdTime": self.created,
            "startTime": clock::text(self.start_millis),
            "endTime": self.ended,
            "maxExecutionTimeInSeconds": self.max_execution_secs,
            "failureReason": self.failure_reason,
            "statusMessage": null,
            "deviceJobStatistics": self.statistics(),
        })
    }

    fn statistics(&self) -> Value {
        let count = |status| self.rows.values().filter(|row| row.status == status).count();
        json!({
            "deviceCount": self.rows.len(),
            "failedCount": count(RowStatus::Failed),
            "succeededCount": count(RowStatus::Completed),
            "runningCount": count(RowStatus::Running),
            "pendingCount": count(RowStatus::Pending),
        })
    }

    /// What `devices.jobs` has of this job, device by device.
    pub fn documents(&self, id: &str) -> impl Iterator<Item = Value> {
        self.rows.iter().map(move |(device, row)| {
            let mut document = json!({
                "deviceId": device,
                "jobId": id,
                "jobType": self.kind,
                "status": row.status,
                "startTimeUtc": row.started,
                "endTimeUtc": row.ended,
                "createdDateTimeUtc": self.created,
                "lastUpdatedDateTimeUtc": row.updated,
                "outcome": { "deviceMethodResponse": row.response },
            });
            if let (Some((code, description)), Value::Object(members)) = (&row.error, &mut document) {
                members.insert("error".into(), json!({ "code": code, "description": description }));
            }
            document
        })
    }
}

/// The answer for a job that never was.
pub(super) fn unknown(id: &str) -> Value {
    json!({ "jobId": id, "type": "unknown", "status": "unknown" })
}

/// What the live hub takes, which is less than what is documented.
fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-'".contains(c);
    (1..=64).contains(&id.len()) && id.chars().all(allowed)
}

/// The live hub shows the payload's text as a list of numbers.
fn payload_as_bytes(method: &Value) -> Value {
    let mut method = method.clone();
    if let Some(payload) = method.get_mut("payload") {
        *payload = payload.to_string().into_bytes().into();
    }
    method
}
