//! `portico users move` and `portico server evacuate`: the node moves accounts; here it is ordered and watched.

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use hyper::Method;

use crate::admin::moves::{MoveReport, MoveRequest, OneMove};
use crate::cli::admin_client::AdminClient;
use crate::cli::asking::{lasting, printable};
use crate::cli::prov::words;

/// How often the node is asked how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// What can be done about mailbox servers.
#[derive(Debug, Subcommand)]
pub(crate) enum ServerVerb {
    /// Move all accounts of a mailbox server to another one.
    Evacuate {
        /// The server to be emptied.
        server: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        how: MoveArgs,
    },
}

/// How accounts are moved.
#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    /// The mailbox server they go to.
    #[arg(long, value_name = "SERVER")]
    to: String,
    /// Only so many percent of them: the same ones each time, and with a higher number these and others.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    percent: Option<u8>,
    /// Only print who would be moved, and how many sessions would end.
    #[arg(long)]
    dry_run: bool,
    /// Run this program to copy the mail of each account: {account}, {from} and {to} are replaced, and no shell reads
    /// it.
    #[arg(long, value_name = "COMMAND", value_parser = command)]
    copy: Option<CopyCommand>,
    /// How long logins of an account may wait for its move, the copy included, such as 90s or 2h; at most a day.
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = lasting)]
    lasts: Duration,
    /// Moves that begin each second.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pace: u32,
    /// Only this node takes part, even where nodes know of each other.
    #[arg(long)]
    local: bool,
    /// This node is not there: go on without it. May be given more than once.
    #[arg(long, value_name = "NODE", conflicts_with = "local")]
    without: Vec<String>,
    /// Why; for administrators.
    #[arg(long, default_value = "moved by an administrator")]
    reason: String,
}

/// A program with its arguments.
#[derive(Debug, Clone)]
struct CopyCommand(Vec<String>);

fn command(text: &str) -> Result<CopyCommand, String> {
    words::split(text).map(CopyCommand)
}

impl MoveArgs {
    /// Orders it, prints each account as it ends, and waits for the last.
    ///
    /// # Errors
    /// The node refuses the order, or not all were moved.
    pub(crate) async fn run(
        self,
        accounts: Vec<String>,
        server: Option<String>,
        client: &AdminClient,
        json: bool,
        print: fn(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let request = MoveRequest {
            accounts,
            server,
            to: self.to,
            percent: self.percent,
            dry_run: self.dry_run,
            copy: self.copy.map(|command| command.0).unwrap_or_default(),
            seconds: self.lasts.as_secs(),
            pace: Some(self.pace),
            local: self.local,
            without: self.without,
            reason: self.reason,
        };
        let mut report: MoveReport = client.send(Method::POST, "/v1/moves", &request).await?;
        let mut printed = vec![false; report.accounts.len()];
        loop {
            if !json {
                show(&report.accounts, &mut printed, print)?;
            }
            let Some(id) = report.id.filter(|_| report.running) else {
                break;
            };
            tokio::time::sleep(LOOK).await;
            report = client.get(&format!("/v1/moves/{id}")).await?;
        }
        if json {
            print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
        }
        let good = |one: &&OneMove| matches!(one.state.as_str(), "moved" | "already there" | "would move");
        let failed = report.accounts.len() - report.accounts.iter().filter(good).count();
        if failed > 0 {
            bail!("{failed} of {} accounts were not moved", report.accounts.len());
        }
        if !report.not_counted.is_empty() {
            bail!("not counted: the sessions of {}", report.not_counted.join("; "));
        }
        let unseen = report.accounts.iter().filter(|one| one.why.is_some()).count();
        if unseen > 0 {
            bail!("all have moved, but {unseen} were not confirmed by every node");
        }
        Ok(())
    }
}

/// Prints those that have ended since.
fn show(accounts: &[OneMove], printed: &mut [bool], print: fn(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let under_way = ["waiting", "held", "copying", "changing"];
    for (one, printed) in accounts.iter().zip(printed) {
        if *printed || under_way.contains(&one.state.as_str()) {
            continue;
        }
        *printed = true;
        print(&one_move(one))?;
    }
    Ok(())
}

fn one_move(one: &OneMove) -> String {
    let from = match one.from.is_empty() {
        true => String::new(),
        false => format!(" from {}", one.from),
    };
    let took = one.ms.map(|ms| format!(" in {ms} ms")).unwrap_or_default();
    let why = one.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let line = format!(
        "{}{from}: {}{took}, {} sessions{why}",
        one.account, one.state, one.sessions
    );
    printable(&line) + "\n"
}
