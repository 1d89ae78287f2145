//! Bundles by the built program: made, signed by the real `minisign`, verified, taken apart, and tampered with.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn run(directory: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinbootctl"))
        .current_dir(directory)
        .args(["--json", "bundle"])
        .args(arguments.split_whitespace())
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .unwrap()
}

/// What it says as JSON, if it does not fail.
fn done(directory: &Path, arguments: &str) -> Value {
    let output = run(directory, arguments);
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Why it fails, with its exit code.
fn refused(directory: &Path, arguments: &str) -> (i32, String) {
    let output = run(directory, arguments);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A pair of keys, `NAME.pub` and `NAME.key`.
fn new_key(directory: &Path, name: &str) {
    let made = Command::new("minisign")
        .current_dir(directory)
        .args(["-G", "-W", "-p", &format!("{name}.pub"), "-s", &format!("{name}.key")])
        .stdin(Stdio::null())
        .output();
    assert!(made.unwrap().status.success());
}

fn write(path: &Path, bytes: &[u8]) {
    let mut file = fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
}

/// An old image and a new one, alike: changed, moved, grown.
fn images(directory: &Path) -> (Vec<u8>, Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(7);
    let words: Vec<[u8; 12]> = (0..3000).map(|_| std::array::from_fn(|_| random.u8(..))).collect();
    let old: Vec<u8> = (0..60_000).flat_map(|_| words[random.usize(..words.len())]).collect();
    let mut new = [&old[..200_000], &b"moved by this".repeat(100), &old[200_000..]].concat();
    new.iter_mut().step_by(5000).take(60).for_each(|byte| *byte ^= 1);
    new.resize(new.len().next_multiple_of(4096) + 40_960, 0);
    new.extend_from_slice(&old[..50_000]);
    write(&directory.join("old.img"), &old);
    write(&directory.join("new.img"), &new);
    (old, new)
}

const CREATE: &str = "create --version 2.0 --compatible edison --created 2026-01-01T00:00:00Z --level 5 --image rootfs=new.img";

#[test]
fn a_release_from_images_to_images() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (_, new) = images(directory);
    let made = done(directory, &format!("{CREATE} --base rootfs=old.img@1.0 -o 2.0.twb"));
    done(directory, &format!("{CREATE} --base rootfs=old.img@1.0 -o again.twb"));
    let bundle = fs::read(directory.join("2.0.twb")).unwrap();
    assert!(fs::read(directory.join("again.twb")).unwrap() == bundle, "the same input gives the same bytes");

    let said = done(directory, "inspect 2.0.twb");
    assert_eq!(said["check_value"], made["check_value"]);
    assert_eq!(said["manifest"]["patches"][0]["base"]["version"], "1.0");
    let frames = said["manifest"]["patches"][0]["frames_bytes"].as_u64().unwrap();
    assert!(frames * 10 < said["manifest"]["pieces_bytes"].as_u64().unwrap(), "patches of {frames} bytes");

    let verified = done(directory, "verify 2.0.twb");
    assert_eq!((&verified["frames"], &verified["patches_left_out"]), (&0.into(), &1.into()), "no base");
    let verified = done(directory, "verify 2.0.twb --base old.img");
    assert_eq!(verified["patches_left_out"], 0);
    assert!(verified["frames"].as_u64().unwrap() > 0);
    assert_eq!(verified["images_bytes"], new.len());
    done(directory, "extract 2.0.twb --image rootfs=out.img --manifest manifest.json");
    assert!(fs::read(directory.join("out.img")).unwrap() == new);
}

#[test]
fn a_bundle_may_bring_several_images_and_take_them_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (old, new) = images(directory);
    write(&directory.join("boot.img"), &old[..100_001]);
    assert!(Command::new("gzip").current_dir(directory).arg("boot.img").status().unwrap().success());
    let images = "--image boot=boot.img.gz --base boot=new.img --base rootfs=old.img@1.0";
    done(directory, &format!("{CREATE} {images} -o 2.0.twb"));
    let verified = done(directory, "verify 2.0.twb --base old.img --base new.img");
    assert_eq!(
        (&verified["patches_left_out"], &verified["images_bytes"]),
        (&0.into(), &(new.len() + 100_001).into())
    );
    done(directory, "extract 2.0.twb --image boot=boot.out --image rootfs=root.out");
    assert!(fs::read(directory.join("boot.out")).unwrap() == old[..100_001]);
    assert!(fs::read(directory.join("root.out")).unwrap() == new);
    let (exit, why) = refused(directory, &format!("{CREATE} --base boot=old.img -o bad.twb"));
    assert_eq!((exit, why.contains("no --image of class `boot`")), (2, true), "{why}");
    let (exit, why) = refused(directory, "create --version 2.0 --image root=new.img -o bad.twb");
    assert_eq!((exit, why.contains("no --image of class `rootfs`")), (2, true), "{why}");
}

