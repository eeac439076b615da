//! Certificates of an ACME authority, among the nodes: which node orders them, where the next one reads what has failed,
//! and which challenges all nodes answer.
//!
//! Time is divided into turns, by the clock of the engine. Who has written its name at a turn first orders certificates
//! in it. A name that stands is never replaced, so nothing is compared and written in one step, and the engine needs no
//! scripts (docs/adr/0032-one-node-orders.md).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::Value;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use super::engine::{Engine, Failure, words};
use super::wire::{self, Bounded};
use super::{FAREWELL, Nodes, Standing};
use crate::http::answers::is_token;

/// A turn, in milliseconds. A node that has died is replaced within two of them.
const TURN: u64 = 10_000;
/// So many milliseconds of a turn are left to a node that has the previous one, and is slow.
const LATE: u64 = 1_000;
/// How often it is looked whose turn it is.
const LOOK: Duration = Duration::from_secs(1);
/// How long the turns outlive the last look, in seconds.
const TURNS_KEPT: u64 = 60;
/// Who has a turn that a newer version has taken, of which no more is known.
const NEWER: &str = "a node of a newer version";
/// Most challenges that are taken from other nodes: some orders with many names each.
const CHALLENGES_MAX: usize = 512;
/// How long a challenge is open at most: longer than an order. Milliseconds.
const CHALLENGE_LIFE: u64 = 15 * 60 * 1000;
/// Nodes do not agree on the engine's time to the millisecond: no challenge is said to be open for so long.
const CLOCKS: u64 = 60 * 1000;
/// How long the others may take to learn of one.
const TOLD_WAIT: Duration = Duration::from_secs(2);
/// How long it is remembered what has failed, in seconds. No pause that is believed is longer.
const PAUSES_KEPT: i64 = 24 * 60 * 60;
/// Most of them that are shared.
const PAUSES_MAX: usize = 20_000;
/// The name under which the authority's own pause stands: no domain has it.
pub(crate) const AUTHORITY: &str = "*";
/// What nodes tell each other when challenges have been opened.
pub(super) const CHALLENGES: &str = "challenges";

/// Who orders certificates in a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TurnHolder {
    v: u32,
    run: String,
    node: String,
}

/// A challenge that is open at the node which orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedChallenge {
    /// The authority's token.
    pub token: String,
    /// How it is asked for: `http-01`, `tls-alpn-01`.
    pub kind: String,
    /// The name that it is about.
    pub name: String,
    /// The thumbprint of the account (RFC 8555 §8.1).
    pub account: String,
    /// How long it is open at most.
    pub left: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredChallenge {
    v: u32,
    run: String,
    kind: String,
    name: String,
    account: String,
    until: u64,
}

/// Until when nothing is ordered for a domain, or at all ([`AUTHORITY`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedPause {
    /// The domain.
    pub of: String,
    /// How often it has failed in a row.
    pub count: u32,
    /// The end of the pause, in seconds since 1970.
    pub until: i64,
    /// The reason.
    pub why: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredPause {
    v: u32,
    count: u32,
    until: i64,
    why: String,
}

impl Bounded for TurnHolder {
    fn names(&self) -> Vec<&str> {
        vec![&self.run, &self.node]
    }
}

impl Bounded for StoredChallenge {
    fn names(&self) -> Vec<&str> {
        vec![&self.run, &self.kind, &self.name, &self.account]
    }
}

impl Bounded for StoredPause {
    fn names(&self) -> Vec<&str> {
        vec![&self.why]
    }
}

/// Answers the challenges of other nodes.
#[async_trait]
pub(crate) trait ChallengeTaker: Send + Sync {
    /// These are open at other nodes now, and no others.
    ///
    /// # Errors
    /// Some of them cannot be answered here; in words for the administrator of the node that orders.
    async fn take(&self, open: Vec<SharedChallenge>) -> Result<(), String>;
}

/// Who orders certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OrderingNode {
    /// This process.
    This,
    /// A node, by its name.
    Other(String),
    /// It is not known: the engine is away, or nobody has begun.
    Nobody,
}

/// What this node knows of it.
pub(super) struct CertificateTurns {
    state: Mutex<TurnState>,
    /// Held while challenges are read and taken: of two readings the later one counts.
    reading: tokio::sync::Mutex<()>,
    /// Whether this node orders, as far as it knew at its last look.
    ours: watch::Sender<bool>,
}

