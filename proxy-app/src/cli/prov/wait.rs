//! After a change: waits until the node on this machine, or every node, has taken it over.

use std::time::Duration;

use hyper::Method;
use serde::Deserialize;

use crate::admin::everywhere::NodeAnswer;
use crate::admin::taken::{Taken, WaitFor};
use crate::cli::asking::printable;
use crate::cli::prov::{Prov, Report};

/// How long to wait; a replica may be behind.
const WITHIN: Duration = Duration::from_secs(5);
/// The exit code where it was expressly asked to wait, and the change is stored and not in force.
pub(super) const NOT_IN_FORCE: u8 = 3;

/// Whether to wait (`--wait`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitChoice {
    /// For the node on this machine, where one runs.
    #[default]
    IfThere,
    /// The same, and it is said; it has to run.
    Node,
    /// For every node; the one on this machine has to run.
    All,
    /// For nobody.
    None,
}

impl WaitChoice {
    /// # Errors
    /// There is no such word.
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        match word {
            "node" => Ok(Self::Node),
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            other => Err(format!("--wait is node, all or none, not {other}")),
        }
    }

    /// Whether somebody wants to read that all is well, and to fail if it is not.
    pub(super) fn is_strict(self) -> bool {
        matches!(self, Self::Node | Self::All)
    }

    fn path(self) -> &'static str {
        match self {
            Self::All => "/v1/directory/wait",
            _ => "/v1/directory/wait?local=true",
        }
    }
}

impl Prov {
    /// What is to be said of the changes since the last time; nothing if there were none, or if all is well and
    /// nobody asked.
    pub(super) async fn wait(&mut self) -> Report {
        if self.editor.rehearses() {
            return self.preview().await;
        }
        let mut report = Report::default();
        if !std::mem::take(&mut self.changed) || self.wait == WaitChoice::None {
            return report;
        }
        let lines = match self.ask_node().await {
            Ok(taken) => taken.lines(),
            Err(_) if self.wait == WaitChoice::IfThere => return report,
            Err(why) => vec![Err(format!(
                "WARNING: it is stored, but no node has taken it over: {why}"
            ))],
        };
        for line in lines {
            match line {
                Ok(well) if self.wait.is_strict() => report.err.push(well),
                Ok(_) => {}
                Err(warning) => {
                    report.err.push(warning);
                    if self.wait.is_strict() {
                        report.code = NOT_IN_FORCE;
                    }
                }
            }
        }
        report
    }

    async fn ask_node(&mut self) -> Result<TakenBy, String> {
        let node = self.node_client()?;
        let wanted = WaitFor {
            point: self.editor.point().await,
            within_ms: WITHIN.as_millis() as u64,
        };
        let answer = node.send(Method::POST, self.wait.path(), &wanted).await;
        answer.map_err(|error| format!("{error:#}"))
    }
}

/// The answers of all nodes that were asked.
#[derive(Deserialize)]
struct TakenBy {
    #[serde(flatten)]
    here: Taken,
    #[serde(default)]
    nodes: Vec<NodeAnswer>,
}

impl TakenBy {
    /// A line for each node; an error where the change is not in force.
    fn lines(self) -> Vec<Result<String, String>> {
        let others = self.nodes.into_iter().map(of_other);
        std::iter::once(said(&self.here)).chain(others).collect()
    }
}

fn of_other(other: NodeAnswer) -> Result<String, String> {
    let taken = other.answer.and_then(|answer| serde_json::from_value(answer).ok());
    match (taken, other.error) {
        (Some(taken), None) => said(&taken),
        (_, why) => Err(not_in_force(&other.node, why.as_deref().unwrap_or("it does not say"))),
    }
}

fn said(taken: &Taken) -> Result<String, String> {
    match &taken.why_not {
        None => Ok(printable(&format!(
            "in force on {} (configuration {})",
            taken.node, taken.generation
        ))),
        Some(why) => Err(not_in_force(&taken.node, why)),
    }
}

fn not_in_force(node: &str, why: &str) -> String {
    let seconds = WITHIN.as_secs();
    let line = format!("WARNING: it is stored, but not in force on {node} after {seconds} s: {why}");
    printable(&line)
}
