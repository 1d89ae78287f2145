//! A rollout: rings of devices, opened one after the other through a gate. Pure.
//!
//! All of it is in one automatic device configuration, whose target condition is widened by a ring at a time. Not one
//! configuration for each ring, because then a stop would be one write, and two operators are told apart by one etag;
//! because the content, which the hub never changes, is the same for all rings by construction; because no ring can be
//! half deleted or half paused when a write in the middle is throttled (the hub takes one each three seconds); and
//! because a hub has room for a hundred configurations, a free one for ten. Rings, gate and how many rings are open are
//! in its labels, which can be changed; the target condition follows from them, so a paused rollout loses nothing.
//!
//! The counts come from queries by ring, update id and version, not from the hub's metrics: those know no rings, are up to
//! five minutes old, and are empty while nothing is targeted.

pub mod gate;
pub mod why;

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use self::gate::{Gate, Tally, Verdict};

/// The path of the desired property in a configuration.
const FIRMWARE: &str = "properties.desired.firmware";

/// The same for all rollouts: of two that target one device, the hub then takes the newer.
const PRIORITY: u32 = 10;

/// A rollout, as the hub keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    pub name: String,
    pub version: String,
    pub update_id: String,
    /// The target condition of each ring; `*` for all devices.
    pub rings: Vec<String>,
    /// How many of them are open.
    pub open: usize,
    pub gate: Gate,
    pub paused: bool,
}

/// The keys of the desired property that not every update has; the first is another spelling of the address, and
/// devices refuse both at once.
const OPTIONAL_KEYS: [&str; 3] = ["fwPackageUri", "fwPackageCheckValue", "fwSize"];

/// Whether a configuration says what firmware devices are to have, whoever made it.
pub fn sets_firmware(configuration: &Value) -> bool {
    let content = configuration.pointer("/content/deviceContent").and_then(Value::as_object);
    content.is_some_and(|content| {
        content.iter().any(|(path, value)| match path.as_str() {
            "properties.desired" => value.get("firmware").is_some(),
            path => path == FIRMWARE || path.strip_prefix(FIRMWARE).is_some_and(|rest| rest.starts_with('.')),
        })
    })
}

/// Of two that target one device, the hub takes the one with the greater rank. One that is not made yet will be newer
/// than all.
pub fn rank(configuration: &Value) -> impl Ord + use<> {
    let priority = configuration.get("priority").and_then(Value::as_i64);
    let created = configuration.get("createdTimeUtc").and_then(Value::as_str);
    let time: Option<SystemTime> = created.and_then(|time| humantime::parse_rfc3339(time).ok());
    (priority, created.is_none(), time)
}

/// What tells a rollout from others that have, or had, its name. The etag does not: the hub counts it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    update_id: String,
    /// Where the hub tells it.
    created: Option<String>,
}

/// A configuration that was not made by `rollout create`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("configuration `{name}` is no rollout of this tool: {why}")]
pub struct NotARollout {
    name: String,
    why: &'static str,
}

impl Rollout {
    /// Reads a configuration.
    pub fn of(configuration: &Value) -> Result<Self, NotARollout> {
        let name = configuration.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let not = |why| NotARollout { name: name.clone(), why };
        let firmware = configuration
            .pointer("/content/deviceContent")
            .and_then(|content| content.get(FIRMWARE))
            .ok_or_else(|| not("it sets no firmware"))?;
        let text = |key| firmware.get(key).and_then(Value::as_str).map(str::to_owned);
        let label = |key: &str| configuration.get("labels")?.get(key)?.as_str();
        let number = |key: &str| label(key)?.parse().ok();
        let rings: Vec<String> =
            (1..).map_while(|ring| label(&ring_label(ring))).map(str::to_owned).collect();
        let open = number("ringsOpen").and_then(|open: u64| usize::try_from(open).ok());
        let open =
            open.filter(|open| (1..=rings.len()).contains(open)).ok_or_else(|| not("it has no rings"))?;
        let gate = Gate {
            failed_percent: number("gateFailedPercent").ok_or_else(|| not("it has no gate"))?,
            done_percent: number("gateDonePercent").ok_or_else(|| not("it has no gate"))?,
        };
        Ok(Self {
            version: text("fwVersion").ok_or_else(|| not("its firmware has no version"))?,
            update_id: text("updateId").ok_or_else(|| not("its firmware has no update id"))?,
            rings,
            open,
            gate,
            paused: label("paused").is_some(),
            name,
        })
    }

