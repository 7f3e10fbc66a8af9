//! The binary; all code is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    chainsmith::cli::main(std::env::args_os())
}
