//! From a bundle to verified slots: only what they lack is fetched.
//!
//! ```text
//! head: header, manifest, signatures --trusted, meant for this device--> index
//! survey: target slot, running slot -> plan
//! supply --pieces--> assemble --blocks--> write
//! async              thread               thread
//! Ranges             unpack, SHA-256      write, sync, read back
//! ```
//!
//! After an interruption the same happens again: what is in the slot by then is kept.

mod assemble;
mod beside;
mod head;
mod patch;
mod plan;
mod refusal;
mod supply;
mod survey;

use std::path::PathBuf;
use std::sync::{Arc, mpsc as blocking};
use std::thread;

use tokio::sync::{Notify, watch};

use self::assemble::{Assembly, Bench};
use self::head::{Front, Head};
use self::patch::{Patch, Search, find_all};
use self::plan::Plan;
use self::supply::{Delivery, Supply, supply};
use self::survey::{Copies, Kept, Wanted};
use super::fetch::Reach;
use super::parts::{Parts, Remote, requests};
use super::slot::{Block, BlockDevice, SlotDevice};
use super::verify::Rule;
use super::write::{SoFar, Writer};
use super::{BLOCKS, InstallError, Phase, Progress, Run, joined};
use crate::bundle::{BundleError, Chunking, Index};
use crate::causes::one_line;
use crate::update::{Image, Sha256Digest};

pub use refusal::{Device, Past, Refusal};

/// The slot class of the root filesystem, which a plain image is of too.
pub const ROOT_CLASS: &str = "rootfs";

/// What belongs to a slot beside its root filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// The slot class.
    pub class: String,
    /// Where to.
    pub target: PathBuf,
    /// The device of the slot that this system runs from.
    pub running: PathBuf,
}

/// Both slots of a class.
struct Place {
    target: Arc<dyn SlotDevice>,
    /// What runs, to copy from it; `None` if it cannot be read.
    running: Option<Arc<BlockDevice>>,
}

/// All that the threads work with.
struct Work {
    index: Arc<Index>,
    chunking: Chunking,
    context_bytes: u32,
    pieces_offset: u64,
    digest: Sha256Digest,
    sizes: Vec<u64>,
    /// In the order of the images.
    places: Vec<Place>,
    /// For each image, what makes it of what runs.
    patches: Vec<Option<Patch>>,
    progress: watch::Sender<Progress>,
    cancel: watch::Receiver<bool>,
    /// Told once a slot has failed.
    failed: Arc<Notify>,
}

