//! `portico`: reads the command line, checks the configuration, runs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use proxy_app::cli::{self, Cli};
use proxy_app::node::{diagnostics, memory};

/// docs/adr/0013-allocator.md: a fifth of a small web request went into that of the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    memory::without_huge_pages();
    diagnostics::start();
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("portico: {error:#}");
            ExitCode::FAILURE
        }
    }
}
