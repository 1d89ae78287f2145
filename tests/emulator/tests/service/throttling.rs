//! Calls refused as too many.

use hub_emulator::hub::Operation;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::client::*;

#[tokio::test]
async fn a_throttled_call_is_refused_as_the_hub_does_it() {
    let (hub, _) = hub_with_device().await;
    let service = Service::new(&hub);
    hub.throttle(Some(Operation::Query), 2);
    let query = json!({"query": "SELECT * FROM devices"});
    let ask = || service.request(Method::POST, "devices/query").json(&query);
    let refused = ask().send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["connection"], "close");
    assert_eq!(refused.headers().get("retry-after"), None);
    // What counts as something else goes through meanwhile.
    assert_eq!(service.get("twins/dev-1").await.0, StatusCode::OK);
    assert_eq!(service.get("devices/dev-1").await.0, StatusCode::OK);
    let (_, symbol, body) = service.answer(ask()).await;
    assert_eq!(symbol, "ThrottlingException");
    let text = "ErrorCode:ThrottlingException;The request has been throttled. Wait 10 seconds and try again. \
                Operation type: Query";
    assert_eq!(body["Message"], text);
    assert_eq!(service.answer(ask()).await.0, StatusCode::OK);

    hub.throttle(None, 2);
    assert_eq!(service.get("twins/dev-1").await.1, "ThrottlingException");
    assert_eq!(service.call(ID, json!({"methodName": "m"})).await.1, "ThrottlingException");
    assert_eq!(service.get("twins/dev-1").await.0, StatusCode::OK);
}