impl Run<'_> {
    /// Installs the bundle at the job's address. For the last time: without patches of the file beside it, and whatever
    /// its server calls the version. `None`: it is none.
    pub(super) async fn bundle(&self, reach: &Reach, is_last: bool) -> Result<Option<Image>, InstallError> {
        let job = self.job;
        self.progress.send_replace(Progress::default());
        let rule = self.rule().await?;
        let mut front = self.or_cancelled(Front::open(self.remote(reach))).await?;
        if is_last {
            front.take_any_version();
        }
        let mut head = match self.or_cancelled(Head::read(&mut front, &rule, job)).await {
            Err(InstallError::Bundle(BundleError::NotABundle)) => return Ok(None),
            head => head?,
        };
        head.manifest.patches_file.take_if(|_| is_last);
        job.device.admits(&head.manifest, head.digest, job.version.as_deref())?;
        let places = self.places(&head).await?;
        let index = Arc::new(self.or_cancelled(head.index(&mut front)).await?);
        // A claim to a slot must not outlive a cancelled install: the slots are looked at to the end.
        let searches = match front.is_whole() {
            true => Vec::new(),
            false => self.searches(&head, &index, &places).await?,
        };
        let patches = self.or_cancelled(self.patches(&mut front, &head, &rule, searches)).await?;
        let image = self.assemble(front, head, index, (places, patches)).await?;
        Ok(Some(image))
    }

    /// Whether a bundle is at the job's address.
    pub(super) async fn is_bundle(&self, reach: &Reach) -> Result<bool, InstallError> {
        Front::open(self.remote(reach)).await?.has_magic().await
    }

    fn remote(&self, reach: &Reach) -> Remote {
        Remote {
            uri: self.job.spec.uri.clone(),
            expected_bytes: self.job.spec.size_bytes,
            validator: None,
            reach: reach.clone(),
            limits: self.job.limits,
            progress: self.progress.clone(),
            beside: None,
        }
    }

    /// For each image that may be made by a patch of what runs, by its number.
    async fn searches(
        &self,
        head: &Head,
        index: &Arc<Index>,
        places: &[Place],
    ) -> Result<Vec<(usize, Search)>, InstallError> {
        let images = head.manifest.images.iter().zip(&index.images).zip(places);
        let mut searches = Vec::new();
        for (number, ((image, indexed), place)) in images.enumerate() {
            if *self.cancel.borrow() {
                return Err(InstallError::Cancelled);
            }
            if let Some(running) = &place.running {
                let slots = (running.clone(), place.target.clone());
                let search = Search::new(image, indexed.clone(), index.clone(), slots).await;
                searches.extend(search.map(|search| (number, search)));
            }
        }
        Ok(searches)
    }

    /// For each image the patch that fits what runs: one of the bundle, or else of the file beside it. Without ranges
    /// they would come before they are needed: nothing is searched then.
    async fn patches(
        &self,
        front: &mut Front,
        head: &Head,
        rule: &Rule,
        searches: Vec<(usize, Search)>,
    ) -> Result<Vec<Option<Patch>>, InstallError> {
        let mut patches = Vec::new();
        patches.resize_with(head.manifest.images.len(), || None);
        let bundled: Vec<_> =
            head.manifest.patches.iter().cloned().zip(head.layout.patches.iter().cloned()).collect();
        let wanting = find_all(searches, &bundled, &front.remote, &mut patches).await?;
        if !wanting.is_empty() {
            let beside = beside::patches(front, head, rule, self.job).await;
            if let Err(error) = find_all(wanting, &beside, &front.remote, &mut patches).await {
                tracing::warn!(reason = %one_line(&error), "the patches beside the bundle are of no use");
            }
        }
        Ok(patches)
    }

    /// The slots for the images of a bundle, all of which must fit.
    async fn places(&self, head: &Head) -> Result<Vec<Place>, InstallError> {
        let images = &head.manifest.images;
        let classes = self.job.others.iter().map(|other| other.class.as_str()).chain([ROOT_CLASS]);
        for class in classes {
            if !images.iter().any(|image| image.class == class) {
                return Err(Refusal::MissingClass { class: class.to_owned() }.into());
            }
        }
        let mut places = Vec::new();
        for image in images {
            let place = self.place(&image.class).await?;
            let capacity_bytes = place.target.capacity_bytes();
            if image.size_bytes > capacity_bytes {
                return Err(InstallError::TooLarge { size_bytes: Some(image.size_bytes), capacity_bytes });
            }
            places.push(place);
        }
        Ok(places)
    }

    async fn place(&self, class: &str) -> Result<Place, InstallError> {
        if class == ROOT_CLASS {
            let running = readable(self.job.running.clone()).await;
            return Ok(Place { target: self.device.clone(), running });
        }
        let other = self.job.others.iter().find(|other| other.class == class);
        let other = other.ok_or_else(|| Refusal::UnknownClass { class: class.to_owned() })?;
        let (target, running, proc) = (other.target.clone(), other.running.clone(), self.job.proc.clone());
        let open = move || BlockDevice::open(&target, Some(&running), &proc);
        let device = tokio::task::spawn_blocking(open).await.map_err(|_| InstallError::Interrupted)??;
        Ok(Place { target: Arc::new(device), running: readable(Some(other.running.clone())).await })
    }

    async fn assemble(
        &self,
        front: Front,
        head: Head,
        index: Arc<Index>,
        (places, patches): (Vec<Place>, Vec<Option<Patch>>),
    ) -> Result<Image, InstallError> {
        let Head { manifest, digest, layout, keys } = head;
        let sizes: Vec<u64> = manifest.images.iter().map(|image| image.size_bytes).collect();
        // Nor is a server waited for any more: first the slots are looked at.
        self.progress.send_modify(|p| {
            (p.phase, p.total_bytes) = (Phase::Downloading, Some(sizes.iter().sum()));
        });
        let work = Arc::new(Work {
            index,
            chunking: manifest.chunking,
            context_bytes: manifest.context_bytes,
            pieces_offset: layout.pieces.start,
            digest,
            sizes,
            places,
            patches,
            progress: self.progress.clone(),
            cancel: self.cancel.clone(),
            failed: Arc::default(),
        });
        let surveyor = work.clone();
        let plans = joined(tokio::task::spawn_blocking(move || surveyor.plans())).await?;
        let wanted = plans
            .iter()
            .zip(work.images())
            .zip(&work.patches)
            .flat_map(|((plan, image), patch)| plan.stored(image, work.pieces_offset, patch.as_ref()));
        let requests = requests(wanted);
        let to_fetch = requests.iter().map(|part| part.end - part.start).sum();
        let saved_bytes = manifest.pieces_bytes.saturating_sub(to_fetch);
        let remote = front.remote.clone();
        let is_whole = front.is_whole();
        let (delivery, saved_bytes) = match is_whole && !requests.is_empty() {
            // What comes all the same is not saved.
            true => (Delivery::Whole(Box::new(front)), 0),
            false => (Delivery::Parts(Box::new(Parts::new(remote.clone(), requests))), saved_bytes),
        };
        self.progress.send_modify(|p| p.saved_bytes = saved_bytes);
        let (supplier, supply) = supply(is_whole);
        let failed = work.failed.clone();
        let assembling = tokio::task::spawn_blocking(move || work.install(&plans, supply));
        let supplied = self.feed(supplier.run(delivery, &remote), &failed).await;
        // Where one was cut off by the other, the other knows why.
        match (joined(assembling).await, supplied) {
            (Err(InstallError::Interrupted), Err(error)) => Err(error),
            (assembled, _) => Ok(Image { version: Some(manifest.version), keys, ..assembled? }),
        }
    }
}

