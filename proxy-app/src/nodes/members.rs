//! Which nodes there are, by what each says of itself. Pure: the time is that of the engine, as all nodes see it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::wire::{self, Beat, NodeDuty};

/// Most nodes that are looked at.
const MOST: usize = 64;
/// A node that has said nothing for this long is silent: it misses four of its beats.
const SILENT: u64 = 2_000;
/// The sessions of a node that has said nothing for this long do not count any more.
const SESSIONS_COUNT: u64 = 10_000;
/// A node that has said nothing for this long is left out of the list, by whoever sees it. Until then it may serve
/// clients although it is cut off, so that who asks all nodes hears that it is missing: a day, as long as the longest
/// hold.
const GONE: u64 = 86_400_000;

/// A node, as others see it. In an upgrade two processes are one node for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerNode {
    /// Which process it is: a number of its own.
    pub(crate) run: String,
    /// Name of the node.
    pub(crate) node: String,
    /// Version of the program.
    pub(crate) version: String,
    /// Process id.
    pub(crate) pid: u32,
    /// What it does.
    pub(crate) state: NodeDuty,
    /// When it started, in milliseconds since 1970.
    pub(crate) since: u64,
    /// Number of its configuration in force.
    pub(crate) generation: u64,
    /// Its logged-in sessions.
    pub(crate) sessions: u64,
    /// For how long it has said nothing, if that is too long.
    pub(crate) silent: Option<Duration>,
}

/// All nodes that are known, this one included.
#[derive(Debug, Default)]
pub(super) struct NodeList(BTreeMap<String, Beat>);

impl NodeList {
    /// Takes the list as it stands in the engine. Returns what does not belong there any more.
    pub(super) fn take(&mut self, fields: Vec<(Vec<u8>, Vec<u8>)>, now: u64) -> Vec<Vec<u8>> {
        let mut gone = Vec::new();
        let mut known = BTreeMap::new();
        for (run, text) in fields {
            let name = std::str::from_utf8(&run).ok().filter(|run| is_run(run));
            let beat = wire::read::<Beat>(&text, wire::FIELD_MAX);
            match (name, beat) {
                (Some(name), Some(beat)) if now.saturating_sub(beat.at) <= GONE => {
                    known.insert(name.to_owned(), beat);
                }
                // A newer version's text is its own affair.
                (Some(_), None) => {}
                _ => gone.push(run),
            }
        }
        gone.extend(replaced(&mut known, now).into_iter().map(String::into_bytes));
        self.0 = latest(known);
        gone
    }

    /// The nodes, by name.
    pub(super) fn list(&self, now: u64) -> Vec<PeerNode> {
        let member = |(run, beat): (&String, &Beat)| {
            let silent = now.saturating_sub(beat.at);
            PeerNode {
                run: run.clone(),
                node: beat.node.clone(),
                version: beat.version.clone(),
                pid: beat.pid,
                state: beat.state,
                since: beat.since,
                generation: beat.generation,
                sessions: beat.sessions,
                silent: (silent > SILENT).then(|| Duration::from_millis(silent)),
            }
        };
        // One may have fallen silent since the list was taken.
        let mut known = self.0.clone();
        replaced(&mut known, now);
        let mut all: Vec<PeerNode> = known.iter().map(member).collect();
        all.sort_by(|one, other| (&one.node, one.since).cmp(&(&other.node, other.since)));
        all
    }
}

/// As many as are looked at: those that have spoken last. Nodes that come and go under new names must not push out those
/// that are there.
fn latest(known: BTreeMap<String, Beat>) -> BTreeMap<String, Beat> {
    let mut all: Vec<(String, Beat)> = known.into_iter().collect();
    all.sort_by_key(|(_, beat)| std::cmp::Reverse(beat.at));
    all.truncate(MOST);
    all.into_iter().collect()
}

/// Takes out what is silent because another process of the same node has taken its place, as after a crash.
fn replaced(known: &mut BTreeMap<String, Beat>, now: u64) -> Vec<String> {
    let is_silent = |beat: &Beat| now.saturating_sub(beat.at) > SILENT;
    let is_replaced = |beat: &Beat| {
        let mut others = known.values();
        others.any(|other| other.node == beat.node && other.since > beat.since && !is_silent(other))
    };
    let gone = known.iter().filter(|(_, beat)| is_silent(beat) && is_replaced(beat));
    let gone: Vec<String> = gone.map(|(run, _)| run.clone()).collect();
    known.retain(|run, _| !gone.contains(run));
    gone
}

