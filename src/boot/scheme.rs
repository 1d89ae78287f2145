//! What each boot script's variables mean: pure, one function per decision.

/// Which variables the boot script reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `boot_slot`, `upgrade_available`, `bootcount`.
    Bootcount,
    /// RAUC's `BOOT_ORDER`, `BOOT_<slot>_LEFT`.
    Rauc,
    /// Mender's `mender_boot_part`, `upgrade_available`, `bootcount`; partition numbers of slots a and b.
    Mender {
        /// Partition number of slot `a` (`mender_boot_part` is decimal, `mender_boot_part_hex` hexadecimal).
        part_a: u32,
        /// Partition number of slot `b`.
        part_b: u32,
    },
}
