use serde_json::json;
use twinboot::redact::display_url;
use twinboot::update::UpdateRequest;
use url::Url;

/// The payload of `firmwareUpdate`.
pub fn method_payload(data: &[u8]) {
    let request = match UpdateRequest::from_payload(data) {
        Ok(request) => request,
        Err(refusal) => {
            assert!(!refusal.message.is_empty() && refusal.message.len() < 1000, "{}", refusal.message);
            return;
        }
    };
    sound(&request);

    let payload = json!({
        "fwPackageUri": request.uri,
        "fwPackageCheckValue": request.check_value.map(|digest| digest.to_string()),
        "fwVersion": request.version,
        "fwSize": request.size_bytes,
        "updateId": request.id,
    });
    assert_eq!(UpdateRequest::from_value(&payload).as_ref(), Ok(&request), "asked for again");
    let stored = serde_json::to_string(&request).expect("any request can be stored");
    assert_eq!(serde_json::from_str::<UpdateRequest>(&stored).expect("what was stored is read"), request);
}

fn sound(request: &UpdateRequest) {
    assert!(!request.force, "only an operator at the device can");
    assert!(request.uri.len() <= 4096 && (1..=64).contains(&request.id.as_str().len()));
    assert!(request.size_bytes != Some(0));
    let printable = |version: &String| !version.is_empty() && version.len() <= 128;
    assert!(request.version.as_ref().is_none_or(printable));
    let url = Url::parse(&request.uri).expect("it was taken for an address");
    assert!(matches!(url.scheme(), "https" | "http" | "file"));
    // What may be a secret is shown nowhere.
    let shown = display_url(&request.uri);
    let shown = Url::parse(shown.strip_suffix("?[secret]").unwrap_or(&shown)).expect("still an address");
    assert!(shown.query().is_none() && shown.password().is_none() && shown.username().is_empty(), "{shown}");
}
