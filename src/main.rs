//! The device binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    twinboot::cli::main()
}
