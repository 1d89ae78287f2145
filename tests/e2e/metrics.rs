//! What Prometheus sees of an update.

use std::collections::BTreeMap;

use hub_emulator::board::Traits;

use crate::rig::{Choice, IMAGE_BYTES, Rig};

/// Samples by name with labels. Strict: each family is described once, and has no sample elsewhere or twice.
fn parse(text: &str) -> BTreeMap<String, u64> {
    let mut samples = BTreeMap::new();
    let mut families = Vec::new();
    let body = text.strip_suffix("# EOF\n").unwrap();
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (family, help) = help.split_once(' ').unwrap();
            assert!(!families.contains(&family) && help.ends_with('.'), "{line}");
            families.push(family);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            assert_eq!(kind, format!("{} gauge", families.last().unwrap()));
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(series.split('{').next(), families.last().copied(), "{line}");
            assert!(
                samples.insert(series.to_owned(), value.parse().unwrap()).is_none(),
                "{line} is there twice"
            );
        }
    }
    samples
}

#[tokio::test]
async fn an_update_is_seen_in_the_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("twinboot.prom");
    let extra_config = format!("[metrics]\nfile = {file:?}\n");
    let rig = Rig::running(Choice { extra_config: &extra_config, ..Choice::default() }).await;
    let read = || parse(&std::fs::read_to_string(&file).unwrap());
    let wait = async |series: &str| {
        rig.wait(|_| file.exists() && read().get(series) == Some(&1)).await;
        read()
    };
    let before = wait("twinboot_state{state=\"idle\"}").await;
    assert_eq!(before["twinboot_ready"], 1);
    assert!(!before.keys().any(|series| series.starts_with("twinboot_last_update")));

    // No reboot follows, so that the bytes stay.
    let image = rig.image("2.0", Traits::default());
    let (image, wrong) = (image.to_str().unwrap(), "00".repeat(32));
    rig.twinboot(&["install", image, "--check-value", &wrong]).await;
    let failed = wait("twinboot_last_update_result{result=\"failed\"}").await;
    assert_eq!(failed["twinboot_update_fetched_bytes"], u64::try_from(IMAGE_BYTES).unwrap());
    assert!(failed.keys().any(|series| series.ends_with("code=\"DigestMismatch\"}")), "{failed:#?}");

    rig.install("2.0", Traits::default()).await;
    let done = wait("twinboot_last_update_result{result=\"succeeded\"}").await;
    assert_eq!(done["twinboot_last_update_result{result=\"failed\"}"], 0);
    assert_eq!(done["twinboot_slot_info{slot=\"b\",version=\"2.0\",booted=\"true\"}"], 1);
    for phase in ["download", "apply", "total"] {
        assert!(
            done.contains_key(&format!("twinboot_update_duration_seconds{{phase=\"{phase}\"}}")),
            "{done:#?}"
        );
    }
}
