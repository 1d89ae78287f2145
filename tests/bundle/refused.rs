//! What an attacker between the release engineer and the device might try, by name. Each has its code, and none
//! writes a byte that nobody signed.

use hub_emulator::images::{DropFault, Faults};
use tokio::sync::watch;
use twinboot::bundle::Manifest;
use twinboot::install::Job;
use twinboot::install::verify::ImageCheck;
use twinboot::update::Code;

use crate::make::{Made, made_of};
use crate::safe::Safe;
use crate::{Bench, MIB, NAME, code_of, image, run, run_and};

/// A device that runs 2.0 and takes what the old key has signed.
async fn device(safe: &Safe, made: &Made) -> (Bench, Job) {
    let (bench, mut job) = safe.device(made, None).await;
    job.check = ImageCheck::Signature;
    job.spec.check_value = None;
    job.device.past.running_version = Some("2.0".into());
    job.device.compatible = Some("acme-2".into());
    (bench, job)
}

fn release(safe: &Safe, seed: u64, edit: impl FnOnce(&mut Manifest)) -> Made {
    made_of(&[("rootfs", &image(seed, 2 * MIB))], |manifest| safe.signature("old", manifest), edit)
}

/// Shows p2pool-starter-stack/pithead#793, #856.
#[tokio::test]
async fn a_downgrade() {
    let safe = Safe::new();
    let made = release(&safe, 31, |manifest| manifest.version = "1.9".into());
    let (bench, mut job) = device(&safe, &made).await;
    assert_eq!(code_of(&job).await, Code::VersionNotNewer);
    // By way of an older slot, to which somebody went back.
    job.device.past.running_version = Some("1.0".into());
    job.device.past.min_version = Some("2.0".into());
    assert_eq!(code_of(&job).await, Code::VersionBelowMinimum);
    bench.assert_untouched();
    job.device.allow_downgrade = true;
    run(&job).await.0.unwrap();
}

#[tokio::test]
async fn a_replay_of_a_release_under_a_newer_name() {
    let safe = Safe::new();
    let made = release(&safe, 32, |manifest| manifest.version = "1.9".into());
    let (bench, mut job) = device(&safe, &made).await;
    job.version = Some("3.0".into());
    assert_eq!(code_of(&job).await, Code::VersionMismatch);
    bench.assert_untouched();
}

#[tokio::test]
async fn the_image_of_another_board() {
    let safe = Safe::new();
    let made = release(&safe, 33, |manifest| {
        manifest.version = "3.0".into();
        manifest.compatible = vec!["acme-1".into()];
    });
    let (bench, mut job) = device(&safe, &made).await;
    assert_eq!(code_of(&job).await, Code::BoardIncompatible);
    job.device.compatible = None;
    assert_eq!(code_of(&job).await, Code::BoardIncompatible, "a device that does not know what it is");
    bench.assert_untouched();
}

/// Shows F3.
#[tokio::test]
async fn a_truncated_signature() {
    let safe = Safe::new();
    let bytes = image(34, 2 * MIB);
    // A few bytes less, a line less, half, one line, nothing.
    for keep in [290, 200, 150, 50, 1, 0] {
        let sign = |manifest: &[u8]| {
            let mut signature = safe.signature("old", manifest);
            assert!(signature.len() > keep + 1);
            signature.truncate(keep);
            signature
        };
        let made = made_of(&[("rootfs", &bytes)], sign, |manifest| manifest.version = "3.0".into());
        let (bench, job) = device(&safe, &made).await;
        assert_eq!(code_of(&job).await, Code::SignatureInvalid, "{keep} bytes of it");
        bench.assert_untouched();
    }
}

#[tokio::test]
async fn a_signature_over_something_else() {
    let safe = Safe::new();
    let other = release(&safe, 35, |_| {}).manifest;
    let sign = |_: &[u8]| safe.signature("old", &other);
    let edit = |manifest: &mut Manifest| manifest.version = "3.0".into();
    let made = made_of(&[("rootfs", &image(35, 2 * MIB))], sign, edit);
    let (bench, job) = device(&safe, &made).await;
    assert_eq!(code_of(&job).await, Code::SignatureInvalid);
    bench.assert_untouched();
}

/// Shows F1.
#[tokio::test]
async fn an_image_that_changes_between_check_and_use() {
    let safe = Safe::new();
    let bytes = image(36, 16 * MIB);
    let edit = |manifest: &mut Manifest| manifest.version = "3.0".into();
    let made = made_of(&[("rootfs", &bytes)], |manifest| safe.signature("old", manifest), edit);
    // The same head, and other chunks behind it.
    let mut swapped = made.bytes.clone();
    swapped[made.pieces_offset..].fill(0x5a);
    let bench = Bench::new(17 * MIB, &made.bytes).await;
    std::fs::copy(safe.path("old.pub"), bench.path("keys/old.pub")).unwrap();
    let mut job = bench.job(&made.manifest);
    (job.check, job.spec.check_value) = (ImageCheck::Signature, None);
    // What is still missing when it changes is asked for once more.
    let drop = Some(DropFault { after_bytes: 1_000_000, requests: 1000 });
    bench.server.set_faults(NAME, Faults { drop, bytes_per_sec: Some(20_000_000), ..Faults::default() });
    let swap = |_: &watch::Sender<bool>| {
        bench.server.put(NAME, swapped);
        bench.server.set_faults(NAME, Faults::default());
    };
    let outcome = run_and(&job, |progress| progress.written_bytes > 0, swap).await;
    let code = outcome.unwrap_err().code;
    assert!(matches!(code, Code::DigestMismatch | Code::ImageChanged), "{code}");
    bench.assert_nothing_else(&bytes);
}
