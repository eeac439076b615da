//! `portico`: reads the command line, checks the configuration, runs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use proxy_app::cli::{self, Cli};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("portico: {error:#}");
            ExitCode::FAILURE
        }
    }
}
