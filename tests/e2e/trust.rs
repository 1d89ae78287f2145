//! Whose images a device takes, over its life: keys that change, and versions that do not come back.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use hub_emulator::board::{Slot, Traits, board_image};
use twinboot::bundle::Manifest;

use crate::make::made_of;
use crate::rig::{Choice, IMAGE_BYTES, Rig};
use crate::safe::Safe;

impl Safe {
    /// A file with a bundle of this version, signed by these; perhaps with the new key alone as list 1.
    fn release(&self, version: &str, traits: Traits, signers: &[&str], rotates: bool) -> PathBuf {
        let image = board_image(version, traits, IMAGE_BYTES, 7);
        let sign = |manifest: &[u8]| {
            signers.iter().flat_map(|name| self.signature(name, manifest)).collect::<Vec<u8>>()
        };
        let edit = |manifest: &mut Manifest| {
            manifest.version = version.to_owned();
            if rotates {
                manifest.keys = Some(self.list(1, &["new"]));
            }
        };
        let path = PathBuf::from(self.path(&format!("{version}.twb")));
        fs::write(&path, made_of(&[("rootfs", &image)], sign, edit).bytes).unwrap();
        path
    }
}

/// Installs it, and gives status and code of the end.
async fn ends(rig: &Rig, bundle: &std::path::Path, id: &str) -> (String, String) {
    let arguments = ["install", bundle.to_str().unwrap(), "--update-id", id, "--no-wait"];
    let started = rig.twinboot(&arguments).await;
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let over = |status: &serde_json::Value| {
        let word = &status["reported"]["firmwareStatus"];
        let ours = status["reported"]["firmware"]["updateId"] == id;
        ours && (word == "completed" || word == "failed" || word == "rolledBack")
    };
    let report = rig.wait(over).await["reported"].clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (text(&report["firmwareStatus"]), text(&report["firmware"]["error"]["code"]))
}

fn end(status: &str, code: &str) -> (String, String) {
    (status.to_owned(), code.to_owned())
}

/// Shows Azure/azure-sdk-for-c#3101, azure-iot-middleware-freertos#333.
#[tokio::test]
async fn keys_change_with_an_update_that_is_committed_and_with_no_other() {
    let safe = Safe::new();
    let mut rig =
        Rig::running(Choice { extra_config: "[install]\ncheck = \"signature\"\n", ..Choice::default() })
            .await;
    fs::copy(safe.path("old.pub"), rig.board.dir().join("keys/old.pub")).unwrap();

    let sick = safe.release("2.0", Traits::SICK, &["old", "new"], true);
    assert_eq!(ends(&rig, &sick, "sick").await, end("rolledBack", "HealthCheckFailed"));
    let status = rig.peek().await.unwrap();
    assert!(status["reported"]["firmware"]["keySerial"].is_null(), "{status:#}");
    let of_new = safe.release("2.1", Traits::default(), &["new"], false);
    assert_eq!(ends(&rig, &of_new, "early").await, end("failed", "SignatureInvalid"));

    let good = safe.release("2.2", Traits::default(), &["old", "new"], true);
    assert_eq!(ends(&rig, &good, "good").await, end("completed", ""));
    assert_eq!(rig.peek().await.unwrap()["reported"]["firmware"]["keySerial"], 1);
    // The slot before still has the old key alone in its image; the list is the device's.
    assert!(rig.twinboot(&["rollback"]).await.status.success());
    rig.wait(|status| status["reported"]["firmware"]["slots"]["booted"] == "a").await;
    rig.board.cut().await;
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["reported"]["firmwareStatus"] == "rolledBack").await;
    let of_old = safe.release("2.3", Traits::default(), &["old"], false);
    assert_eq!(ends(&rig, &of_old, "revoked").await, end("failed", "SignatureInvalid"));
    let of_new = safe.release("2.4", Traits::default(), &["new"], false);
    assert_eq!(ends(&rig, &of_new, "new").await, end("completed", ""));

    let doctor = Command::new(crate::rig::DAEMON)
        .args(["doctor", "--json", "--config"])
        .arg(rig.board.config_path())
        .output()
        .unwrap();
    let found: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let keys = found["checks"].as_array().unwrap().iter().find(|check| check["check"] == "trust.keys");
    let evidence = keys.unwrap()["evidence"].as_str().unwrap();
    assert!(evidence.starts_with("key list 1: new (") && evidence.contains("old.pub"), "{evidence}");
}

/// Shows rauc/rauc#266, #1400, #1977, rugix/rugix#121.
#[tokio::test]
async fn a_state_that_is_lost_does_not_open_the_way_to_a_downgrade() {
    let mut rig = Rig::running(Choice::default()).await;
    rig.install("2.0", Traits::default()).await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
    rig.wait(|_| rig.variable("twinboot_min_version") == "2.0").await;
    assert!(rig.twinboot(&["rollback"]).await.status.success());
    rig.wait(|status| status["reported"]["firmwareStatus"] == "rolledBack").await;
    assert_eq!(rig.board.booted(), Some(Slot::A));

    let older = rig.image("1.5", Traits::default());
    let ask = ["install", older.to_str().unwrap(), "--version", "1.5"];
    let refusal = "version 1.5 is older than 2.0, which was committed on this device";
    let refused = async |rig: &Rig| {
        let output = rig.twinboot(&ask).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(refusal), "{text}");
    };
    refused(&rig).await;
    rig.board.cut().await;
    fs::remove_file(rig.board.dir().join("state/state")).unwrap();
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["reported"]["firmwareStatus"] == "standBy").await;
    refused(&rig).await;
    // The other way round: the state has it, and gives it back.
    rig.board.cut().await;
    rig.board.set_environment(&[("twinboot_min_version", "")]).unwrap();
    rig.board.power_on().await.unwrap();
    rig.wait(|_| rig.variable("twinboot_min_version") == "2.0").await;
    refused(&rig).await;
}