#[derive(Default)]
struct TurnState {
    /// Whether this node is one that may order.
    takes_part: bool,
    known: BTreeMap<u64, TurnHolder>,
    /// By the clock of this machine: that of another engine may be behind.
    looked: Option<Instant>,
    /// The log has said that the engine refuses to hold them.
    is_denied: bool,
    taker: Option<Arc<dyn ChallengeTaker>>,
    /// The pauses that this node has written into the engine, if they still stand there.
    written: Option<Vec<SharedPause>>,
    /// When it began to write the last ones.
    wrote: Option<Instant>,
}

impl Default for CertificateTurns {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            ours: watch::Sender::new(false),
        }
    }
}

/// The turn that this run may take now.
fn to_take(known: &BTreeMap<u64, TurnHolder>, run: &str, now: u64) -> Option<u64> {
    let turn = now / TURN;
    match known.get(&turn) {
        Some(holder) if holder.run == run => (!known.contains_key(&(turn + 1))).then_some(turn + 1),
        Some(_) => None,
        None => (now % TURN >= LATE).then_some(turn),
    }
}

/// The turns, and the fields that are over or are none. Only this turn and the next one count: nobody takes more. One that
/// a newer version has taken is taken, whatever stands in it.
fn turns_of(fields: wire::Fields, turn: u64) -> (BTreeMap<u64, TurnHolder>, Vec<Vec<u8>>) {
    let (mut known, mut old) = (BTreeMap::new(), Vec::new());
    for (field, text) in fields {
        let at = std::str::from_utf8(&field).ok().and_then(|at| at.parse::<u64>().ok());
        let at = at.filter(|at| *at == turn || *at == turn + 1);
        let read = at.and_then(|at| Some((at, TurnHolder::read(&text)?)));
        match read {
            Some((at, holder)) => drop(known.insert(at, holder)),
            None => old.push(field),
        }
    }
    (known, old)
}

impl TurnHolder {
    /// `None`: it is not what it should be.
    fn read(text: &[u8]) -> Option<Self> {
        let of_newer = || Self {
            v: wire::VERSION,
            run: NEWER.to_owned(),
            node: NEWER.to_owned(),
        };
        wire::read(text, wire::FIELD_MAX).or_else(|| wire::is_newer(text, wire::FIELD_MAX).then(of_newer))
    }
}

impl StoredChallenge {
    /// `None`: it is not what it should be, or over.
    fn read(token: &[u8], text: &[u8], now: u64) -> Option<(String, SharedChallenge)> {
        let token = std::str::from_utf8(token).ok().filter(|token| is_token(token))?;
        let stored: Self = wire::read(text, wire::FIELD_MAX)?;
        let left = stored
            .until
            .checked_sub(now)
            .filter(|left| (1..=CHALLENGE_LIFE).contains(left))?;
        let challenge = SharedChallenge {
            token: token.to_owned(),
            kind: stored.kind,
            name: stored.name,
            account: stored.account,
            left: Duration::from_millis(left),
        };
        Some((stored.run, challenge))
    }
}

impl SharedPause {
    fn stored(&self) -> (String, Vec<u8>) {
        let stored = StoredPause {
            v: wire::VERSION,
            count: self.count,
            until: self.until,
            why: words(&self.why),
        };
        (self.of.clone(), wire::text(&stored))
    }

    /// `None`: it is not what it should be, or over.
    fn read(field: &[u8], text: &[u8], now: i64) -> Option<Self> {
        let of = std::str::from_utf8(field).ok()?.to_owned();
        let stored: StoredPause = wire::read(text, wire::FIELD_MAX)?;
        let until = stored.until.min(now.saturating_add(PAUSES_KEPT));
        (until > now).then(|| Self {
            of,
            count: stored.count,
            until,
            why: words(&stored.why),
        })
    }
}

impl Nodes {
    /// Answers challenges of other nodes from now on.
    pub(crate) fn answer_challenges(&self, taker: Arc<dyn ChallengeTaker>) {
        self.turns.state.lock().taker = Some(taker);
    }

    /// Whether this node is one that may order certificates.
    pub(crate) fn takes_part_in_orders(&self, takes_part: bool) {
        self.turns.state.lock().takes_part = takes_part;
    }

    /// Who orders certificates now.
    pub(crate) fn ordering_node(&self) -> OrderingNode {
        let turn = self.time() / TURN;
        let state = self.turns.state.lock();
        match state.known.get(&turn) {
            Some(holder) if holder.run == self.run => OrderingNode::This,
            Some(holder) => OrderingNode::Other(holder.node.clone()),
            None => OrderingNode::Nobody,
        }
    }

    /// Whether the engine refuses to hold turns: then no node has one.
    pub(crate) fn turns_are_denied(&self) -> bool {
        self.turns.state.lock().is_denied
    }

