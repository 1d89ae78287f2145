//! An automatic device configuration: desired properties for every device that meets a condition.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::clock;
use super::failure::Failure;
use super::query::{Condition, Query, QueryError};
use super::twin::{Twin, Write};

/// Configurations of a paid hub.
pub(super) const CONFIGURATION_LIMIT: usize = 100;

/// What a device is to a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Status {
    /// It meets the condition, but another configuration came first.
    Targeted,
    /// It was given the desired properties.
    Applied,
}

/// A configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Configuration {
    schema_version: String,
    labels: Value,
    /// By path: `properties.desired` or `properties.desired.firmware`. Never changes.
    device_content: Map<String, Value>,
    /// Nobody is targeted if it is empty.
    pub target_condition: String,
    /// The highest wins; of equal ones, the newest.
    pub priority: i64,
    /// Grows with each configuration made.
    pub serial: u64,
    created: String,
    updated: String,
    version: u64,
    /// Custom metrics: a name, and a query of which the rows are counted.
    queries: BTreeMap<String, String>,
    /// The counts of the last evaluation, by name.
    pub counts: BTreeMap<String, usize>,
    pub system_counts: BTreeMap<String, usize>,
}

/// What a service sends.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Body {
    id: Option<String>,
    schema_version: Option<String>,
    labels: Option<Value>,
    content: Option<Map<String, Value>>,
    target_condition: Option<String>,
    priority: Option<i64>,
    metrics: Option<Metrics>,
}

#[derive(Debug, Default, Deserialize)]
struct Metrics {
    queries: Option<BTreeMap<String, String>>,
}

impl Configuration {
    /// Makes a new configuration; `serial` must be greater than all before.
    pub fn new(id: &str, body: Body, serial: u64) -> Result<Self, Failure> {
        if !is_id(id) {
            return Err(Failure::bad_argument(format!("'{id}' is not a configuration ID.")));
        }
        let now = clock::now_text();
        let mut configuration = Self {
            schema_version: body.schema_version.clone().unwrap_or_else(|| "1.0".into()),
            labels: Value::Null,
            device_content: device_content(body.content.clone())?,
            target_condition: String::new(),
            priority: 0,
            serial,
            created: now.clone(),
            updated: now,
            version: 0,
            queries: BTreeMap::new(),
            counts: BTreeMap::new(),
            system_counts: BTreeMap::new(),
        };
        Twin::new("").write(Write::Patch, &configuration.patch(), "").map_err(bad_content)?;
        configuration.update(id, body)?;
        Ok(configuration)
    }

    /// Takes over everything but the content, of which a change is ignored without a word.
    pub fn update(&mut self, id: &str, body: Body) -> Result<(), Failure> {
        if body.id.is_some_and(|named| named != id) {
            return Err(Failure::bad_argument("id in the body is not the one in the path."));
        }
        if body.content.is_none() {
            return Err(Failure::new(400, "InvalidConfigurationContent", "The content is missing."));
        }
        let target_condition = body.target_condition.unwrap_or_default();
        if !target_condition.trim().is_empty() {
            check_condition(&target_condition).map_err(bad_condition)?;
        }
        let queries = body.metrics.unwrap_or_default().queries.unwrap_or_default();
        for (name, query) in &queries {
            Query::parse(query)
                .map_err(|error| Failure::bad_argument(format!("The query of metric {name}: {error}.")))?;
        }
        self.labels = body.labels.filter(|labels| !labels.is_null()).unwrap_or_else(|| json!({}));
        self.target_condition = target_condition;
        self.priority = body.priority.unwrap_or_default();
        self.queries = queries;
        self.updated = clock::now_text();
        self.version = self.version.saturating_add(1);
        Ok(())
    }

    /// The etag, unquoted.
    pub fn etag(&self) -> String {
        STANDARD.encode(self.version.to_string())
    }

    /// What it writes to a twin.
    pub fn patch(&self) -> Value {
        let mut patch = json!({});
        for (path, value) in &self.device_content {
            let place = path.split('.').fold(&mut patch, member);
            match (place, value) {
                (Value::Object(there), Value::Object(more)) => there.extend(more.clone()),
                (place, value) => *place = value.clone(),
            }
        }
        patch
    }

