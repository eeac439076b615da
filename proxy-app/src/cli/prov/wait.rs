//! After a change: waits until the node on this machine has taken it over.

use std::time::Duration;

use hyper::Method;

use crate::admin::taken::{Taken, WaitFor};
use crate::cli::admin_client::AdminClient;
use crate::cli::prov::{Prov, Report};

/// How long to wait; a replica may be behind.
const WITHIN: Duration = Duration::from_secs(5);
/// The exit code where it was expressly asked to wait, and the change is stored and not in force.
const NOT_IN_FORCE: u8 = 3;

/// Whether to wait (`--wait`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitChoice {
    /// For the node on this machine, where one runs.
    #[default]
    IfThere,
    /// The same, and it is said; it has to run.
    Node,
    /// For nobody.
    None,
}

impl WaitChoice {
    /// # Errors
    /// There is no such word.
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        match word {
            "node" => Ok(Self::Node),
            "none" => Ok(Self::None),
            other => Err(format!("--wait is node or none, not {other}")),
        }
    }
}

impl Prov {
    /// What is to be said of the changes since the last time; nothing if there were none, or if all is well and
    /// nobody asked.
    pub(super) async fn wait(&mut self) -> Report {
        let mut report = Report::default();
        if !std::mem::take(&mut self.changed) || self.wait == WaitChoice::None {
            return report;
        }
        let (line, is_well) = match self.ask_node().await {
            Ok(taken) => (said(&taken), taken.in_force),
            Err(_) if self.wait == WaitChoice::IfThere => return report,
            Err(why) => (
                format!("WARNING: it is stored, but no node has taken it over: {why}"),
                false,
            ),
        };
        if !is_well || self.wait == WaitChoice::Node {
            report.err.push(line);
        }
        if !is_well && self.wait == WaitChoice::Node {
            report.code = NOT_IN_FORCE;
        }
        report
    }

    async fn ask_node(&mut self) -> Result<Taken, String> {
        let socket = self.socket.clone().ok_or("the node file names no admin.socket")?;
        if !socket.exists() {
            return Err(format!("no Portico answers at {}", socket.display()));
        }
        let wanted = WaitFor {
            point: self.editor.point().await,
            within_ms: WITHIN.as_millis() as u64,
        };
        let node = AdminClient::new(&socket);
        let answer = node.send(Method::POST, "/v1/directory/wait", &wanted).await;
        answer.map_err(|error| format!("{error:#}"))
    }
}

fn said(taken: &Taken) -> String {
    match &taken.why_not {
        None => format!("in force on {} (configuration {})", taken.node, taken.generation),
        Some(why) => format!(
            "WARNING: it is stored, but not in force on {} after {} s: {why}",
            taken.node,
            WITHIN.as_secs()
        ),
    }
}
