//! What systemd is told, over the socket that it would give.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::rig::{Choice, DAEMON, LIMIT, Rig};

#[tokio::test]
async fn systemd_hears_ready_status_watchdog_and_stopping() {
    // The board lays everything out; the daemon is started here, with the manager's socket.
    let mut rig = Rig::new(Choice { daemon: std::path::Path::new("/bin/true"), ..Choice::default() });
    rig.board.power_on().await.unwrap();
    rig.board.cut().await;
    let path = rig.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut daemon = Command::new(DAEMON)
        .args(["run", "--config"])
        .arg(rig.board.config_path())
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    let listen = move |until: &'static [&'static str]| {
        let socket = socket.try_clone().unwrap();
        tokio::task::spawn_blocking(move || {
            let mut heard = BTreeSet::new();
            let mut buffer = [0; 4096];
            while !until.iter().all(|wanted| heard.contains(*wanted)) {
                let length = socket.recv(&mut buffer).unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                heard.extend(text.lines().map(str::to_owned));
            }
        })
    };
    let ready = listen(&["READY=1", "STATUS=standing by", "WATCHDOG=1"]);
    tokio::time::timeout(LIMIT, ready).await.unwrap().unwrap();
    let pid = i32::try_from(daemon.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    tokio::time::timeout(LIMIT, listen(&["STOPPING=1"])).await.unwrap().unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), daemon.wait()).await.unwrap().unwrap();
    assert!(ended.success());
}