#[test]
fn a_bundle_is_not_taken_for_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    done(directory, &format!("{CREATE} -o 1.0.twb"));
    assert!(Command::new("gzip").current_dir(directory).args(["-k", "1.0.twb"]).status().unwrap().success());
    for arguments in [
        "create --version 2.0 --image rootfs=1.0.twb -o 2.0.twb",
        "create --version 2.0 --image rootfs=1.0.twb.gz -o 2.0.twb",
        "create --version 2.0 --image rootfs=new.img --base rootfs=1.0.twb@1.0 -o 2.0.twb",
        "convert 1.0.twb --version 2.0 -o 2.0.twb",
        "verify 1.0.twb --base 1.0.twb",
    ] {
        let (exit, why) = refused(directory, arguments);
        let is_clear = why.contains("is a bundle, not an image") && why.contains("bundle extract --image");
        assert_eq!((exit, is_clear), (1, true), "{arguments}: {why}");
        assert!(!directory.join("2.0.twb").exists(), "{arguments}");
    }
}

#[test]
fn a_bundle_is_signed_here_or_on_another_machine() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    done(directory, &format!("{CREATE} -o 2.0.twb"));
    new_key(directory, "one");
    new_key(directory, "two");
    let (exit, why) = refused(directory, "verify 2.0.twb --key one.pub");
    assert_eq!((exit, why.contains("signed by none")), (1, true), "{why}");
    done(directory, "sign 2.0.twb --key one.key");
    done(directory, "extract 2.0.twb --manifest manifest.json");
    let offline = Command::new("minisign")
        .current_dir(directory)
        .args(["-S", "-s", "two.key", "-m", "manifest.json", "-x", "two.minisig"])
        .stdin(Stdio::null())
        .output();
    assert!(offline.unwrap().status.success());
    done(directory, "sign 2.0.twb --signature two.minisig");
    assert_eq!(
        done(directory, "sign 2.0.twb --signature two.minisig")["signatures"],
        2,
        "once more is not one more"
    );
    done(directory, "verify 2.0.twb --key one.pub");
    done(directory, "verify 2.0.twb --key two.pub");
    assert_eq!(done(directory, "inspect 2.0.twb")["signatures"].as_array().unwrap().len(), 2);
}

#[test]
fn a_bundle_may_say_whose_signatures_count_from_now_on() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    write(&directory.join("2027.pub"), format!("untrusted comment: a key\n{key}\n").as_bytes());
    write(&directory.join("no.pub"), b"no key\n");
    fs::copy(directory.join("2027.pub"), directory.join("2027.key")).unwrap();
    done(directory, &format!("{CREATE} --trust 2027.pub --trust-serial 4 -o 2.0.twb"));
    let keys = &done(directory, "inspect 2.0.twb")["manifest"]["keys"];
    assert_eq!(*keys, serde_json::json!({"serial": 4, "trusted": {"2027": key}}));
    for (wrong, what) in [
        ("--trust 2027.pub", "--trust-serial"),
        ("--trust-serial 4", "--trust"),
        ("--trust 2027.pub --trust-serial 0", "--trust-serial"),
        ("--trust 2027.pub --trust-serial 4503599627370496", "--trust-serial"),
        ("--trust no.pub --trust-serial 4", "not a minisign public key"),
        ("--trust none.pub --trust-serial 4", "none.pub"),
        ("--trust 2027.pub --trust 2027.key --trust-serial 4", "named `2027`"),
    ] {
        let (_, why) = refused(directory, &format!("{CREATE} {wrong} -o 3.0.twb"));
        assert!(why.contains(what) && !directory.join("3.0.twb").exists(), "{wrong}: {why}");
    }
}

#[test]
fn new_keys_are_taken_only_if_one_of_them_has_signed_too() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    new_key(directory, "old");
    new_key(directory, "new");
    done(directory, &format!("{CREATE} --trust new.pub --trust-serial 4 -o 2.0.twb"));
    let check = done(directory, "inspect 2.0.twb")["check_value"].as_str().unwrap().to_owned();
    done(directory, "sign 2.0.twb --key old.key");
    for by in ["--key old.pub".to_owned(), format!("--check-value {check}")] {
        let (exit, why) = refused(directory, &format!("verify 2.0.twb {by}"));
        let is_clear = why.contains("key list 4") && why.contains("sign it by one of them too (new)");
        assert_eq!((exit, is_clear, why.lines().count()), (1, true, 1), "{by}: {why}");
    }
    done(directory, "sign 2.0.twb --key new.key");
    assert_eq!(done(directory, "verify 2.0.twb --key old.pub")["signed_by_key"], "old.pub");
    done(directory, &format!("verify 2.0.twb --check-value {check}"));
}

#[test]
fn patches_may_come_in_a_file_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    let made = done(directory, &format!("{CREATE} --patches-to 1-2.twb -o plain.twb"));
    assert!(!directory.join("1-2.twb").exists() && made["patches"].is_null(), "there are none yet");
    let made = done(directory, &format!("{CREATE} --base rootfs=old.img --patches-to 1-2.twb -o 2.0.twb"));
    assert_eq!(made["patches"], "1-2.twb");
    let (exit, why) =
        refused(directory, &format!("{CREATE} --base rootfs=old.img --patches-to ./3.twb -o 3.twb"));
    assert_eq!((exit, why.contains("same name")), (2, true), "{why}");
    let bytes = |name: &str| fs::read(directory.join(name)).unwrap();
    assert!(bytes("plain.twb") == bytes("2.0.twb"), "published before the patches were made");
    assert_eq!(done(directory, "inspect 2.0.twb")["manifest"]["patches_file"], "1-2.twb");
    done(directory, "verify 1-2.twb --bundle 2.0.twb --base old.img");
    let (exit, why) = refused(directory, "verify 1-2.twb");
    assert_eq!((exit, why.contains("--bundle")), (2, true), "{why}");
}

