//! `/configurations`: automatic device configurations.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Call};
use crate::hub::configuration::{CONFIGURATION_LIMIT, Configuration, check_condition};
use crate::hub::failure::Failure;
use crate::hub::query::Query;
use crate::hub::state::State;

pub(super) fn list(call: &Call) -> Result<Answer, Failure> {
    let top = call.top(CONFIGURATION_LIMIT)?;
    let list = |state: &State| {
        let configurations = state.configurations.iter().take(top);
        configurations.map(|(id, configuration)| configuration.for_service(id)).collect()
    };
    Ok(Answer::ok(Value::Array(call.hub.read(list))))
}

pub(super) fn get(call: &Call, id: &str) -> Result<Answer, Failure> {
    call.hub.read(|state| Ok(show(id, state.configurations.get(id).ok_or_else(|| not_found(id))?)))
}

/// Creates without `If-Match`, updates with it.
pub(super) fn put(call: &Call, id: &str) -> Result<Answer, Failure> {
    let body = call.json()?;
    call.hub.change(|state| {
        let updates = call.if_match().is_some() && !(state.strict_etags && is_bare(call));
        let configuration = match state.configurations.get(id) {
            Some(there) if updates => {
                call.check_etag(&there.etag())?;
                let mut configuration = there.clone();
                configuration.update(id, body)?;
                configuration
            }
            Some(_) => {
                let message = format!("Configuration with ID '{id}' already exists.");
                return Err(Failure::new(409, "ConfigurationAlreadyExists", message));
            }
            None if updates => return Err(not_found(id)),
            None if state.configurations.len() >= CONFIGURATION_LIMIT => {
                let message = format!("A hub has at most {CONFIGURATION_LIMIT} configurations.");
                return Err(Failure::new(403, "IotHubQuotaExceeded", message));
            }
            None => Configuration::new(id, body, state.next_serial())?,
        };
        let answer = show(id, &configuration);
        state.configurations.insert(id.to_owned(), configuration);
        state.rollout_due.notify_one();
        Ok(answer)
    })
}

/// What was applied stays where it was applied.
pub(super) fn delete(call: &Call, id: &str) -> Result<Answer, Failure> {
    call.hub.change(|state| {
        let configuration = state.configurations.get(id).ok_or_else(|| not_found(id))?;
        call.check_etag(&configuration.etag())?;
        state.configurations.remove(id);
        for device in state.devices.values_mut() {
            device.configurations.remove(id);
        }
        state.rollout_due.notify_one();
        Ok(Answer::no_content())
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Queries {
    target_condition: Option<String>,
    custom_metric_queries: Option<BTreeMap<String, String>>,
}

/// Says what is wrong with the queries of a configuration, without making one. It does not take `*`.
pub(super) fn test_queries(call: &Call) -> Result<Answer, Failure> {
    let queries: Queries = call.json()?;
    let condition_error = match queries.target_condition.as_deref() {
        None => None,
        Some("*") => Some("at 0: expected an attribute".to_owned()),
        Some(condition) => check_condition(condition).err().map(|error| error.to_string()),
    };
    let metrics = queries.custom_metric_queries.unwrap_or_default();
    let error = |(name, query): (String, String)| Some((name, Query::parse(&query).err()?.to_string()));
    let metric_errors: BTreeMap<String, String> = metrics.into_iter().filter_map(error).collect();
    Ok(Answer::ok(json!({
        "targetConditionError": condition_error,
        "customMetricQueryErrors": metric_errors,
    })))
}

fn show(id: &str, configuration: &Configuration) -> Answer {
    Answer::tagged(configuration.for_service(id), &configuration.etag())
}

fn not_found(id: &str) -> Failure {
    Failure::new(404, "ConfigurationNotFound", format!("Configuration with ID '{id}' was not found."))
}

/// An etag without its quotes, which the real hub does not see here.
fn is_bare(call: &Call) -> bool {
    call.header("if-match").is_some_and(|etag| etag != "*" && !etag.starts_with('"'))
}
