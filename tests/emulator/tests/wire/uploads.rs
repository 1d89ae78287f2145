//! Files that devices upload.

use hub_emulator::hub::{Hub, Upload};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::client::{ID, Service, device_token, hub_with_device};

struct Uploader {
    service: Service,
    token: String,
}

impl Uploader {
    fn new(hub: &Hub, key: &str) -> Self {
        Self { service: Service::new(hub), token: device_token(ID, key) }
    }

    /// A request of the device to the hub.
    fn ask(&self, path: &str, body: &Value) -> RequestBuilder {
        let url = format!("{}/devices/{ID}/files{path}?api-version=2019-10-01", self.service.base);
        self.service.http.post(url).header("Authorization", &self.token).json(body)
    }

    async fn start(&self, name: &str) -> Value {
        let (status, _, grant) = self.service.answer(self.ask("", &json!({ "blobName": name }))).await;
        assert_eq!(status, 200, "{grant}");
        grant
    }

    /// A request to the storage, as the kits put it together from what the hub answered.
    fn put(&self, grant: &Value, more: &str, body: &'static str) -> RequestBuilder {
        let [host, container, blob, sas] =
            ["hostName", "containerName", "blobName", "sasToken"].map(|name| grant[name].as_str().unwrap());
        let url = format!("https://{host}/{container}/{blob}{sas}{more}");
        self.service.http.request(Method::PUT, url).body(body)
    }

    async fn finish(&self, grant: &Value) -> u16 {
        let body = json!({"correlationId": grant["correlationId"], "isSuccess": true, "statusCode": 201,
            "statusDescription": "Created"});
        self.service.answer(self.ask("/notifications", &body)).await.0.as_u16()
    }
}

fn only(hub: &Hub) -> Upload {
    let [upload] = <[Upload; 1]>::try_from(hub.uploads(ID)).unwrap();
    upload
}

#[tokio::test]
async fn a_file_arrives_in_one_piece() {
    let (hub, key) = hub_with_device().await;
    let uploader = Uploader::new(&hub, &key);
    let grant = uploader.start("logs/today.txt").await;
    assert_eq!(grant["blobName"], "dev-1/logs/today.txt");
    let typed = |more| uploader.put(&grant, more, "hello").header("x-ms-blob-type", "BlockBlob");
    let answer = typed("").send().await.unwrap();
    assert_eq!(answer.status(), 201);
    assert!(answer.headers().contains_key("etag"));
    assert_eq!(uploader.finish(&grant).await, 204);

    let upload = only(&hub);
    assert_eq!((upload.name.as_str(), upload.bytes.as_deref()), ("logs/today.txt", Some(&b"hello"[..])));
    let notification = upload.notification.unwrap();
    assert_eq!((notification.is_success, notification.status_code), (true, 201));
    // It is over: neither hub nor storage take any more of it.
    assert_eq!(uploader.finish(&grant).await, 400);
    let answer = typed("").send().await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(answer.headers()["x-ms-error-code"], "AuthenticationFailed");

    // A service looks at it.
    let service = &uploader.service;
    let (_, _, list) = service.answer(service.request(Method::GET, "emulator/uploads/dev-1")).await;
    assert_eq!((&list[0]["sizeBytes"], &list[0]["notification"]["statusCode"]), (&json!(5), &json!(201)));
    let path = list[0]["path"].as_str().unwrap();
    let file = service.request(Method::GET, path.trim_start_matches('/')).send().await.unwrap();
    assert_eq!(file.text().await.unwrap(), "hello");
    assert_eq!(service.http.get(format!("{}{path}", service.base)).send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_file_arrives_in_blocks_in_the_order_of_the_list() {
    let (hub, key) = hub_with_device().await;
    let uploader = Uploader::new(&hub, &key);
    let grant = uploader.start("log.txt").await;
    for (id, block) in [("Yg%3D%3D", "world"), ("YQ%3D%3D", "hello, ")] {
        let put = uploader.put(&grant, &format!("&comp=block&blockid={id}"), block);
        assert_eq!(put.send().await.unwrap().status(), 201);
    }
    assert_eq!(only(&hub).bytes, None);
    let list = |list| uploader.put(&grant, "&comp=blocklist", list).send();
    let unknown = "<BlockList><Latest>eA==</Latest></BlockList>";
    assert_eq!(list(unknown).await.unwrap().headers()["x-ms-error-code"], "InvalidBlockList");
    let both = "<?xml version=\"1.0\"?><BlockList><Latest>YQ==</Latest><Latest>Yg==</Latest></BlockList>";
    assert_eq!(list(both).await.unwrap().status(), 201);
    assert_eq!(only(&hub).bytes.as_deref(), Some(&b"hello, world"[..]));

    // As Node's kit ends it.
    let path = format!("/notifications/{}", grant["correlationId"].as_str().unwrap());
    let body = json!({"isSuccess": false, "statusCode": 500, "statusDescription": "no"});
    assert_eq!(uploader.service.answer(uploader.ask(&path, &body)).await.0, 204);
    assert!(!only(&hub).notification.unwrap().is_success);
}

#[tokio::test]
async fn an_upload_needs_the_device_s_key_and_a_free_place() {
    let (hub, key) = hub_with_device().await;
    let mut uploader = Uploader::new(&hub, &key);
    let first = uploader.start("0").await;
    for n in 1..10 {
        uploader.start(&n.to_string()).await;
    }
    let ask = || uploader.ask("", &json!({"blobName": "10"}));
    let (status, symbol, answer) = uploader.service.answer(ask()).await;
    assert_eq!((status.as_u16(), symbol.as_str()), (403, "DeviceMaximumActiveFileUploadLimitExceeded"));
    assert_eq!(answer["errorCode"], 403_006);
    uploader.finish(&first).await;
    uploader.start("10").await;
    let (status, ..) = uploader.service.answer(uploader.ask("", &json!({"blobName": "../x"}))).await;
    assert_eq!(status, 400);

    let versionless = format!("{}/devices/{ID}/files", uploader.service.base);
    let versionless = uploader.service.http.post(versionless).header("Authorization", &uploader.token);
    let (status, symbol, _) = uploader.service.answer(versionless.json(&json!({"blobName": "x"}))).await;
    assert_eq!((status.as_u16(), symbol.as_str()), (400, "InvalidProtocolVersion"));

    uploader.token = device_token("dev-2", &key);
    let (status, symbol, _) = uploader.service.answer(uploader.ask("", &json!({"blobName": "x"}))).await;
    assert_eq!((status.as_u16(), symbol.as_str()), (401, "IotHubUnauthorizedAccess"));
    let mut elsewhere = first.clone();
    elsewhere["blobName"] = json!("dev-1/other");
    assert_eq!(uploader.put(&elsewhere, "", "").send().await.unwrap().status(), 403);
}