    /// Which one it is, by the configuration that it was read from.
    pub fn identity(&self, configuration: &Value) -> Identity {
        let created = configuration.get("createdTimeUtc").and_then(Value::as_str);
        Identity { update_id: self.update_id.clone(), created: created.map(str::to_owned) }
    }

    /// The configuration to create.
    pub fn configuration(&self, firmware: &Value) -> Value {
        // The hub adds what is desired to what an older rollout left in the twin: what this one does not say is taken
        // away, or its image would be measured by the older one's size.
        let mut firmware = firmware.clone();
        if let Some(fields) = firmware.as_object_mut() {
            for key in OPTIONAL_KEYS {
                fields.entry(key).or_insert(Value::Null);
            }
        }
        let configuration = json!({
            "id": self.name,
            "schemaVersion": "1.0",
            "content": { "deviceContent": { FIRMWARE: firmware } },
            "priority": PRIORITY,
            "metrics": { "queries": self.metrics() },
        });
        self.write_to(configuration)
    }

    /// The configuration that was read, with this rollout's state in it.
    pub fn write_to(&self, mut configuration: Value) -> Value {
        if let Some(fields) = configuration.as_object_mut() {
            let mut labels = match fields.remove("labels") {
                Some(Value::Object(labels)) => labels,
                _ => Map::new(),
            };
            labels.remove("paused");
            labels.extend(self.labels());
            fields.insert("labels".into(), Value::Object(labels));
            fields.insert("targetCondition".into(), json!(self.target_condition()));
        }
        configuration
    }

    fn labels(&self) -> Map<String, Value> {
        let mut labels = Map::new();
        for (ring, condition) in (1..).zip(&self.rings) {
            labels.insert(ring_label(ring), json!(condition));
        }
        labels.insert("ringsOpen".into(), json!(self.open.to_string()));
        labels.insert("gateFailedPercent".into(), json!(self.gate.failed_percent.to_string()));
        labels.insert("gateDonePercent".into(), json!(self.gate.done_percent.to_string()));
        if self.paused {
            labels.insert("paused".into(), json!("true"));
        }
        labels
    }

    /// In a pause, only those that have begun: a device that nobody targets is given an older rollout again, if there is
    /// one, and would report that it refuses it.
    pub fn target_condition(&self) -> String {
        let rings = any_of(self.open_rings());
        if !self.paused {
            return rings;
        }
        let begun = format!("{} OR {VERSION} = {}", self.is_mine(), quoted(&self.version));
        if rings == "*" { begun } else { format!("({rings}) AND ({begun})") }
    }

    pub fn open_rings(&self) -> &[String] {
        self.rings.get(..self.open).unwrap_or(&self.rings)
    }

    /// All that the hub may find wrong: `*` would hide the other rings.
    pub fn ring_conditions(&self) -> Option<String> {
        let rings: Vec<String> = self.rings.iter().filter(|ring| *ring != "*").cloned().collect();
        (!rings.is_empty()).then(|| any_of(&rings))
    }

