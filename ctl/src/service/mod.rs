//! IoT Hub's service REST API: one client, and a file for each of its resources.

mod configuration;
mod credentials;
mod error;
mod job;
mod method;
mod query;
mod retry;
pub mod twin;

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, IF_MATCH};
use reqwest::{Client, Method, redirect};
use serde::de::DeserializeOwned;
use serde_json::Value;
use twinboot::system::unix_now;
use twinboot::tls::{Roots, client_config};

pub use self::credentials::{Credentials, CredentialsError};
use self::error::Refusal;
pub use self::error::ServiceError;
pub use self::job::JobOrder;
pub use self::method::{ANSWER_SECS, MethodAnswer, Patience};
pub use self::query::PAGE_ROWS_MAX;
use self::query::{CONTINUATION, Quota};
use self::retry::{Pace, TROUBLED};

/// The newest generally available version of the interface.
const API_VERSION: &str = "2021-04-12";

/// The hub queues before it refuses: a shorter limit would give up on calls that are under way.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);

const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// More than the largest page of twins: 1000 of some 100 KiB never come, and the memory is bounded.
const BODY_BYTES_MAX: usize = 64 << 20;

/// What RFC 3986 leaves unescaped: a device's name may have `%`, `#` and `?` in it.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A hub, and the right to ask it.
pub struct Service {
    client: Client,
    credentials: Credentials,
    quota: Quota,
    /// Tells the operator why nothing happens.
    notice: fn(&str),
}

/// One request.
struct Request<'a> {
    method: Method,
    /// Segments, not encoded yet.
    path: &'a [&'a str],
    query: &'a str,
    body: Option<Value>,
    headers: Vec<(HeaderName, String)>,
    /// For messages: `device \`gateway-1\``.
    what: &'a str,
    /// Whether doing it twice is the same as doing it once.
    repeatable: bool,
    limit: Duration,
}

