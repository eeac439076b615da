//! Mail sessions as all nodes know them: this one tells its own and follows those of the others, so that limits count
//! them.
//!
//! Each node writes its sessions into a hash of its own and says every change in a channel, with a number. Who misses a
//! number reads the hash. What is not known yet does not count: two logins at the same moment on two nodes may both get
//! in where one is left.

use std::sync::Weak;
use std::time::{SystemTime, UNIX_EPOCH};

use mail_proxy::NewSession;
use redis::Value;
use route_cache::MaxSessions;

use super::Nodes;
use super::elsewhere::CountChange;
use super::engine::{Engine, Failure};
use super::sessions::{self, Change, SessionFacts};
use super::wire;
use crate::node::limits::{SessionKeys, SessionWatch};

/// Fields that the engine is asked for at a time.
const SCANNED: usize = 1000;
/// Most portions of the sessions of one node.
const PORTIONS: usize = 2000;

/// Tells the other nodes of the mail sessions of this one.
pub(super) struct SessionTeller(pub(super) Weak<Nodes>);

struct Live {
    nodes: Weak<Nodes>,
    session: u64,
}

impl SessionWatch for SessionTeller {
    fn begun(&self, session: &NewSession<'_>) -> Box<dyn Send> {
        let Some(nodes) = self.0.upgrade() else {
            return Box::new(());
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = nodes.own.lock().begin(SessionFacts {
            account: session.account.to_owned(),
            client: session.client,
            server: session.server.to_owned(),
            protocol: session.protocol,
            since: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        });
        nodes.news.notify_one();
        Box::new(Live {
            nodes: self.0.clone(),
            session: number,
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(nodes) = self.nodes.upgrade() {
            nodes.own.lock().end(self.session);
            nodes.news.notify_one();
        }
    }
}

impl Nodes {
    /// Writes all sessions of this node, in the place of what stands there.
    pub(super) async fn tell_all_sessions(&self, engine: &Engine) -> Result<(), Failure> {
        let (portions, number) = {
            let mut own = self.own.lock();
            (own.tell_all(), own.number())
        };
        let key = self.names().sessions(&self.run);
        let mut commands = redis::pipe();
        commands.cmd("DEL").arg(&key);
        engine.run(&commands).await?;
        for portion in portions {
            let mut commands = redis::pipe();
            commands.cmd("HSET").arg(&key).arg(&portion);
            engine.run(&commands).await?;
        }
        let mut commands = redis::pipe();
        commands.cmd("HSET").arg(&key).arg(wire::NUMBER).arg(number);
        commands.cmd("EXPIRE").arg(&key).arg(wire::SESSIONS_KEPT);
        engine.run(&commands).await.map(drop)
    }

    /// Tells what has changed among the sessions of this node.
    pub(super) async fn tell_sessions(&self, engine: &Engine) -> Result<(), Failure> {
        loop {
            let change = self.own.lock().take_change(&self.run);
            let Some(change) = change else { return Ok(()) };
            let key = self.names().sessions(&self.run);
            let mut commands = redis::pipe();
            commands.atomic();
            let fields = change.fields();
            if !fields.is_empty() {
                commands.cmd("HSET").arg(&key).arg(&fields);
            }
            if !change.ended.is_empty() {
                commands.cmd("HDEL").arg(&key).arg(&change.ended);
            }
            commands.cmd("HSET").arg(&key).arg(wire::NUMBER).arg(change.number);
            commands.cmd("EXPIRE").arg(&key).arg(wire::SESSIONS_KEPT);
            commands
                .cmd("PUBLISH")
                .arg(self.names().changes())
                .arg(wire::text(&change));
            engine.run(&commands).await?;
        }
    }

    /// Takes a change of another node. Where one is missing before it, its sessions are read again at the next beat.
    pub(super) fn take_change(&self, change: &Change) {
        if change.from == self.run {
            return;
        }
        let keys = |facts: &SessionFacts| self.keys_of(facts);
        let steps = self.state.lock().elsewhere.follow(change, keys);
        self.count(steps.unwrap_or_default());
    }

    /// Reads the sessions of nodes of which something is missing here, and forgets those of nodes that are gone.
    pub(super) async fn follow_sessions(&self, engine: &Engine) -> Result<(), Failure> {
        let (behind, gone) = {
            let state = self.state.lock();
            let mut awake = state.members.awake(state.clock.now());
            awake.retain(|(run, _)| *run != self.run);
            let is_awake = |run: &String| awake.iter().any(|(awake, _)| awake == run);
            let gone: Vec<String> = state
                .elsewhere
                .runs()
                .into_iter()
                .filter(|run| !is_awake(run))
                .collect();
            awake.retain(|(run, number)| state.elsewhere.number(run).is_none_or(|known| known < *number));
            (awake, gone)
        };
        for run in gone {
            let steps = self.state.lock().elsewhere.forget(&run);
            self.count(steps);
        }
        for (run, _) in behind {
            self.read_sessions(engine, &run).await?;
        }
        Ok(())
    }

    async fn read_sessions(&self, engine: &Engine, run: &str) -> Result<(), Failure> {
        let key = self.names().sessions(run);
        // First: what changes while the sessions are read comes as a change with a later number.
        let mut commands = redis::pipe();
        commands.cmd("HGET").arg(&key).arg(wire::NUMBER);
        let number = engine.run(&commands).await?.pop().and_then(wire::bytes);
        let number = number.and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        let Some(number) = number else { return Ok(()) };
        let mut all: Vec<(u64, SessionKeys)> = Vec::new();
        let mut cursor = b"0".to_vec();
        for _ in 0..PORTIONS {
            let mut commands = redis::pipe();
            commands.cmd("HSCAN").arg(&key).arg(&cursor).arg("COUNT").arg(SCANNED);
            let answer = engine.run(&commands).await?.pop();
            let Some((next, fields)) = portion(answer) else { break };
            let facts = fields.iter().filter_map(|(id, text)| sessions::read_field(id, text));
            all.extend(facts.map(|(id, facts)| (id, self.keys_of(&facts))));
            if next == b"0" {
                break;
            }
            cursor = next;
        }
        let steps = self.state.lock().elsewhere.replace(run, number, all.into_iter());
        self.count(steps);
        Ok(())
    }

    /// From here on only the sessions of this node count.
    pub(super) fn forget_sessions(&self) {
        self.own.lock().go_alone();
        let runs = self.state.lock().elsewhere.runs();
        for run in runs {
            let steps = self.state.lock().elsewhere.forget(&run);
            self.count(steps);
        }
    }

    fn keys_of(&self, facts: &SessionFacts) -> SessionKeys {
        self.limits.keys_elsewhere(&NewSession {
            account: &facts.account,
            client: facts.client,
            server: &facts.server,
            protocol: facts.protocol,
            max: MaxSessions::default(),
        })
    }

    fn count(&self, steps: Vec<CountChange>) {
        for step in steps {
            match step {
                CountChange::More(keys) => self.limits.count_elsewhere(keys, true),
                CountChange::Less(keys) => self.limits.count_elsewhere(keys, false),
            }
        }
    }
}

/// The answer to `HSCAN`: where it goes on, and the fields of this portion.
fn portion(answer: Option<Value>) -> Option<(Vec<u8>, wire::Fields)> {
    let Value::Array(parts) = answer? else { return None };
    let mut parts = parts.into_iter();
    Some((wire::bytes(parts.next()?)?, wire::pairs(parts.next()?)))
}
