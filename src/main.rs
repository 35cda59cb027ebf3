//! catalog-bridge: arguments become a command.

use std::process::ExitCode;

fn main() -> ExitCode {
    catalog_bridge::cli::main()
}
