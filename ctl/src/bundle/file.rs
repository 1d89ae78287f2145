//! A bundle or a side file on disk: read in the order and by the rules of a device.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Take};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use twinboot::bundle::{
    BundleError, Context, Entry, HEADER_BYTES, Header, Index, Layout, Manifest, PatchFile, PatchPart,
    PatchRange, PatchTable, Signatures, Source, unpack,
};
use twinboot::update::Sha256Digest;

use super::{Failure, ImageFile, Progress, sha256_of};

/// What the manifest is of.
#[derive(Debug)]
pub enum Contents {
    Bundle(Box<Manifest>),
    Patches(PatchFile),
}

/// A file whose header, manifest and signatures are understood; nobody was asked who signed it.
#[derive(Debug)]
pub struct BundleFile {
    pub path: PathBuf,
    pub manifest_bytes: Vec<u8>,
    pub signatures: Signatures,
    pub contents: Contents,
    pub size_bytes: u64,
    header: Header,
    file: File,
}

/// What was looked at.
#[derive(Debug, Default)]
pub struct Verified {
    pub chunks: u64,
    pub images_bytes: u64,
    pub frames: u64,
    /// Patches whose base was not at hand.
    pub patches_left_out: u64,
}

impl BundleFile {
    /// Reads all that stands before the index, and compares the length of the file with what the manifest makes.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let read = |source| Failure::Read { path: path.to_owned(), source };
        let refused = |source| Failure::Refused { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(read)?;
        let bytes = |range: Range<u64>| part(&file, size_bytes, range).map_err(read);
        let header = Header::parse(&bytes(0..HEADER_BYTES as u64)?).map_err(refused)?;
        let manifest_end = HEADER_BYTES as u64 + u64::from(header.manifest_bytes);
        let manifest_bytes = bytes(HEADER_BYTES as u64..manifest_end)?;
        let signatures = Signatures::parse(&bytes(manifest_end..header.body_offset())?).map_err(refused)?;
        let contents = match PatchFile::parse(&manifest_bytes) {
            Ok(patches) => Contents::Patches(patches),
            Err(_) => Contents::Bundle(Box::new(Manifest::parse(&manifest_bytes).map_err(refused)?)),
        };
        let bundle =
            Self { path: path.to_owned(), manifest_bytes, signatures, contents, size_bytes, header, file };
        let expected = match &bundle.contents {
            Contents::Bundle(manifest) => manifest.layout(header).pieces.end,
            Contents::Patches(patches) => patches.layout(header).1,
        };
        if size_bytes == expected {
            return Ok(bundle);
        }
        Err(Failure::Length { path: path.to_owned(), actual: size_bytes, expected })
    }

    pub fn digest(&self) -> Sha256Digest {
        Manifest::digest(&self.manifest_bytes)
    }

