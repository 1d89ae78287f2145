//! The device twin: merge patches, versions, limits, and the two ways of showing it.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::query::Document;

/// Total size of the desired or the reported properties.
const PROPERTIES_SIZE_LIMIT_BYTES: usize = 32 * 1024;
/// Total size of the tags.
const TAGS_SIZE_LIMIT_BYTES: usize = 8 * 1024;
const KEY_LIMIT_BYTES: usize = 1024;
const STRING_LIMIT_BYTES: usize = 4096;
const DEPTH_LIMIT: usize = 10;
/// Integers beyond these lose digits on their way through the hub.
const INTEGERS: std::ops::RangeInclusive<i64> = -4_503_599_627_370_496..=4_503_599_627_370_495;

/// Why a patch was refused. Nothing of it was applied.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TwinError {
    /// The patch is not a JSON object.
    #[error("twin patch is not a JSON object")]
    NotAnObject,
    /// A property name is too long.
    #[error("length of property name {0:.32}.. exceeds maximum length of {KEY_LIMIT_BYTES}")]
    LongKey(String),
    /// A property name has a control character, a space, `.`, `$` or `#`.
    #[error("property name {0} contains invalid character '{1}'")]
    KeyCharacter(String, char),
    /// A string is too long.
    #[error("value of property {0} has length {1} that exceeds maximum length of {STRING_LIMIT_BYTES}")]
    LongString(String, usize),
    /// An integer is out of bounds.
    #[error("property {0} has an out of bound value; valid values are between {min} and {max}", min = INTEGERS.start(), max = INTEGERS.end())]
    Integer(String),
    /// There is a null inside an array.
    #[error("array of property {0} contains 'null'")]
    NullInArray(String),
    /// The objects are nested too deep.
    #[error("nested depth of twin property exceeds {DEPTH_LIMIT}")]
    Depth,
    /// The whole section has become too large.
    #[error("twin properties size {0} exceeds maximum {1}")]
    Size(usize, usize),
}

/// The desired or the reported properties, or the tags.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Section {
    pub properties: Value,
    pub version: i64,
    metadata: Value,
    size_limit_bytes: usize,
}

impl Section {
    fn new(size_limit_bytes: usize, now: &str) -> Self {
        let metadata = json!({ "$lastUpdated": now });
        Self { properties: json!({}), version: 1, metadata, size_limit_bytes }
    }

    /// Applies a JSON merge patch (RFC 7396), all or nothing.
    pub fn patch(&mut self, patch: &Value, now: &str) -> Result<(), TwinError> {
        let Value::Object(changes) = patch else { return Err(TwinError::NotAnObject) };
        check_object(changes, 0)?;
        let mut properties = self.properties.clone();
        merge(&mut properties, patch);
        let size = size_bytes(&properties);
        if size > self.size_limit_bytes {
            return Err(TwinError::Size(size, self.size_limit_bytes));
        }
        self.properties = properties;
        touch(&mut self.metadata, changes, now);
        self.version = self.version.saturating_add(1);
        Ok(())
    }

    /// Puts `content` in the place of all there is.
    fn replace(&mut self, content: &Value, now: &str) -> Result<(), TwinError> {
        let mut next = Self { version: self.version, ..Self::new(self.size_limit_bytes, now) };
        next.patch(content, now)?;
        *self = next;
        Ok(())
    }

    /// As the device sees it: with the version, without metadata.
    pub fn for_device(&self) -> Value {
        with(self.properties.clone(), [("$version", json!(self.version))])
    }

    fn for_service(&self) -> Value {
        let extra = [("$metadata", self.metadata.clone()), ("$version", json!(self.version))];
        with(self.properties.clone(), extra)
    }
}

impl Document for Section {
    fn find(&self, path: &[String]) -> Option<Cow<'_, Value>> {
        match path.split_first() {
            Some((first, _)) if first == "$version" => Some(Cow::Owned(self.version.into())),
            Some((first, rest)) if first == "$metadata" => self.metadata.find(rest),
            Some(_) => self.properties.find(path),
            None => Some(Cow::Owned(self.for_service())),
        }
    }
}

/// What a service does with the tags and desired properties it sends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Write {
    /// Merge them into what is there.
    Patch,
    /// Put them in the place of what is there.
    Replace,
}

/// A twin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Twin {
    pub desired: Section,
    pub reported: Section,
    pub tags: Section,
    /// Counts the writes of the service: tags and desired properties.
    pub version: i64,
}

impl Twin {
    pub fn new(now: &str) -> Self {
        Self {
            desired: Section::new(PROPERTIES_SIZE_LIMIT_BYTES, now),
            reported: Section::new(PROPERTIES_SIZE_LIMIT_BYTES, now),
            tags: Section::new(TAGS_SIZE_LIMIT_BYTES, now),
            version: 1,
        }
    }

    /// The etag, unquoted: it moves with what the service writes, not with what the device reports.
    pub fn etag(&self) -> String {
        STANDARD.encode(self.version.to_be_bytes())
    }

