use serde_json::json;

use super::*;

fn fleet() -> Vec<Value> {
    let device = |id: &str, site: Option<&str>, interval: i64, status: &str| {
        let tags = site.map_or_else(|| json!({}), |site| json!({"site": site, "my-tag": 1}));
        json!({"deviceId": id, "status": "enabled", "tags": tags,
            "properties": {"desired": {"$version": 3}, "reported": {"interval": interval, "state": status}},
            "configurations": {"fw-1": {"status": "Applied"}}})
    };
    vec![
        device("a", Some("north"), 30, "ok"),
        device("b", Some("south"), 60, "ok"),
        device("c", None, 90, "bad"),
    ]
}

fn ids(condition: &str) -> String {
    let condition = Condition::parse(condition).unwrap_or_else(|error| panic!("{condition}: {error}"));
    let fleet = fleet();
    let found = fleet.iter().filter(|device| condition.holds(*device));
    found.map(|device| device["deviceId"].as_str().unwrap()).collect()
}

fn rows(query: &str) -> Value {
    let query = Query::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    match query.run(fleet().into_iter(), 0, 100) {
        Rows::Documents(documents) => {
            documents.into_iter().map(|document| document["deviceId"].clone()).collect()
        }
        Rows::Objects(objects) => objects.into(),
    }
}

#[test]
fn conditions_hold_of_the_documents_they_describe() {
    for (condition, found) in [
        ("*", "abc"),
        ("tags.site = 'north'", "a"),
        ("TAGS.site = \"north\" OR deviceid = 'c'", "ac"),
        ("devices.tags.site = 'north'", "a"),
        ("not (tags.site = 'north') and deviceId != 'b'", ""),
        ("NOT IS_DEFINED(tags.site)", "c"),
        ("is_defined(tags) and tags.[[my-tag]] = 1.0", "ab"),
        ("tags.site IN ['north', 'south']", "ab"),
        ("tags.site NIN ['north']", "b"),
        ("deviceId in []", ""),
        ("properties.reported.interval >= 60", "bc"),
        ("properties.reported.interval > 0x1e AND properties.reported.interval < 9e1", "b"),
        ("properties.reported.interval * 2 + 10 = 130", "b"),
        ("properties.reported.interval - 10 - 10 = 10", "a"),
        ("properties.reported.interval % 60 = 0", "b"),
        ("properties.reported.interval / (1 - 1) > 0", ""),
        ("properties.reported.interval > -1", "abc"),
        ("properties.desired.$version = 3", "abc"),
        ("configurations.[[fw-1]].status = 'Applied' and status = 'enabled'", "abc"),
        ("configurations.[[fw-2]].status = 'Applied'", ""),
        ("startswith(tags.site, 'nor') or EndsWith(tags.site, 'uth')", "ab"),
        // A string is no number, an object no primitive, a name no truth; what is undefined is not even unequal.
        ("properties.reported.interval = '30'", ""),
        ("tags = tags", ""),
        ("deviceId", ""),
        ("tags.site != 'x'", "ab"),
        ("tags.site = undefined", ""),
        ("not (tags.site = 'x')", "ab"),
        // One decisive value is enough.
        ("tags.site = 'x' or deviceId = 'c'", "c"),
        ("true or nonsense.x = 1", "abc"),
        (r"deviceId = '\u0061' or deviceId = 'it\'s'", "a"),
    ] {
        assert_eq!(ids(condition), found, "{condition}");
    }
}

#[test]
fn queries_select_project_and_count() {
    for (query, expected) in [
        ("SELECT * FROM devices", json!(["a", "b", "c"])),
        ("select top 2 * from devices where status = 'enabled'", json!(["a", "b"])),
        (
            "SELECT DeviceId, tags.site, properties.reported.state AS state FROM devices WHERE deviceId NIN ['b']",
            json!([{"deviceId": "a", "site": "north", "state": "ok"}, {"deviceId": "c", "state": "bad"}]),
        ),
        ("SELECT COUNT() AS n FROM devices WHERE tags.site = 'west'", json!([{"n": 0}])),
        (
            "SELECT COUNT(), AVG(properties.reported.interval) AS mean, SUM(properties.reported.interval) AS sum, \
             MIN(properties.reported.interval) AS low, MAX(tags.site) AS high FROM devices",
            json!([{"$1": 3, "mean": 60, "sum": 180, "low": 30, "high": "south"}]),
        ),
        (
            "SELECT properties.reported.state AS status, COUNT() AS numberOfDevices FROM devices \
             GROUP BY properties.reported.state",
            json!([{"status": "bad", "numberOfDevices": 1}, {"status": "ok", "numberOfDevices": 2}]),
        ),
        (
            "SELECT tags.site FROM devices GROUP BY tags.site",
            json!([{}, {"site": "north"}, {"site": "south"}]),
        ),
        ("SELECT TOP 1 tags.site FROM devices", json!([{"site": "north"}])),
        ("SELECT AVG(tags.site) AS none FROM devices", json!([{}])),
    ] {
        assert_eq!(rows(query), expected, "{query}");
    }
}

