//! One update for a person to watch: hub, image server and board in a temporary directory, and the built daemon.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use hub_emulator::board::{Board, BoardError, BoardOptions, Scheme, Slot, Traits, board_image};
use hub_emulator::hub::{Hub, HubOptions, MethodError, merge};
use hub_emulator::images::{Faults, ImageServer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

const DEVICE: &str = "gateway-1";
const IMAGE_NAME: &str = "rootfs-2.0.ext4";
const NEW_VERSION: &str = "2.0";

/// Long enough to watch, short enough not to get bored.
const DOWNLOAD_SECS: u64 = 6;

/// The daemon notes how far it is every five seconds: the cut is to come after the second note.
const CUT_DOWNLOAD_SECS: u64 = 20;
const CUT_PERCENT: u64 = 55;

/// Where no image is given: large enough for a progress bar.
const STAND_IN_BYTES: usize = 48 << 20;

/// Shorter than the steps between two statuses, so that boots and statuses are told in their order.
const TICK: Duration = Duration::from_millis(50);

/// A loaded machine takes seconds to start a process and to connect.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Five times what it takes on two slow cores.
const STORY_LIMIT: Duration = Duration::from_secs(180);

/// The answer comes before the download begins.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A status is a few kilobytes from a socket of this machine.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// How long the board stays without power, for a person to notice.
const DARK: Duration = Duration::from_secs(1);

const BAR_WIDTH: u64 = 32;
const LOG_TAIL_LINES: usize = 15;

/// What is shown.
#[derive(Args)]
pub(super) struct Demo {
    /// The twinboot binary
    #[arg(long, value_name = "PATH")]
    daemon: PathBuf,
    /// An ext4 image of version 2.0; without it, a stand-in is made
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,
    /// The image fails its health check, so a roll back is what is expected
    #[arg(long)]
    sick: bool,
    /// Cut the board's power in the middle of the download, and on the first boot from the new slot
    #[arg(long)]
    cut: bool,
}

/// Why the demonstration did not end as it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum DemoError {
    #[error("read the image {}: {source}", path.display())]
    Image { path: PathBuf, source: io::Error },
    #[error("set up hub, image server and board: {0}")]
    SetUp(#[source] io::Error),
    #[error("watch for signals: {0}")]
    Signal(#[source] io::Error),
    #[error("show the progress: {0}")]
    Show(#[source] io::Error),
    #[error("{0}")]
    Board(#[from] BoardError),
    #[error("call firmwareUpdate: {0:?}")]
    Call(MethodError),
    #[error("{0}")]
    NotReported(String),
    #[error("the update did not end within {} s", STORY_LIMIT.as_secs())]
    Late,
    #[error("expected {wanted}, but {reached}")]
    Unexpected { wanted: &'static str, reached: String },
    #[error("interrupted")]
    Interrupted,
}

/// Plays the update; whatever its end, nothing of it is left.
pub(super) async fn run(options: &Demo) -> Result<(), DemoError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::Signal)?;
    let mut stage = Stage::set_up(options).await?;
    let told = tokio::select! {
        told = stage.play(options) => told,
        _ = tokio::signal::ctrl_c() => Err(DemoError::Interrupted),
        _ = terminate.recv() => Err(DemoError::Interrupted),
    };
    stage.board.cut().await;
    if told.as_ref().is_err_and(|error| !matches!(error, DemoError::Interrupted)) {
        stage.print_logs();
    }
    told
}

/// What the image is known by.
struct Image {
    size_bytes: u64,
    sha256: String,
}

/// Everything that takes part.
struct Stage {
    hub: Hub,
    server: ImageServer,
    board: Board,
    daemon: PathBuf,
    image: Image,
    screen: Screen,
    /// Last: the others use files in it.
    _directory: TempDir,
}

impl Stage {
    async fn set_up(options: &Demo) -> Result<Self, DemoError> {
        let directory = tempfile::Builder::new().prefix("twinboot-demo-").tempdir();
        let directory = directory.map_err(DemoError::SetUp)?;
        let path = match &options.image {
            Some(path) => path.clone(),
            None => stand_in(directory.path(), options.sick).map_err(DemoError::SetUp)?,
        };
        let image = measure(&path).map_err(|source| DemoError::Image { path: path.clone(), source })?;
        let daemon = options.daemon.canonicalize();
        let daemon = daemon.map_err(|source| DemoError::Image { path: options.daemon.clone(), source })?;

        let hub = Hub::start(HubOptions::default()).await.map_err(DemoError::SetUp)?;
        let server = ImageServer::start(Some(hub.authority().server_config())).await;
        let server = server.map_err(DemoError::SetUp)?;
        server.put_file(IMAGE_NAME, &path);
        let download_secs = if options.cut { CUT_DOWNLOAD_SECS } else { DOWNLOAD_SECS };
        let bytes_per_sec = Some(image.size_bytes / download_secs);
        server.set_faults(IMAGE_NAME, Faults { bytes_per_sec, ..Faults::default() });
        let board = Board::create(&BoardOptions {
            dir: directory.path().join("board"),
            daemon: daemon.clone(),
            scheme: Scheme::Bootcount,
            slot_size_bytes: image.size_bytes,
            hub_connection_string: Some(hub.add_device(DEVICE)),
            hub_port: hub.mqtt_port(),
            ca_pem: Some(hub.ca_pem().to_owned()),
            extra_config: "[health]\ndeadline = \"20s\"\n".to_owned(),
        });
        let board = board.map_err(DemoError::SetUp)?;
        println!("image:  {} ({}, SHA-256 {})", path.display(), megabytes(image.size_bytes), image.sha256);
        println!("hub:    mqtts://localhost:{}, device {DEVICE}", hub.mqtt_port());
        println!("server: {}, limited to make the download last {download_secs} s", server.url(IMAGE_NAME));
        println!("board:  two slots, U-Boot environment, scheme bootcount; runs {}", daemon.display());
        let screen = Screen { redraws: io::stdout().is_terminal(), bar_is_drawn: false, percent: None };
        Ok(Self { hub, server, board, daemon, image, screen, _directory: directory })
    }

    async fn play(&mut self, options: &Demo) -> Result<(), DemoError> {
        self.board.power_on().await?;
        self.hub.wait_connected(DEVICE, START_LIMIT, true).await.map_err(DemoError::NotReported)?;
        let standing_by = |twin: &Value| at(twin, "/firmwareStatus") == "standBy";
        self.hub.wait_reported(DEVICE, START_LIMIT, standing_by).await.map_err(DemoError::NotReported)?;
        let mut story = Story::default();
        self.tell_news(&mut story)?;
        self.call().await?;
        let told = tokio::time::timeout(STORY_LIMIT, self.follow(&mut story, options.cut)).await;
        told.unwrap_or(Err(DemoError::Late))?;
        self.conclude(options)
    }

    async fn call(&mut self) -> Result<(), DemoError> {
        let payload = json!({
            "fwPackageUri": self.server.url(IMAGE_NAME),
            "fwPackageCheckValue": self.image.sha256,
            "fwVersion": NEW_VERSION,
            "fwSize": self.image.size_bytes,
        });
        self.say(&format!("cloud:  calls firmwareUpdate {payload:#}"))?;
        let answer = self.hub.call_method(DEVICE, "firmwareUpdate", payload, CALL_LIMIT).await;
        let answer = answer.map_err(DemoError::Call)?;
        self.say(&format!("device: answers {} {}", answer.status, answer.payload))?;
        if answer.status == 200 {
            return Ok(());
        }
        Err(DemoError::Unexpected { wanted: "the answer 200", reached: format!("it is {}", answer.status) })
    }

    /// Until the update has ended.
    async fn follow(&mut self, story: &mut Story, cuts: bool) -> Result<(), DemoError> {
        let mut cuts_left = if cuts { vec![Cut::FirstNewBoot, Cut::HalfWay] } else { Vec::new() };
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            self.tell_news(story)?;
            let ended = matches!(
                at(&story.twin, "/firmwareStatus").as_str(),
                Some("completed" | "failed" | "rolledBack")
            );
            if ended {
                return Ok(());
            }
            let downloading = at(&story.twin, "/firmware/fwUpdateStatus") == "downloading";
            let percent = if downloading { self.show_progress().await? } else { None };
            let due = match cuts_left.last() {
                Some(Cut::HalfWay) => percent.is_some_and(|percent| percent >= CUT_PERCENT),
                Some(Cut::FirstNewBoot) => self.board.booted() == Some(Slot::B),
                None => false,
            };
            if due {
                cuts_left.pop();
                self.cut_power(percent).await?;
            }
            // A board that boots no more would be waited for in vain.
            self.board.wait_on(START_LIMIT).await?;
        }
    }

    /// Says what is new in the twin, and which boots there were.
    fn tell_news(&mut self, story: &mut Story) -> Result<(), DemoError> {
        for boot in self.board.boots().iter().skip(story.boots) {
            story.boots += 1;
            self.say(&format!("board:  boot {} from slot {}", story.boots, boot.slot.letter()))?;
        }
        for patch in self.hub.history(DEVICE).iter().skip(story.patches) {
            story.patches += 1;
            merge(&mut story.twin, patch);
            let line = status_line(&story.twin);
            if line != story.line {
                self.say(&line)?;
                story.line = line;
            }
        }
        Ok(())
    }

    /// As the device itself tells it: the twin hears of progress every ten seconds only.
    async fn show_progress(&mut self) -> Result<Option<u64>, DemoError> {
        let mut command = tokio::process::Command::new(&self.daemon);
        command.args(["status", "--json", "--socket"]).arg(self.board.control_socket());
        command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let Ok(Ok(output)) = tokio::time::timeout(STATUS_LIMIT, command.output()).await else {
            return Ok(None);
        };
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let progress = at(&status, "/reported/firmware/progress");
        let (Some(percent), Some(bytes)) =
            (at(progress, "/percent").as_u64(), at(progress, "/bytes").as_u64())
        else {
            return Ok(None);
        };
        self.screen.bar(percent, bytes, self.image.size_bytes).map_err(DemoError::Show)?;
        Ok(Some(percent))
    }

    async fn cut_power(&mut self, percent: Option<u64>) -> Result<(), DemoError> {
        self.board.cut().await;
        let moment = match percent {
            Some(percent) => format!("at {percent} % of the download"),
            None => "on the first boot from the new slot".to_owned(),
        };
        self.say(&format!("*** the power is cut {moment}"))?;
        tokio::time::sleep(DARK).await;
        self.say("*** the power is back")?;
        Ok(self.board.power_on().await?)
    }

    /// Whether it ended as it was to.
    fn conclude(&mut self, options: &Demo) -> Result<(), DemoError> {
        let twin = self.hub.reported(DEVICE);
        self.say(&format!("\nreported properties in the twin:\n{twin:#}\n"))?;
        let (sent, size) = (self.server.bytes_sent(IMAGE_NAME), self.image.size_bytes);
        self.say(&format!(
            "server: sent {} in {} requests for an image of {}: {} %",
            megabytes(sent),
            self.server.requests(IMAGE_NAME),
            megabytes(size),
            percent_of(sent, size),
        ))?;
        let (wanted, slot) = if options.sick { ("rolledBack", Slot::A) } else { ("completed", Slot::B) };
        let booted = self.board.booted().map_or("none", Slot::letter);
        let reached = format!(
            "the twin says {}, and slot {booted} runs version {}",
            at(&twin, "/firmwareStatus"),
            at(&twin, "/firmware/currentFwVersion")
        );
        if at(&twin, "/firmwareStatus") != wanted || self.board.booted() != Some(slot) {
            return Err(DemoError::Unexpected { wanted, reached });
        }
        // Without a resume, the first half would have been sent twice.
        if options.cut && percent_of(sent, size) > 130 {
            let reached = format!("the server sent {} %", percent_of(sent, size));
            return Err(DemoError::Unexpected { wanted: "the download to go on where it was", reached });
        }
        let why = at(&twin, "/firmware/error/message").as_str().map(|why| format!(": {why}"));
        self.say(&format!("As expected: {reached}{}", why.unwrap_or_default()))
    }

    fn say(&mut self, line: &str) -> Result<(), DemoError> {
        self.screen.line(line).map_err(DemoError::Show)
    }

    fn print_logs(&self) {
        let (console, log) = (self.board.console(), self.board.log());
        eprintln!("\nthe board's console, last lines:\n{}", tail(&console));
        eprintln!("\nthe daemon's log, last lines:\n{}\n", tail(&log));
    }
}

/// When the power goes.
enum Cut {
    HalfWay,
    FirstNewBoot,
}

/// What was told so far.
#[derive(Default)]
struct Story {
    boots: usize,
    patches: usize,
    twin: Value,
    line: String,
}

/// Lines, and on a terminal one bar below them.
struct Screen {
    redraws: bool,
    bar_is_drawn: bool,
    percent: Option<u64>,
}

impl Screen {
    fn line(&mut self, line: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.bar_is_drawn {
            writeln!(out)?;
            self.bar_is_drawn = false;
        }
        writeln!(out, "{line}")
    }

    fn bar(&mut self, percent: u64, bytes: u64, size_bytes: u64) -> io::Result<()> {
        if self.percent == Some(percent) {
            return Ok(());
        }
        self.percent = Some(percent);
        let filled = usize::try_from(percent.min(100) * BAR_WIDTH / 100).unwrap_or_default();
        let empty = usize::try_from(BAR_WIDTH).unwrap_or_default().saturating_sub(filled);
        let text = format!(
            "device: [{}{}] {percent:3} %  {} of {}",
            "#".repeat(filled),
            ".".repeat(empty),
            megabytes(bytes),
            megabytes(size_bytes)
        );
        let mut out = io::stdout().lock();
        if self.redraws {
            write!(out, "\r\x1b[K{text}")?;
            self.bar_is_drawn = true;
        } else {
            writeln!(out, "{text}")?;
        }
        out.flush()
    }
}

/// The tutorial's word, Microsoft's later one, and the sentence.
fn status_line(twin: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let firmware = at(twin, "/firmware");
    format!(
        "twin:   {:<12} {:<12} {}",
        text(at(twin, "/firmwareStatus")),
        text(at(firmware, "/fwUpdateStatus")),
        text(at(firmware, "/fwUpdateSubstatus"))
    )
}

/// What is at a JSON pointer; null where nothing is.
fn at<'value>(value: &'value Value, pointer: &str) -> &'value Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn stand_in(directory: &Path, sick: bool) -> io::Result<PathBuf> {
    let path = directory.join(IMAGE_NAME);
    let traits = if sick { Traits::SICK } else { Traits::default() };
    File::create(&path)?.write_all(&board_image(NEW_VERSION, traits, STAND_IN_BYTES, 1))?;
    Ok(path)
}

fn measure(path: &Path) -> io::Result<Image> {
    let mut file = File::open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut piece = vec![0; 1 << 20];
    let mut size_bytes = 0;
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        context.update(piece.get(..read).unwrap_or_default());
        size_bytes += u64::try_from(read).map_err(io::Error::other)?;
    }
    let sha256 = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Image { size_bytes, sha256 })
}

fn percent_of(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or_default()
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LOG_TAIL_LINES)..).unwrap_or_default().join("\n")
}