/// A slot that runs is only read. Where that is impossible, everything comes from elsewhere.
async fn readable(path: Option<PathBuf>) -> Option<Arc<BlockDevice>> {
    let path = path?;
    match tokio::task::spawn_blocking(move || BlockDevice::open_to_read(&path)).await.ok()? {
        Ok(device) => Some(Arc::new(device)),
        Err(error) => {
            tracing::warn!(error = %one_line(&error), "cannot copy from the running slot");
            None
        }
    }
}

impl Work {
    fn images(&self) -> impl Iterator<Item = Wanted<'_>> {
        let images = self.index.images.iter().zip(&self.sizes);
        images.map(|(image, size_bytes)| Wanted::new(&self.index, image, *size_bytes))
    }

    /// Looks at all slots, both of a class at the same time.
    fn plans(&self) -> Result<Vec<Plan>, InstallError> {
        let slots = self.places.iter().zip(&self.patches);
        self.images()
            .zip(slots)
            .map(|(image, (place, patch))| self.plan(image, place, patch.as_ref()))
            .collect()
    }

    fn plan(&self, image: Wanted<'_>, place: &Place, patch: Option<&Patch>) -> Result<Plan, InstallError> {
        let keep = || Kept::find(image, place.target.as_ref(), &self.cancel);
        let copy = || match (patch, &place.running) {
            (Some(patch), Some(running)) => {
                Copies::by_patch(image, &patch.table, running.as_ref(), &self.cancel)
            }
            (None, Some(running)) => Copies::find(image, self.chunking, running.as_ref(), &self.cancel),
            (_, None) => Ok(Copies::default()),
        };
        let (kept, copies) = thread::scope(|scope| {
            let copies = thread::Builder::new().spawn_scoped(scope, copy);
            let kept = keep();
            let copies = match copies {
                Ok(copies) => copies.join().unwrap_or(Err(InstallError::Interrupted)),
                Err(_) => copy(),
            };
            (kept, copies)
        });
        Ok(Plan::new(image, kept?, copies?, patch))
    }

    /// Installs one image after the other.
    fn install(&self, plans: &[Plan], mut supply: Supply) -> Result<Image, InstallError> {
        let mut size_bytes = 0;
        for (number, (image, plan)) in self.images().zip(plans).enumerate() {
            size_bytes += self.install_one(number, image, plan, &mut supply)?.size_bytes;
        }
        Ok(Image { source_digest: self.digest, size_bytes, version: None, keys: None })
    }

    fn install_one(
        &self,
        number: usize,
        image: Wanted<'_>,
        plan: &Plan,
        supply: &mut Supply,
    ) -> Result<Image, InstallError> {
        let place = self.places.get(number).ok_or(InstallError::Interrupted)?;
        let patch = self.patches.get(number).and_then(Option::as_ref);
        let (filled_sender, filled) = blocking::sync_channel(BLOCKS);
        let (empty_sender, empty) = blocking::sync_channel(BLOCKS);
        let writer = Writer {
            device: place.target.clone(),
            checkpoint: None,
            progress: self.progress.clone(),
            cancel: self.cancel.clone(),
            is_last: number + 1 == self.places.len(),
            failed: self.failed.clone(),
        };
        let bench = Bench {
            image,
            plan,
            pieces_offset: self.pieces_offset,
            context_bytes: self.context_bytes,
            target: place.target.as_ref(),
            running: place.running.as_deref().map(|running| running as &dyn SlotDevice),
            patch,
            supply,
            progress: &self.progress,
            cancel: &self.cancel,
        };
        thread::scope(|scope| {
            let write = move || writer.run(SoFar::default(), &filled, &empty_sender);
            let Ok(writing) = thread::Builder::new().spawn_scoped(scope, write) else {
                return Err(InstallError::Interrupted);
            };
            let spare = std::iter::repeat_with(Block::new).take(BLOCKS).collect();
            let assembled = Assembly::new(bench, spare, &empty, &filled_sender).run(self.digest);
            // Without it the writer would wait for more.
            drop(filled_sender);
            // The stage nearest to the medium knows best.
            match (writing.join().unwrap_or(Err(InstallError::Interrupted)), assembled) {
                (Err(InstallError::Interrupted), Err(error)) => Err(error),
                (written, _) => written,
            }
        })
    }
}
