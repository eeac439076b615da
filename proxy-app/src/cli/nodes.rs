//! What the command line says of other nodes, and which of them a verb is for.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::admin::everywhere::NodeAnswer;
use crate::admin::nodes::{NodesLeft, OneNode, SharedState};
use crate::cli::asking::{ApiArgs, Lines, printable};

/// So many milliseconds by which clocks differ are worth a line.
const SKEW: u64 = 1_000;

/// What can be done about nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodesVerb {
    /// Take a node that is gone for good off the list, so that no order waits for it or names it.
    Forget {
        /// Its name.
        node: String,
    },
}

/// Which nodes a verb is for.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ScopeArgs {
    /// Only this node, even where nodes know of each other.
    #[arg(long, conflicts_with = "node")]
    local: bool,
    /// Only the node with this name.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

impl ScopeArgs {
    /// As fields of a query.
    pub(super) fn fields(&self) -> [(&'static str, Option<String>); 2] {
        let local = self.local.then(|| "true".to_owned());
        [("local", local), ("node", self.node.clone())]
    }
}

/// The answer of a node, with those of the others where it has asked them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Everywhere<T> {
    /// Its own.
    #[serde(flatten)]
    pub here: T,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What every other node has said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeAnswer>,
}

/// What is printed, and what went wrong at other nodes.
#[derive(Default)]
pub(crate) struct Output {
    pub(super) text: String,
    failed: Vec<String>,
}

impl From<String> for Output {
    fn from(text: String) -> Self {
        let failed = Vec::new();
        Self { text, failed }
    }
}

impl Output {
    /// # Errors
    /// Other nodes have not done it, or have not answered.
    pub(super) fn complete(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.failed.is_empty(), "not on every node: {}", self.failed.join("; "));
        Ok(())
    }
}

impl<T: Serialize + DeserializeOwned> Everywhere<T> {
    /// Shows what this node has said, and a line for each other one.
    pub(super) fn show(&self, api: &ApiArgs, text: impl Fn(&T) -> String) -> anyhow::Result<Output> {
        let lines = |all: &Self| {
            let mut out = text(&all.here);
            for node in all.nodes.iter().filter(|node| node.error.is_none()) {
                let what = if node.answer.is_some() { "done" } else { "nothing to do" };
                let _fits = writeln!(out, "{}: {what}", printable(&node.node));
            }
            out
        };
        self.show_all(api, lines)
    }

    /// Shows the answers of all nodes together.
    pub(super) fn show_all(&self, api: &ApiArgs, text: impl Fn(&Self) -> String) -> anyhow::Result<Output> {
        let failure = |node: &NodeAnswer| Some(format!("{}: {}", node.node, node.error.as_ref()?));
        let failed = self.nodes.iter().filter_map(failure);
        Ok(Output {
            text: api.show(self, text)?,
            failed: failed.map(|text| printable(&text)).collect(),
        })
    }

    /// The answers of all nodes, each with the name of its node; that of this one is empty where it is the only one.
    pub(super) fn answers(&self) -> Vec<(&str, T)>
    where
        T: Clone,
    {
        let here = self.node.as_deref().unwrap_or_default();
        let others = self.others().filter_map(|(node, answer)| Some((node, answer.ok()??)));
        std::iter::once((here, self.here.clone())).chain(others).collect()
    }

    /// The answers of the other nodes that have not failed: `None`, there was nothing to do; an error, it is of another
    /// form than ours.
    pub(super) fn others(&self) -> impl Iterator<Item = (&str, serde_json::Result<Option<T>>)> {
        let done = self.nodes.iter().filter(|node| node.error.is_none());
        done.map(|node| {
            let answer = node.answer.clone().map(serde_json::from_value);
            (node.node.as_str(), answer.transpose())
        })
    }
}

/// How a node stands with the others, for `portico status`.
pub(super) fn shared_state(lines: &mut Lines, shared: &SharedState) {
    match (&shared.engine, &shared.why) {
        (Some(engine), _) => lines.line("shared", format!("state in {engine} since {}", shared.since)),
        (None, why) => {
            let why = why.as_deref().unwrap_or_default();
            lines.line(
                "shared",
                format!("state away since {}, this node is alone: {why}", shared.since),
            );
        }
    }
    if let Some(ahead) = shared.clock_ahead_ms.filter(|ahead| ahead.unsigned_abs() > SKEW) {
        lines.line(
            "",
            format!("the clock of this machine is {ahead} ms ahead of the engine's"),
        );
    }
    for node in &shared.nodes {
        lines.line("", one_node(node));
    }
}

/// The nodes that are left when one was forgotten.
pub(super) fn left(left: &NodesLeft) -> String {
    left.nodes.iter().map(|node| one_node(node) + "\n").collect()
}

fn one_node(node: &OneNode) -> String {
    let this = if node.this { " (this one)" } else { "" };
    let state = match node.silent {
        Some(silent) => format!("silent for {silent} s"),
        None => node.state.clone(),
    };
    format!(
        "{}{this}: {state}, {} sessions, generation {}, Portico {}, process {}, since {}",
        node.node, node.sessions, node.generation, node.version, node.pid, node.since
    )
}
