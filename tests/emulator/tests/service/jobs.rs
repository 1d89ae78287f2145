//! `/jobs/v2`: methods and twin updates for many devices, now or later.

use hub_emulator::hub::{Hub, HubOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::client::*;

const NONE: Value = Value::Null;

fn method_job(condition: &str) -> Value {
    json!({"type": "scheduleDeviceMethod", "queryCondition": condition, "maxExecutionTimeInSeconds": 60,
        "cloudToDeviceMethod": {"methodName": "fw", "payload": {"v": 2}, "responseTimeoutInSeconds": 10}})
}

fn twin_job(condition: &str, twin: Value) -> Value {
    json!({"type": "scheduleUpdateTwin", "queryCondition": condition, "updateTwin": twin})
}

fn later(job: Value, hours: i64) -> Value {
    let start = OffsetDateTime::now_utc() + Duration::hours(hours);
    let mut job = job;
    job["startTime"] = json!(start.format(&Rfc3339).unwrap());
    job
}

async fn put(service: &Service, id: &str, job: &Value) -> (StatusCode, String, Value) {
    service.send(Method::PUT, &format!("jobs/v2/{id}"), "", job).await
}

async fn cancel(service: &Service, id: &str) -> (StatusCode, String, Value) {
    service.send(Method::POST, &format!("jobs/v2/{id}/cancel"), "", &NONE).await
}

/// The job once it is over.
async fn over(service: &Service, id: &str) -> Value {
    let path = format!("jobs/v2/{id}");
    let get = async || service.get(&path).await.2;
    eventually(get, |job| ["completed", "failed"].contains(&job["status"].as_str().unwrap())).await
}

async fn rows(service: &Service, id: &str) -> Value {
    service.query(&format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId='{id}'")).await
}

#[tokio::test]
async fn a_method_is_called_on_every_device_that_is_meant() {
    let (hub, key) = hub_with_device().await;
    hub.add_device("dev-2");
    hub.add_device("dev-3");
    let service = Service::new(&hub);
    let mut device = Device::connected(&hub, &key).await;
    device.subscribe(METHODS).await;
    let (status, _, made) = put(&service, "j1", &method_job("deviceId IN ['dev-1', 'dev-2']")).await;
    assert_eq!((status, made["status"].as_str()), (StatusCode::OK, Some("queued")));
    let request = device.message().await;
    assert_eq!(&request.payload[..], br#"{"v":2}"#);
    assert_eq!(service.get("jobs/v2/j1").await.2["status"], "running");
    assert_eq!(cancel(&service, "j1").await.1, "OperationNotAllowedInCurrentState");
    let id = request.topic.split_once("/?$rid=").unwrap().1;
    let answer = format!("$iothub/methods/res/202/?$rid={id}");
    device.publish(&answer, r#"{"ok":true}"#).await;
    device.next().await.unwrap();

    let job = over(&service, "j1").await;
    let counts = json!({"deviceCount": 2, "succeededCount": 1, "failedCount": 1, "runningCount": 0, "pendingCount": 0});
    assert_eq!((&job["status"], &job["deviceJobStatistics"]), (&json!("completed"), &counts));
    // The live hub shows the payload so.
    assert_eq!(job["cloudToDeviceMethod"]["payload"], json!(br#"{"v":2}"#));
    assert!(job["endTime"].is_string() && job["startTime"].is_string(), "{job}");
    let rows = rows(&service, "j1").await;
    assert_eq!((&rows[0]["deviceId"], &rows[0]["status"]), (&json!(ID), &json!("completed")));
    assert_eq!(rows[0]["jobType"], "scheduleDeviceMethod");
    assert_eq!(rows[0]["outcome"]["deviceMethodResponse"], json!({"status": 202, "payload": {"ok": true}}));
    assert_eq!(
        (&rows[1]["deviceId"], &rows[1]["error"]["code"]),
        (&json!("dev-2"), &json!("DeviceNotOnline"))
    );
    assert_eq!((rows.as_array().unwrap().len(), &rows[1]["outcome"]["deviceMethodResponse"]), (2, &NONE));
    assert_eq!(cancel(&service, "j1").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_twin_is_updated_on_every_device_that_is_meant() {
    let (hub, key) = hub_with_device().await;
    hub.add_device("dev-2");
    hub.patch_desired("dev-2", json!({"old": 1})).unwrap();
    let service = Service::new(&hub);
    let mut device = Device::connected(&hub, &key).await;
    device.subscribe(DESIRED).await;
    let twin = json!({"etag": "*", "tags": {"ring": 1}, "properties": {"desired": {"new": 1, "old": null}}});
    put(&service, "update-1", &twin_job("*", twin)).await;
    let pushed: Value = serde_json::from_slice(&device.message().await.payload).unwrap();
    assert_eq!(pushed, json!({"new": 1, "old": null, "$version": 2}));
    assert_eq!(over(&service, "update-1").await["deviceJobStatistics"]["succeededCount"], 2);
    for id in [ID, "dev-2"] {
        let twin = hub.twin(id);
        assert_eq!((&twin["tags"], &twin["properties"]["desired"]["new"]), (&json!({"ring": 1}), &json!(1)));
        assert_eq!(twin["properties"]["desired"]["old"], NONE);
    }
    // An etag that is another device's now does not fit.
    let etag = hub.twin(ID)["etag"].clone();
    put(&service, "update-2", &twin_job("*", json!({"etag": etag, "tags": {"ring": 2}}))).await;
    assert_eq!(over(&service, "update-2").await["deviceJobStatistics"]["failedCount"], 1);
    let rows = service.query("SELECT * FROM devices.jobs WHERE devices.jobs.status = 'failed'").await;
    assert_eq!(
        (&rows[0]["jobId"], &rows[0]["error"]["code"]),
        (&json!("update-2"), &json!("PreconditionFailed"))
    );
    assert_eq!(
        (&hub.twin(ID)["tags"], &hub.twin("dev-2")["tags"]),
        (&json!({"ring": 2}), &json!({"ring": 1}))
    );
}

#[tokio::test]
async fn a_job_waits_for_its_time_and_can_be_cancelled_until_then() {
    let (hub, _) = hub_with_device().await;
    let service = Service::new(&hub);
    let job = |tag: &str| twin_job("*", json!({"tags": {tag: true}}));
    let (_, _, made) = put(&service, "later", &later(job("later"), 2)).await;
    assert_eq!(made["status"], "queued");
    assert_eq!(service.get("jobs/v2/later").await.2["status"], "scheduled");
    // It takes the only place for jobs that a hub of this tier has.
    let (status, symbol, _) = put(&service, "now", &job("now")).await;
    assert_eq!(
        (status, symbol.as_str()),
        (StatusCode::TOO_MANY_REQUESTS, "ThrottlingMaxActiveJobCountExceeded")
    );
    assert_eq!(put(&service, "later", &job("later")).await.1, "JobAlreadyExists");
    assert_eq!(cancel(&service, "later").await.2["status"], "cancelled");
    assert_eq!(cancel(&service, "later").await.0, StatusCode::METHOD_NOT_ALLOWED);
    let mut soon = job("soon");
    let start = OffsetDateTime::now_utc() + Duration::milliseconds(300);
    // Without a zone, as Microsoft's Python kit writes it.
    soon["startTime"] = json!(start.format(&Rfc3339).unwrap().trim_end_matches('Z'));
    put(&service, "soon", &soon).await;
    assert_eq!(over(&service, "soon").await["status"], "completed");
    assert!(OffsetDateTime::now_utc() >= start);
    assert_eq!(hub.twin(ID)["tags"], json!({"soon": true}));
}

#[tokio::test]
async fn a_job_that_takes_too_long_fails() {
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let mut device = Device::connected(&hub, &key).await;
    device.subscribe(METHODS).await;
    let mut job = method_job("*");
    job["maxExecutionTimeInSeconds"] = json!(1);
    put(&service, "slow", &job).await;
    let job = over(&service, "slow").await;
    assert_eq!((&job["status"], &job["deviceJobStatistics"]["failedCount"]), (&json!("failed"), &json!(1)));
    assert!(job["failureReason"].as_str().unwrap().contains("maxExecutionTime"), "{job}");
    assert_eq!(rows(&service, "slow").await[0]["error"]["code"], "JobCancelled");
}

#[tokio::test]
async fn jobs_are_found_by_kind_and_status() {
    let options = HubOptions { active_jobs_limit: Some(5), ..HubOptions::default() };
    let hub = Hub::start(options).await.unwrap();
    let service = Service::new(&hub);
    put(&service, "a", &later(method_job("*"), 1)).await;
    put(&service, "b", &later(twin_job("*", json!({})), 1)).await;
    put(&service, "c", &method_job("deviceId ==")).await;
    // A condition that is none is seen when it is needed.
    assert!(over(&service, "c").await["failureReason"].is_string());
    let list = async |path: &str| {
        let answer =
            service.request(Method::GET, path).header("x-ms-max-item-count", 2).send().await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("x-ms-item-type").as_deref(), Some("JobResponse"));
        let more = header("x-ms-continuation").is_some();
        let jobs: Vec<Value> = answer.json().await.unwrap();
        (jobs.iter().map(|job| job["jobId"].as_str().unwrap()).collect::<String>(), more)
    };
    assert_eq!(list("jobs/v2/query").await, ("ab".into(), true));
    assert_eq!(list("jobs/v2/query?jobType=scheduleDeviceMethod").await, ("ac".into(), false));
    assert_eq!(
        list("jobs/v2/query?jobType=scheduleDeviceMethod&jobStatus=failed").await,
        ("c".into(), false)
    );
    assert_eq!(list("jobs/v2/query?jobStatus=scheduled").await, ("ab".into(), false));
}

#[tokio::test]
async fn what_is_no_job_is_refused() {
    let hub = hub().await;
    let service = Service::new(&hub);
    let mut bad_start = method_job("*");
    bad_start["startTime"] = json!("tomorrow");
    let mut bad_method = method_job("*");
    bad_method["cloudToDeviceMethod"]["responseTimeoutInSeconds"] = json!(1);
    let mut other_id = method_job("*");
    other_id["jobId"] = json!("other");
    for (id, job) in [
        ("Upper", method_job("*")),
        ("under_score", method_job("*")),
        ("j", other_id),
        ("j", later(method_job("*"), 169)),
        ("j", bad_start),
        ("j", bad_method),
        ("j", json!({"type": "scheduleDeviceMethod", "queryCondition": "*"})),
        ("j", json!({"type": "firmwareUpdate", "queryCondition": "*"})),
        ("j", twin_job("*", json!({"tags": {"a b": 1}}))),
        ("j", json!({"type": "scheduleUpdateTwin", "updateTwin": {}})),
    ] {
        let (status, symbol, _) = put(&service, id, &job).await;
        assert_eq!((status, symbol.as_str()), (StatusCode::BAD_REQUEST, "ArgumentInvalid"), "{id}: {job}");
    }
    let (status, _, unknown) = service.get("jobs/v2/nothing").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(unknown, json!({"jobId": "nothing", "type": "unknown", "status": "unknown"}));
    assert_eq!(cancel(&service, "nothing").await.1, "JobNotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_a_thousand_devices_ends_soon() {
    let hub = hub().await;
    for n in 0..1000 {
        hub.add_device(&format!("unit-{n}"));
    }
    let service = Service::new(&hub);
    put(&service, "all", &twin_job("*", json!({"properties": {"desired": {"v": 1}}}))).await;
    assert_eq!(over(&service, "all").await["deviceJobStatistics"]["succeededCount"], 1000);
}
