//! `twinbootctl bundle convert`: from a plain image to a bundle.

use std::path::PathBuf;

use clap::Args;
use twinboot::install::ROOT_CLASS;

use super::super::{CliError, Exit};
use super::create::Options;

const EXAMPLES: &str = "\
Examples:
  twinbootctl bundle convert root.img.zst --version 2.0 -o 2.0.twb
  twinbootctl bundle extract 2.0.twb --image rootfs=root.img
      the other way round";

/// Make a bundle of the plain image that was published until now
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub(super) struct Convert {
    /// The image: raw, or in zstd, gzip or xz
    image: PathBuf,
    #[command(flatten)]
    options: Options,
}

impl Convert {
    pub fn run(self, json: bool) -> Result<Exit, CliError> {
        self.options.make(vec![(ROOT_CLASS.to_owned(), self.image)], json)
    }
}