    /// For the hub's own pages; five is as many as it takes.
    fn metrics(&self) -> BTreeMap<&'static str, String> {
        let count = |condition: String| {
            let applied = format!("configurations.[[{}]].status = 'Applied'", self.name);
            format!("SELECT deviceId FROM devices WHERE {applied} AND ({condition})")
        };
        let (mine, completed, had) = (self.is_mine(), self.is_completed(), self.had_it_before());
        let status = |status: &str| count(format!("{mine} AND {STATUS} = '{status}'"));
        BTreeMap::from([
            ("current", count(format!("({mine} AND ({STATUS} = 'standBy' OR ({completed}))) OR ({had})"))),
            ("downloading", status("downloading")),
            ("applying", status("applying")),
            ("error", status("failed")),
            ("rolledback", status("rolledBack")),
        ])
    }

    /// Whether what a device reports is about this update.
    fn is_mine(&self) -> String {
        format!("{UPDATE_ID} = {}", quoted(&self.update_id))
    }

    /// Whether what a device has completed is this version: of an update with this id, it may be another.
    fn is_completed(&self) -> String {
        format!("{STATUS} = 'completed' AND {VERSION} = {}", quoted(&self.version))
    }

    /// Whether a device had the version before, such as one that was flashed with it: it has nothing to do and is done,
    /// however its last update ended, for that was another.
    fn had_it_before(&self) -> String {
        let (version, id) = (quoted(&self.version), quoted(&self.update_id));
        format!(
            "{VERSION} = {version} AND (NOT IS_DEFINED({UPDATE_ID}) OR {UPDATE_ID} != {id}) \
             AND {STATUS} IN ['standBy', 'completed', 'failed', 'rolledBack']"
        )
    }

    /// Asks how many devices a ring has.
    pub fn count_query(condition: &str) -> String {
        format!("SELECT COUNT() AS n FROM devices{}", filter(&[condition]))
    }

    /// Asks how many devices of a ring had the version before.
    pub fn had_it_query(&self, condition: &str) -> String {
        format!("SELECT COUNT() AS n FROM devices{}", filter(&[condition, &self.had_it_before()]))
    }

    /// Asks how many devices of a ring are how far. Those that have completed another version are not.
    pub fn states_query(&self, condition: &str) -> String {
        let counts = format!("{STATUS} != 'completed' OR {VERSION} = {}", quoted(&self.version));
        let filter = filter(&[condition, &self.is_mine(), &counts]);
        format!("SELECT {STATUS} AS status, COUNT() AS n FROM devices{filter} GROUP BY {STATUS}")
    }

    /// Asks how many devices of all rings have completed another version by this id: they would say that they are done.
    pub fn other_version_query(&self) -> String {
        let other = format!("{STATUS} = 'completed' AND {VERSION} != {}", quoted(&self.version));
        let filter = filter(&[&any_of(&self.rings), &self.is_mine(), &other]);
        format!("SELECT COUNT() AS n FROM devices{filter}")
    }

    /// Asks which devices failed, and why.
    pub fn failures_query(&self) -> String {
        let failed = format!("{STATUS} IN ['failed', 'rolledBack']");
        let error = "properties.reported.firmware.error";
        let filter = filter(&[&any_of(self.open_rings()), &self.is_mine(), &failed]);
        format!(
            "SELECT deviceId, {STATUS} AS status, {error}.code AS code, {error}.message AS message FROM devices{filter}"
        )
    }

    /// What is to be done, by the counts of all open rings. The last one says whether the next may open; each may stop
    /// it, however long it has been open: sick devices take longer to say so than healthy ones.
    pub fn decide(&self, open_rings: &[Tally]) -> Verdict {
        if self.paused {
            return Verdict::Wait("paused".into());
        }
        let of = |ring: usize, why: String| format!("ring {ring}: {why}");
        for (ring, tally) in (1..).zip(open_rings) {
            if let Some(why) = self.gate.too_many_failed(tally) {
                return Verdict::Stop(of(ring, why));
            }
        }
        match self.gate.decide(open_rings.last().unwrap_or(&Tally::default())) {
            Verdict::Open if self.open == self.rings.len() => Verdict::Complete,
            Verdict::Wait(why) => Verdict::Wait(of(self.open, why)),
            Verdict::Stop(why) => Verdict::Stop(of(self.open, why)),
            verdict => verdict,
        }
    }
}

const STATUS: &str = "properties.reported.firmwareStatus";
const UPDATE_ID: &str = "properties.reported.firmware.updateId";
const VERSION: &str = "properties.reported.firmware.currentFwVersion";

fn ring_label(ring: usize) -> String {
    format!("ring{ring}")
}

/// `(a) OR (b)`; all devices, if one of them is.
fn any_of(conditions: &[String]) -> String {
    match conditions {
        [only] => only.clone(),
        several if several.iter().any(|condition| condition == "*") => "*".to_owned(),
        several => several.iter().map(|condition| format!("({condition})")).collect::<Vec<_>>().join(" OR "),
    }
}

/// ` WHERE (a) AND (b)`, without those that all devices meet.
fn filter(conditions: &[&str]) -> String {
    let conditions: Vec<String> = conditions
        .iter()
        .filter(|condition| **condition != "*")
        .map(|condition| format!("({condition})"))
        .collect();
    if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) }
}

