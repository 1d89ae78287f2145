//! A board that runs the built daemon against a hub started elsewhere, with an image to update it to.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use hub_emulator::board::{Board, BoardError, BoardOptions, Scheme, Traits, board_image};
use hub_emulator::images::{Faults, ImageServer};
use ring::digest::{SHA256, digest};
use tokio::signal::unix::{SignalKind, signal};

const IMAGE_NAME: &str = "rootfs-2.0.img";
const NEW_VERSION: &str = "2.0";
/// Large enough for several blocks, small enough to be written in no time.
const IMAGE_BYTES: usize = 4 << 20;
/// Makes the download last two seconds: long enough for whoever polls the twin to see it.
const BYTES_PER_SEC: u64 = 2 << 20;

/// What a new system does before it is committed; for as long as it does, the board is applying.
const HEALTH_SCRIPT: &str = "#!/bin/sh\nexec sleep 2\n";

/// Which hub, and which daemon.
#[derive(Args)]
pub(super) struct LoneBoard {
    /// The twinboot binary
    #[arg(long, value_name = "PATH")]
    daemon: PathBuf,
    /// The board's connection string
    #[arg(long, value_name = "TEXT")]
    connection_string: String,
    /// The hub's port for devices
    #[arg(long, value_name = "N", default_value_t = 8883)]
    mqtt_port: u16,
    /// The certificate of the hub's authority
    #[arg(long, value_name = "PATH", default_value = "hub-emulator-ca.pem")]
    ca_file: PathBuf,
}

/// Why there is no board.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoneBoardError {
    #[error("read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("set up image server and board: {0}")]
    SetUp(#[source] io::Error),
    #[error("watch for signals: {0}")]
    Signal(#[source] io::Error),
    #[error("{0}")]
    Board(#[from] BoardError),
}

/// Switches the board on, says what it may be updated to, and runs it until Ctrl-C.
pub(super) async fn run(options: &LoneBoard) -> Result<(), LoneBoardError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(LoneBoardError::Signal)?;
    let read = |path: &PathBuf, source| LoneBoardError::Read { path: path.clone(), source };
    let ca_pem = fs::read_to_string(&options.ca_file).map_err(|error| read(&options.ca_file, error))?;
    let daemon = options.daemon.canonicalize().map_err(|error| read(&options.daemon, error))?;

    let image = board_image(NEW_VERSION, Traits::default(), IMAGE_BYTES, 1);
    let sha256: String = digest(&SHA256, &image).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let slot_size_bytes = image.len() as u64;
    let server = ImageServer::start(None).await.map_err(LoneBoardError::SetUp)?;
    server.put(IMAGE_NAME, image);
    server.set_faults(IMAGE_NAME, Faults { bytes_per_sec: Some(BYTES_PER_SEC), ..Faults::default() });

    let directory = tempfile::Builder::new().prefix("twinboot-board-").tempdir();
    let directory = directory.map_err(LoneBoardError::SetUp)?;
    let scripts = directory.path().join("health.d");
    write_health_script(&scripts).map_err(LoneBoardError::SetUp)?;
    let mut board = Board::create(&BoardOptions {
        dir: directory.path().join("board"),
        daemon,
        scheme: Scheme::Bootcount,
        slot_size_bytes,
        hub_connection_string: Some(options.connection_string.clone()),
        hub_port: options.mqtt_port,
        ca_pem: Some(ca_pem),
        extra_config: format!("[health]\nscripts = \"{}\"\n", scripts.display()),
    })
    .map_err(LoneBoardError::SetUp)?;
    board.power_on().await?;
    println!("board:  {}", board.dir().display());
    println!("image:  {}", server.url(IMAGE_NAME));
    println!("sha256: {sha256}");
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(LoneBoardError::Signal)?,
        _ = terminate.recv() => {}
    }
    board.cut().await;
    Ok(())
}

fn write_health_script(directory: &Path) -> io::Result<()> {
    fs::create_dir(directory)?;
    let script = OpenOptions::new().create_new(true).write(true).mode(0o755).open(directory.join("10-wait"));
    script?.write_all(HEALTH_SCRIPT.as_bytes())
}
