//! The mail sessions of the other nodes, as far as limits count them. Pure.
//!
//! Of each session only its keys are kept, five numbers, and no more than a million sessions.

use std::collections::HashMap;

use super::sessions::{Change, SessionFacts};
use crate::node::limits::SessionKeys;

/// Most sessions of all other nodes together.
const MOST: usize = 1_000_000;

/// The sessions of one node.
#[derive(Default)]
struct OfNode {
    /// The number of the last change that is in it.
    number: u64,
    sessions: HashMap<u64, SessionKeys>,
}

/// Those of all others.
#[derive(Default)]
pub(super) struct OtherSessions {
    nodes: HashMap<String, OfNode>,
    count: usize,
}

/// How counts change.
pub(super) enum CountChange {
    /// One more.
    More(SessionKeys),
    /// One less.
    Less(SessionKeys),
}

impl OtherSessions {
    /// The number of the last change of a node that is known here; `None`: nothing is.
    pub(super) fn number(&self, run: &str) -> Option<u64> {
        self.nodes.get(run).map(|node| node.number)
    }

    /// Which nodes are known.
    pub(super) fn runs(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// Takes a change, if it is the next one; `false`: something is missing before it.
    pub(super) fn follow(
        &mut self,
        change: &Change,
        keys: impl Fn(&SessionFacts) -> SessionKeys,
    ) -> Option<Vec<CountChange>> {
        let node = self.nodes.get_mut(&change.from)?;
        if change.number <= node.number {
            return Some(Vec::new());
        }
        if change.number != node.number + 1 {
            return None;
        }
        node.number = change.number;
        let mut steps = Vec::new();
        for (id, facts) in &change.begun {
            if self.count < MOST {
                let keys = keys(facts);
                match node.sessions.insert(*id, keys) {
                    Some(before) => steps.push(CountChange::Less(before)),
                    None => self.count += 1,
                }
                steps.push(CountChange::More(keys));
            }
        }
        for id in &change.ended {
            if let Some(before) = node.sessions.remove(id) {
                self.count -= 1;
                steps.push(CountChange::Less(before));
            }
        }
        Some(steps)
    }

    /// Takes all sessions of a node, as they were at a change.
    pub(super) fn replace(
        &mut self,
        run: &str,
        number: u64,
        all: impl Iterator<Item = (u64, SessionKeys)>,
    ) -> Vec<CountChange> {
        let mut steps = self.forget(run);
        let room = MOST - self.count;
        let sessions: HashMap<u64, SessionKeys> = all.take(room).collect();
        self.count += sessions.len();
        steps.extend(sessions.values().map(|keys| CountChange::More(*keys)));
        self.nodes.insert(run.to_owned(), OfNode { number, sessions });
        steps
    }

    /// Forgets a node.
    pub(super) fn forget(&mut self, run: &str) -> Vec<CountChange> {
        let node = self.nodes.remove(run).unwrap_or_default();
        self.count -= node.sessions.len();
        node.sessions.into_values().map(CountChange::Less).collect()
    }
}
