//! What all machines share: the hub, the image server, the daemon's binary, the factory's disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hub_emulator::hub::{Hub, HubOptions};
use hub_emulator::images::ImageServer;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::disk::Media;
use crate::story::{Image, SLOT_BYTES, Story};
use crate::uboot;

/// ext4 with blocks of 4 KiB, as on a board, and its smallest journal.
const DATA_BYTES: usize = 16 << 20;

pub struct Site {
    pub runtime: Runtime,
    pub hub: Hub,
    pub server: ImageServer,
    pub daemon: PathBuf,
    /// An empty file system.
    data: Vec<u8>,
    factory_image: Image,
    images: Vec<Image>,
    pub directory: TempDir,
    /// SIGINT or SIGTERM came: an end that leaves no loop device behind is due.
    pub is_interrupted: Arc<AtomicBool>,
}

impl Site {
    pub fn open(daemon: &Path) -> io::Result<Self> {
        let runtime = Runtime::new()?;
        let (hub, server) = runtime.block_on(async {
            let hub = Hub::start(HubOptions::default()).await?;
            let server = ImageServer::start(Some(hub.authority().server_config())).await?;
            Ok::<_, io::Error>((hub, server))
        })?;
        let is_interrupted = Arc::default();
        runtime.spawn(watch_signals(Arc::clone(&is_interrupted)));
        // In memory: the flushes of thousands of crashed file systems would wear out, and wait for, a real disk.
        let directory = tempfile::Builder::new().prefix("twinboot-cuts-").tempdir_in("/dev/shm")?;
        let factory_image = Image::factory();
        let data = data(&directory.path().join("data.img"))?;
        Ok(Self {
            runtime,
            hub,
            server,
            daemon: daemon.canonicalize()?,
            data,
            factory_image,
            images: Story::ALL.map(Image::of).into(),
            directory,
            is_interrupted,
        })
    }

    /// The disk that a story begins with.
    pub fn factory(&self, story: Story) -> Media {
        let environment = uboot::factory(uboot::Scheme::Bootcount, story.origin());
        let mut media = Media([environment, vec![0; SLOT_BYTES], vec![0; SLOT_BYTES], self.data.clone()]);
        media.put(story.origin().medium(), 0, &self.factory_image.content);
        media
    }

    pub fn image(&self, story: Story) -> &Image {
        &self.images[story as usize]
    }

    /// The verified image that a slot holds, whole.
    pub fn content(&self, story: Story, slot: &[u8]) -> Option<&Image> {
        [&self.factory_image, self.image(story)].into_iter().find(|image| image.is_in(slot))
    }
}

async fn watch_signals(is_interrupted: Arc<AtomicBool>) {
    if let Ok(mut terminate) = signal(SignalKind::terminate()) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        is_interrupted.store(true, Ordering::Relaxed);
    }
}

/// Every campaign has the same file system.
const UUID: &str = "7a3f0c1e-5b9d-48d2-a6e4-417c8f20b935";

/// An empty file system. Nothing is left for the kernel to initialise in the background.
fn data(path: &Path) -> io::Result<Vec<u8>> {
    fs::write(path, vec![0; DATA_BYTES])?;
    let made = Command::new("mkfs.ext4")
        .env("E2FSPROGS_FAKE_TIME", "1700000000")
        .args(["-q", "-F", "-b", "4096", "-U", UUID, "-E"])
        .arg(format!("lazy_itable_init=0,lazy_journal_init=0,hash_seed={UUID}"))
        .arg(path)
        .status()?;
    if !made.success() {
        return Err(io::Error::other(format!("mkfs.ext4 ended with {made}")));
    }
    let bytes = fs::read(path)?;
    fs::remove_file(path)?;
    Ok(bytes)
}