    /// A write by the service. Returns what to push to the device, if it is about desired properties.
    ///
    /// `content` is a twin of which only tags and desired properties count, so that a twin that was read can be
    /// sent back.
    pub fn write(&mut self, write: Write, content: &Value, now: &str) -> Result<Option<Value>, TwinError> {
        let mut next = self.clone();
        let (tags, desired) = (content.get("tags"), content.pointer("/properties/desired"));
        let desired = desired.map(without_bookkeeping);
        match write {
            Write::Patch => {
                if let Some(tags) = tags {
                    next.tags.patch(tags, now)?;
                }
                if let Some(desired) = &desired {
                    next.desired.patch(desired, now)?;
                }
            }
            Write::Replace => {
                next.tags.replace(tags.unwrap_or(&json!({})), now)?;
                next.desired.replace(desired.as_ref().unwrap_or(&json!({})), now)?;
            }
        }
        next.version = next.version.saturating_add(1);
        *self = next;
        let version = [("$version", json!(self.desired.version))];
        Ok(match write {
            Write::Patch => desired.map(|desired| with(desired, version)),
            Write::Replace => Some(self.desired.for_device()),
        })
    }

    pub fn for_device(&self) -> Value {
        json!({ "desired": self.desired.for_device(), "reported": self.reported.for_device() })
    }

    /// The parts of the service's view that the twin itself holds.
    pub fn for_service(&self) -> [(&'static str, Value); 2] {
        let properties =
            json!({ "desired": self.desired.for_service(), "reported": self.reported.for_service() });
        [("tags", self.tags.properties.clone()), ("properties", properties)]
    }
}

/// `value`, an object, with more members.
pub(super) fn with<const N: usize>(mut value: Value, members: [(&str, Value); N]) -> Value {
    if let Value::Object(object) = &mut value {
        object.extend(members.map(|(key, value)| (key.to_owned(), value)));
    }
    value
}

/// Without what the hub itself adds to a section.
fn without_bookkeeping(section: &Value) -> Value {
    let mut section = section.clone();
    if let Value::Object(section) = &mut section {
        section.retain(|key, _| key != "$metadata" && key != "$version");
    }
    section
}

/// RFC 7396, as twins have it: a null takes a member away.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(object) = target else { return };
    for (key, change) in changes {
        if change.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key.as_str()).or_insert(Value::Null), change);
        }
    }
}

/// Gives every object and leaf that the patch writes its time. Arrays are leaves.
fn touch(metadata: &mut Value, changes: &Map<String, Value>, now: &str) {
    let Value::Object(times) = metadata else { return };
    times.insert("$lastUpdated".into(), json!(now));
    for (key, change) in changes {
        match change {
            Value::Null => {
                times.remove(key);
            }
            Value::Object(inner) => touch(times.entry(key.as_str()).or_insert(json!({})), inner, now),
            _ => {
                times.insert(key.clone(), json!({ "$lastUpdated": now }));
            }
        }
    }
}

fn check_object(object: &Map<String, Value>, depth: usize) -> Result<(), TwinError> {
    if depth > DEPTH_LIMIT {
        return Err(TwinError::Depth);
    }
    for (key, value) in object {
        check_key(key)?;
        match value {
            Value::Object(inner) => check_object(inner, depth.saturating_add(1))?,
            Value::Array(_) if has_null(value) => return Err(TwinError::NullInArray(key.to_owned())),
            Value::Array(items) => check_array(key, items, depth)?,
            other => check_scalar(key, other)?,
        }
    }
    Ok(())
}

/// A null means to take a member away, which nothing inside an array allows.
fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(object) => object.values().any(has_null),
        _ => false,
    }
}

fn check_array(key: &str, items: &[Value], depth: usize) -> Result<(), TwinError> {
    for item in items {
        match item {
            Value::Array(inner) => check_array(key, inner, depth)?,
            Value::Object(inner) => check_object(inner, depth.saturating_add(1))?,
            other => check_scalar(key, other)?,
        }
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), TwinError> {
    if key.len() > KEY_LIMIT_BYTES {
        return Err(TwinError::LongKey(key.to_owned()));
    }
    let wrong = |c: &char| c.is_control() || c.is_whitespace() || ['.', '$', '#'].contains(c);
    key.chars().find(wrong).map_or(Ok(()), |c| Err(TwinError::KeyCharacter(key.to_owned(), c)))
}

fn check_scalar(key: &str, value: &Value) -> Result<(), TwinError> {
    match value {
        Value::String(text) if text.len() > STRING_LIMIT_BYTES => {
            Err(TwinError::LongString(key.to_owned(), text.len()))
        }
        Value::Number(number)
            if number.is_u64() && number.as_i64().is_none()
                || number.as_i64().is_some_and(|integer| !INTEGERS.contains(&integer)) =>
        {
            Err(TwinError::Integer(key.to_owned()))
        }
        _ => Ok(()),
    }
}

/// The hub's own accounting: text without control characters, 8 bytes a number, 4 a truth value.
fn size_bytes(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text_bytes(text),
        Value::Array(items) => items.iter().map(size_bytes).sum(),
        Value::Object(object) => {
            object.iter().map(|(key, value)| text_bytes(key).saturating_add(size_bytes(value))).sum()
        }
    }
}

