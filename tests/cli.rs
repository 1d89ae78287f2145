//! The built binary, as a person or a script calls it.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::UnixListener;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use twinboot::control::{self, Answer, BindError, Call, Status};
use twinboot::update::{Code, Failure};

/// Nothing here takes longer, unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);

const PROGRAM: &str = env!("CARGO_BIN_EXE_twinboot");

const CONFIG: &str = r#"
[hub]
connection_string_file = "DIR/secret"
[[slot]]
name = "a"
device = "/dev/a"
[[slot]]
name = "b"
device = "/dev/b"
[boot]
scheme = "bootcount"
"#;

async fn limited<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("done within the limit")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

/// What a call printed, and how it ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

async fn call(arguments: &[&str]) -> Ended {
    limited(command(arguments).output()).await.unwrap().into()
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A configuration with a connection string.
fn config(text: &str) -> (TempDir, String) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("config.toml");
    let secret = "HostName=hub.example;DeviceId=gateway-1;SharedAccessKey=c2VjcmV0c2VjcmV0c2VjcmV0";
    write(&directory.path().join("secret"), secret, 0o600);
    write(&path, &text.replace("DIR", directory.path().to_str().unwrap()), 0o644);
    (directory, path.to_str().unwrap().to_owned())
}

/// A daemon of which only the socket is real: what it answers is in the test's hands.
struct Daemon {
    directory: TempDir,
    calls: mpsc::Receiver<Call>,
    status: watch::Sender<Status>,
    server: JoinHandle<()>,
}

impl Daemon {
    fn start(status: Status) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = control::bind(&directory.path().join("control.sock"), "no-such-group").unwrap();
        let (calls_in, calls) = mpsc::channel(1);
        let (status, status_out) = watch::channel(status);
        let server = tokio::spawn(control::serve(listener, calls_in, status_out));
        Self { directory, calls, status, server }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// The arguments with this daemon's socket, begun on a task of its own.
    fn call(&self, arguments: &[&str]) -> JoinHandle<Ended> {
        let mut command = command(arguments);
        command.arg("--socket").arg(self.socket());
        tokio::spawn(async move { limited(command.output()).await.unwrap().into() })
    }

    /// Takes the next command and answers it.
    async fn answer(&mut self, answer: Answer) -> control::Command {
        let call = limited(self.calls.recv()).await.unwrap();
        call.reply.send(answer).unwrap();
        call.command
    }

    /// The server and all its connections end, as with the daemon.
    async fn stop(self) {
        self.server.abort();
        assert!(limited(self.server).await.unwrap_err().is_cancelled());
    }
}

/// One whose running slot is in this state.
fn running(state: &str) -> Status {
    let slots = json!({ "booted": "a", "a": { "version": "1.4.1", "state": state } });
    status("checking", "applying", json!({ "slots": slots }))
}

fn accepted() -> Answer {
    Answer::Ok { message: "firmware update u-1 started".to_owned(), update_id: Some("u-1".parse().unwrap()) }
}

fn refused(code: Code, message: &str) -> Answer {
    Answer::Refused(Failure::new(code, message))
}

/// A status of update `u-1`.
fn status(summary: &str, firmware_status: &str, firmware: Value) -> Status {
    let mut reported = json!({
        "firmwareStatus": firmware_status,
        "firmware": {
            "currentFwVersion": "1.4.1",
            "updateId": "u-1",
            "slots": {
                "booted": "a",
                "a": { "version": "1.4.1", "state": "committed" },
                "b": { "version": "1.4.2", "state": "installing" },
            },
        },
    });
    for (key, value) in firmware.as_object().unwrap() {
        reported["firmware"][key] = value.clone();
    }
    Status {
        summary: summary.to_owned(),
        reported: reported.as_object().unwrap().clone(),
        hub_connected: true,
        hub_detail: "hub.example".to_owned(),
        bytes_per_sec: Some(4 * 1024 * 1024),
        slot_devices: json!({ "a": "/dev/a", "b": "/dev/b" }).as_object().unwrap().clone(),
    }
}

