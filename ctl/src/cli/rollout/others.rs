//! Who else says what firmware devices are to have: of several, the hub takes one, and the others when that is gone.

use serde_json::Value;

use super::super::{CliError, Ctl, chain, notice};
use crate::rollout::{rank, sets_firmware};

/// Tells of all of them to who is about to make `own`.
pub(super) async fn tell_others(ctl: &Ctl, own: &Value) -> Result<(), CliError> {
    let configurations = ctl.service.configurations().await?;
    let (before, behind) = others(own, &configurations);
    let name = id(own);
    for other in before {
        notice(&format!("rollout `{other}` goes before `{name}`: devices that both target get what it says"));
    }
    tell_each(&behind, name);
    Ok(())
}

/// Tells of those that the hub takes for devices that `own` does not target any more. What was to be done is done: a
/// hub that does not list them now is no failure.
pub(super) async fn tell_those_behind(ctl: &Ctl, own: &Value) {
    match ctl.service.configurations().await {
        Ok(configurations) => tell_each(&others(own, &configurations).1, id(own)),
        Err(error) => notice(&format!(
            "cannot tell whether other rollouts set the firmware too: {}; `twinbootctl rollout list` shows them",
            chain(&error)
        )),
    }
}

fn tell_each(behind: &[&str], name: &str) {
    for other in behind {
        notice(&format!(
            "rollout `{other}` sets the firmware too: without `{name}`, the hub gives devices that both target what \
             `{other}` says; delete it when it is done"
        ));
    }
}

/// The others that set the firmware: those that go before `own`, and those behind it.
fn others<'a>(own: &Value, configurations: &'a [Value]) -> (Vec<&'a str>, Vec<&'a str>) {
    let others = configurations.iter().filter(|one| sets_firmware(one) && id(one) != id(own));
    let (before, behind): (Vec<_>, Vec<_>) = others.partition(|one| rank(one) > rank(own));
    let ids = |them: Vec<&'a Value>| them.into_iter().map(id).collect();
    (ids(before), ids(behind))
}

fn id(configuration: &Value) -> &str {
    configuration.get("id").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hub_takes_the_highest_priority_and_of_equal_ones_the_newest() {
        let one = |id: &str, priority: u64, created: &str| {
            json!({"id": id, "priority": priority, "createdTimeUtc": created,
                "content": {"deviceContent": {"properties.desired.firmware": {}}}})
        };
        let fw = |n: u64, at: &str| one(&format!("fw-{n}"), 10, at);
        let all = [
            one("urgent", 11, "2026-01-01T00:00:00Z"),
            one("default", 0, "2026-09-09T00:00:00Z"),
            fw(1, "2026-01-01T00:00:00.9Z"),
            fw(2, "2026-01-01T00:00:01Z"),
            fw(3, "2026-01-01T00:00:01.123Z"),
            json!({"id": "other", "priority": 99, "content": {"deviceContent": {"properties.desired.a": 1}}}),
        ];
        assert_eq!(others(&all[3], &all), (vec!["urgent", "fw-3"], vec!["default", "fw-1"]));
        let new = json!({"id": "fw-4", "priority": 10});
        assert_eq!(others(&new, &all), (vec!["urgent"], vec!["default", "fw-1", "fw-2", "fw-3"]));
    }
}