#[test]
fn a_page_is_a_part_of_the_rows() {
    let query = Query::parse("SELECT TOP 2 deviceId FROM devices").unwrap();
    let page = |skip, limit| query.run(fleet().into_iter(), skip, limit);
    assert_eq!(page(1, 1), Rows::Objects(vec![json!({"deviceId": "b"})]));
    assert_eq!(page(2, 1), Rows::Objects(vec![]));
}

#[test]
fn rows_of_jobs_are_asked_for_by_their_own_name() {
    let query = Query::parse("SELECT * FROM devices.jobs WHERE Devices.Jobs.JobId = 'j1'").unwrap();
    assert!(query.source == Source::Jobs && query.is_whole());
    let rows = [json!({"jobId": "j1"}), json!({"jobId": "j2"})];
    assert_eq!(query.run(rows.into_iter(), 0, 9), Rows::Documents(vec![json!({"jobId": "j1"})]));
    assert_eq!(Query::parse("SELECT * FROM devices.modules").unwrap().source, Source::Modules);
}

#[test]
fn what_is_no_query_is_refused_with_the_place() {
    let expected = |at, expected| QueryError::Expected { at, expected };
    for (query, error) in [
        ("", expected(0, "SELECT")),
        ("SELECT * FROM device", expected(14, "devices, devices.modules or devices.jobs")),
        ("SELECT * FROM devices a", expected(22, "the end of the query")),
        ("SELECT * FROM devices WHERE", expected(27, "an attribute")),
        ("SELECT * FROM devices WHERE tags.a = 'x", QueryError::Unreadable { at: 37 }),
        ("SELECT * FROM devices WHERE tags.a = 2x", QueryError::Unreadable { at: 37 }),
        ("SELECT * FROM devices WHERE tags.a == 2", expected(36, "an attribute")),
        (
            "SELECT * FROM devices WHERE contains(tags.a, 'x')",
            expected(28, "IS_DEFINED, STARTSWITH or ENDSWITH"),
        ),
        ("SELECT * FROM devices WHERE tags.a IN 'x'", expected(38, "[")),
        ("SELECT TOP x * FROM devices", expected(11, "a number of rows")),
        ("SELECT length(tags.a) FROM devices", expected(7, "COUNT, AVG, SUM, MIN or MAX")),
    ] {
        assert_eq!(Query::parse(query).unwrap_err(), error, "{query}");
    }
    for query in [
        "SELECT deviceId, COUNT() FROM devices",
        "SELECT * FROM devices GROUP BY deviceId",
        "SELECT jobId FROM devices.jobs",
    ] {
        assert!(matches!(Query::parse(query), Err(QueryError::Unsupported(_))), "{query}");
    }
}

#[test]
fn hostile_texts_end_in_an_error() {
    let long = format!("tags.a = '{}'", "x".repeat(9000));
    assert_eq!(Condition::parse(&long).unwrap_err(), QueryError::TooLong(9011));
    let many = |text: &str| text.repeat(8192 / text.len() - 1);
    for condition in [many("("), many("not "), many("-"), format!("{}1", many("1+")), many("startswith(")] {
        assert_eq!(Condition::parse(&condition).unwrap_err(), QueryError::Depth, "{condition:.20}");
    }
    // Long is not deep.
    assert_eq!(ids(&format!("{} deviceId = 'a'", "deviceId = 'a' and ".repeat(400))), "a");
    for text in ["'", "\"\\", "'\\u00", "[[", "0x", "1.", "é", "\u{1F600}", "1e", "a.", "a.[[b"] {
        assert!(Condition::parse(text).is_err() || text == "é", "{text}");
    }
}

#[test]
fn a_condition_tells_what_it_looks_at() {
    let condition =
        Condition::parse("tags.a = 1 and not (is_defined(properties.reported.b) or deviceId in ['x'])");
    let condition = condition.unwrap();
    let attributes: Vec<String> = condition.attributes().iter().map(|path| path.join(".")).collect();
    assert_eq!(attributes, ["tags.a", "properties.reported.b", "deviceId"]);
}
