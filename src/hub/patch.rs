//! Merge patches (RFC 7396), and what the hub does not take in them.

use serde_json::{Map, Value};

/// The hub refuses a patch with a longer string.
const STRING_MAX_BYTES: usize = 4096;

/// Ends a text that was cut.
const ELLIPSIS: &str = "…";

/// Applies `patch` to `target`: `null` removes, objects merge, all else replaces.
pub fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, change) in patch {
        match change {
            Value::Null => {
                target.remove(&key);
            }
            Value::Object(change) => {
                let place = target.entry(key).or_insert(Value::Null);
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                if let Value::Object(inner) = place {
                    merge(inner, change);
                }
            }
            change => {
                target.insert(key, change);
            }
        }
    }
}

/// The patch after which `have` holds every member of `want` (a `null` there: does not hold it). Other
/// members of `have` belong to others and stay. `want` is [`tidy`].
#[must_use]
pub fn diff(have: &Map<String, Value>, want: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, want) in want {
        match (have.get(key), want) {
            (None, Value::Null) => {}
            (Some(Value::Object(have)), Value::Object(want)) => {
                let mut inner = diff(have, want);
                // Inside our own member nothing belongs to others: what vanished goes.
                let vanished = have.keys().filter(|key| !want.contains_key(*key));
                inner.extend(vanished.map(|key| (key.clone(), Value::Null)));
                if !inner.is_empty() {
                    patch.insert(key.clone(), Value::Object(inner));
                }
            }
            (have, want) if have == Some(want) => {}
            (_, want) => {
                patch.insert(key.clone(), want.clone());
            }
        }
    }
    patch
}

/// `want` as the hub takes it: long strings cut, no `null` below the first level (there absence says
/// the same, and inside arrays the hub refuses it).
#[must_use]
pub fn tidy(want: &Map<String, Value>) -> Map<String, Value> {
    want.iter().map(|(key, value)| (key.clone(), tidy_value(value))).collect()
}

fn tidy_value(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(cut(text)),
        Value::Array(items) => items.iter().filter(|item| !item.is_null()).map(tidy_value).collect(),
        Value::Object(members) => members
            .iter()
            .filter(|(_, member)| !member.is_null())
            .map(|(key, member)| (key.clone(), tidy_value(member)))
            .collect(),
        other => other.clone(),
    }
}

fn cut(text: &str) -> String {
    if text.len() <= STRING_MAX_BYTES {
        return text.to_owned();
    }
    let room = STRING_MAX_BYTES - ELLIPSIS.len();
    let kept = (0..=room).rev().find_map(|end| text.get(..end)).unwrap_or_default();
    format!("{kept}{ELLIPSIS}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("not an object: {other}"),
        }
    }

    /// The examples of RFC 7396, appendix A, that are objects on both sides.
    #[test]
    fn merging_does_what_the_rfc_says() {
        for (target, patch, expected) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut merged = object(target);
            merge(&mut merged, object(patch));
            assert_eq!(Value::Object(merged), expected);
        }
    }

    #[test]
    fn a_patch_holds_only_what_changed() {
        let have = object(json!({"other": 1, "s": "x", "gone": 1, "f": {"a": 1, "b": {"c": 2}, "old": 3}}));
        let want = object(json!({"s": "x", "gone": null, "never": null, "f": {"a": 1, "b": {"c": 4}}}));
        assert_eq!(
            Value::Object(diff(&have, &want)),
            json!({"gone": null, "f": {"b": {"c": 4}, "old": null}})
        );
        assert!(diff(&object(json!({"f": {"a": []}})), &object(json!({"f": {"a": []}}))).is_empty());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let want = object(json!({"short": "ä".repeat(2048), "long": {"in": ["ä".repeat(4000)]}}));
        let tidy = tidy(&want);
        assert_eq!(tidy["short"], want["short"]);
        let long = tidy["long"]["in"][0].as_str().unwrap();
        assert!(long.len() <= STRING_MAX_BYTES && long.len() > STRING_MAX_BYTES - 4, "{}", long.len());
        assert!(long.ends_with("ä…"));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0_i64..4).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                members(inner).prop_map(Value::Object),
            ]
        })
    }

    fn members(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
        proptest::collection::vec(("[a-d]", inner), 0..4).prop_map(|pairs| pairs.into_iter().collect())
    }

    fn has_null_in_array(value: &Value, in_array: bool) -> bool {
        match value {
            Value::Null => in_array,
            Value::Array(items) => items.iter().any(|item| has_null_in_array(item, true)),
            Value::Object(members) => members.values().any(|member| has_null_in_array(member, in_array)),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn after_the_patch_the_twin_holds_what_is_wanted(have in members(value()), want in members(value())) {
            let have = {
                let mut stored = tidy(&have); // a twin holds no null
                stored.retain(|_, member| !member.is_null());
                stored
            };
            let want = tidy(&want);
            let patch = diff(&have, &want);
            prop_assert!(!has_null_in_array(&Value::Object(patch.clone()), false));

            let mut merged = have.clone();
            merge(&mut merged, patch);
            for (key, wanted) in &want {
                let expected = (!wanted.is_null()).then_some(wanted);
                prop_assert_eq!(merged.get(key), expected);
            }
            for (key, kept) in have.iter().filter(|(key, _)| !want.contains_key(*key)) {
                prop_assert_eq!(merged.get(key), Some(kept));
            }
            prop_assert!(diff(&merged, &want).is_empty());
        }
    }
}