    /// The queries behind the two counts that every configuration has.
    pub fn system_queries(&self, id: &str) -> BTreeMap<String, String> {
        let targeted = match self.target_condition.trim() {
            "*" => "select deviceId from devices".to_owned(),
            "" => "select deviceId from devices where false".to_owned(),
            condition => format!("select deviceId from devices where {condition}"),
        };
        let applied =
            format!("select deviceId from devices where configurations.[[{id}]].status = 'Applied'");
        BTreeMap::from([("targetedCount".into(), targeted), ("appliedCount".into(), applied)])
    }

    /// The queries of the custom metrics, by name.
    pub fn queries(&self) -> &BTreeMap<String, String> {
        &self.queries
    }

    /// The answer of `/configurations/{id}`.
    pub fn for_service(&self, id: &str) -> Value {
        json!({
            "id": id,
            "schemaVersion": self.schema_version,
            "labels": self.labels,
            "content": { "deviceContent": self.device_content },
            "targetCondition": self.target_condition,
            "createdTimeUtc": self.created,
            "lastUpdatedTimeUtc": self.updated,
            "priority": self.priority,
            "systemMetrics": { "results": self.system_counts, "queries": self.system_queries(id) },
            "metrics": { "results": self.counts, "queries": self.queries },
            "etag": self.etag(),
        })
    }
}

fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-+%_*!'".contains(c);
    (1..=128).contains(&id.len()) && id.chars().all(allowed)
}

/// The member `name` of an object; what is no object becomes one.
fn member<'a>(place: &'a mut Value, name: &str) -> &'a mut Value {
    if !place.is_object() {
        *place = json!({});
    }
    match place {
        Value::Object(object) => object.entry(name).or_insert(Value::Null),
        other => other,
    }
}

fn bad_content(reason: impl ToString) -> Failure {
    Failure::new(400, "InvalidConfigurationContent", reason.to_string())
}

fn bad_condition(reason: impl ToString) -> Failure {
    Failure::new(400, "InvalidConfigurationTargetCondition", reason.to_string())
}

/// There must be one kind of content, and the emulator has devices only.
fn device_content(content: Option<Map<String, Value>>) -> Result<Map<String, Value>, Failure> {
    let is_empty = |value: &Value| value.as_object().is_none_or(Map::is_empty);
    let mut kinds = content.unwrap_or_default().into_iter().filter(|(_, value)| !is_empty(value));
    let content = match (kinds.next(), kinds.next()) {
        (Some((kind, Value::Object(content))), None) if kind == "deviceContent" => content,
        (Some((kind, _)), None) => return Err(bad_content(format!("The emulator has no {kind}."))),
        _ => return Err(bad_content("There must be exactly one kind of content.")),
    };
    let is_path = |path: &str| {
        let rest = path.strip_prefix("properties.desired");
        rest.is_some_and(|rest| rest.split('.').enumerate().all(|(at, name)| name.is_empty() == (at == 0)))
    };
    match content.keys().find(|path| !is_path(path)) {
        Some(path) => Err(bad_content(format!("'{path}' is not a path into properties.desired."))),
        None => Ok(content),
    }
}

/// Why a text is not a target condition.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConditionError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("a target condition knows deviceId, tags and properties.reported, not {0}")]
    Attribute(String),
}

/// Reads a target condition: a condition on what devices are and report, not on what they are told.
pub(super) fn check_condition(text: &str) -> Result<Condition, ConditionError> {
    let condition = Condition::parse(text)?;
    let known = |path: &[String]| match path {
        [first] => first == "deviceId",
        [first, ..] if first == "tags" => true,
        [first, second, _, ..] => first == "properties" && second == "reported",
        _ => false,
    };
    match condition.attributes().into_iter().find(|path| !known(path)) {
        Some(path) => Err(ConditionError::Attribute(path.join("."))),
        None => Ok(condition),
    }
}
