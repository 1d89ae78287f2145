//! Makes a bundle: cuts the images, compresses what is new, patches what is known, and writes all in one file.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, Write};
use std::path::Path;

use twinboot::bundle::{
    BundleError, Chunker, Chunking, Context, Cut, Entry, Header, Image, Index, IndexBuilder, Manifest, Part,
    PatchFile, PatchPart, Signatures, pack,
};
use twinboot::update::{KeyList, Sha256Digest};

use super::base::BaseImage;
use super::file::BundleFile;
use super::patches::{self, Patch};
use super::pipeline::in_order;
use super::{Failure, ImageFile, Progress, sha256_of};

/// Measured on pairs of ext4 images: smaller chunks find more again, but take more room in the index.
const AVERAGE_BYTES: u32 = 16 << 10;

/// Pieces that one core compresses at a time: they share the reading of what comes before them.
const BATCH: usize = 16;

/// What a person says about a bundle.
#[derive(Debug)]
pub struct Recipe {
    pub version: String,
    pub compatible: Vec<String>,
    /// RFC 3339.
    pub created: String,
    pub min_agent_version: Option<String>,
    pub min_previous_version: Option<String>,
    pub keys: Option<KeyList>,
    /// zstd's.
    pub level: i32,
    /// None: the smallest that keeps the index within its bounds.
    pub average_bytes: Option<u32>,
    pub context_bytes: u32,
}

/// All that goes into a bundle.
#[derive(Debug)]
pub struct Maker {
    pub recipe: Recipe,
    /// By slot class.
    pub images: Vec<(String, ImageFile)>,
    pub bases: Vec<BaseImage>,
}

/// The images, cut.
pub struct Plan {
    pub chunking: Chunking,
    pub index: Index,
    pub images: Vec<Image>,
    /// Where in its image each entry is.
    pub offsets: Vec<u64>,
    /// The entry that uses a piece first.
    pub first_uses: Vec<usize>,
}

impl Maker {
    /// Writes the bundle, and the patches into a file of their own if that is wanted, which the bundle then names;
    /// gives the manifest's digest.
    pub fn make(
        &self,
        path: &Path,
        patches_to: Option<&Path>,
        progress: Progress<'_>,
    ) -> Result<Sha256Digest, Failure> {
        let mut plan = self.cut(progress)?;
        let (pieces, stored_bytes) = self.compress(&plan, progress)?;
        let pieces_bytes = plan.index.store(&stored_bytes)?;
        let index = plan.index.to_bytes();
        let patches = self.patch(&plan, progress)?;
        let mut manifest = Manifest::new(
            self.recipe.version.clone(),
            self.recipe.created.clone(),
            plan.chunking,
            part_of(&index)?,
        );
        manifest.compatible.clone_from(&self.recipe.compatible);
        manifest.min_agent_version.clone_from(&self.recipe.min_agent_version);
        manifest.min_previous_version.clone_from(&self.recipe.min_previous_version);
        manifest.keys.clone_from(&self.recipe.keys);
        manifest.images.clone_from(&plan.images);
        (manifest.context_bytes, manifest.pieces_bytes) = (self.recipe.context_bytes, pieces_bytes);
        let parts = || patches.iter().map(|patch| patch.part.clone()).collect::<Vec<PatchPart>>();
        match patches_to {
            Some(path) => {
                manifest.patches_file = path.file_name().map(|name| name.to_string_lossy().into_owned())
            }
            None => manifest.patches = parts(),
        }
        let manifest_bytes = manifest.to_bytes()?;
        let digest = Manifest::digest(&manifest_bytes);
        if !is_published(path, &manifest_bytes, patches_to.is_some() && !patches.is_empty())? {
            write(path, |out| {
                out.write_all(&head(&manifest_bytes, &Signatures::default()))?;
                out.write_all(&index)?;
                if patches_to.is_none() {
                    put_patches(out, &patches)?;
                }
                copy(out, &pieces)
            })?;
        }
        if let Some(path) = patches_to
            && !patches.is_empty()
        {
            let manifest_bytes = PatchFile::new(digest, parts()).to_bytes()?;
            write(path, |out| {
                out.write_all(&head(&manifest_bytes, &Signatures::default()))?;
                put_patches(out, &patches)
            })?;
        }
        Ok(digest)
    }