impl NodeList {
    /// Takes these off, before the list is taken again.
    pub(super) fn forget(&mut self, runs: &[&str]) {
        self.0.retain(|run, _| !runs.contains(&run.as_str()));
    }

    /// The nodes that are awake, with the number of the latest change of their sessions.
    pub(super) fn awake(&self, now: u64) -> Vec<(String, u64)> {
        let awake = self
            .0
            .iter()
            .filter(|(_, beat)| now.saturating_sub(beat.at) <= SESSIONS_COUNT);
        awake.map(|(run, beat)| (run.clone(), beat.number)).collect()
    }
}

/// The form of a run: sixteen hexadecimal digits.
pub(super) fn is_run(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(run: &str, node: &str, at: u64) -> (Vec<u8>, Vec<u8>) {
        let beat = Beat::new(node, "1", NodeDuty::Ready, 5, 1, (7, 0), at);
        (run.as_bytes().to_vec(), wire::text(&beat))
    }

    const RUNS: [&str; 3] = ["00000000000000aa", "00000000000000bb", "00000000000000cc"];

    #[test]
    fn who_says_nothing_is_silent_and_then_gone() {
        let mut members = NodeList::default();
        let now = 100_000_000;
        let gone = members.take(
            vec![
                field(RUNS[1], "b", now - SILENT - 1),
                field(RUNS[0], "c", now + 500),
                field(RUNS[2], "a", now - GONE - 1),
            ],
            now,
        );
        assert_eq!(gone, [RUNS[2].as_bytes()]);
        let list = members.list(now);
        let seen: Vec<_> = list
            .iter()
            .map(|member| (member.node.as_str(), member.silent))
            .collect();
        assert_eq!(seen, [("b", Some(Duration::from_millis(SILENT + 1))), ("c", None)]);
        assert!(members.take(Vec::new(), now).is_empty() && members.list(now).is_empty());
    }

    #[test]
    fn a_process_that_was_replaced_is_not_missed() {
        let (mut members, now) = (NodeList::default(), 10_000_000);
        let beat = |node: &str, since, at| wire::text(&Beat::new(node, "1", NodeDuty::Ready, since, 1, (0, 0), at));
        let run = |at: usize| RUNS[at].as_bytes().to_vec();
        let old = |other: &str| vec![(run(0), beat("a", 1, now - 5_000)), (run(1), beat(other, 2, now))];
        assert_eq!(members.take(old("a"), now), [run(0)]);
        assert_eq!(members.list(now).len(), 1);
        assert!(members.take(old("b"), now).is_empty());
        assert_eq!(members.list(now).len(), 2);
    }

    #[test]
    fn nodes_that_are_gone_do_not_push_out_those_that_are_there() {
        let (mut members, now) = (NodeList::default(), GONE);
        let gone = (0..100).map(|run| field(&format!("{run:016x}"), &format!("pod{run}"), now / 2));
        let here = field("ffffffffffffffff", "here", now);
        members.take(gone.chain([here]).collect(), now);
        let list = members.list(now);
        assert_eq!(list.len(), MOST);
        assert!(
            list.iter()
                .any(|member| member.node == "here" && member.silent.is_none())
        );
    }

    #[test]
    fn a_list_that_lies_is_bounded() {
        let mut members = NodeList::default();
        let many = (0..10_000).map(|run| field(&format!("{run:016x}"), "n", 1)).collect();
        assert!(members.take(many, 1).is_empty());
        assert_eq!(members.list(1).len(), MOST);
        let odd = vec![(b"../x".to_vec(), b"{}".to_vec()), (vec![0xff; 16], Vec::new())];
        assert_eq!(members.take(odd, 1).len(), 2);
        let newer = vec![(RUNS[0].as_bytes().to_vec(), b"{\"v\":2}".to_vec())];
        assert!(members.take(newer, 1).is_empty() && members.list(1).is_empty());
    }
}
