//! The other nodes over the admin API: which there are, and how this one stands with them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::node::logs;
use crate::nodes::{Nodes, PeerNode, Standing};

/// How the node stands with the engine by which nodes know of each other.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SharedState {
    /// Whether the engine answers. If not, this node goes on alone, and `nodes` is what it knew last.
    pub joined: bool,
    /// Since when, UTC.
    pub since: String,
    /// Where the engine is.
    pub engine: Option<String>,
    /// Why it does not answer.
    pub why: Option<String>,
    /// How often it has failed since the start.
    pub failures: u64,
    /// How many texts in it were not what they should be.
    pub unfit: u64,
    /// All nodes, this one included, by name.
    pub nodes: Vec<OneNode>,
}

/// A node, as the others see it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct OneNode {
    /// Its name.
    pub node: String,
    /// It is the one that answers.
    pub this: bool,
    /// Version of the program.
    pub version: String,
    /// Process id. In an upgrade two processes are one node.
    pub pid: u32,
    /// `ready`, `drained`, or `leaving`: it only keeps its sessions.
    pub state: String,
    /// When it started, UTC.
    pub since: String,
    /// Number of its configuration in force.
    pub generation: u64,
    /// Its logged-in sessions.
    pub sessions: u64,
    /// For how many seconds it has said nothing, if that is too long.
    pub silent: Option<u64>,
}

impl SharedState {
    /// As it is now.
    pub(super) fn of(nodes: &Nodes) -> Self {
        let (joined, since, engine, why) = match nodes.standing() {
            Standing::Joined { engine, since } => (true, since, Some(engine), None),
            Standing::Alone { why, since } => (false, since, None, Some(why)),
        };
        let all = nodes.members();
        let (failures, unfit) = nodes.counts();
        Self {
            joined,
            since: logs::utc(since),
            engine,
            why,
            failures,
            unfit,
            nodes: all.into_iter().map(|member| OneNode::of(nodes, member)).collect(),
        }
    }
}

impl OneNode {
    fn of(nodes: &Nodes, member: PeerNode) -> Self {
        let since = i64::try_from(member.since).ok();
        let since = since.and_then(|since| Timestamp::from_millisecond(since).ok());
        Self {
            this: nodes.is_this(&member),
            node: member.node,
            version: member.version,
            pid: member.pid,
            state: member.state.name().to_owned(),
            since: since.map(logs::utc).unwrap_or_default(),
            generation: member.generation,
            sessions: member.sessions,
            silent: member.silent.map(|silent| silent.as_secs()),
        }
    }
}