    /// Of a side file there are patches only.
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.contents {
            Contents::Bundle(manifest) => Some(manifest),
            Contents::Patches(_) => None,
        }
    }

    pub fn patches(&self) -> &[PatchPart] {
        match &self.contents {
            Contents::Bundle(manifest) => &manifest.patches,
            Contents::Patches(patches) => &patches.patches,
        }
    }

    /// Everything after the signatures.
    pub fn body(&self) -> io::Result<Take<&File>> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.header.body_offset()))?;
        Ok(file.take(self.size_bytes - self.header.body_offset()))
    }

    /// The index, if this is a bundle.
    pub fn index(&self, manifest: &Manifest) -> Result<Index, Failure> {
        let bytes = self.bytes(manifest.layout(self.header).index)?;
        Index::parse(&bytes, manifest).map_err(|source| self.refused(source))
    }

    /// Writes one image into an empty file, each chunk after it was verified.
    pub fn unpack(
        &self,
        (manifest, index): (&Manifest, &Index),
        number: usize,
        out: &File,
        progress: Progress<'_>,
    ) -> Result<(), Failure> {
        let Layout { pieces, .. } = manifest.layout(self.header);
        let (Some(image), Some(of)) = (manifest.images.get(number), index.images.get(number)) else {
            return Ok(());
        };
        let mut context = Context::new(manifest.context_bytes);
        let mut sha256 = Sha256::new();
        let (mut places, mut offset): (HashMap<u32, u64>, u64) = (HashMap::new(), 0);
        let mut chunk = Vec::new();
        for entry in index.entries.get(of.entries.clone()).unwrap_or_default() {
            match *entry {
                Entry::Zeros(size_bytes) => hash_zeros(&mut sha256, size_bytes),
                Entry::Piece(number) => {
                    let Some(piece) = index.pieces.get(number as usize) else { continue };
                    if let Some(place) = places.get(&number) {
                        chunk.resize(piece.size_bytes as usize, 0);
                        out.read_exact_at(&mut chunk, *place).map_err(Failure::Temporary)?;
                    } else {
                        let start = pieces.start + piece.stored_offset;
                        let stored = self.bytes(start..start + u64::from(piece.stored_bytes))?;
                        unpack(&stored, piece.size_bytes, context.as_slice(), &mut chunk)
                            .map_err(|source| self.refused(source))?;
                        if sha256_of(&chunk) != piece.sha256 {
                            return Err(Failure::Chunk { path: self.path.clone(), number });
                        }
                        places.insert(number, offset);
                    }
                    out.write_all_at(&chunk, offset).map_err(Failure::Temporary)?;
                    sha256.update(&chunk);
                    context.push(&chunk);
                }
            }
            offset += u64::from(index.size_bytes(*entry));
            progress("unpacking", offset, image.size_bytes);
        }
        out.set_len(image.size_bytes).map_err(Failure::Temporary)?;
        let actual = Sha256Digest(sha256.finalize().into());
        if actual == image.sha256 {
            return Ok(());
        }
        let (path, class) = (self.path.clone(), image.class.clone());
        Err(Failure::Image { path, class, actual, expected: image.sha256 })
    }

    /// All chunks, and the patches whose base is among `bases`. A side file is verified with its bundle.
    pub fn verify(
        &self,
        bundle: &Self,
        bases: &[ImageFile],
        progress: Progress<'_>,
    ) -> Result<Verified, Failure> {
        let mut verified = Verified::default();
        let Some(manifest) = bundle.manifest() else { return Ok(verified) };
        let index = bundle.index(manifest)?;
        for (number, image) in manifest.images.iter().enumerate() {
            let out = tempfile::tempfile().map_err(Failure::Temporary)?;
            bundle.unpack((manifest, &index), number, &out, progress)?;
            verified.chunks += u64::from(image.chunks);
            verified.images_bytes += image.size_bytes;
        }
        let ranges = match &self.contents {
            Contents::Bundle(manifest) => manifest.layout(self.header).patches,
            Contents::Patches(patches) => patches.layout(self.header).0,
        };
        for (patch, range) in self.patches().iter().zip(ranges) {
            verified.frames +=
                self.verify_patch(manifest, &index, patch, &range, bases, &mut verified.patches_left_out)?;
        }
        Ok(verified)
    }

    /// The table; and every chunk that comes from the base or a frame. Gives the number of frames that were tried.
    fn verify_patch(
        &self,
        manifest: &Manifest,
        index: &Index,
        patch: &PatchPart,
        range: &PatchRange,
        bases: &[ImageFile],
        left_out: &mut u64,
    ) -> Result<u64, Failure> {
        let class = manifest.images.iter().position(|image| image.class == patch.class);
        let Some(of) = class.and_then(|class| index.images.get(class)) else {
            return Err(
                self.refused(BundleError::Field { field: "patches", why: "names a class that has no image" })
            );
        };
        let bytes = self.bytes(range.table.clone())?;
        let table = PatchTable::parse(&bytes, patch, index, of).map_err(|source| self.refused(source))?;
        let Some(base) = find_base(bases, patch)? else {
            *left_out += 1;
            return Ok(0);
        };
        let pieces = (of.pieces.clone()).zip(index.pieces.get(of.pieces.clone()).unwrap_or_default());
        let (mut made, mut made_number) = (Vec::new(), None);
        for ((number, piece), source) in pieces.zip(&table.sources) {
            let bytes;
            let chunk = match source {
                Source::Stored => continue,
                Source::Base(offset) => {
                    bytes = base.bytes_at(*offset, piece.size_bytes as usize)?;
                    bytes.as_slice()
                }
                Source::Frame { number, offset } => {
                    if made_number != Some(*number) {
                        self.make_frame(&table, *number, range, base, &mut made)?;
                        made_number = Some(*number);
                    }
                    let offset = *offset as usize;
                    made.get(offset..offset + piece.size_bytes as usize).unwrap_or_default()
                }
            };
            if sha256_of(chunk) != piece.sha256 {
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                return Err(Failure::Chunk { path: self.path.clone(), number });
            }
        }
        Ok(table.frames.len() as u64)
    }

    fn make_frame(
        &self,
        table: &PatchTable,
        number: u32,
        range: &PatchRange,
        base: &ImageFile,
        made: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let Some(frame) = table.frames.get(number as usize) else { return Ok(()) };
        let start = range.frames.start + frame.stored_offset;
        let stored = self.bytes(start..start + u64::from(frame.stored_bytes))?;
        let mut prefix = Vec::new();
        for extent in table.extents.get(frame.extents.clone()).unwrap_or_default() {
            prefix.extend(base.bytes_at(extent.offset, extent.size_bytes as usize)?);
        }
        unpack(&stored, frame.size_bytes, &prefix, made).map_err(|source| self.refused(source))
    }

    fn bytes(&self, range: Range<u64>) -> Result<Vec<u8>, Failure> {
        let read = |source| Failure::Read { path: self.path.clone(), source };
        part(&self.file, self.size_bytes, range).map_err(read)
    }

    fn refused(&self, source: BundleError) -> Failure {
        Failure::Refused { path: self.path.clone(), source }
    }
}

/// Never more than the file has.
fn part(file: &File, size_bytes: u64, range: Range<u64>) -> io::Result<Vec<u8>> {
    if range.end > size_bytes {
        let why = format!("it ends after {size_bytes} bytes, and {} are wanted: copy it again", range.end);
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
    }
    let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// By its digest: here nothing has changed it.
fn find_base<'a>(bases: &'a [ImageFile], patch: &PatchPart) -> Result<Option<&'a ImageFile>, Failure> {
    for base in bases.iter().filter(|base| base.size_bytes == patch.base.size_bytes) {
        if base.sha256()? == patch.base.sha256 {
            return Ok(Some(base));
        }
    }
    Ok(None)
}

fn hash_zeros(sha256: &mut Sha256, mut size_bytes: u32) {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    while let Some(zeros) =
        ZEROS.get(..(size_bytes as usize).min(ZEROS.len())).filter(|zeros| !zeros.is_empty())
    {
        sha256.update(zeros);
        size_bytes -= u32::try_from(zeros.len()).unwrap_or(size_bytes);
    }
}