    /// In chunks as small as asked for, or as the index has room for.
    fn cut(&self, progress: Progress<'_>) -> Result<Plan, Failure> {
        let mut average_bytes = self.recipe.average_bytes.unwrap_or(AVERAGE_BYTES);
        loop {
            match self.cut_at(Chunking::around(average_bytes), progress) {
                Err(Failure::Format(BundleError::TooLarge { what: "the number of chunks", .. }))
                    if self.recipe.average_bytes.is_none() =>
                {
                    average_bytes *= 2;
                }
                plan => return plan,
            }
        }
    }

    fn cut_at(&self, chunking: Chunking, progress: Progress<'_>) -> Result<Plan, Failure> {
        let chunker = Chunker::new(chunking)?;
        let mut index = IndexBuilder::default();
        let mut images = Vec::new();
        for (class, image) in &self.images {
            let sha256 = image.cut(&chunker, "cutting", progress, |_, cut, bytes| {
                match cut {
                    Cut::Zeros(length) => index.zeros(length as u64)?,
                    Cut::Data(_) => {
                        let size_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                        index.chunk(sha256_of(bytes), size_bytes)?;
                    }
                }
                Ok(())
            })?;
            let (class, size_bytes) = (class.clone(), image.size_bytes);
            images.push(Image { class, size_bytes, sha256, chunks: index.end_image() });
        }
        let index = index.finish();
        let (mut offsets, mut first_uses) = (Vec::new(), Vec::new());
        for image in &index.images {
            let mut offset = 0;
            for number in image.entries.clone() {
                let Some(entry) = index.entries.get(number) else { continue };
                if matches!(entry, Entry::Piece(piece) if *piece as usize == first_uses.len()) {
                    first_uses.push(number);
                }
                offsets.push(offset);
                offset += u64::from(index.size_bytes(*entry));
            }
        }
        Ok(Plan { chunking, index, images, offsets, first_uses })
    }

    /// All pieces, in a file without a name; and how long each is there.
    fn compress(&self, plan: &Plan, progress: Progress<'_>) -> Result<(File, Vec<u32>), Failure> {
        let total: u64 = plan.index.pieces.iter().map(|piece| u64::from(piece.size_bytes)).sum();
        // A batch is of one image.
        let batches: Vec<(usize, std::ops::Range<usize>)> = (plan.index.images.iter().enumerate())
            .flat_map(|(image, of)| {
                let starts = of.pieces.clone().step_by(BATCH);
                starts.map(move |start| (image, start..of.pieces.end.min(start + BATCH)))
            })
            .collect();
        let (mut out, mut stored_bytes, mut done) = (spool()?, Vec::new(), 0);
        let work = |number: usize| match batches.get(number) {
            Some((image, pieces)) => self.compress_batch(plan, *image, pieces.clone()),
            None => Ok(Vec::new()),
        };
        in_order(batches.len(), work, |pieces| {
            for stored in pieces {
                out.write_all(&stored).map_err(Failure::Temporary)?;
                let size_bytes =
                    plan.index.pieces.get(stored_bytes.len()).map_or(0, |piece| piece.size_bytes);
                done += u64::from(size_bytes);
                stored_bytes.push(u32::try_from(stored.len()).unwrap_or(u32::MAX));
            }
            progress("compressing", done, total);
            Ok(())
        })?;
        let out = out.into_inner().map_err(|error| Failure::Temporary(error.into_error()))?;
        Ok((out, stored_bytes))
    }

    fn compress_batch(
        &self,
        plan: &Plan,
        image: usize,
        pieces: std::ops::Range<usize>,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let Some((_, file)) = self.images.get(image) else { return Ok(Vec::new()) };
        let of_image = plan.index.images.get(image).map_or(0, |image| image.entries.start);
        let first = plan.first_uses.get(pieces.start).copied().unwrap_or(of_image);
        let last = plan.first_uses.get(pieces.end - 1).copied().unwrap_or(first);
        let (mut begin, mut before_bytes) = (first, 0);
        while begin > of_image && before_bytes < u64::from(self.recipe.context_bytes) {
            begin -= 1;
            before_bytes += plan.chunk_bytes(begin).unwrap_or(0) as u64;
        }
        let (mut context, mut batch) = (Context::new(self.recipe.context_bytes), Vec::new());
        for number in begin..=last {
            let Some(size_bytes) = plan.chunk_bytes(number) else { continue };
            let offset = plan.offsets.get(number).copied().unwrap_or(0);
            let chunk = file.bytes_at(offset, size_bytes)?;
            if plan.first_uses.get(pieces.start + batch.len()) == Some(&number) {
                batch.push(pack(&chunk, context.as_slice(), self.recipe.level)?);
            }
            context.push(&chunk);
        }
        Ok(batch)
    }

