//! `portico`: reads the command line, checks the configuration, runs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use proxy_app::cli::{self, Cli};

/// What the diagnostic log shows unless `RUST_LOG` says otherwise. Pingora tells of each start and each failed
/// health check at length; ours are shorter.
const FILTER: &str = "info,pingora_core=warn,pingora_load_balancing=error";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(FILTER)).init();
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("portico: {error:#}");
            ExitCode::FAILURE
        }
    }
}
