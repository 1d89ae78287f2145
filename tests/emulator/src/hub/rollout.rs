//! Gives configurations to the devices they target, again and again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::configuration::{Status, check_condition};
use super::device::Seen;
use super::identity::is_module;
use super::query::{Condition, Query};
use super::state::{Shared, State};
use super::twin::Write;

/// Changes that come this close together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// After an evaluation, so many times as long is spent on other things.
const REST: u32 = 9;
/// Devices looked at before somebody else gets the state.
const STEP: usize = 256;

/// Evaluates all configurations when something changed that they look at, and every `interval`.
pub(super) async fn run(hub: Arc<Shared>, interval: Duration) {
    let due = hub.read(|state| Arc::clone(&state.rollout_due));
    loop {
        // Elapsed is fine: a change meanwhile is remembered.
        let _ = timeout(interval, due.notified()).await;
        sleep(DEBOUNCE).await;
        let began = Instant::now();
        evaluate(&hub).await;
        sleep(began.elapsed().saturating_mul(REST)).await;
    }
}

/// A configuration, as far as devices are concerned.
struct Rule {
    id: String,
    condition: Condition,
    rank: (i64, u64),
    patch: Value,
}

async fn evaluate(hub: &Shared) {
    let ids: Vec<String> = hub.read(|state| state.configurations.keys().cloned().collect());
    if ids.is_empty() {
        return;
    }
    let rules = hub.read(rules);
    let mut after = String::new();
    while let Some(last) = hub.change(|state| apply_to_some(state, &rules, &after)) {
        after = last;
        tokio::task::yield_now().await;
    }
    for id in &ids {
        measure(hub, id).await;
    }
}

fn rules(state: &State) -> Vec<Rule> {
    let rule = |(id, configuration): (&String, &super::configuration::Configuration)| {
        // Was checked when it came; an empty one is none.
        let condition = check_condition(&configuration.target_condition).ok();
        Some(Rule {
            id: id.clone(),
            condition: condition?,
            rank: (configuration.priority, configuration.serial),
            patch: configuration.patch(),
        })
    };
    state.configurations.iter().filter_map(rule).collect()
}

/// Looks at the devices that come `after` this one, as many as are one step. Returns the last of them.
fn apply_to_some(state: &mut State, rules: &[Rule], after: &str) -> Option<String> {
    let next = state.devices.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
    let keys: Vec<String> = next.take(STEP).map(|(key, _)| key.clone()).collect();
    for key in keys.iter().filter(|key| !is_module(key)) {
        apply(state, rules, key);
    }
    keys.into_iter().last()
}

fn apply(state: &mut State, rules: &[Rule], key: &str) -> Option<()> {
    let seen = Seen { key, device: state.devices.get(key)? };
    let targeting: Vec<&Rule> = rules.iter().filter(|rule| rule.condition.holds(&seen)).collect();
    let winner = targeting.iter().max_by_key(|rule| rule.rank);
    let status = |rule: &&Rule| match winner {
        Some(winner) if winner.id == rule.id => (rule.id.clone(), Status::Applied),
        _ => (rule.id.clone(), Status::Targeted),
    };
    let mut statuses: BTreeMap<String, Status> = targeting.iter().map(status).collect();
    let before = &seen.device.configurations;
    if *before == statuses {
        return None;
    }
    if let Some(winner) = winner.filter(|winner| before.get(&winner.id) != Some(&Status::Applied))
        && let Err(failure) = state.write_twin(key, Write::Patch, &winner.patch)
    {
        tracing::warn!(device = key, configuration = winner.id, reason = failure.message, "not applied");
        statuses.insert(winner.id.clone(), Status::Targeted);
    }
    state.devices.get_mut(key)?.configurations = statuses;
    Some(())
}

/// Counts the rows of a configuration's queries.
async fn measure(hub: &Shared, id: &str) {
    let queries = hub.read(|state| {
        let configuration = state.configurations.get(id)?;
        Some((configuration.system_queries(id), configuration.queries().clone()))
    });
    let Some((system, custom)) = queries else { return };
    let (system, custom) = (count(hub, system).await, count(hub, custom).await);
    hub.change(|state| {
        if let Some(configuration) = state.configurations.get_mut(id) {
            configuration.system_counts = system;
            configuration.counts = custom;
        }
    });
}

async fn count(hub: &Shared, queries: BTreeMap<String, String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (name, query) in queries {
        // Was checked when it came.
        if let Ok(query) = Query::parse(&query) {
            counts.insert(name, hub.read(|state| state.count(&query)));
            tokio::task::yield_now().await;
        }
    }
    counts
}
