//! Where others than root touch the daemon: its socket, its files, its memory; and what it runs.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Output};

use hub_emulator::board::Traits;

use crate::rig::{Choice, DAEMON, Rig, is_root, script};

const NOBODY: u32 = 65534;

/// Shows F21; rauc/rauc#266, #1400, #1977, rugix/rugix#121.
#[tokio::test]
async fn the_control_socket_is_for_its_group_alone() {
    if !is_root() {
        return;
    }
    let rig = Rig::running(Choice::default()).await;
    // It is the socket that refuses, not the way to it, nor the program.
    let program = rig.board.dir().join("twinboot");
    fs::copy(DAEMON, &program).unwrap();
    for open in [rig.dir.path(), rig.board.dir()] {
        fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
    }
    let socket = rig.board.control_socket();
    let group = fs::metadata(&socket).unwrap().gid();
    let ask = |gid: u32, arguments: &[&str]| -> Output {
        // Without root's other groups.
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={gid}")).arg("--clear-groups");
        command.arg(&program).args(arguments).arg("--socket").arg(&socket).output().unwrap()
    };
    for arguments in [["status"].as_slice(), &["rollback"], &["commit"], &["cancel"]] {
        let refused = ask(NOBODY, arguments);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(3), "{arguments:?}: {text}");
        assert!(text.contains("ermission denied"), "{text}");
    }
    let answered = ask(group, &["status"]);
    assert!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stderr));
}

