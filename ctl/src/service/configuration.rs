//! Automatic device configurations: what the hub itself keeps applied to all devices that meet a condition.

use reqwest::Method;
use serde_json::{Value, json};
use twinboot::cli::paint::harmless;

use super::{Request, Service, ServiceError};

/// A hub has at most 100.
const CONFIGURATIONS_MAX: &str = "top=100";

fn what(id: &str) -> String {
    format!("rollout `{id}`")
}

impl Service {
    pub async fn configuration(&self, id: &str) -> Result<Value, ServiceError> {
        self.json(Request::get(&["configurations", id], &what(id))).await
    }

    pub async fn configurations(&self) -> Result<Vec<Value>, ServiceError> {
        let request = Request::get(&["configurations"], "the rollouts");
        self.json(Request { query: CONFIGURATIONS_MAX, ..request }).await
    }

    /// Whether the hub takes a target condition, which knows less than a query; it knows no `*` here.
    pub async fn test_condition(&self, condition: &str) -> Result<(), ServiceError> {
        let path = ["configurations", "testQueries"];
        let body = json!({ "targetCondition": condition, "customMetricQueries": {} });
        let mut request = Request::write(Method::POST, &path, "the condition").body(body);
        request.repeatable = true;
        let answer: Value = self.json(request).await?;
        match answer.get("targetConditionError").and_then(Value::as_str) {
            Some(why) if !why.is_empty() => Err(ServiceError::Condition { why: harmless(why) }),
            _ => Ok(()),
        }
    }

    /// Refused if there is one of this name: without `If-Match`, the hub creates and does nothing else.
    pub async fn create_configuration(&self, id: &str, configuration: Value) -> Result<(), ServiceError> {
        let (path, what) = (["configurations", id], what(id));
        self.send(Request::write(Method::PUT, &path, &what).body(configuration)).await.map(drop)
    }

    /// Refused if it is not what was read any more. The hub keeps the content whatever is sent; target condition,
    /// labels, priority and metrics change.
    pub async fn update_configuration(&self, id: &str, configuration: Value) -> Result<(), ServiceError> {
        let etag = configuration.get("etag").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (path, what) = (["configurations", id], what(id));
        self.send(Request::write(Method::PUT, &path, &what).if_match(&etag).body(configuration))
            .await
            .map(drop)
    }

    pub async fn delete_configuration(&self, id: &str) -> Result<(), ServiceError> {
        self.send(Request::write(Method::DELETE, &["configurations", id], &what(id))).await.map(drop)
    }
}
