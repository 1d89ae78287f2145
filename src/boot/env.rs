//! The U-Boot environment as bytes: pure.
