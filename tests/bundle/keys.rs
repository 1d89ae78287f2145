//! Bundles that say whose signatures count from now on.

use std::collections::BTreeMap;
use std::fs;

use twinboot::bundle::{KEY_SERIAL_MAX, Manifest};
use twinboot::install::Job;
use twinboot::install::verify::ImageCheck;
use twinboot::update::{Code, KeyList};

use crate::make::{Made, digest, made_of};
use crate::safe::Safe;
use crate::{Bench, MIB, code_of, image, run};

impl Safe {
    /// A bundle with this list, signed by these.
    fn bundle(&self, list: KeyList, signers: &[&str]) -> Made {
        let sign = |manifest: &[u8]| {
            signers.iter().flat_map(|name| self.signature(name, manifest)).collect::<Vec<_>>()
        };
        let edit = |manifest: &mut Manifest| manifest.keys = Some(list);
        made_of(&[("rootfs", &image(21, 2 * MIB))], sign, edit)
    }

    /// A device that trusts the old key, by its image or by a list.
    pub async fn device(&self, made: &Made, list: Option<KeyList>) -> (Bench, Job) {
        let bench = Bench::new(3 * MIB, &made.bytes).await;
        fs::copy(self.path("old.pub"), bench.path("keys/old.pub")).unwrap();
        let mut job = bench.job(&made.manifest);
        job.trust.list = list;
        (bench, job)
    }
}

/// Shows Azure/azure-sdk-for-c#3101, azure-iot-middleware-freertos#333.
#[tokio::test]
async fn a_list_is_taken_from_a_bundle_that_an_old_and_a_new_key_have_signed() {
    let safe = Safe::new();
    let list = safe.list(1, &["new"]);
    for (signers, code) in [
        (["old", "new"].as_slice(), None),
        (&["new", "old"], None),
        (&["old"], Some(Code::KeysRefused)),
        (&["new"], Some(Code::KeysRefused)),
        (&["old", "other"], Some(Code::KeysRefused)),
        (&[], Some(Code::KeysRefused)),
    ] {
        let made = safe.bundle(list.clone(), signers);
        let (bench, job) = safe.device(&made, None).await;
        // Whatever vouches for the image: here the request's check value.
        assert_eq!(job.spec.check_value, Some(digest(&made.manifest)));
        let outcome = run(&job).await.0;
        assert_eq!(outcome.as_ref().err().map(|failure| failure.code), code, "{signers:?}: {outcome:?}");
        match outcome {
            Ok(image) => assert_eq!(image.keys.as_ref(), Some(&list)),
            Err(_) => bench.assert_untouched(),
        }
    }
}

#[tokio::test]
async fn a_key_that_is_in_the_list_before_and_after_signs_alone() {
    let safe = Safe::new();
    let made = safe.bundle(safe.list(2, &["old", "other"]), &["old"]);
    let (_bench, job) = safe.device(&made, Some(safe.list(1, &["old"]))).await;
    assert_eq!(run(&job).await.0.unwrap().keys, Some(safe.list(2, &["old", "other"])));
}

#[tokio::test]
async fn a_revoked_key_signs_nothing_although_the_image_brings_it() {
    let safe = Safe::new();
    let made = safe.bundle(safe.list(9, &["old"]), &["old"]);
    for check_value in [None, Some(digest(&made.manifest))] {
        let (bench, mut job) = safe.device(&made, Some(safe.list(1, &["new"]))).await;
        job.spec.check_value = check_value;
        let code = if check_value.is_some() { Code::KeysRefused } else { Code::SignatureInvalid };
        assert_eq!(code_of(&job).await, code);
        bench.assert_untouched();
    }
    let (bench, mut job) = safe.device(&made, Some(safe.list(1, &["new"]))).await;
    job.check = ImageCheck::Signature;
    assert_eq!(code_of(&job).await, Code::SignatureInvalid);
    bench.assert_untouched();
}

#[tokio::test]
async fn an_old_list_is_left_out_and_two_lists_of_one_number_are_refused() {
    let safe = Safe::new();
    let ours = safe.list(5, &["old"]);
    for (list, code) in [
        (safe.list(4, &["old", "new"]), None),
        (ours.clone(), None),
        (safe.list(5, &["old", "new"]), Some(Code::KeysRefused)),
    ] {
        let made = safe.bundle(list, &["old", "new"]);
        let (_bench, job) = safe.device(&made, Some(ours.clone())).await;
        let outcome = run(&job).await.0;
        assert_eq!(outcome.as_ref().err().map(|failure| failure.code), code, "{outcome:?}");
        assert!(outcome.is_err() || outcome.unwrap().keys.is_none(), "the device keeps its own");
    }
}

#[tokio::test]
async fn a_device_without_a_key_takes_no_list() {
    let safe = Safe::new();
    let made = safe.bundle(safe.list(1, &["new"]), &["new"]);
    let (bench, job) = safe.device(&made, None).await;
    fs::remove_file(bench.path("keys/old.pub")).unwrap();
    assert_eq!(code_of(&job).await, Code::KeysRefused);
    bench.assert_untouched();
}

#[test]
fn a_list_is_never_empty_and_holds_keys_alone() {
    let edit = |list: KeyList| {
        let mut manifest = crate::make::made(&image(22, 2 * MIB), |_| {}).manifest;
        let mut value: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        value["keys"] = serde_json::to_value(list).unwrap();
        manifest = serde_json::to_vec(&value).unwrap();
        Manifest::parse(&manifest).map(drop)
    };
    let safe = Safe::new();
    let good = safe.list(1, &["new"]);
    edit(good.clone()).unwrap();
    let with_more = |text: &[u8]| {
        let text = String::from_utf8(text.to_vec()).unwrap();
        Manifest::parse(text.replace(r#""keys":{"#, r#""keys":{"more":1,"#).as_bytes()).map(drop)
    };
    let mut value: serde_json::Value =
        serde_json::from_slice(&crate::make::made(&image(22, 2 * MIB), |_| {}).manifest).unwrap();
    value["keys"] = serde_json::to_value(&good).unwrap();
    with_more(value.to_string().as_bytes()).unwrap_err();
    edit(KeyList { serial: 0, ..good.clone() }).unwrap_err();
    edit(KeyList { serial: KEY_SERIAL_MAX, ..good.clone() }).unwrap();
    edit(KeyList { serial: KEY_SERIAL_MAX + 1, ..good.clone() }).unwrap_err();
    edit(KeyList { trusted: BTreeMap::new(), ..good.clone() }).unwrap_err();
    edit(KeyList { trusted: [("a".to_owned(), "no key".to_owned())].into(), serial: 1 }).unwrap_err();
    edit(KeyList { trusted: [(String::new(), safe.public("new"))].into(), serial: 1 }).unwrap_err();
    let many = (0..17).map(|number| (number.to_string(), safe.public("new"))).collect();
    edit(KeyList { trusted: many, serial: 1 }).unwrap_err();
}
