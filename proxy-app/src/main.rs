//! `portico`: reads the command line, checks the configuration, runs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use proxy_app::cli::{self, Cli};
use proxy_app::logs;

fn main() -> ExitCode {
    logs::start_diagnostics();
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("portico: {error:#}");
            ExitCode::FAILURE
        }
    }
}