fn downloading() -> Status {
    let progress = json!({ "bytes": 64 * 1024 * 1024, "totalBytes": 256 * 1024 * 1024, "percent": 25 });
    let firmware = json!({
        "pendingFwVersion": "1.4.2",
        "fwUpdateStatus": "downloading",
        "lastFwUpdateStartTime": "2026-01-02T03:04:05Z",
        "progress": progress,
    });
    status("downloading 1.4.2: 25 %, 4.2 MB/s", "downloading", firmware)
}

fn failed() -> Status {
    let error = json!({ "error": { "code": "DigestMismatch", "message": "SHA-256 differs" } });
    status("the last update failed", "failed", error)
}

#[tokio::test]
async fn help_teaches_the_commands_and_the_exit_codes() {
    let help = call(&["--help"]).await;
    assert_eq!(help.code, 0);
    for part in ["run", "status", "slots", "install", "cancel", "commit", "rollback", "check-config"] {
        assert!(help.out.contains(&format!("\n  {part} ")), "{part} is not in {}", help.out);
        let sub = call(&[part, "--help"]).await;
        assert_eq!(sub.code, 0);
        assert!(sub.out.contains(&format!("Usage: twinboot {part}")), "{}", sub.out);
        assert!(sub.out.lines().all(|line| line.len() <= 110), "{}", sub.out);
    }
    for code in 0..=5 {
        assert!(help.out.contains(&format!("\n  {code}  ")), "{code} is not in {}", help.out);
    }
}

