//! Jobs of the hub: many devices called at once.

use serde_json::{Value, json};

use crate::device::{Device, standing_by, takes_all};
use crate::rig::Rig;

const PACKAGE: [&str; 6] =
    ["--uri", "https://images.example/2.0.img", "--version", "2.0", "--update-id", "u-2"];

#[tokio::test(flavor = "multi_thread")]
async fn a_job_calls_many_devices_and_tells_what_they_answered() {
    let rig = Rig::new().await;
    let refuses = |_: &str, _: &Value| (412, json!({"error": {"code": "VersionNotNewer", "message": "m"}}));
    let _a1 = Device::online(&rig, "a1", standing_by(), takes_all).await;
    let _a2 = Device::online(&rig, "a2", standing_by(), refuses).await;
    rig.hub.add_device("a3");
    let order = ["job", "create", "job-1", "--target", "*"];
    let order: Vec<_> = order.iter().chain(&PACKAGE).copied().collect();
    let run = rig.run(&order).await;
    assert_eq!(run.code, 0, "{run:?}");
    let run = rig.run(&["job", "status", "job-1", "--watch"]).await;
    assert_eq!(run.code, 0, "{run:?}");
    for expected in ["200 Firmware update started", "412 VersionNotNewer", "a3"] {
        assert!(run.stdout.contains(expected), "{expected}: {run:?}");
    }
    let (_, events) = rig.events(&["job", "status", "job-1", "--json"]).await;
    assert_eq!(events[0]["devicesPartial"], false);
    let run = rig.run(&["job", "list"]).await;
    assert!(run.stdout.lines().any(|line| line.starts_with("job-1")), "{run:?}");
    assert_eq!(rig.run(&["job", "status", "job-2"]).await.code, 8);
    assert_eq!(rig.run(&["job", "cancel", "job-1"]).await.code, 1, "it is over");

    let later: Vec<_> = ["job", "create", "job-2", "--target", "*", "--at", "2099-01-01T00:00:00Z"]
        .iter()
        .chain(&PACKAGE)
        .copied()
        .collect();
    assert_eq!(rig.run(&later).await.code, 1, "more than a week ahead");

    // The answer is lost, and the hub has it.
    rig.hub.lose_answers("PUT", "/jobs/v2/job-4");
    let lost: Vec<_> = ["job", "create", "job-4", "--target", "*"].iter().chain(&PACKAGE).copied().collect();
    let run = rig.run(&lost).await;
    assert!(run.code == 0 && run.stderr.contains("looking whether it was created"), "{run:?}");
    assert!(run.stdout.starts_with("job job-4: 2.0 from"), "{run:?}");
    assert_eq!(rig.run(&["job", "status", "job-4", "--watch"]).await.code, 0);

    // A mistyped condition: the hub takes the job, and finds out later.
    let wrong = ["job", "create", "job-3", "--target", "tags.site ="];
    let wrong: Vec<_> = wrong.iter().chain(&PACKAGE).copied().collect();
    assert_eq!(rig.run(&wrong).await.code, 0);
    let run = rig.run(&["job", "status", "job-3", "--watch"]).await;
    assert_eq!(run.code, 1, "{run:?}");
}
