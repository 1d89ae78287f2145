//! The copies of the environment as they are on the medium, one by one: for the doctor, who writes nothing.

use std::path::PathBuf;

use super::{BootEnvError, Storage, UbootEnv, lock};
use crate::boot::Variables;
use crate::boot::env::{CopyIndex, Environment, Layout, select};
use crate::boot::fw_env::medium::Region;

/// Sizes that boards use, where the configured one is not right: powers of two from 1 KiB to 1 MiB.
const SIZES: std::ops::RangeInclusive<u32> = 10..=20;

/// All copies.
#[derive(Debug)]
pub struct Inspection {
    /// In the order of `fw_env.config`: one or two.
    pub copies: Vec<CopyFound>,
    /// The one that the boot loader takes, as an index.
    pub taken: Option<usize>,
    /// What the variables have room in.
    pub capacity_bytes: usize,
}

/// One copy.
#[derive(Debug)]
pub struct CopyFound {
    /// Device or file, without symbolic links.
    pub path: PathBuf,
    /// Where it begins.
    pub offset_bytes: u64,
    /// As configured.
    pub size_bytes: usize,
    /// Major and minor number of the block device that it is on.
    pub block_device: Option<(u64, u64)>,
    /// Its variables, where the checksum is right.
    pub content: Option<Environment>,
    /// Where it is not: a layout with which it would be.
    pub other_layout: Option<Layout>,
    /// Whether a decision could be written.
    pub writable: Result<(), BootEnvError>,
}

impl Inspection {
    /// What the boot loader takes.
    #[must_use]
    pub fn current(&self) -> Option<&Environment> {
        self.copies.get(self.taken?)?.content.as_ref()
    }

    /// The variables that the boot loader takes.
    #[must_use]
    pub fn variables(&self) -> Option<Variables> {
        self.current().map(Environment::variables)
    }
}

impl UbootEnv {
    /// Looks at every copy, with the locks held. Copies that are bad are found, not errors.
    ///
    /// # Errors
    /// When a lock cannot be taken, a copy cannot be found, or none can be read.
    pub fn inspect(&self) -> Result<Inspection, BootEnvError> {
        let _locks = lock::take(&self.lock_files, self.lock_limit)?;
        let storage = self.storage()?;
        let layout = storage.layout();
        let mut flags = [None; 2];
        let mut copies = Vec::new();
        for ((region, bytes), flags) in storage.copies().iter().zip(&storage.read()?).zip(&mut flags) {
            let good = layout.decode(bytes);
            *flags = good.map(|good| good.flags);
            copies.push(CopyFound {
                path: region.path().to_owned(),
                offset_bytes: region.offset_bytes(),
                size_bytes: region.size_bytes(),
                block_device: region.block_device(),
                content: good.map(|good| Environment::parse(good.data)),
                other_layout: if good.is_none() { other_layout(region, layout) } else { None },
                writable: match &storage {
                    Storage::Single(only) => only.check_replaceable().map(drop),
                    Storage::Redundant(_) => region.check_writable(),
                },
            });
        }
        let taken = select(storage.flag_scheme(), flags).map(|taken| match taken {
            CopyIndex::First => 0,
            CopyIndex::Second => 1,
        });
        Ok(Inspection { copies, taken, capacity_bytes: layout.data_bytes() })
    }
}

/// The checksum covers every byte, so only the size that U-Boot wrote it with makes it right.
fn other_layout(region: &Region, configured: Layout) -> Option<Layout> {
    SIZES.map(|exponent| 1_usize << exponent).find_map(|size_bytes| {
        let bytes = region.resized(size_bytes).read().ok()?;
        [configured.redundant, !configured.redundant]
            .map(|redundant| Layout { size_bytes, redundant, ..configured })
            .into_iter()
            .find(|layout| layout.decode(&bytes).is_some())
    })
}