/// Whether a ring is chosen by what its devices leave, or come to, by the update itself: its counts would say nothing.
pub fn hangs_on_the_update(condition: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let names = |properties: &'static str| {
        condition.split(properties).skip(1).filter_map(|rest| rest.split(|c| !goes_on(c)).next())
    };
    let reported = [
        "firmware",
        "firmwareStatus",
        "logTime",
        "downloadComplete",
        "startedApplyingImage",
        "lastFirmwareUpdate",
        // Of all properties together.
        "$metadata",
        "$version",
    ];
    let desired = ["firmware", "$metadata", "$version"];
    names("properties.reported.").any(|name| reported.contains(&name))
        || names("properties.desired.").any(|name| desired.contains(&name))
}

/// A string of the query language.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout() -> Rollout {
        Rollout {
            name: "fw-2".into(),
            version: "2.0'x".into(),
            update_id: "u-2".into(),
            rings: vec!["tags.ring = '1'".into(), "tags.ring = '2'".into(), "*".into()],
            open: 1,
            gate: Gate { failed_percent: 2, done_percent: 95 },
            paused: false,
        }
    }

    fn firmware() -> Value {
        json!({"fwPackageURI": "https://host.example/2.img", "fwVersion": "2.0'x", "updateId": "u-2"})
    }

    #[test]
    fn a_rollout_is_read_back_from_its_configuration() {
        for (open, paused) in [(1, false), (2, true), (3, false)] {
            let rollout = Rollout { open, paused, ..rollout() };
            assert_eq!(Rollout::of(&rollout.configuration(&firmware())), Ok(rollout));
        }
        let foreign =
            json!({"id": "x", "labels": {}, "content": {"deviceContent": {"properties.desired.a": 1}}});
        assert_eq!(
            Rollout::of(&foreign).unwrap_err().to_string(),
            "configuration `x` is no rollout of this tool: it sets no firmware"
        );
        for label in ["ringsOpen", "gateDonePercent", "ring1"] {
            let mut configuration = rollout().configuration(&firmware());
            configuration["labels"].as_object_mut().unwrap().remove(label);
            assert!(Rollout::of(&configuration).is_err(), "{label}");
        }
    }

    #[test]
    fn a_rollout_that_took_the_name_of_another_is_told_apart() {
        let identity = |update_id: &str, created: &str| {
            let rollout = Rollout { update_id: update_id.into(), ..rollout() };
            rollout.identity(&json!({"etag": "MQ==", "createdTimeUtc": created}))
        };
        let one = identity("u-2", "2026-01-01T00:00:00Z");
        assert_eq!(one, identity("u-2", "2026-01-01T00:00:00Z"));
        assert_ne!(one, identity("u-3", "2026-01-01T00:00:00Z"));
        assert_ne!(one, identity("u-2", "2026-01-01T00:00:01Z"));
    }

    #[test]
    fn the_target_is_widened_ring_by_ring_and_narrowed_to_those_that_have_begun_in_a_pause() {
        let target = |open, paused| Rollout { open, paused, ..rollout() }.target_condition();
        assert_eq!(target(1, false), "tags.ring = '1'");
        assert_eq!(target(2, false), "(tags.ring = '1') OR (tags.ring = '2')");
        assert_eq!(target(3, false), "*");
        let begun = format!(r"{UPDATE_ID} = 'u-2' OR {VERSION} = '2.0\'x'");
        assert_eq!(target(1, true), format!("(tags.ring = '1') AND ({begun})"));
        assert_eq!(target(3, true), begun);
    }

    #[test]
    fn a_rollout_takes_away_what_it_does_not_say() {
        let written = |firmware: &Value| {
            let configuration = rollout().configuration(firmware);
            configuration["content"]["deviceContent"][FIRMWARE].clone()
        };
        let with = |key: &str, value: Value| {
            let mut firmware = firmware();
            firmware[key] = value;
            firmware
        };
        assert_eq!(written(&firmware())["fwSize"], Value::Null);
        assert!(written(&firmware()).as_object().unwrap().contains_key("fwPackageCheckValue"));
        assert_eq!(written(&with("fwSize", json!(7)))["fwSize"], json!(7));
    }

    #[test]
    fn a_ring_may_not_hang_on_what_the_update_changes() {
        for name in [
            "firmware",
            "firmware.updateId",
            "firmwareStatus",
            "logTime",
            "downloadComplete",
            "startedApplyingImage",
            "lastFirmwareUpdate",
            "$version",
            "$metadata.$lastUpdated",
        ] {
            let condition = format!("tags.ring = '1' AND NOT IS_DEFINED(properties.reported.{name})");
            assert!(hangs_on_the_update(&condition), "{name}");
        }
        assert!(hangs_on_the_update(
            "properties.reported.board='x' AND properties.reported.firmwareStatus='failed'"
        ));
        assert!(hangs_on_the_update("NOT IS_DEFINED(properties.desired.firmware)"));
        for condition in [
            "properties.reported.board = 'x' AND tags.firmware = 'y'",
            "properties.reported.firmwareChannel = 'beta'",
            "properties.reported.firmwareVariant='x'",
            "properties.reported.firmware_channel='x'",
            "properties.reported.firmware$='x'",
            "IS_DEFINED(properties.reported.logTimeZone)",
            "properties.desired.firmwares = 1",
        ] {
            assert!(!hangs_on_the_update(condition), "{condition}");
        }
    }

    #[test]
    fn what_sets_the_firmware_is_known_whoever_made_it() {
        let sets =
            |path: &str, value: Value| sets_firmware(&json!({"content": {"deviceContent": {path: value}}}));
        assert!(sets_firmware(&rollout().configuration(&firmware())));
        assert!(sets("properties.desired.firmware.fwVersion", json!("1")));
        assert!(sets("properties.desired", json!({"firmware": {}})));
        assert!(!sets("properties.desired", json!({"a": 1})));
        assert!(!sets("properties.desired.firmwares", json!({})));
    }

    #[test]
    fn a_write_keeps_what_it_does_not_know() {
        let configuration = json!({"id": "fw-2", "etag": "MQ==", "priority": 7, "content": {"a": 1},
            "labels": {"paused": "true", "owner": "lyon"}});
        let written = rollout().write_to(configuration);
        assert_eq!(
            (&written["etag"], &written["priority"], &written["content"]["a"]),
            (&json!("MQ=="), &json!(7), &json!(1))
        );
        let labels = &written["labels"];
        let known = (&labels["owner"], &labels["ringsOpen"], labels.get("paused"));
        assert_eq!(known, (&json!("lyon"), &json!("1"), None));
    }

    #[test]
    fn queries_are_about_this_update_and_this_ring() {
        let query = rollout().states_query("tags.ring = '1'");
        assert!(
            query.contains(
                "WHERE (tags.ring = '1') AND (properties.reported.firmware.updateId = 'u-2') AND ("
            ),
            "{query}"
        );
        assert!(
            query.contains(
                r"!= 'completed' OR properties.reported.firmware.currentFwVersion = '2.0\'x') GROUP"
            )
        );
        let query = rollout().had_it_query("tags.ring = '1'");
        assert!(query.contains(r"WHERE (tags.ring = '1') AND ("), "{query}");
        assert!(query.contains(r"currentFwVersion = '2.0\'x' AND"), "{query}");
        assert_eq!(Rollout::count_query("*"), "SELECT COUNT() AS n FROM devices");
        let all = Rollout { open: 3, ..rollout() };
        assert!(all.failures_query().contains("devices WHERE (properties.reported.firmware.updateId"));
    }

    #[test]
    fn the_last_ring_has_nothing_behind_it_and_a_pause_opens_nothing() {
        let done = Tally { devices: 10, current: 10, ..Tally::default() };
        assert_eq!(rollout().decide(&[done]), Verdict::Open);
        assert_eq!(Rollout { open: 3, ..rollout() }.decide(&[done; 3]), Verdict::Complete);
        assert_eq!(Rollout { paused: true, ..rollout() }.decide(&[done]), Verdict::Wait("paused".into()));
    }

    #[test]
    fn a_ring_that_was_passed_stops_it_once_its_sick_devices_say_so() {
        let passed = Tally { devices: 1000, current: 955, error: 5, rolledback: 16, ..Tally::default() };
        let next = Tally { devices: 10, current: 10, ..Tally::default() };
        let why = "ring 1: 2.1 % failed or rolled back, 2 % are allowed";
        let of = |first| Rollout { open: 2, ..rollout() }.decide(&[first, next]);
        assert_eq!(of(passed), Verdict::Stop(why.into()));
        assert_eq!(of(Tally { error: 4, ..passed }), Verdict::Open);
        // Devices that came to it since are for the hub to tell; nobody waits for them.
        assert_eq!(of(Tally { error: 0, rolledback: 0, devices: 9000, ..passed }), Verdict::Open);
    }
}
