//! Jobs: a direct method of many devices, called by the hub itself.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::query::CONTINUATION;
use super::{Request, Service, ServiceError};

/// The hub keeps jobs for 30 days; more of them than this are not for a list.
const JOBS_MAX: usize = 1000;

/// What a job is to do.
pub struct JobOrder<'a> {
    /// Lower case letters, digits and `-`.
    pub id: &'a str,
    pub method: &'a str,
    pub payload: &'a Value,
    /// In the query language; `*` for all devices.
    pub condition: &'a str,
    /// RFC 3339; now where there is none.
    pub start_time: Option<&'a str>,
    pub duration_max: Duration,
    /// For each device.
    pub answer_secs: u64,
}

impl JobOrder<'_> {
    /// Whether a job of this name is the one that was ordered. The hub shows its payload as the bytes of the text.
    pub fn is(&self, job: &Value) -> bool {
        let payload = job.pointer("/cloudToDeviceMethod/payload").cloned().unwrap_or_default();
        let bytes: Option<Vec<u8>> = serde_json::from_value(payload.clone()).ok();
        let payload = bytes.map_or(Some(payload), |bytes| serde_json::from_slice(&bytes).ok());
        let condition = job.get("queryCondition").and_then(Value::as_str);
        condition == Some(self.condition) && payload.as_ref() == Some(self.payload)
    }
}

fn what(id: &str) -> String {
    format!("job `{id}`")
}

impl Service {
    pub async fn create_job(&self, order: &JobOrder<'_>) -> Result<Value, ServiceError> {
        let mut body = json!({
            "jobId": order.id,
            "type": "scheduleDeviceMethod",
            "cloudToDeviceMethod": {
                "methodName": order.method,
                "payload": order.payload,
                "responseTimeoutInSeconds": order.answer_secs,
            },
            "queryCondition": order.condition,
            "maxExecutionTimeInSeconds": order.duration_max.as_secs(),
        });
        if let (Some(start_time), Some(fields)) = (order.start_time, body.as_object_mut()) {
            fields.insert("startTime".to_owned(), json!(start_time));
        }
        let (path, what) = (["jobs", "v2", order.id], what(order.id));
        self.json(Request::write(Method::PUT, &path, &what).body(body)).await
    }

    pub async fn job(&self, id: &str) -> Result<Value, ServiceError> {
        let (path, what) = (["jobs", "v2", id], what(id));
        let job: Value = self.json(Request::get(&path, &what)).await?;
        // The hub answers 200 also for a job that there is not.
        let is_unknown = job.get("status").and_then(Value::as_str).is_none_or(|status| status == "unknown");
        if is_unknown { Err(ServiceError::NotFound { what }) } else { Ok(job) }
    }

    /// Jobs that call methods, as many as a person reads.
    pub async fn jobs(&self) -> Result<Vec<Value>, ServiceError> {
        let mut jobs: Vec<Value> = Vec::new();
        let mut from: Option<String> = None;
        loop {
            let path = ["jobs", "v2", "query"];
            let request = Request::get(&path, "the jobs");
            let mut request = Request { query: "jobType=scheduleDeviceMethod", ..request };
            if let Some(from) = from {
                request = request.header(CONTINUATION, from);
            }
            let reply = self.send(request).await?;
            jobs.extend(self.parse::<Vec<Value>>(&reply)?);
            from = reply.next();
            if from.is_none() || jobs.len() >= JOBS_MAX {
                return Ok(jobs);
            }
        }
    }

    pub async fn cancel_job(&self, id: &str) -> Result<(), ServiceError> {
        let (path, what) = (["jobs", "v2", id, "cancel"], what(id));
        self.send(Request::write(Method::POST, &path, &what)).await.map(drop)
    }
}
