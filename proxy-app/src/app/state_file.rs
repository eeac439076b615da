//! What a node knows from process to process, in a file: the number and the history of its configurations, holds, and
//! what mailbox servers can.
//!
//! Counters are not in it: a counter that comes back smaller than it was, as after a crash, would be taken for a huge
//! increase by Prometheus, which expects it to begin at zero.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use mail_directory::secret_file;
use mail_proxy::{LearnedServer, Settings};
use parking_lot::Mutex;
use route_cache::{Held, Hold};
use serde::{Deserialize, Serialize};

use crate::app::changes::Generation;
use crate::app::moves::Unfinished;

/// Longest file: 64 configurations with 100 sentences, all holds that there may be, and what 1,024 servers can are less.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The form of the file.
const VERSION: u32 = 1;

/// What stands in the file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct NodeState {
    version: u32,
    /// The newest first.
    generations: Vec<OldGeneration>,
    holds: Vec<OldHold>,
    /// Moves that have begun and not ended.
    #[serde(default)]
    moves: Vec<Unfinished>,
    /// What mailbox servers have said of themselves over IMAP.
    #[serde(default)]
    servers: Vec<OldServer>,
    /// The same over POP3.
    #[serde(default)]
    pop3_servers: Vec<OldServer>,
}

/// What mailbox servers have said of themselves, over each protocol.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LearnedServers {
    imap: Vec<LearnedServer>,
    pop3: Vec<LearnedServer>,
}

impl LearnedServers {
    /// What is known now.
    pub(crate) fn of(mail: &Settings) -> Self {
        Self {
            imap: mail.imap.learned.kept(),
            pop3: mail.pop3.learned.kept(),
        }
    }

    /// Has a process know it that has just begun.
    pub(crate) fn tell(&self, mail: &Settings) {
        let now = Instant::now();
        mail.imap.learned.take_over(&self.imap, now);
        mail.pop3.learned.take_over(&self.pop3, now);
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OldServer {
    server: String,
    capabilities: String,
    names: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OldGeneration {
    number: u64,
    since: String,
    why: String,
    changes: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OldHold {
    kind: String,
    name: String,
    reason: String,
    /// Seconds since 1970.
    since: u64,
    until: u64,
}

/// The file; its lock keeps writers apart.
pub(crate) struct StateFile {
    path: Option<PathBuf>,
    writing: Mutex<Writing>,
}

#[derive(Default)]
struct Writing {
    /// What is there cannot be used.
    spoilt: bool,
    /// Another process writes it.
    left: bool,
    failing: bool,
}

impl StateFile {
    /// The file at this path; none: nothing is kept.
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            writing: Mutex::default(),
        }
    }

    /// What is there. A file that cannot be used is left alone until the next one is written.
    pub(crate) fn read(&self) -> NodeState {
        let Some(path) = &self.path else {
            return NodeState::default();
        };
        match read(path) {
            Ok(state) => state,
            Err(error) if error.kind() == io::ErrorKind::NotFound => NodeState::default(),
            Err(error) => {
                self.writing.lock().spoilt = true;
                log::warn!("{} is not used; it will be set aside: {error}", path.display());
                NodeState::default()
            }
        }
    }

    /// Whether another process writes it from now on, and this one does not.
    pub(crate) fn leave(&self, to_another: bool) {
        self.writing.lock().left = to_another;
    }

    /// Puts this in its place. It blocks for the time of a write.
    pub(crate) fn write(&self, state: &NodeState) {
        let Some(path) = &self.path else {
            return;
        };
        let mut writing = self.writing.lock();
        if writing.left {
            return;
        }
        match writing.write(path, state) {
            Ok(()) => writing.failing = false,
            Err(error) if !writing.failing => {
                writing.failing = true;
                log::warn!("the state of the node cannot be kept in {}: {error}", path.display());
            }
            Err(error) => log::debug!("{}: {error}", path.display()),
        }
    }
}

impl Writing {
    fn write(&mut self, path: &Path, state: &NodeState) -> io::Result<()> {
        if std::mem::take(&mut self.spoilt) {
            std::fs::rename(path, secret_file::beside(path, ".unusable"))?;
        }
        let mut text = serde_json::to_vec(state)?;
        // What would not be read again is worth nothing. What servers can is learned again within some logins.
        if text.len() as u64 > MAX_FILE {
            text = serde_json::to_vec(&state.without_servers())?;
        }
        secret_file::replace(path, |file| file.write_all(&text))
    }
}

fn read(path: &Path) -> io::Result<NodeState> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let state: NodeState = serde_json::from_slice(&std::fs::read(path)?)?;
    match state.version {
        VERSION => Ok(state),
        other => Err(io::Error::other(format!("its version is {other}"))),
    }
}

impl NodeState {
    /// What is known now.
    pub(crate) fn of(
        generations: &[Generation],
        holds: &[Hold],
        moves: Vec<Unfinished>,
        servers: LearnedServers,
    ) -> Self {
        let old = |servers: Vec<LearnedServer>| servers.into_iter().map(OldServer::of).collect();
        Self {
            version: VERSION,
            generations: generations.iter().map(OldGeneration::of).collect(),
            holds: holds.iter().map(OldHold::of).collect(),
            moves,
            servers: old(servers.imap),
            pop3_servers: old(servers.pop3),
        }
    }