/// What the daemon says of a file that another could change; it does not start.
fn refusal(rig: &Rig) -> String {
    let output =
        Command::new(DAEMON).args(["run", "--config"]).arg(rig.board.config_path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_configuration_that_others_could_change_starts_nothing_and_says_which_file_and_what_to_do() {
    let rig = Rig::new(Choice::default());
    let (config, drop_in) = (rig.board.config_path(), rig.board.dir().join("config.d/50-board.toml"));
    for path in [&config, &drop_in, &rig.board.dir().join("config.d")] {
        let mode = fs::metadata(path).unwrap().permissions();
        fs::set_permissions(path, Permissions::from_mode(mode.mode() & 0o777 | 0o002)).unwrap();
        let text = refusal(&rig);
        let advice = format!("`chmod go-w {}`", path.display());
        assert!(text.contains("so that others could change it") && text.contains(&advice), "{text}");
        fs::set_permissions(path, mode).unwrap();
    }
    if is_root() {
        chown(&drop_in, Some(NOBODY), None).unwrap();
        let text = refusal(&rig);
        assert!(text.contains("belongs to user 65534") && text.contains("`chown root "), "{text}");
        chown(&drop_in, Some(0), None).unwrap();
        // A link of root's to a file that is another's.
        let elsewhere = tempfile::tempdir().unwrap();
        chown(elsewhere.path(), Some(NOBODY), None).unwrap();
        let target = elsewhere.path().join("board.toml");
        fs::rename(&drop_in, &target).or_else(|_| fs::copy(&drop_in, &target).map(drop)).unwrap();
        let _ = fs::remove_file(&drop_in);
        symlink(&target, &drop_in).unwrap();
        let text = refusal(&rig);
        assert!(text.contains(&format!("{} belongs to user 65534", elsewhere.path().display())), "{text}");
    }
}

#[tokio::test]
async fn a_key_a_hook_or_a_slot_that_others_could_change_ends_the_update() {
    let rig = Rig::running(Choice::default()).await;
    let image = rig.image("2.0", Traits::default());
    let board = rig.board.dir().to_owned();
    let before = rig.board.environment().unwrap();
    let hooks = board.join("hooks.d/before-install");
    let drop_in = format!("[hooks]\ndirectory = {:?}\n", board.join("hooks.d"));
    fs::write(board.join("config.d/60-hooks.toml"), drop_in).unwrap();
    let mut rig = rig;
    rig.board.cut().await;
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["reported"]["firmwareStatus"] == "standBy").await;

    fs::create_dir_all(&hooks).unwrap();
    script(&hooks.join("10-line"), "exit 0");
    let key = board.join("keys/release.pub");
    fs::write(&key, "untrusted comment: a key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n")
        .unwrap();
    let slot = board.join("slot_b.img");
    for (number, (path, by_key, code)) in [
        (hooks.join("10-line"), false, "HookRefused"),
        (key, true, "Unverifiable"),
        (slot, false, "SlotUnusable"),
    ]
    .into_iter()
    .enumerate()
    {
        let mode = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        let (uri, id) = (format!("file://{}", image.display()), format!("try-{number}"));
        // Without a check value it is the key that counts.
        let source = if by_key { uri.as_str() } else { image.to_str().unwrap() };
        let asked = ["install", source, "--version", "2.0", "--update-id", &id, "--no-wait"];
        assert!(rig.twinboot(&asked).await.status.success());
        let over = |status: &serde_json::Value| {
            let reported = &status["reported"];
            reported["firmware"]["updateId"] == id.as_str() && reported["firmwareStatus"] == "failed"
        };
        let error = rig.wait(over).await["reported"]["firmware"]["error"].clone();
        let text = error["message"].as_str().unwrap();
        assert_eq!(error["code"], code, "{text}");
        assert!(text.contains(path.to_str().unwrap()) && text.contains("chmod go-w"), "{text}");
        fs::set_permissions(&path, mode).unwrap();
    }
    assert_eq!(rig.board.environment().unwrap(), before);
}

/// The programs that were started, by the kernel's own word.
fn executed(trace: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(trace).unwrap();
    // One that another thread interrupts is told in two lines, of which the first has the name.
    let started = text.lines().filter(|line| !line.contains(" = -1 "));
    started.filter_map(|line| Some(line.split_once("execve(\"")?.1.split_once('"')?.0.to_owned())).collect()
}

/// Shows F6.
#[tokio::test]
async fn an_update_starts_no_shell_and_no_program_but_those_that_are_configured() {
    let directory = tempfile::tempdir().unwrap();
    let (daemon, trace) = (directory.path().join("daemon"), directory.path().join("trace"));
    let strace =
        format!("exec strace -f -qq -A -o {} -e trace=execve,execveat {DAEMON} \"$@\"", trace.display());
    script(&daemon, &strace);
    let rig = Rig::running(Choice { daemon: &daemon, ..Choice::default() }).await;
    rig.install("2.0", Traits::default()).await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
    rig.wait(|_| rig.variable("twinboot_min_version") == "2.0").await;
    let reboot = rig.board.dir().join("reboot.sh").display().to_string();
    let mut started = executed(&trace);
    assert!(started.remove(DAEMON) && started.remove(&reboot), "{started:?}");
    // `system.clock_check_command` of this board, and the health check that its image brings.
    started.retain(|program| {
        let is_health = program.starts_with(rig.board.dir().join("health.d").to_str().unwrap());
        !is_health && !program.ends_with("/echo")
    });
    assert_eq!(started, BTreeSet::new());
}

#[tokio::test]
async fn a_daemon_that_crashes_leaves_no_memory_behind() {
    let rig = Rig::new(Choice::default());
    let directory = tempfile::tempdir().unwrap();
    let program = rig.board.dir().join("twinboot");
    fs::copy(DAEMON, &program).unwrap();
    for open in [rig.dir.path(), rig.board.dir(), directory.path()] {
        fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
    }
    // By a user whose processes are told from root's, and with all that a core dump needs.
    let user = if is_root() { NOBODY } else { nix::unistd::geteuid().as_raw() };
    if is_root() {
        chown(directory.path(), Some(NOBODY), None).unwrap();
    }
    let start = |program: &str| {
        let line = format!("ulimit -c unlimited; cd {}; exec {program}", directory.path().display());
        let mut command = Command::new("sh");
        if is_root() {
            command.uid(NOBODY);
        }
        command.args(["-c", &line]).spawn().unwrap()
    };
    let mut other = start("sleep 1000");
    let config = rig.board.config_path();
    let mut ours =
        start(&format!("{} network --config {} --socket socket", program.display(), config.display()));
    // To the kernel, the memory of what it may dump is its user's, and root's otherwise.
    let owner = |child: &Child| fs::metadata(format!("/proc/{}/mem", child.id())).unwrap().uid();
    let both_run = async {
        while owner(&other) != user || !directory.path().join("socket").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::rig::LIMIT, both_run).await.unwrap();
    let ours_belongs_to = owner(&ours);
    other.kill().unwrap();
    other.wait().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(ours.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGABRT).unwrap();
    let ended = ours.wait().unwrap();
    assert_eq!(ours_belongs_to, 0);
    assert!(ended.signal() == Some(6) && !ended.core_dumped(), "{ended:?}");
}
