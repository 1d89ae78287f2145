//! `/devices/query`.

use hub_emulator::hub::Hub;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::*;

/// One page: status, kind of the rows, continuation, rows.
async fn page(
    service: &Service,
    query: &str,
    size: usize,
    continuation: Option<&str>,
) -> (StatusCode, Option<String>, Option<String>, Value) {
    let request = service.request(Method::POST, "devices/query").json(&json!({ "query": query }));
    let request = request.header("x-ms-max-item-count", size);
    let request = match continuation {
        Some(token) => request.header("x-ms-continuation", token),
        None => request,
    };
    let answer = request.send().await.unwrap();
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, kind, next) = (answer.status(), header("x-ms-item-type"), header("x-ms-continuation"));
    (status, kind, next, answer.json().await.unwrap())
}

async fn hub_with_three() -> (Hub, Service) {
    let hub = hub().await;
    for (id, site) in [("dev-1", "north"), ("dev-2", "south"), ("dev-3", "north")] {
        hub.add_device(id);
        hub.patch_desired(id, json!({"firmware": {"fwVersion": "2"}})).unwrap();
        let service = Service::new(&hub);
        let patch = json!({"tags": {"site": site}});
        service.request(Method::PATCH, &format!("twins/{id}")).json(&patch).send().await.unwrap();
    }
    let service = Service::new(&hub);
    (hub, service)
}

#[tokio::test]
async fn twins_are_found_page_by_page() {
    let (_hub, service) = hub_with_three().await;
    let query = "SELECT * FROM devices WHERE tags.site = 'north' OR deviceId = 'dev-2'";
    let (status, kind, next, rows) = page(&service, query, 2, None).await;
    assert_eq!((status, kind.as_deref()), (StatusCode::OK, Some("Twin")));
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!(rows[1]["properties"]["desired"]["firmware"], json!({"fwVersion": "2"}));
    assert_eq!(rows[1]["tags"], json!({"site": "south"}));
    let (_, _, next, rows) = page(&service, query, 2, next.as_deref()).await;
    assert_eq!((rows[0]["deviceId"].as_str(), next), (Some("dev-3"), None));
    assert_eq!(rows.as_array().unwrap().len(), 1);
    // A page that is just full is the last one.
    let (_, _, next, rows) = page(&service, query, 3, None).await;
    assert_eq!((rows.as_array().unwrap().len(), next), (3, None));
}

#[tokio::test]
async fn a_query_sees_all_parts_of_a_twin() {
    let (hub, service) = hub_with_three().await;
    let mut device = Device::connected(&hub, &key_of(&hub.add_device(ID))).await;
    device
        .ask_twin("$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"firmwareStatus":"standBy"}"#)
        .await;
    for condition in [
        "connectionState = 'Connected'",
        "properties.reported.firmwareStatus = 'standBy'",
        "properties.reported.$version = 2",
        "is_defined(properties.reported.$metadata.firmwareStatus.$lastUpdated)",
        "lastActivityTime > '2020-01-01' and deviceId = 'dev-1'",
        "etag = 'AAAAAAAAAAM=' and version = 3 and properties.desired.firmware.fwVersion='2' \
         and authenticationType='sas' and capabilities.iotEdge = false and deviceId IN ['dev-1']",
    ] {
        let query = format!("SELECT deviceId FROM devices WHERE {condition}");
        let (status, kind, _, rows) = page(&service, &query, 10, None).await;
        assert_eq!((status, kind.as_deref()), (StatusCode::OK, Some("Raw")), "{condition}");
        assert_eq!(rows, json!([{"deviceId": ID}]), "{condition}");
    }
    let count = "SELECT tags.site AS site, COUNT() AS devices FROM devices GROUP BY tags.site";
    let (_, kind, _, rows) = page(&service, count, 10, None).await;
    assert_eq!(kind.as_deref(), Some("Raw"));
    assert_eq!(rows, json!([{"site": "north", "devices": 2}, {"site": "south", "devices": 1}]));
}

#[tokio::test]
async fn what_is_no_query_is_a_bad_request() {
    let (_hub, service) = hub_with_three().await;
    let answer = service.request(Method::POST, "devices/query").json(&json!({"query": "SELECT * FROM d"}));
    let (status, symbol, body) = service.answer(answer).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::BAD_REQUEST, "ArgumentInvalid"));
    assert_eq!(body["Message"], "ErrorCode:ArgumentInvalid;BadRequest");
    let (status, ..) = page(&service, "SELECT * FROM devices", 10, Some("nonsense")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}