#[test]
fn patches_that_are_made_later_leave_the_signed_bundle_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    let bytes = || fs::read(directory.join("2.0.twb")).unwrap();
    done(directory, &format!("{CREATE} --patches-to 1-2.twb -o 2.0.twb"));
    new_key(directory, "one");
    done(directory, "sign 2.0.twb --key one.key");
    let signed = bytes();
    done(directory, &format!("{CREATE} --base rootfs=old.img --patches-to 1-2.twb -o 2.0.twb"));
    assert!(bytes() == signed);
    done(directory, "verify 1-2.twb --bundle 2.0.twb --base old.img");
    let later = "--created 2026-02-02T00:00:00Z --base rootfs=old.img --patches-to 1-2.twb -o 2.0.twb";
    let (exit, why) =
        refused(directory, &format!("{} {later}", CREATE.replace(" --created 2026-01-01T00:00:00Z", "")));
    assert!(exit != 0 && why.contains("another bundle") && bytes() == signed, "{exit} {why}");
    assert!(why.trim_end().ends_with("remove it to make both anew"), "{why}");
    write(&directory.join("2.0.twb"), b"no bundle");
    let (exit, why) =
        refused(directory, &format!("{CREATE} --base rootfs=old.img --patches-to 1-2.twb -o 2.0.twb"));
    assert!(exit != 0 && bytes() == b"no bundle", "what is not understood is not replaced: {exit} {why}");
}

#[test]
fn a_time_that_cannot_be_told_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    let create = |source_date: Option<&str>| {
        let arguments = "bundle create --version 2.0 --level 5 --image rootfs=old.img -o 2.0.twb";
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinbootctl"));
        command.current_dir(directory).args(arguments.split(' ')).env_remove("SOURCE_DATE_EPOCH");
        command.envs(source_date.map(|date| ("SOURCE_DATE_EPOCH", date))).output().unwrap().status.code()
    };
    assert_eq!(create(Some("1767225600")), Some(0));
    assert_eq!(done(directory, "inspect 2.0.twb")["manifest"]["created"], "2026-01-01T00:00:00Z");
    for malformed in ["", "today", "-1", "253402300800", "18446744073709551615"] {
        assert_eq!(create(Some(malformed)), Some(2), "{malformed}");
    }
    let image = fs::File::options().write(true).open(directory.join("old.img")).unwrap();
    image.set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_secs(1)).unwrap();
    assert_eq!(create(None), Some(2), "older than 1970");
}

#[test]
fn a_name_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt as _;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    done(directory, &format!("{CREATE} -o 2.0.twb"));
    let odd = std::ffi::OsStr::from_bytes(b"\xff.twb");
    fs::rename(directory.join("2.0.twb"), directory.join(odd)).unwrap();
    for command in ["inspect", "verify"] {
        let output = Command::new(env!("CARGO_BIN_EXE_twinbootctl"))
            .current_dir(directory)
            .args(["--json", "bundle", command])
            .arg(odd)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn what_was_tampered_with_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    images(directory);
    done(directory, &format!("{CREATE} --base rootfs=old.img -o good.twb"));
    let good = fs::read(directory.join("good.twb")).unwrap();
    let check = done(directory, "inspect good.twb")["check_value"].as_str().unwrap().to_owned();
    // One place in each part; the last two in a frame and in a piece.
    let manifest_bytes = usize::try_from(u32::from_le_bytes(good[12..16].try_into().unwrap())).unwrap();
    let manifest: Value = serde_json::from_slice(&good[20..20 + manifest_bytes]).unwrap();
    let length =
        |pointer: &str| usize::try_from(manifest.pointer(pointer).unwrap().as_u64().unwrap()).unwrap();
    let index = 20 + manifest_bytes;
    let table = index + length("/index/size_bytes");
    let frames = table + length("/patches/0/table/size_bytes");
    let pieces = frames + length("/patches/0/frames_bytes");
    for at in [0, 9, 13, 17, 40, index + 100, table + 2, frames + 200, pieces + 500, good.len() - 20] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        write(&directory.join("bad.twb"), &bad);
        let (exit, why) = refused(directory, &format!("verify bad.twb --base old.img --check-value {check}"));
        assert_eq!(exit, 1, "byte {at}: {why}");
        assert_eq!(why.lines().count(), 1, "{why}");
    }
    for length in [0, 10, 300, index + 3, pieces + 3, good.len() - 1] {
        write(&directory.join("bad.twb"), &good[..length]);
        let (exit, why) = refused(directory, "verify bad.twb");
        assert_eq!(exit, 1, "{length} bytes: {why}");
    }
}
