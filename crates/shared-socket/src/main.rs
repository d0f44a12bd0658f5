//! The `shared-socket` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    shared_socket::cli::main()
}
