//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use anyhow::Context;
use clap::{Parser, Subcommand};
use mail_directory::yaml::Problems;
use pingora::server::configuration::Opt;
use pingora::server::{RunArgs, Server};

use crate::app::plan::Plan;
use crate::process::service::ListenerService;
use crate::process::shutdown::EndSignal;
use crate::process::upgrade::{SuccessorCommand, UpgradeRequest};

pub(crate) mod admin_client;
pub(crate) mod asking;
pub(crate) mod certificate;
mod live_probe;
pub(crate) mod moves;
pub(crate) mod node;
pub(crate) mod nodes;
pub(crate) mod pages;
pub(crate) mod prov;
pub(crate) mod throttle;
pub(crate) mod users;

/// The default path of the node file.
const NODE_FILE: &str = "/etc/portico/portico.yaml";

/// Longer than any drain. Seconds.
const PINGORA_WAITS: u64 = 10 * 365 * 24 * 3600;

/// The front door of a mail system: proxies HTTPS, IMAP(S) and POP3(S) to the server that holds the user's mail.
#[derive(Debug, Parser)]
#[command(name = "portico", version = version(), args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// The node file.
    #[arg(short, long, global = true, value_name = "FILE", default_value = NODE_FILE)]
    conf: PathBuf,
    /// Run in the background.
    #[arg(short, long)]
    daemon: bool,
    /// Take over the listening sockets of the running process, which keeps its sessions until they end.
    #[arg(short, long)]
    upgrade: bool,
    /// Test the configuration and exit.
    #[arg(short, long)]
    test: bool,
    /// What to do instead of running.
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// The version of the program, and of the TLS library in it, whose fixes come with new builds.
fn version() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| format!("{} ({})", env!("CARGO_PKG_VERSION"), openssl::version::version()));
    &VERSION
}

/// What to do instead of running.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Check the node file, the directory and all certificates, and print every problem.
    Check,
    /// Ask the running process.
    #[command(flatten)]
    Ask(node::NodeVerb),
    /// Show and change what becomes of clients whose logins fail too often.
    Throttle {
        /// What to do.
        #[command(subcommand)]
        verb: throttle::ThrottleVerb,
    },
    /// Read and change the directory, like Carbonio's `prov`.
    #[command(disable_help_flag = true)]
    Prov {
        /// A command and its arguments; `help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Print the completions for a shell.
    Completions {
        /// The shell.
        shell: pages::Shell,
    },
    /// Write a man page for each command into a folder.
    Man {
        /// The folder, for example /usr/local/share/man/man1.
        folder: PathBuf,
    },
}

/// Runs the command line.
///
/// # Errors
/// What cannot be done, in one line.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.verb {
        Some(Verb::Check) => Ok(check(&cli.conf)),
        Some(Verb::Ask(verb)) => node::run(verb, &cli.conf),
        Some(Verb::Throttle { verb }) => throttle::run(verb, &cli.conf).map(|()| ExitCode::SUCCESS),
        Some(Verb::Completions { shell }) => Ok(pages::completions(shell)),
        Some(Verb::Man { folder }) => pages::man(&folder),
        Some(Verb::Prov { words }) => prov::run(&cli.conf, &words),
        None if cli.test => Ok(check(&cli.conf)),
        None => serve(&cli),
    }
}

fn check(conf: &Path) -> ExitCode {
    match Plan::load(conf) {
        Ok((plan, warnings)) => {
            print(&warnings);
            println!("{}: good ({} listeners)", conf.display(), plan.listeners.len());
            ExitCode::SUCCESS
        }
        Err(problems) => {
            print(&problems);
            ExitCode::FAILURE
        }
    }
}

fn print(problems: &Problems) {
    for problem in problems {
        eprintln!("{problem}");
    }
}

/// Runs until a signal ends it. Problems of the configuration are printed before anything is started or taken over.
fn serve(cli: &Cli) -> anyhow::Result<ExitCode> {
    // In the background the working directory is another one, and the file is read again on SIGHUP.
    let conf = std::path::absolute(&cli.conf).context("the working directory is gone")?;
    let (plan, warnings) = match Plan::load(&conf) {
        Ok(loaded) => loaded,
        Err(problems) => {
            print(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    print(&warnings);
    raise_file_limit();
    let successor = SuccessorCommand::new(&conf)
        .map_err(|error| log::warn!("the file of this program is not known, SIGUSR2 will do nothing: {error}"))
        .ok();
    let mut server_conf = plan.config.server.to_conf();
    let upgrade_request = match cli.upgrade {
        true => Some(UpgradeRequest::ask(Path::new(&server_conf.upgrade_sock))?),
        false => None,
    };
    // How the process ends is up to `process::shutdown`; Pingora only waits.
    server_conf.grace_period_seconds = Some(PINGORA_WAITS);
    let opt = Opt {
        upgrade: cli.upgrade,
        daemon: cli.daemon,
        nocapture: false,
        test: false,
        conf: None,
    };
    let mut server = Server::new_with_opt_and_conf(opt, server_conf);
    server.bootstrap();
    let conf = Arc::clone(&server.configuration);
    let end = EndSignal::default();
    server.add_service(ListenerService::new(
        plan,
        conf,
        end.clone(),
        successor,
        upgrade_request,
    ));
    server.run(RunArgs {
        shutdown_signal: Box::new(end),
    });
    Ok(ExitCode::SUCCESS)
}

/// As many open files as the system lets us have: each session takes two.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        log::warn!("the limit of open files cannot be raised: {error}");
    }
}