    fn without_servers(&self) -> Self {
        Self {
            servers: Vec::new(),
            pop3_servers: Vec::new(),
            ..self.clone()
        }
    }

    /// What mailbox servers have said of themselves.
    pub(crate) fn servers(&self) -> LearnedServers {
        let again = |servers: &[OldServer]| servers.iter().map(OldServer::again).collect();
        LearnedServers {
            imap: again(&self.servers),
            pop3: again(&self.pop3_servers),
        }
    }

    /// The configurations of previous processes, the newest first.
    pub(crate) fn generations(&self) -> Vec<Generation> {
        self.generations.iter().filter_map(OldGeneration::again).collect()
    }

    /// The moves that have begun and not ended.
    pub(crate) fn moves(&self) -> Vec<Unfinished> {
        self.moves.clone()
    }

    /// The holds that are not over.
    pub(crate) fn holds(&self) -> Vec<Hold> {
        let holds = self.holds.iter().filter_map(OldHold::again);
        holds.filter(|hold| hold.until > SystemTime::now()).collect()
    }
}

impl OldServer {
    fn of(server: LearnedServer) -> Self {
        Self {
            server: server.server,
            capabilities: server.list,
            names: server.names,
        }
    }

    fn again(&self) -> LearnedServer {
        LearnedServer {
            server: self.server.clone(),
            list: self.capabilities.clone(),
            names: self.names.clone(),
        }
    }
}

impl OldGeneration {
    fn of(generation: &Generation) -> Self {
        Self {
            number: generation.number,
            since: generation.since.to_string(),
            why: generation.why.clone(),
            changes: generation.changes.clone(),
        }
    }

    fn again(&self) -> Option<Generation> {
        Some(Generation {
            number: self.number,
            since: self.since.parse::<Timestamp>().ok()?,
            why: self.why.clone(),
            changes: self.changes.clone(),
        })
    }
}

impl OldHold {
    fn of(hold: &Hold) -> Self {
        let (kind, name) = match &hold.held {
            Held::Account(name) => ("account", name),
            Held::Domain(name) => ("domain", name),
            Held::Server(name) => ("server", name),
        };
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            kind: kind.to_owned(),
            name: name.clone(),
            reason: hold.reason.clone(),
            since: seconds(hold.since),
            until: seconds(hold.until),
        }
    }