#[tokio::test]
async fn a_wrong_command_line_is_2() {
    for wrong in [
        &["instal"][..],
        &["install"],
        &["install", "x.img", "--check-value", "12"],
        &["install", "ftp://host/x.img"],
        &["install", "/"],
        &["cancel", "no id"],
    ] {
        let ended = call(wrong).await;
        assert_eq!(ended.code, 2, "{wrong:?}: {ended:?}");
        assert!(!ended.err.is_empty(), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_good_configuration_is_shown_with_origins_and_without_secrets() {
    let (directory, path) = config(CONFIG);
    std::fs::create_dir(directory.path().join("config.d")).unwrap();
    write(&directory.path().join("config.d/10-site.toml"), "[boot]\nattempts = 5\n", 0o644);
    let ended = call(&["check-config", "--config", &path]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let out = ended.out.replace(directory.path().to_str().unwrap(), "");
    assert!(out.starts_with("# /config.toml: ok\n"), "{out}");
    let hub = "# device gateway-1 of hub.example, reached at hub.example:8883, with a symmetric key\n";
    assert!(out.contains(hub), "{out}");
    let line = |text: &str| {
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).any(|line| line == text)
    };
    assert!(line("attempts = 5 # /config.d/10-site.toml:2"), "{out}");
    assert!(line("scheme = \"bootcount\" # /config.toml:11"), "{out}");
    assert!(line("deadline = \"10m\" # default"), "{out}");
    assert!(!out.contains("c2VjcmV0"), "{out}");
}

#[tokio::test]
async fn what_the_service_cannot_read_is_told_though_root_can() {
    let (directory, path) = config(&format!("{CONFIG}[install]\nca_file = \"DIR/ca.pem\"\n"));
    write(&directory.path().join("ca.pem"), "", 0o600);
    let ended = call(&["check-config", "--config", &path]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let note = "config.toml:13: install.ca_file: twinboot-network.service, which is not root, cannot read ";
    assert!(ended.out.lines().any(|line| line.starts_with("# ") && line.contains(note)), "{}", ended.out);
}

#[tokio::test]
async fn what_check_config_shows_is_a_configuration() {
    let (directory, path) = config(CONFIG);
    let shown = call(&["check-config", "--config", &path]).await.out;
    let again = directory.path().join("again.toml");
    write(&again, &shown, 0o644);
    let ended = call(&["check-config", "--config", again.to_str().unwrap()]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[tokio::test]
async fn a_drop_in_leaves_the_service_this_boards_devices() {
    let (directory, path) = config("");
    let tools = directory.path().join("fw_env.config");
    write(&tools, "/dev/mmcblk0boot0 0 0x4000\n/boot/uboot.env 0 0x4000\n", 0o644);
    write(
        Path::new(&path),
        &format!(
            "[[slot]]\nname = \"a\"\ndevice = \"/dev/disk/by-partlabel/root-a\"\n\
             [[slot]]\nname = \"b\"\ndevice = \"/dev/mmcblk0p3\"\n\
             [boot]\nscheme = \"bootcount\"\nenvironment = {tools:?}\n"
        ),
        0o644,
    );
    let ended = call(&["check-config", "--unit", "--config", &path]).await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    let service = ended.out.split_once("[Service]\n").unwrap().1;
    let expected = "DeviceAllow=\nDeviceAllow=/dev/disk/by-partlabel/root-a rw\nDeviceAllow=/dev/mmcblk0p3 rw\n\
                    DeviceAllow=/dev/mmcblk0boot0 rw\nReadWritePaths=-/boot/uboot.env\n";
    assert!(service.starts_with(expected), "{service}");
    assert!(ended.out.contains("After=dev-disk-by\\x2dpartlabel-root\\x2da.device\n"), "{}", ended.out);

    // Another file takes the place of the only copy.
    write(&tools, "/boot/uboot.env 0 0x4000\n", 0o644);
    let ended = call(&["check-config", "--unit", "--config", &path]).await;
    assert!(ended.out.contains("\nReadWritePaths=-/boot\n"), "{}", ended.out);

    // Flash is written through its block device.
    write(&tools, "/dev/mtd3 0 0x4000\n/dev/mtd3 0x40000 0x4000\n", 0o644);
    let ended = call(&["check-config", "--unit", "--config", &path]).await;
    let expected =
        "DeviceAllow=/dev/mmcblk0p3 rw\nDeviceAllow=/dev/mtd3 rw\nDeviceAllow=/dev/mtdblock3 rw\nReadWrite";
    assert!(ended.out.contains(expected), "{}", ended.out);
}

/// systemd takes backslashes away, expands `%` and splits at blanks; udev has a blank of a partition's name as `\x20`.
#[tokio::test]
async fn a_drop_in_names_paths_as_systemd_reads_them() {
    let (directory, path) = config("");
    let tools = directory.path().join("fw_env.config");
    write(&tools, "/boot/100%/uboot.env 0 0x4000\n", 0o644);
    let text = r#"
[state]
directory = "/data/of it"
[[slot]]
name = "a"
device = '/dev/disk/by-partlabel/root\x20a'
[[slot]]
name = "b"
device = "/dev/of \"it\""
[boot]
scheme = "bootcount"
environment = "#;
    write(Path::new(&path), &format!("{text}{tools:?}\n"), 0o644);
    let ended = call(&["check-config", "--unit", "--config", &path]).await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    let expected = r#"
DeviceAllow=/dev/disk/by-partlabel/root\\x20a rw
DeviceAllow="/dev/of \"it\"" rw
ReadWritePaths=-/boot/100%%
ReadWritePaths="-/data/of it"
"#;
    assert!(ended.out.contains(expected), "{}", ended.out);
    assert!(ended.out.contains("\nAfter=dev-disk-by\\x2dpartlabel-root\\x5cx20a.device\n"), "{}", ended.out);
}

#[tokio::test]
async fn a_drop_in_waits_for_the_medium_of_the_environment() {
    let is_block_device =
        |path: &PathBuf| std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    let entries = std::fs::read_dir("/dev").unwrap().map(|entry| entry.unwrap().path());
    let Some(medium) = entries.into_iter().find(is_block_device) else {
        eprintln!("not run: there is no block device");
        return;
    };
    let (directory, path) = config("");
    let tools = directory.path().join("fw_env.config");
    let line = |offset| format!("{} {offset} 0x4000\n", medium.display());
    write(&tools, &[line("0"), line("0x4000"), String::new()].concat(), 0o644);
    let slots = CONFIG.split_once("[[slot]]").unwrap().1;
    write(Path::new(&path), &format!("[[slot]]{slots}environment = {tools:?}\n"), 0o644);
    let ended = call(&["check-config", "--unit", "--config", &path]).await;
    let name = medium.file_name().unwrap().to_str().unwrap().replace('-', "\\x2d");
    let wanted = format!("\nWants=dev-{name}.device\nAfter=dev-{name}.device\n\n[Service]\n");
    assert!(ended.out.contains(&wanted), "{}", ended.out);
    // What Linux has as characters, has no unit.
    write(&tools, "/dev/null 0 0x4000\n/dev/null 0x4000 0x4000\n", 0o644);
    let ended = call(&["check-config", "--unit", "--config", &path]).await;
    assert!(!ended.out.contains("dev-null"), "{}", ended.out);
    assert!(ended.out.contains("\nDeviceAllow=/dev/null rw\n"), "{}", ended.out);
}

/// What a shell makes of `2>&1 | true`.
fn closed_pipe() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

#[tokio::test]
async fn who_does_not_listen_gets_the_exit_code_all_the_same() {
    let (directory, path) = config("[boot]\nscheme = \"grub\"\n");
    let nobody = directory.path().join("nobody");
    // The daemon logs that it starts, and then does not find the slot that runs.
    let slots = CONFIG.split_once("[[slot]]").unwrap().1;
    let (_kept, stops) = config(&format!("[[slot]]{slots}[system]\nproc = \"DIR/proc\"\n"));
    for (arguments, code) in [
        (["check-config", "--config", &path], 2),
        (["run", "--config", &path], 2),
        (["run", "--config", &stops], 1),
        (["status", "--socket", nobody.to_str().unwrap()], 3),
        (["doctor", "--config", &path], 7),
    ] {
        let mut command = command(&arguments);
        command.stdout(closed_pipe()).stderr(closed_pipe());
        let status = limited(command.status()).await.unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}: {status}");
    }
}

#[tokio::test]
async fn a_bad_configuration_shows_all_faults_and_is_2_for_the_daemon_too() {
    let (directory, path) = config("[boot]\natempts = 3\nscheme = \"grub\"\n[health]\ndeadline = 10\n");
    for subcommand in ["check-config", "run"] {
        let ended = call(&[subcommand, "--config", &path]).await;
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.out.is_empty(), "{ended:?}");
        let err = ended.err.replace(directory.path().to_str().unwrap(), "");
        let expected = "\
/config.toml: slot \"a\".name: is missing; write `[[slot]]`, `name = \"a\"` and `device = \"/dev/...\"`
/config.toml: slot \"b\".name: is missing; write `[[slot]]`, `name = \"b\"` and `device = \"/dev/...\"`
/config.toml:2: boot.atempts: unknown key; did you mean `attempts`?
/config.toml:3: boot.scheme: \"grub\" is not known; write \"bootcount\", \"rauc\" or \"mender\"
/config.toml:5: health.deadline: is a number; write a number and a unit, as in \"30s\", \"10m\" or \"24h\"
twinboot: the configuration has 5 faults
";
        assert_eq!(err, expected);
    }
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_3() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("none").to_str().unwrap().to_owned();
    for arguments in [&["status"][..], &["slots"], &["cancel"], &["commit"], &["rollback"], &["status", "-w"]]
    {
        let ended = call(&[arguments, &["--socket", &socket]].concat()).await;
        assert_eq!(ended.code, 3, "{ended:?}");
        assert!(ended.err.contains("is it running? `systemctl status twinboot`"), "{ended:?}");
        assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
    }
}

/// Shows coreos/zincati#498, #1160; rauc/rauc#808, #1672, rauc-hawkbit-updater#73, #155.
#[tokio::test]
async fn status_is_a_table_for_people() {
    let daemon = Daemon::start(downloading());
    let ended = limited(daemon.call(&["status"])).await.unwrap();
    let expected = "  running slot a, version 1.4.1, committed, /dev/a
    other slot b, version 1.4.2, installing, /dev/b
    state downloading 1.4.2: 25 %, 4.2 MB/s
 progress [#####---------------]  25 %  64.0 of 256.0 MiB  4.0 MiB/s  48s left
      hub connected: hub.example
   update u-1 to version 1.4.2, running, begun 2026-01-02T03:04:05Z
";
    assert_eq!((ended.code, ended.out.as_str()), (0, expected));
    daemon.status.send_replace(failed());
    let ended = limited(daemon.call(&["status"])).await.unwrap();
    assert!(ended.out.contains("    error DigestMismatch: SHA-256 differs\n"), "{}", ended.out);
    daemon.status.send_replace(Status { summary: "starting".to_owned(), ..Status::default() });
    let ended = limited(daemon.call(&["status"])).await.unwrap();
    let expected = "     slot slot a, no known version
     slot slot b, no known version
    state starting
      hub not connected
";
    assert_eq!((ended.code, ended.out.as_str()), (0, expected));
}

#[tokio::test]
async fn status_and_slots_are_json_for_scripts() {
    let daemon = Daemon::start(downloading());
    let ended = limited(daemon.call(&["status", "--json"])).await.unwrap();
    assert_eq!(serde_json::from_str::<Status>(&ended.out).unwrap(), downloading());
    let ended = limited(daemon.call(&["slots", "--json"])).await.unwrap();
    let expected = json!([
        { "slot": "a", "running": true, "version": "1.4.1", "state": "committed", "device": "/dev/a" },
        { "slot": "b", "running": false, "version": "1.4.2", "state": "installing", "device": "/dev/b" },
    ]);
    assert_eq!(serde_json::from_str::<Value>(&ended.out).unwrap(), expected);
    let ended = limited(daemon.call(&["slots"])).await.unwrap();
    let expected = "   SLOT  STATE       VERSION  DEVICE
*  a     committed   1.4.1    /dev/a
   b     installing  1.4.2    /dev/b
";
    assert_eq!(ended.out, expected);
}

#[tokio::test]
async fn a_watch_follows_every_change_until_the_daemon_ends() {
    let daemon = Daemon::start(downloading());
    let mut child =
        command(&["status", "--watch", "--json"]).arg("--socket").arg(daemon.socket()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = limited(lines.next_line()).await.unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Status>(&first).unwrap(), downloading());
    daemon.status.send_replace(failed());
    let second = limited(lines.next_line()).await.unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Status>(&second).unwrap(), failed());
    daemon.stop().await;
    assert_eq!(limited(child.wait()).await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn an_output_that_nobody_reads_ends_the_watch_quietly() {
    let daemon = Daemon::start(downloading());
    let mut child = command(&["status", "--watch"]).arg("--socket").arg(daemon.socket()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(limited(lines.next_line()).await.unwrap().is_some());
    drop(lines);
    daemon.status.send_replace(failed());
    let ended: Ended = limited(child.wait_with_output()).await.unwrap().into();
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
}

/// Shows coreos/zincati#498, #1160.
#[tokio::test]
async fn commands_reach_the_daemon_and_refusals_say_what_to_do() {
    let mut daemon = Daemon::start(downloading());
    let done = |message: &str| Answer::Ok { message: message.to_owned(), update_id: None };

    let cancel = daemon.call(&["cancel", "u-1"]);
    let command = daemon.answer(done("cancelled u-1")).await;
    assert_eq!(command, control::Command::Cancel { update_id: Some("u-1".parse().unwrap()) });
    let ended = limited(cancel).await.unwrap();
    assert_eq!((ended.code, ended.out.as_str()), (0, "cancelled u-1\n"));

    let commit = daemon.call(&["commit"]);
    let command = daemon.answer(refused(Code::NothingToCommit, "no trial is running")).await;
    assert_eq!(command, control::Command::Commit);
    let ended = limited(commit).await.unwrap();
    assert_eq!((ended.code, ended.err.as_str()), (1, "twinboot: cannot commit: no trial is running\n"));

    // It ends once the slot is committed, or is not going to be.
    for (state, code) in [("committed", 0), ("bad", 1)] {
        daemon.status.send_replace(running("trial"));
        let commit = daemon.call(&["commit"]);
        daemon.answer(done("committing update u-1")).await;
        daemon.status.send_replace(running(state));
        let ended = limited(commit).await.unwrap();
        assert_eq!(ended.code, code, "{ended:?}");
        assert_eq!(ended.out.contains("is not committed"), code != 0, "{ended:?}");
    }
    daemon.status.send_replace(downloading());

    let rollback = daemon.call(&["rollback"]);
    assert_eq!(daemon.answer(done("rolling back to slot b")).await, control::Command::RollBack);
    assert_eq!(limited(rollback).await.unwrap().code, 0);

    let install = daemon.call(&["install", "https://host.example/x.img"]);
    daemon.answer(refused(Code::VersionNotNewer, "1.4.0 is not newer")).await;
    let ended = limited(install).await.unwrap();
    let expected = "twinboot: cannot install: 1.4.0 is not newer; `--force` takes it all the same\n";
    assert_eq!((ended.code, ended.err.as_str()), (1, expected));

    // Its message says what to do: that depends on what this device knows.
    let install = daemon.call(&["install", "https://host.example/x.img"]);
    daemon.answer(refused(Code::Unverifiable, "this device knows no key: see `install.keys`")).await;
    let ended = limited(install).await.unwrap();
    let expected = "twinboot: cannot install: this device knows no key: see `install.keys`\n";
    assert_eq!((ended.code, ended.err.as_str()), (1, expected));

    let install = daemon.call(&["install", "https://host.example/x.img"]);
    daemon.answer(done("this update is already completed")).await;
    let ended = limited(install).await.unwrap();
    assert_eq!((ended.code, ended.out.as_str()), (0, "this update is already completed\n"));
}

#[tokio::test]
async fn a_local_file_is_installed_by_its_address_with_check_value_and_size() {
    let mut daemon = Daemon::start(downloading());
    let image = daemon.directory.path().join("an image.ext4");
    write(&image, "abc", 0o644);
    let install = daemon.call(&["install", image.to_str().unwrap(), "--version", "2.0", "--no-wait"]);
    let command = daemon.answer(accepted()).await;
    let canonical = image.canonicalize().unwrap();
    let payload = json!({
        "fwPackageUri": format!("file://{}", canonical.to_str().unwrap().replace(' ', "%20")),
        "fwPackageCheckValue": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "fwVersion": "2.0",
        "fwSize": 3,
    });
    assert_eq!(command, control::Command::Install { payload, force: false });
    let ended = limited(install).await.unwrap();
    assert_eq!((ended.code, ended.out.as_str()), (0, "firmware update u-1 started\n"));
}

#[tokio::test]
async fn an_address_is_installed_as_it_is_given() {
    let mut daemon = Daemon::start(downloading());
    let value = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let arguments =
        ["install", "https://host.example/x.img?sig=a%2Fb", "--check-value", value, "--size", "3"];
    let more = ["--update-id", "u-1", "--force", "--no-wait"];
    let install = daemon.call(&[&arguments[..], &more].concat());
    let command = daemon.answer(accepted()).await;
    let payload = json!({
        "fwPackageUri": "https://host.example/x.img?sig=a%2Fb",
        "fwPackageCheckValue": value,
        "fwSize": 3,
        "updateId": "u-1",
    });
    assert_eq!(command, control::Command::Install { payload, force: true });
    assert_eq!(limited(install).await.unwrap().code, 0);
}

#[tokio::test]
async fn a_file_that_is_not_there_is_1() {
    let ended = call(&["install", "/does/not/exist.img"]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.err.starts_with("twinboot: cannot read /does/not/exist.img: No such file"), "{ended:?}");
}

/// An install that is being followed.
struct Following {
    daemon: Daemon,
    child: Child,
    progress: Lines<BufReader<ChildStderr>>,
}

impl Following {
    /// Begins an install that is accepted, and waits until it is seen to download.
    async fn begin() -> Self {
        let mut daemon = Daemon::start(downloading());
        let mut child = command(&["install", "https://host.example/x.img"])
            .arg("--socket")
            .arg(daemon.socket())
            .spawn()
            .unwrap();
        daemon.answer(accepted()).await;
        let progress = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut following = Self { daemon, child, progress };
        following.shows("downloading 1.4.2: 25 %").await;
        following
    }

    /// Waits for a line of progress.
    async fn shows(&mut self, text: &str) {
        loop {
            let line = limited(self.progress.next_line()).await.unwrap();
            if line.expect("it is shown before the end").contains(text) {
                return;
            }
        }
    }

    /// Exit code and output.
    async fn ended(self) -> (i32, String) {
        let output = limited(self.child.wait_with_output()).await.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }
}

#[tokio::test]
async fn an_install_is_followed_to_its_outcome() {
    let error = json!({ "error": { "code": "HealthCheckFailed", "message": "sshd.service is not active" } });
    let outcomes = [
        (status("up to date: 1.4.2", "completed", json!({})), 0, "up to date: 1.4.2"),
        (
            status(
                "not understood",
                "completed",
                json!({"error": {"code": "InvalidPayload", "message": "m"}}),
            ),
            0,
            "firmware applied",
        ),
        (failed(), 4, "DigestMismatch: SHA-256 differs"),
        (status("rolled back", "rolledBack", error), 5, "HealthCheckFailed: sshd.service is not active"),
    ];
    for (outcome, code, sentence) in outcomes {
        let install = Following::begin().await;
        install.daemon.status.send_replace(outcome);
        assert_eq!(install.ended().await, (code, format!("firmware update u-1 started\n{sentence}\n")));
    }
}

#[tokio::test]
async fn an_install_that_fails_is_4_though_nobody_reads_on() {
    let mut install = Following::begin().await;
    let mut lines = BufReader::new(install.child.stdout.take().unwrap()).lines();
    assert!(limited(lines.next_line()).await.unwrap().is_some());
    drop(lines);
    install.daemon.status.send_replace(failed());
    assert_eq!(install.ended().await, (4, String::new()));
}

#[tokio::test]
async fn an_install_whose_device_reboots_is_0_and_says_so() {
    let mut install = Following::begin().await;
    let rebooting = json!({ "fwUpdateStatus": "rebooting" });
    install.daemon.status.send_replace(status("rebooting into slot b", "applying", rebooting));
    install.shows("rebooting into slot b").await;
    install.daemon.server.abort();
    let (code, out) = install.ended().await;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("installed; the device reboots into it now"), "{out}");
}

#[tokio::test]
async fn another_update_in_the_place_of_ours_is_1() {
    let install = Following::begin().await;
    install.daemon.status.send_replace(status("downloading", "downloading", json!({ "updateId": "u-2" })));
    let (code, out) = install.ended().await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("update u-1 is no longer there: the device is at u-2"), "{out}");
}

#[tokio::test]
async fn an_update_that_the_daemon_lost_with_its_state_is_1() {
    let mut install = Following::begin().await;
    // It starts again, and does not know yet.
    install.daemon.status.send_replace(Status { summary: "starting".to_owned(), ..Status::default() });
    install.shows("starting").await;
    install.daemon.status.send_replace(status("standing by", "standBy", json!({ "updateId": null })));
    let (code, out) = install.ended().await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("update u-1 is no longer there: standing by"), "{out}");
}

/// A program that another test starts has a copy of the closed socket from its fork to its exec.
async fn bound_when_free(socket: &Path) -> UnixListener {
    loop {
        match control::bind(socket, "no-such-group") {
            Err(BindError::InUse { .. }) => tokio::task::yield_now().await,
            bound => return bound.unwrap(),
        }
    }
}

#[tokio::test]
async fn an_install_survives_a_restart_of_the_daemon() {
    let mut install = Following::begin().await;
    install.daemon.server.abort();
    install.shows("the daemon is away").await;
    assert!((&mut install.daemon.server).await.unwrap_err().is_cancelled());
    let listener = limited(bound_when_free(&install.daemon.socket())).await;
    let (calls, _calls) = mpsc::channel(1);
    let (_status_in, status) = watch::channel(failed());
    install.daemon.server = tokio::spawn(control::serve(listener, calls, status));
    let (code, out) = install.ended().await;
    assert_eq!(code, 4, "{out}");
}

#[tokio::test]
async fn systemd_accepts_the_units() {
    let directory = TempDir::new().unwrap();
    let units = [
        ("twinboot.service", include_str!("../systemd/twinboot.service")),
        ("twinboot-network.service", include_str!("../systemd/twinboot-network.service")),
        ("twinboot-network.socket", include_str!("../systemd/twinboot-network.socket")),
        ("twinboot-trial.service", include_str!("../systemd/twinboot-trial.service")),
        ("twinboot-trial-no-daemon.service", include_str!("../systemd/twinboot-trial-no-daemon.service")),
        ("twinboot-trial.timer", include_str!("../systemd/twinboot-trial.timer")),
    ];
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for (name, unit) in units {
        let path = directory.path().join(name);
        write(&path, &unit.replace("/usr/bin/twinboot", PROGRAM), 0o644);
        verify.arg(path);
    }
    let output = limited(verify.output()).await;
    let output = output.expect("systemd-analyze is needed (Debian: systemd)");
    let complaints = String::from_utf8(output.stderr).unwrap();
    // About units of the machine itself there may be complaints too.
    let ours: Vec<&str> = complaints.lines().filter(|line| line.contains("twinboot")).collect();
    assert!(output.status.success() && ours.is_empty(), "{complaints}");
}