fn text_bytes(text: &str) -> usize {
    text.chars().filter(|c| !c.is_control()).map(char::len_utf8).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        Section::new(PROPERTIES_SIZE_LIMIT_BYTES, "t0")
    }

    #[test]
    fn a_patch_merges_and_null_removes() {
        let mut section = section();
        section.patch(&json!({"a": {"b": 1, "c": [1, 2]}, "d": "x"}), "t1").unwrap();
        section.patch(&json!({"a": {"b": null, "e": {"f": null}}, "d": 1.0}), "t2").unwrap();
        assert_eq!(section.properties.to_string(), r#"{"a":{"c":[1,2],"e":{}},"d":1.0}"#);
        assert_eq!(section.version, 3);
        let metadata = &section.for_service()["$metadata"];
        assert_eq!(metadata["a"]["c"]["$lastUpdated"], "t1");
        assert_eq!(metadata["a"]["e"]["$lastUpdated"], "t2");
        assert_eq!(metadata["a"].get("b"), None);
    }

    #[test]
    fn a_patch_beyond_a_limit_is_refused_and_leaves_nothing_behind() {
        let deep = |levels: usize| (0..levels).fold(json!({"v": 1}), |inner, _| json!({ "n": inner }));
        for (patch, error) in [
            (json!([1]), TwinError::NotAnObject),
            (json!({"a.b": 1}), TwinError::KeyCharacter("a.b".into(), '.')),
            (json!({"a": {"x y": 1}}), TwinError::KeyCharacter("x y".into(), ' ')),
            (json!({"a": "x".repeat(4097)}), TwinError::LongString("a".into(), 4097)),
            (json!({"k".repeat(1025): 1}), TwinError::LongKey("k".repeat(1025))),
            (json!({"a": 4_503_599_627_370_496_i64}), TwinError::Integer("a".into())),
            (json!({"a": u64::MAX}), TwinError::Integer("a".into())),
            (json!({"a": [1, null]}), TwinError::NullInArray("a".into())),
            (json!({"a": [{"b": null}]}), TwinError::NullInArray("a".into())),
            (json!({"a": [[{"b": {"c": [1, null]}}]]}), TwinError::NullInArray("a".into())),
            (json!({"a": [{"b": {"c": null}}]}), TwinError::NullInArray("a".into())),
            (deep(11), TwinError::Depth),
        ] {
            let mut section = section();
            assert_eq!(section.patch(&patch, "t1"), Err(error));
            assert_eq!((section.version, section.properties), (1, json!({})));
        }
        section().patch(&deep(10), "t1").unwrap();
        section().patch(&json!({"a": "x".repeat(4096), "b": -4_503_599_627_370_496_i64}), "t1").unwrap();
    }

    #[test]
    fn the_size_limit_counts_what_is_there_after_the_merge() {
        let mut section = section();
        for n in 0..7 {
            section.patch(&json!({format!("k{n}"): "x".repeat(4096)}), "t").unwrap();
        }
        let more = json!({"k7": "x".repeat(4096)});
        assert_eq!(section.patch(&more, "t"), Err(TwinError::Size(8 * 4098, 32768)));
        section.patch(&json!({"k0": null, "k7": "x".repeat(4096)}), "t").unwrap();
    }

    #[test]
    fn the_etag_moves_with_the_service_and_not_with_the_device() {
        let mut twin = Twin::new("t0");
        assert_eq!(twin.etag(), "AAAAAAAAAAE=");
        twin.reported.patch(&json!({"a": 1}), "t1").unwrap();
        assert_eq!(twin.etag(), "AAAAAAAAAAE=");
        let patch = json!({"tags": {"site": "x"}, "properties": {"desired": {"b": 2, "c": null}}});
        let push = twin.write(Write::Patch, &patch, "t2").unwrap();
        assert_eq!(push, Some(json!({"b": 2, "c": null, "$version": 2})));
        assert_eq!(twin.etag(), "AAAAAAAAAAI=");
    }

    #[test]
    fn a_twin_that_was_read_can_be_sent_back() {
        let mut twin = Twin::new("t0");
        let patch = json!({"tags": {"site": "x"}, "properties": {"desired": {"a": 1, "b": 2}}});
        twin.write(Write::Patch, &patch, "t1").unwrap();
        let mut read = json!({"tags": {}, "properties": {"desired": twin.desired.for_service()}});
        read["properties"]["desired"]["a"] = json!(null);
        let push = twin.write(Write::Replace, &read, "t2").unwrap();
        assert_eq!(push, Some(json!({"b": 2, "$version": 3})));
        assert_eq!(twin.tags.properties, json!({}));
        assert_eq!(twin.desired.for_service()["$metadata"].get("a"), None);
        twin.write(Write::Replace, &json!({}), "t3").unwrap();
        assert_eq!(twin.desired.for_device(), json!({"$version": 4}));
    }
}
