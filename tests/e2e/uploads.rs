//! Files that a device with a certificate uploads.

use std::path::PathBuf;
use std::time::Duration;

use hub_emulator::hub::{Hub, HubOptions};
use twinboot::config::{self, Credentials};
use twinboot::hub::upload::upload;

const DEVICE: &str = "gateway:1#%?";

#[tokio::test]
async fn a_certificate_is_enough() {
    let hub = Hub::start(HubOptions::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) = hub.add_x509_device(DEVICE).unwrap();
    let mut config = config::Hub {
        host_name: "localhost".into(),
        gateway_host_name: None,
        device_id: DEVICE.into(),
        credentials: Credentials::Certificate {
            certificate_file: file("certificate.pem", &certificate),
            key_file: file("key.pem", &key),
        },
        ca_file: Some(file("ca.pem", hub.ca_pem())),
        port: hub.mqtt_port(),
        https_port: hub.https_port(),
        keep_alive: Duration::from_secs(60),
    };
    upload(&config, "logs/1.txt", b"hello".to_vec(), 0).await.unwrap();
    let uploaded = hub.uploads(DEVICE).remove(0);
    assert_eq!((uploaded.name.as_str(), uploaded.bytes.as_deref()), ("logs/1.txt", Some(&b"hello"[..])));
    assert!(uploaded.notification.unwrap().is_success);

    config.device_id = "another".into();
    let refused = upload(&config, "logs/2.txt", Vec::new(), 0).await.unwrap_err();
    assert_eq!(refused.to_string(), "the hub answers 401 Unauthorized");
    hub.close().await.unwrap();
    let error = upload(&config, "logs/3.txt", Vec::new(), 0).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot reach the hub");
}
