//! File upload: the hub grants access to a blob of its storage account, the file goes there, the hub is told.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, redirect};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::auth::{AuthError, SasToken};
use crate::config::{self, Credentials};
use crate::tls::{self, Roots, TlsError};

/// As Microsoft's Node client has it.
const API_VERSION: &str = "api-version=2021-04-12";

/// The hub answers at once or not at all.
const HUB_LIMIT: Duration = Duration::from_secs(60);

/// 4 MiB at 56 kbit/s. The hub's grant is good for an hour.
const STORAGE_LIMIT: Duration = Duration::from_secs(600);

/// A grant is some 500 bytes.
const GRANT_LIMIT_BYTES: usize = 16 << 10;

/// Both requests to the hub, and the file between them.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Why a file did not arrive. Never holds an address: the storage's is a credential.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Certificates or key cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    /// The key makes no token.
    #[error("cannot make a token")]
    Token(#[from] AuthError),
    /// The thread that reads the certificates ended.
    #[error("interrupted")]
    Interrupted,
    /// No answer.
    #[error("cannot reach {what}")]
    Unreachable {
        /// Hub or storage.
        what: &'static str,
        /// Why.
        source: reqwest::Error,
    },
    /// Another answer than success.
    #[error("{what} answers {status}{}", if *status == StatusCode::BAD_REQUEST {
        ": has the hub a storage account for uploads?"
    } else {
        ""
    })]
    Refused {
        /// Hub or storage.
        what: &'static str,
        /// As it is.
        status: StatusCode,
    },
    /// Host name or port make no address.
    #[error("the hub's name makes no address")]
    Address,
    /// What the hub granted is not understood.
    #[error("the hub's answer names no place in its storage")]
    Grant,
}

const HUB: &str = "the hub";
const STORAGE: &str = "the hub's storage";

/// Where the hub lets the file go.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Grant {
    correlation_id: String,
    host_name: String,
    container_name: String,
    blob_name: String,
    sas_token: String,
}

impl Grant {
    fn url(&self) -> Option<Url> {
        let mut url = Url::parse(&format!("https://{}", self.host_name)).ok()?;
        url.path_segments_mut().ok()?.push(&self.container_name).extend(self.blob_name.split('/'));
        url.set_query(Some(self.sas_token.trim_start_matches('?')));
        Some(url)
    }
}

/// Uploads `bytes` as `name` below the device's own name, as the device that `config` says.
///
/// # Errors
/// When it is not certain that the file arrived; the hub is told so where it can be.
pub async fn upload(
    config: &config::Hub,
    name: &str,
    bytes: Vec<u8>,
    unix_now_secs: u64,
) -> Result<(), UploadError> {
    let hub = Hub::new(config, unix_now_secs).await?;
    let answer = send(HUB, hub.post(&["files"], &json!({ "blobName": name }))?).await?;
    let grant = grant(answer).await?;
    let stored = match grant.url() {
        Some(url) => store(&hub, url, bytes).await,
        None => Err(UploadError::Grant),
    };
    let status = match &stored {
        Ok(status) | Err(UploadError::Refused { status, .. }) => *status,
        Err(_) => StatusCode::GATEWAY_TIMEOUT,
    };
    let outcome = json!({
        "correlationId": grant.correlation_id,
        "isSuccess": stored.is_ok(),
        "statusCode": status.as_u16(),
        "statusDescription": status.canonical_reason().unwrap_or_default(),
    });
    let told = send(HUB, hub.post(&["files", "notifications"], &outcome)?).await;
    stored.and(told).map(drop)
}

async fn store(hub: &Hub<'_>, url: Url, bytes: Vec<u8>) -> Result<StatusCode, UploadError> {
    let put = hub.storage.put(url).header("x-ms-blob-type", "BlockBlob").timeout(STORAGE_LIMIT).body(bytes);
    send(STORAGE, put).await.map(|answer| answer.status())
}

/// The hub's HTTPS side, as this device.
struct Hub<'a> {
    config: &'a config::Hub,
    token: Option<SasToken>,
    client: Client,
    /// Is shown no certificate of ours.
    storage: Client,
}

impl<'a> Hub<'a> {
    async fn new(config: &'a config::Hub, unix_now_secs: u64) -> Result<Self, UploadError> {
        let token = match &config.credentials {
            Credentials::SharedAccessKey(key) => {
                Some(SasToken::new(&config.host_name, &config.device_id, key, unix_now_secs, TOKEN_LIFE)?)
            }
            Credentials::Certificate { .. } => None,
        };
        let (ca_file, credentials) = (config.ca_file.clone(), config.credentials.clone());
        let load = move || {
            let roots = Roots::from(ca_file.as_deref());
            let to_hub = tls::client_config(roots, credentials.identity())?;
            Ok::<_, TlsError>((to_hub, tls::client_config(roots, None)?))
        };
        let (to_hub, to_storage) =
            tokio::task::spawn_blocking(load).await.map_err(|_| UploadError::Interrupted)??;
        Ok(Self { config, token, client: client(HUB, to_hub)?, storage: client(STORAGE, to_storage)? })
    }

    fn post(&self, path: &[&str], body: &Value) -> Result<RequestBuilder, UploadError> {
        let host = self.config.dialled();
        let url =
            Url::parse(&format!("https://{host}:{}", self.config.https_port)).ok().and_then(|mut url| {
                url.path_segments_mut().ok()?.extend(["devices", &self.config.device_id]).extend(path);
                url.set_query(Some(API_VERSION));
                Some(url)
            });
        let request = self.client.post(url.ok_or(UploadError::Address)?).timeout(HUB_LIMIT);
        let request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        Ok(match &self.token {
            Some(token) => request.header(AUTHORIZATION, token.expose()),
            None => request,
        })
    }
}

fn client(what: &'static str, tls: ClientConfig) -> Result<Client, UploadError> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .connect_timeout(Duration::from_secs(30))
        // Neither redirects, and a token must not follow one.
        .redirect(redirect::Policy::none())
        .user_agent(concat!("twinboot/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|source| UploadError::Unreachable { what, source })
}

async fn send(what: &'static str, request: RequestBuilder) -> Result<Response, UploadError> {
    let answer = request.send().await;
    let answer = answer.map_err(|source| UploadError::Unreachable { what, source: source.without_url() })?;
    match answer.status() {
        status if status.is_success() => Ok(answer),
        status => Err(UploadError::Refused { what, status }),
    }
}

async fn grant(mut answer: Response) -> Result<Grant, UploadError> {
    let mut body = Vec::new();
    let lost = |source: reqwest::Error| UploadError::Unreachable { what: HUB, source: source.without_url() };
    while let Some(chunk) = answer.chunk().await.map_err(lost)? {
        if body.len() + chunk.len() > GRANT_LIMIT_BYTES {
            return Err(UploadError::Grant);
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|_| UploadError::Grant)
}