    fn patch(&self, plan: &Plan, progress: Progress<'_>) -> Result<Vec<Patch>, Failure> {
        let mut patches = Vec::new();
        for (number, base) in self.bases.iter().enumerate() {
            let of_class = |(_, (class, _)): &(usize, &(String, ImageFile))| *class == base.class;
            let Some((image, (_, file))) = self.images.iter().enumerate().find(of_class) else { continue };
            let others = self.bases.iter().enumerate().filter(|(other, _)| *other != number);
            let others: Vec<&ImageFile> = others.map(|(_, other)| &other.image).chain([file]).collect();
            patches.push(patches::make(plan, image, file, base, &others, self.recipe.level, progress)?);
        }
        Ok(patches)
    }
}

impl Plan {
    /// The length of an entry that is no run of zeros.
    fn chunk_bytes(&self, entry: usize) -> Option<usize> {
        let entry = *self.index.entries.get(entry)?;
        matches!(entry, Entry::Piece(_)).then(|| self.index.size_bytes(entry) as usize)
    }
}

/// Writes the bundle, or a side file, again with one more signature, or several; gives how many it then has.
pub fn sign(bundle: &BundleFile, signatures: &Signatures, path: &Path) -> Result<usize, Failure> {
    let mut all = bundle.signatures.clone();
    all.add(signatures)?;
    write(path, |out| {
        out.write_all(&head(&bundle.manifest_bytes, &all))?;
        io::copy(&mut bundle.body()?, out).map(drop)
    })?;
    Ok(all.texts().len())
}

/// Whether the bundle is there already, perhaps signed, and only patches are made for it; they would be for nobody if it
/// were another one.
fn is_published(path: &Path, manifest: &[u8], only_patches: bool) -> Result<bool, Failure> {
    if !only_patches {
        return Ok(false);
    }
    let there = match BundleFile::open(path) {
        Err(Failure::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
        there => there?,
    };
    if there.manifest_bytes == manifest {
        return Ok(true);
    }
    let (actual, expected) = (there.digest(), Manifest::digest(manifest));
    Err(Failure::AnotherBundle { path: path.to_owned(), actual, expected })
}

pub(super) fn part_of(bytes: &[u8]) -> Result<Part, BundleError> {
    let size_bytes = u32::try_from(bytes.len()).map_err(|_| BundleError::TooLarge {
        what: "the length of a part",
        value: bytes.len() as u64,
        limit: u32::MAX.into(),
    })?;
    Ok(Part { size_bytes, sha256: sha256_of(bytes) })
}

pub(super) fn spool() -> Result<BufWriter<File>, Failure> {
    Ok(BufWriter::with_capacity(1 << 20, tempfile::tempfile().map_err(Failure::Temporary)?))
}

fn head(manifest: &[u8], signatures: &Signatures) -> Vec<u8> {
    let signatures = signatures.to_bytes();
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let header = Header { manifest_bytes: length(manifest), signatures_bytes: length(&signatures) };
    [header.to_bytes().as_slice(), manifest, &signatures].concat()
}

fn put_patches(out: &mut impl Write, patches: &[Patch]) -> io::Result<()> {
    patches.iter().try_for_each(|patch| {
        out.write_all(&patch.table)?;
        copy(out, &patch.frames)
    })
}

fn copy(out: &mut impl Write, mut from: &File) -> io::Result<()> {
    from.rewind()?;
    io::copy(&mut from, out).map(drop)
}

/// Writes a file by `fill`, through a buffer.
pub fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<(), Failure> {
    replace(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let filled = fill(&mut out).and_then(|()| out.flush());
        filled.map_err(|source| Failure::Write { path: path.to_owned(), source })
    })
}

/// The file is there when it is complete, or not at all.
pub fn replace(path: &Path, fill: impl FnOnce(&File) -> Result<(), Failure>) -> Result<(), Failure> {
    let failed = |source| Failure::Write { path: path.to_owned(), source };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".twinbootctl-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(failed)?;
    fill(file.as_file())?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error)).map(drop)
}