    fn again(&self) -> Option<Hold> {
        let name = self.name.clone();
        let time = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        Some(Hold {
            held: match self.kind.as_str() {
                "account" => Held::Account(name),
                "domain" => Held::Domain(name),
                "server" => Held::Server(name),
                _ => return None,
            },
            reason: self.reason.clone(),
            since: time(self.since)?,
            until: time(self.until)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::moves::MoveScope;

    fn state() -> NodeState {
        let generation = Generation {
            number: 17,
            since: "2026-01-05T10:00:00Z".parse().unwrap(),
            why: "reloaded".to_owned(),
            changes: vec!["server s1: added".to_owned()],
        };
        let now = UNIX_EPOCH + Duration::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
        let hold = |held, lasts| Hold {
            held,
            reason: "because".to_owned(),
            since: now,
            until: now + Duration::from_secs(lasts),
        };
        let holds = [
            hold(Held::Account("a@x".into()), 3600),
            hold(Held::Domain("x".into()), 3600),
            hold(Held::Server("s1".into()), 0),
        ];
        let left = Unfinished {
            account: "a@x".to_owned(),
            from: "s1".to_owned(),
            to: "s2".to_owned(),
            changing: true,
            scope: MoveScope {
                local: false,
                without: vec!["proxy3".to_owned()],
            },
            since: 7,
        };
        let server = |server: &str, list: &str| LearnedServer {
            server: server.to_owned(),
            list: list.to_owned(),
            names: vec!["mail.a.test".to_owned()],
        };
        let servers = LearnedServers {
            imap: vec![server("store1:143", "IMAP4rev1 MOVE")],
            pop3: vec![server("store1:110", "TOP\nUIDL\n")],
        };
        NodeState::of(&[generation], &holds, vec![left], servers)
    }

    #[test]
    fn what_is_written_is_what_is_read_without_what_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(Some(dir.path().join("node.state")));
        assert!(file.read().generations().is_empty());
        let state = state();
        file.write(&state);
        let back = file.read();
        assert_eq!(back.generations()[0].number, 17);
        assert_eq!(back.generations()[0].changes, ["server s1: added"]);
        assert_eq!(back.holds(), state.holds());
        assert_eq!(back.holds().len(), 2);
        assert_eq!(back.moves(), state.moves());
        assert!(back.moves()[0].changing);
        assert_eq!(back.servers(), state.servers());
        assert_eq!(back.servers().imap[0].names, ["mail.a.test"]);
        assert_eq!(back.servers().pop3[0].list, "TOP\nUIDL\n");
    }

    /// A file that is longer than one that is read would have been written for nothing, with the holds in it.
    #[test]
    fn a_file_at_its_bound_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(Some(dir.path().join("node.state")));
        let of_length = |list: usize| {
            let mut state = state();
            state.servers[0].capabilities = "X".repeat(list);
            state
        };
        let rest = serde_json::to_vec(&of_length(0)).unwrap().len();
        let most = usize::try_from(MAX_FILE).unwrap() - rest;
        for (length, servers) in [(most, 1), (most + 1, 0)] {
            let state = of_length(length);
            file.write(&state);
            let back = file.read();
            assert_eq!(back.servers().imap.len(), servers, "{length}");
            assert_eq!(back.holds(), state.holds());
        }
    }

    #[test]
    fn a_file_that_another_process_writes_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(Some(dir.path().join("node.state")));
        file.leave(true);
        file.write(&state());
        assert!(file.read().generations().is_empty());
        file.leave(false);
        file.write(&state());
        assert_eq!(file.read().generations().len(), 1);
    }

    /// As an earlier version wrote it.
    #[test]
    fn a_move_without_a_scope_is_one_of_all_nodes() {
        let left = r#"{"account": "a@x", "from": "s1", "to": "s2", "changing": true}"#;
        let left: Unfinished = serde_json::from_str(left).unwrap();
        assert_eq!(left.scope, MoveScope::default());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_set_aside() {
        for bad in ["", "{", "{\"version\": 9, \"generations\": [], \"holds\": []}"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("node.state");
            std::fs::write(&path, bad).unwrap();
            let file = StateFile::new(Some(path.clone()));
            assert!(file.read().holds().is_empty());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
            file.write(&state());
            assert_eq!(file.read().generations().len(), 1);
            assert_eq!(
                std::fs::read_to_string(dir.path().join("node.state.unusable")).unwrap(),
                bad
            );
        }
    }
}