    /// Whether the engine answers.
    pub(crate) fn has_joined(&self) -> bool {
        matches!(self.standing(), Standing::Joined { .. })
    }

    /// Notified when this node begins or ends to order.
    pub(crate) fn turns(&self) -> watch::Receiver<bool> {
        self.turns.ours.subscribe()
    }

    /// Looks whose turn it is, and takes the one that nobody has.
    pub(super) async fn look_at_turns(&self, engine: &Engine) -> Result<(), Failure> {
        let now = self.time();
        let (takes_part, held) = {
            let mut state = self.turns.state.lock();
            if state.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
                return Ok(());
            }
            state.looked = Some(Instant::now());
            let held = state.known.values().any(|holder| holder.run == self.run);
            (state.takes_part, held)
        };
        if !takes_part {
            return match held {
                true => self.give_turns_up(engine).await,
                false => Ok(()),
            };
        }
        let name = self.names().turns();
        let mut look = redis::pipe();
        look.cmd("HGETALL").arg(&name);
        let Some(answer) = self.unless_refused(engine.try_last(&look).await?) else {
            return Ok(());
        };
        let (mut known, old) = turns_of(wire::pairs(answer), now / TURN);
        if let Some(turn) = to_take(&known, &self.run, now) {
            let holder = TurnHolder {
                v: wire::VERSION,
                run: self.run.clone(),
                node: self.node.clone(),
            };
            let mut take = redis::pipe();
            if !old.is_empty() {
                take.cmd("HDEL").arg(&name).arg(&old);
            }
            take.cmd("HSETNX").arg(&name).arg(turn).arg(wire::text(&holder));
            take.cmd("EXPIRE").arg(&name).arg(TURNS_KEPT);
            take.cmd("HGETALL").arg(&name);
            let Some(answer) = self.unless_refused(engine.try_last(&take).await?) else {
                return Ok(());
            };
            known = turns_of(wire::pairs(answer), now / TURN).0;
        }
        {
            let mut state = self.turns.state.lock();
            (state.known, state.is_denied) = (known, false);
        }
        self.tell_turn();
        Ok(())
    }

    /// An engine that refuses the commands does all others.
    fn unless_refused(&self, answer: Result<Value, Failure>) -> Option<Value> {
        answer
            .inspect_err(|refusal| {
                let was_denied = std::mem::replace(&mut self.turns.state.lock().is_denied, true);
                if !was_denied {
                    log::warn!("shared_state: no node orders certificates by it, the engine refuses it: {refusal}");
                }
            })
            .ok()
    }

    fn tell_turn(&self) {
        let is_ours = self.ordering_node() == OrderingNode::This;
        self.turns
            .ours
            .send_if_modified(|ours| std::mem::replace(ours, is_ours) != is_ours);
    }

    /// The engine is away: what was written there may be gone, and another node may have this turn when it is back. What
    /// has failed there until then is taken over with the next turn of this node.
    pub(super) fn lose_turns(&self) {
        {
            let mut state = self.turns.state.lock();
            state.written = None;
            state.known.clear();
        }
        self.tell_turn();
    }

    /// Lets another node order at once.
    async fn give_turns_up(&self, engine: &Engine) -> Result<(), Failure> {
        let ours: Vec<u64> = {
            let mut state = self.turns.state.lock();
            let known = std::mem::take(&mut state.known).into_iter();
            known
                .filter(|(_, holder)| holder.run == self.run)
                .map(|(turn, _)| turn)
                .collect()
        };
        self.tell_turn();
        if ours.is_empty() {
            return Ok(());
        }
        let mut give = redis::pipe();
        give.cmd("HDEL").arg(self.names().turns()).arg(ours);
        engine.run(&give).await.map(drop)
    }

    /// This process orders no more.
    pub(crate) async fn order_no_more(&self) {
        self.takes_part_in_orders(false);
        let engine = self.state.lock().engine.clone();
        if let Some(engine) = engine {
            let _another_one_waits_for_its_turn = timeout(FAREWELL, self.give_turns_up(&engine)).await;
        }
    }

    /// Tells the other nodes of a challenge, and waits until they answer it. Returns those that do not, each with its
    /// reason.
    pub(crate) async fn share_challenge(&self, challenge: &SharedChallenge) -> Vec<(String, String)> {
        let Some(engine) = self.state.lock().engine.clone() else {
            return vec![("shared_state".to_owned(), "the engine does not answer".to_owned())];
        };
        let stored = StoredChallenge {
            v: wire::VERSION,
            run: self.run.clone(),
            kind: challenge.kind.clone(),
            name: challenge.name.clone(),
            account: challenge.account.clone(),
            until: self.time().saturating_add(CHALLENGE_LIFE - CLOCKS),
        };
        let name = self.names().challenges();
        let mut commands = redis::pipe();
        commands
            .cmd("HSET")
            .arg(&name)
            .arg(&challenge.token)
            .arg(wire::text(&stored));
        commands.cmd("EXPIRE").arg(&name).arg(CHALLENGE_LIFE / 1000);
        if let Err(failure) = engine.run(&commands).await {
            return vec![("shared_state".to_owned(), failure.to_string())];
        }
        let members = self.members().into_iter();
        let silent = members
            .filter(|member| member.silent.is_some())
            .map(|member| member.node);
        // No balancer sends anybody to one that has been silent for some time.
        let silent: Vec<String> = silent.collect();
        let said = self.order(None, CHALLENGES, &(), TOLD_WAIT).await.into_iter();
        let said = said.filter(|said| !silent.contains(&said.node));
        said.filter_map(|said| Some((said.node, said.answer.err()?))).collect()
    }

    /// A challenge is open no more. Other nodes hear of it when they look the next time.
    pub(crate) async fn end_challenge(&self, token: &str) {
        let engine = self.state.lock().engine.clone();
        if let Some(engine) = engine {
            let mut commands = redis::pipe();
            commands.cmd("HDEL").arg(self.names().challenges()).arg(token);
            let _it_ends_by_itself = engine.run(&commands).await;
        }
    }

    /// Reads the challenges of other nodes.
    ///
    /// # Errors
    /// The engine fails; inside, some cannot be answered here.
    pub(super) async fn read_challenges(&self, engine: &Engine) -> Result<Result<(), String>, Failure> {
        let Some(taker) = self.turns.state.lock().taker.clone() else {
            return Ok(Ok(()));
        };
        let _one_by_one = self.turns.reading.lock().await;
        let name = self.names().challenges();
        let mut commands = redis::pipe();
        commands.cmd("HGETALL").arg(&name);
        let answer = match engine.try_last(&commands).await? {
            Ok(answer) => answer,
            Err(refusal) => return Ok(Err(refusal.to_string())),
        };
        let (mut open, mut old, now) = (Vec::new(), Vec::new(), self.time());
        for (field, text) in wire::pairs(answer) {
            match StoredChallenge::read(&field, &text, now) {
                Some((run, _)) if run == self.run => {}
                Some((_, challenge)) => open.push(challenge),
                // Whoever wrote it takes it away, or the engine does, when nothing has been ordered for a while.
                None if wire::is_newer(&text, wire::FIELD_MAX) => {}
                None => old.push(field),
            }
        }
        // Those of a node that has died are older than those of the one that orders in its place.
        open.sort_by_key(|challenge| Reverse(challenge.left));
        open.truncate(CHALLENGES_MAX);
        if !old.is_empty() {
            let mut commands = redis::pipe();
            commands.cmd("HDEL").arg(&name).arg(old);
            engine.run(&commands).await?;
        }
        Ok(taker.take(open).await)
    }

    /// Keeps what has failed for the node that orders next, unless it stands there already, or was written less than
    /// `rest` ago.
    pub(crate) async fn keep_pauses(&self, mut pauses: Vec<SharedPause>, rest: Duration) {
        pauses.truncate(PAUSES_MAX);
        let engine = self.state.lock().engine.clone();
        let is_due = |state: &mut TurnState| {
            let rested = state.wrote.is_none_or(|wrote| wrote.elapsed() >= rest);
            let is_due = rested && state.written.as_ref() != Some(&pauses);
            if is_due {
                state.wrote = Some(Instant::now());
            }
            is_due
        };
        let Some(engine) = engine.filter(|_| is_due(&mut self.turns.state.lock())) else {
            return;
        };
        let name = self.names().pauses();
        let mut commands = redis::pipe();
        commands.atomic().cmd("DEL").arg(&name);
        for (field, text) in pauses.iter().map(SharedPause::stored) {
            commands.cmd("HSET").arg(&name).arg(field).arg(text);
        }
        commands.cmd("EXPIRE").arg(&name).arg(PAUSES_KEPT);
        if engine.run(&commands).await.is_ok() {
            self.turns.state.lock().written = Some(pauses);
        }
    }

    /// What has failed at the node that ordered before.
    pub(crate) async fn pauses(&self, now: i64) -> Vec<SharedPause> {
        self.turns.state.lock().written = None;
        let engine = self.state.lock().engine.clone();
        let Some(engine) = engine else {
            return Vec::new();
        };
        let mut commands = redis::pipe();
        commands.cmd("HGETALL").arg(self.names().pauses());
        let answer = engine.run(&commands).await.ok().and_then(|mut answers| answers.pop());
        let fields = wire::pairs(answer.unwrap_or(Value::Nil)).into_iter();
        let read = fields.take(PAUSES_MAX);
        read.filter_map(|(field, text)| SharedPause::read(&field, &text, now))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(run: &str) -> TurnHolder {
        TurnHolder {
            v: wire::VERSION,
            run: run.to_owned(),
            node: "proxy1.test".to_owned(),
        }
    }

    #[test]
    fn a_turn_is_taken_where_nobody_has_it() {
        let now = 7 * TURN;
        for (known, into, turn) in [
            (&[][..], 0, None),
            // Who had the turn before may be slow, and comes first.
            (&[], LATE - 1, None),
            (&[], LATE, Some(7)),
            (&[(7, "us")], 0, Some(8)),
            (&[(7, "us"), (8, "us")], 0, None),
            (&[(7, "us"), (8, "them")], 0, None),
            (&[(7, "them")], LATE, None),
            (&[(7, "them")], TURN - 1, None),
            // Nobody takes the next one from the side.
            (&[(8, "them")], LATE, Some(7)),
        ] {
            let known: BTreeMap<u64, TurnHolder> = known.iter().map(|(turn, run)| (*turn, holder(run))).collect();
            assert_eq!(to_take(&known, "us", now + into), turn, "{known:?} {into}");
        }
    }

    #[test]
    fn turns_that_are_over_or_nonsense_count_for_nothing() {
        let text = wire::text(&holder("us"));
        let fields =
            ["6", "7", "8", "9", "x", "18446744073709551616"].map(|turn| (turn.as_bytes().to_vec(), text.clone()));
        let broken = (b"8".to_vec(), b"{\"v\":1}".to_vec());
        let (known, old) = turns_of(fields.into_iter().chain([broken]).collect(), 7);
        assert_eq!(known.keys().copied().collect::<Vec<_>>(), [7, 8]);
        assert_eq!(old.len(), 5);
        let newer = [(b"7".to_vec(), b"{\"v\":2,\"who\":\"them\"}".to_vec())];
        let (known, old) = turns_of(newer.to_vec(), 7);
        assert_eq!((known[&7].node.as_str(), old.len()), (NEWER, 0));
        assert_eq!(to_take(&known, "us", 7 * TURN + LATE), None);
    }

    #[test]
    fn a_challenge_is_read_as_it_was_written_and_nothing_else_is() {
        let (now, token) = (1_000_000, "a-token_1");
        let stored = |until: u64| StoredChallenge {
            v: wire::VERSION,
            run: "us".to_owned(),
            kind: "http-01".to_owned(),
            name: "a.test".to_owned(),
            account: "thumbprint".to_owned(),
            until,
        };
        let good = wire::text(&stored(now + 1000));
        let (run, challenge) = StoredChallenge::read(token.as_bytes(), &good, now).unwrap();
        assert_eq!(
            (run.as_str(), challenge.token.as_str(), challenge.left.as_secs()),
            ("us", token, 1)
        );
        let text = String::from_utf8(good).unwrap();
        for (token, text) in [
            ("../x", text.clone()),
            ("", text.clone()),
            (token, text.replace("\"v\":1", "\"v\":2")),
            (token, text.replace("a.test", "a\\n.test")),
            (token, text.replace("a.test", &"a".repeat(5_000))),
            (token, String::from_utf8(wire::text(&stored(now))).unwrap()),
            (
                token,
                String::from_utf8(wire::text(&stored(now + CHALLENGE_LIFE + 1))).unwrap(),
            ),
            (token, String::from_utf8(wire::text(&stored(u64::MAX))).unwrap()),
        ] {
            assert!(
                StoredChallenge::read(token.as_bytes(), text.as_bytes(), now).is_none(),
                "{text}"
            );
        }
    }

    #[test]
    fn no_pause_is_believed_that_lasts_longer_than_a_day() {
        let pause = |until: i64| SharedPause {
            of: "a.test".to_owned(),
            count: 3,
            until,
            why: "rateLimited".to_owned(),
        };
        for (until, read) in [(100, None), (101, Some(101)), (i64::MAX, Some(100 + PAUSES_KEPT))] {
            let (field, text) = pause(until).stored();
            let found = SharedPause::read(field.as_bytes(), &text, 100);
            assert_eq!(found, read.map(pause), "{until}");
        }
    }
}
