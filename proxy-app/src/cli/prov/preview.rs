//! `--dry-run`: after changes that were tried, says what they would do on the node of this machine.

use hyper::Method;

use crate::admin::preview::{PROPOSAL_MAX, Proposal};
use crate::app::preview::{EntryProposal, Preview};
use crate::cli::admin_client::AdminClient;
use crate::cli::prov::wait::NOT_IN_FORCE;
use crate::cli::prov::{Prov, Report};

/// In front of everything.
const NOTHING: &str = "dry run: nothing was written";

impl Prov {
    /// What the changes so far would do, once they have become more; nothing if nothing was tried since.
    pub(super) async fn preview(&mut self) -> Report {
        let mut report = Report::default();
        if !std::mem::take(&mut self.changed) {
            return report;
        }
        let changes: Vec<EntryProposal> = self.editor.tried().iter().map(EntryProposal::of).collect();
        if changes.is_empty() {
            report.out = format!("{NOTHING}; the directory says so already\n");
            return report;
        }
        match self.ask_for_preview(changes).await {
            Ok(preview) => {
                report.out = text(&preview);
                if self.wait.is_strict() && !preview.refused.is_empty() {
                    report.code = NOT_IN_FORCE;
                }
            }
            Err(why) => {
                report.out = format!("{NOTHING}; the change is valid\n");
                let why = format!("WARNING: no node was asked what it would do there: {why}");
                report.err.push(why);
                if self.wait.is_strict() {
                    report.code = NOT_IN_FORCE;
                }
            }
        }
        report
    }

    async fn ask_for_preview(&self, changes: Vec<EntryProposal>) -> Result<Preview, String> {
        let node = self.node_client()?;
        let proposal = Proposal { changes, first: None };
        let length = serde_json::to_vec(&proposal).map_or(0, |body| body.len());
        if length > PROPOSAL_MAX {
            return Err(format!(
                "the changes are more than {} KiB; try them in parts",
                PROPOSAL_MAX / 1024
            ));
        }
        let answer = node.send(Method::POST, "/v1/preview", &proposal).await;
        answer.map_err(|error| format!("{error:#}"))
    }

    /// The node on this machine, if one may be there.
    pub(super) fn node_client(&self) -> Result<AdminClient, String> {
        let socket = self.socket.as_ref().ok_or("the node file names no admin.socket")?;
        match socket.exists() {
            true => Ok(AdminClient::new(socket)),
            false => Err(format!("no Portico answers at {}", socket.display())),
        }
    }
}

fn text(preview: &Preview) -> String {
    let first = format!(
        "{NOTHING}; on {}, beside configuration {}:\n",
        preview.node, preview.generation
    );
    let lines = preview.summary.iter().map(|line| format!("{line}\n"));
    first + &lines.collect::<String>()
}
