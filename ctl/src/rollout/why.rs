//! Why devices failed: their own words, counted.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Devices that failed for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    pub devices: usize,
    pub status: String,
    pub code: String,
    pub message: String,
    /// A few of them.
    pub examples: Vec<String>,
}

/// Enough to go and look.
const EXAMPLES_MAX: usize = 3;

/// The answers to [`super::Rollout::failures_query`] by reason, the most frequent one first.
pub fn reasons(failures: &[Value]) -> Vec<Reason> {
    let mut by_reason: BTreeMap<[String; 3], Vec<String>> = BTreeMap::new();
    for failure in failures {
        let text = |key: &str| failure.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        by_reason.entry([text("status"), text("code"), text("message")]).or_default().push(text("deviceId"));
    }
    let mut reasons: Vec<Reason> = by_reason
        .into_iter()
        .map(|([status, code, message], mut examples)| {
            let devices = examples.len();
            examples.sort();
            examples.truncate(EXAMPLES_MAX);
            Reason { devices, status, code, message, examples }
        })
        .collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.devices));
    reasons
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn failures_are_counted_by_reason() {
        let failure = |device: &str, status: &str, message: &str| json!({"deviceId": device, "status": status, "code": "C", "message": message});
        let failures = [
            failure("d-1", "failed", "a"),
            failure("d-9", "rolledBack", "b"),
            failure("d-8", "rolledBack", "b"),
            failure("d-7", "rolledBack", "b"),
            failure("d-6", "rolledBack", "b"),
            json!({"deviceId": "d-0", "status": "failed"}),
        ];
        let reasons = reasons(&failures);
        let counts: Vec<_> = reasons.iter().map(|reason| (reason.devices, reason.message.as_str())).collect();
        assert_eq!(counts, [(4, "b"), (1, ""), (1, "a")]);
        assert_eq!(reasons[0].examples, ["d-6", "d-7", "d-8"]);
    }
}