impl<'a> Request<'a> {
    fn get(path: &'a [&'a str], what: &'a str) -> Self {
        let (method, limit) = (Method::GET, ANSWER_LIMIT);
        Self { method, path, query: "", body: None, headers: Vec::new(), what, repeatable: true, limit }
    }

    /// Something that is not to happen twice.
    fn write(method: Method, path: &'a [&'a str], what: &'a str) -> Self {
        Self { method, repeatable: false, ..Self::get(path, what) }
    }

    fn body(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    fn header(mut self, name: HeaderName, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Only if it still is what was read. The hub wants the quotes, and shows etags in bodies without.
    fn if_match(self, etag: &str) -> Self {
        self.header(IF_MATCH, format!("\"{}\"", etag.trim_matches('"')))
    }
}

/// An answer.
struct Reply {
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    /// Where the next page is.
    fn next(&self) -> Option<String> {
        header(&self.headers, &CONTINUATION).filter(|next| !next.is_empty()).map(str::to_owned)
    }
}

/// One try that did not succeed.
struct Setback {
    error: ServiceError,
    again: Option<Pace>,
}

impl Service {
    /// Reads the roots to trust: from `ca_file`, or the system's.
    pub fn new(
        credentials: Credentials,
        ca_file: Option<&Path>,
        notice: fn(&str),
    ) -> Result<Self, ServiceError> {
        let client = Client::builder()
            .tls_backend_preconfigured(client_config(Roots::from(ca_file), None)?)
            .http1_only()
            .connect_timeout(CONNECT_LIMIT)
            // A token is for this hub only.
            .redirect(redirect::Policy::none())
            .user_agent(concat!("twinbootctl/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ServiceError::Client)?;
        Ok(Self { client, credentials, quota: Quota::new(), notice })
    }

    /// `host`, or `host:port`.
    pub fn host(&self) -> String {
        self.credentials.authority()
    }

    async fn json<T: DeserializeOwned>(&self, request: Request<'_>) -> Result<T, ServiceError> {
        let reply = self.send(request).await?;
        self.parse(&reply)
    }

    fn parse<T: DeserializeOwned>(&self, reply: &Reply) -> Result<T, ServiceError> {
        serde_json::from_slice(&reply.body)
            .map_err(|error| ServiceError::Garbled { host: self.host(), why: error.to_string() })
    }

    /// Sends it, and again where that can help.
    async fn send(&self, request: Request<'_>) -> Result<Reply, ServiceError> {
        let mut retries = 0;
        loop {
            let setback = match self.send_once(&request, retries).await {
                Ok(reply) => return Ok(reply),
                Err(setback) => setback,
            };
            let Some(pace) = setback.again.filter(|pace| retries < pace.retries) else {
                return Err(setback.error);
            };
            let pause = pace.pause(retries, fastrand::f64());
            retries += 1;
            (self.notice)(&format!(
                "{}; trying again in {} s",
                brief(&setback.error),
                pause.as_secs_f64().ceil()
            ));
            tokio::time::sleep(pause).await;
        }
    }

    async fn send_once(&self, request: &Request<'_>, retries: u32) -> Result<Reply, Setback> {
        let final_error = |error| Setback { error, again: None };
        let token = self.credentials.token().map_err(|error| final_error(error.into()))?;
        let mut builder = self
            .client
            .request(request.method.clone(), self.url(request))
            .timeout(request.limit)
            .header(AUTHORIZATION, token.expose());
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        builder = match &request.body {
            Some(body) => builder.header(CONTENT_TYPE, "application/json; charset=utf-8").json(body),
            None => builder.body(""),
        };
        let lost = |source: reqwest::Error| self.lost(source, request);
        let mut response = builder.send().await.map_err(lost)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len().saturating_add(chunk.len()) > BODY_BYTES_MAX {
                let why = format!("more than {BODY_BYTES_MAX} bytes");
                return Err(final_error(ServiceError::Garbled { host: self.host(), why }));
            }
            body.extend_from_slice(&chunk);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        if status.is_success() {
            return Ok(Reply { headers, body });
        }
        let symbol = header(&headers, &ERROR_CODE).unwrap_or_default();
        let refusal = Refusal { status, symbol, body: &body, clock_ahead_secs: clock_ahead_secs(&headers) };
        let error = ServiceError::of(&refusal, request.what, self.credentials.policy(), retries);
        Err(Setback { error, again: Pace::after(status, symbol, request.repeatable) })
    }

    fn url(&self, request: &Request<'_>) -> String {
        let path = request.path.iter().map(|part| utf8_percent_encode(part, SEGMENT).to_string());
        let path = path.collect::<Vec<_>>().join("/");
        let and = if request.query.is_empty() { "" } else { "&" };
        format!("https://{}/{path}?{}{and}api-version={API_VERSION}", self.host(), request.query)
    }

    fn lost(&self, source: reqwest::Error, request: &Request<'_>) -> Setback {
        let host = self.host();
        // Nothing was sent over a connection that did not come about.
        let again = (request.repeatable || source.is_connect()).then_some(TROUBLED);
        if source.is_timeout() && !source.is_connect() {
            return Setback { error: ServiceError::Late { host, limit: request.limit }, again: None };
        }
        // Our addresses hold no secret, but are long.
        let source = source.without_url();
        if is_distrust(&source) {
            return Setback { error: ServiceError::Untrusted { host, source }, again: None };
        }
        Setback { error: ServiceError::Unreachable { host, source }, again }
    }
}

/// The symbol by which refusals are told apart.
const ERROR_CODE: HeaderName = HeaderName::from_static("iothub-errorcode");

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The hub's clock less ours, by the header `Date`.
fn clock_ahead_secs(headers: &HeaderMap) -> Option<i64> {
    let date = httpdate::parse_http_date(header(headers, &DATE)?).ok()?;
    let theirs = i64::try_from(date.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
    Some(theirs.saturating_sub(i64::try_from(unix_now()).ok()?))
}

/// A TLS handshake that failed for what was said in it, and not because the connection broke.
fn is_distrust(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |cause| (**cause).source());
    causes.any(|cause| {
        // The client wraps what TLS says in an error of the system.
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<io::Error>());
        inner.is_some_and(|inner| inner.kind() == io::ErrorKind::InvalidData)
    })
}

fn brief(error: &ServiceError) -> String {
    match error {
        ServiceError::Throttled { .. } => "the hub throttles these calls".to_owned(),
        error => error.to_string(),
    }
}
