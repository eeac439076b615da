//! What the nodes of one mail system know of each other, and how they act together: by an engine that all reach, Valkey
//! or Redis (docs/several-nodes.md, docs/adr/0021-nodes-share-an-engine.md).
//!
//! Nothing here is in the way of a login. What comes from other nodes is kept in memory when it comes; what goes to them
//! is left in memory for the task that speaks with the engine (`link`). While the engine is away each node goes on
//! alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use jiff::Timestamp;
use mail_proxy::throttle::Throttle;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{sleep_until, timeout};

use crate::config::SharedStateConfig;
use crate::node::limits::NodeLimits;
use crate::tls::ticket_keys::TicketKeys;
use crate::upstream::dns::DnsCache;

mod certificates;
mod elsewhere;
mod engine;
mod guesses;
mod link;
mod members;
mod replicas;
mod sessions;
mod standing;
mod tickets;
mod wire;

use certificates::CertificateTurns;
pub(crate) use certificates::{AUTHORITY, ChallengeTaker, OrderingNode, SharedChallenge, SharedPause};
use elsewhere::OtherSessions;
use engine::{Engine, EngineDialer, Failure};
use guesses::{Guesses, Listening};
use members::NodeList;
pub(crate) use members::PeerNode;
use replicas::SessionTeller;
use sessions::OwnSessions;
use standing::StandingOrders;
pub(crate) use standing::{Kind, StandingOrder};
pub(crate) use wire::NodeDuty;
use wire::{Names, Order, Reply};

/// How long answers of other nodes are waited for.
pub(crate) const ANSWERS: Duration = Duration::from_secs(2);
/// Orders of this node that wait for answers at one time.
const MOST_ASKED: usize = 64;
/// Orders of other nodes that are carried out at one time.
const MOST_AT_ONCE: usize = 16;
/// The same of those that take long, most of them because they wait for something: they must not take the places of the
/// others. A kind that any reader may cause has a smaller limit of its own.
const MOST_LONG: usize = 64;
/// How long one may take. Its node has heard before that that there is no answer yet.
const LONGEST_ACT: Duration = Duration::from_secs(60);
/// At the end of the process the engine gets this long to take the node off the list.
const FAREWELL: Duration = Duration::from_millis(500);

/// What this node says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SelfReport {
    /// What it does.
    pub state: NodeDuty,
    /// Number of the configuration in force.
    pub generation: u64,
    /// Logged-in sessions.
    pub sessions: u64,
}

/// This node, as far as others may order it about.
#[async_trait]
pub(crate) trait Local: Send + Sync {
    /// What it says of itself.
    fn report(&self) -> SelfReport;

    /// Carries out an order of another node, whose name is `from`.
    ///
    /// # Errors
    /// Why it is not carried out, in words for the administrator there.
    async fn act(&self, from: &str, verb: &str, body: Value) -> Result<Value, String>;

    /// Whether such an order takes long, as one does that waits for something.
    fn is_long(&self, verb: &str) -> bool;

    /// What stands on this node.
    fn standing(&self) -> Vec<StandingOrder>;

    /// Does what was ordered while this node was not there.
    async fn adopt(&self, orders: Vec<StandingOrder>);
}

/// What counts over all nodes, and what they share.
pub(crate) struct Counting {
    /// Sessions.
    pub limits: Arc<NodeLimits>,
    /// Failed logins.
    pub throttle: Arc<Throttle>,
    /// Up to when it knows what has counted.
    pub remembered: SystemTime,
    /// The keys of TLS session tickets.
    pub tickets: Arc<TicketKeys>,
}

/// How this node stands with the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has answered.
    Joined {
        /// Where it is.
        engine: String,
        /// Since when.
        since: Timestamp,
    },
    /// It does not answer: this node goes on alone.
    Alone {
        /// Why.
        why: String,
        /// Since when.
        since: Timestamp,
    },
}

/// Why a node is not taken off the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForgetError {
    /// It is not on it.
    #[error("no node {0} is known")]
    Unknown(String),
    /// It is there.
    #[error("{0} is there: only a node that is silent can be forgotten")]
    Awake(String),
    /// The list cannot be changed.
    #[error("the engine of shared_state: {0}")]
    Engine(String),
}

/// What a node has said to an order, or why it has not.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Said {
    /// The node.
    pub node: String,
    /// Its answer; else what went wrong.
    pub answer: Result<Value, String>,
}

/// The engine's time, and when it said so.
#[derive(Debug, Clone, Copy)]
struct Clock {
    engine: u64,
    heard: Instant,
}

impl Clock {
    fn now(self) -> u64 {
        let since = u64::try_from(self.heard.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.engine.saturating_add(since)
    }

    /// How many milliseconds the clock of this machine is ahead of it.
    fn ahead(self) -> i64 {
        millis(SystemTime::now()).wrapping_sub(self.now()).cast_signed()
    }
}

struct State {
    engine: Option<Arc<Engine>>,
    with_engine: Standing,
    clock: Clock,
    /// The log has said that the clock of this machine is wrong, or the engine's.
    skewed: bool,
    members: NodeList,
    standing: StandingOrders,
    /// The mail sessions of the other nodes.
    elsewhere: OtherSessions,
}

/// This node among the others.
pub(crate) struct Nodes {
    /// The number of this process.
    run: String,
    node: String,
    version: &'static str,
    since: u64,
    dialer: EngineDialer,
    state: Mutex<State>,
    /// Orders of this node that wait for answers.
    asked: Mutex<HashMap<String, mpsc::Sender<Reply>>>,
    acting: Arc<Semaphore>,
    acting_long: Arc<Semaphore>,
    /// The limits of this node, which count sessions of the others, too.
    limits: Arc<NodeLimits>,
    /// The mail sessions of this node.
    own: Mutex<OwnSessions>,
    /// What failed logins count, here and elsewhere.
    throttle: Arc<Throttle>,
    guesses: Mutex<Guesses>,
    /// The keys of TLS session tickets, of this node and of all.
    tickets: Arc<TicketKeys>,
    /// Whether the engine refuses to hold them.
    tickets_denied: AtomicBool,
    /// Who orders certificates.
    turns: CertificateTurns,
    /// There is something to tell.
    news: Notify,
    failures: AtomicU64,
    /// Texts that were not what they should be.
    unfit: AtomicU64,
}

impl Nodes {
    /// A node that has not looked for the others yet.
    ///
    /// # Errors
    /// The file of authorities cannot be used.
    pub(crate) fn new(
        config: SharedStateConfig,
        node: &str,
        version: &'static str,
        dns: Arc<DnsCache>,
        counting: Counting,
    ) -> anyhow::Result<Arc<Self>> {
        let trust = config.trust()?;
        let since = millis(SystemTime::now());
        let state = State {
            engine: None,
            with_engine: Standing::Alone {
                why: "it has not answered yet".to_owned(),
                since: Timestamp::now(),
            },
            clock: Clock {
                engine: since,
                heard: Instant::now(),
            },
            skewed: false,
            members: NodeList::default(),
            standing: StandingOrders::default(),
            elsewhere: OtherSessions::default(),
        };
        let nodes = Arc::new(Self {
            run: new_id(),
            node: node.to_owned(),
            version,
            since,
            dialer: EngineDialer { config, trust, dns },
            state: Mutex::new(state),
            asked: Mutex::default(),
            acting: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            acting_long: Arc::new(Semaphore::new(MOST_LONG)),
            limits: counting.limits,
            own: Mutex::default(),
            throttle: counting.throttle,
            guesses: Mutex::new(Guesses::new(millis(counting.remembered))),
            tickets: counting.tickets,
            tickets_denied: AtomicBool::new(false),
            turns: CertificateTurns::default(),
            news: Notify::new(),
            failures: AtomicU64::new(0),
            unfit: AtomicU64::new(0),
        });
        nodes.limits.watch(Arc::new(SessionTeller(Arc::downgrade(&nodes))));
        nodes.throttle.listen(Arc::new(Listening(Arc::downgrade(&nodes))));
        Ok(nodes)
    }

    /// The throttle knows of failed logins up to then; what others have told since is asked for.
    pub(crate) fn remembers(&self, until: SystemTime) {
        self.guesses.lock().remembers(millis(until));
    }

    /// How this node stands with the engine.
    pub(crate) fn standing(&self) -> Standing {
        self.state.lock().with_engine.clone()
    }

    /// All nodes as they were last seen, by name, this one included.
    pub(crate) fn members(&self) -> Vec<PeerNode> {
        let state = self.state.lock();
        state.members.list(state.clock.now())
    }

    /// The time of the engine, by which all nodes go, in milliseconds since 1970.
    pub(crate) fn time(&self) -> u64 {
        self.state.lock().clock.now()
    }

    /// How many milliseconds the clock of this machine is ahead of the engine's; `None` while it does not answer.
    pub(crate) fn clock_ahead(&self) -> Option<i64> {
        let state = self.state.lock();
        matches!(state.with_engine, Standing::Joined { .. }).then(|| state.clock.ahead())
    }

    /// The name of this node.
    pub(crate) fn name(&self) -> &str {
        &self.node
    }

    /// Whether this is the process that asks.
    pub(crate) fn is_this(&self, member: &PeerNode) -> bool {
        member.run == self.run
    }

    /// Something stands on all nodes from now on, or has ended. This only writes it down for those that join later.
    pub(crate) fn note(&self, order: StandingOrder) {
        let mut state = self.state.lock();
        let (now, ahead) = (state.clock.now(), state.clock.ahead());
        state.standing.note(order.shifted(ahead.saturating_neg()), now);
    }

    /// How often the engine has failed, and how many texts were not what they should be.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (
            self.failures.load(Ordering::Relaxed),
            self.unfit.load(Ordering::Relaxed),
        )
    }

    /// Orders all other nodes to do something, or the one with this name. Returns what each has said, or that it has
    /// not: every node that is known is named. Empty: there is no other node.
    pub(crate) async fn order<B: Serialize + Sync>(
        &self,
        to: Option<&str>,
        verb: &str,
        body: &B,
        wait: Duration,
    ) -> Vec<Said> {
        let meant = |member: &PeerNode| !self.is_this(member) && to.is_none_or(|to| to == member.node);
        let (silent, awake): (Vec<PeerNode>, Vec<PeerNode>) = self
            .members()
            .into_iter()
            .filter(meant)
            .partition(|member| member.silent.is_some());
        let mut said: Vec<Said> = silent.into_iter().map(Said::silent).collect();
        if !awake.is_empty() {
            said.extend(self.order_awake(awake, to, verb, body, wait).await);
        }
        said.sort_by(|one, other| one.node.cmp(&other.node));
        said
    }

    async fn order_awake<B: Serialize + Sync>(
        &self,
        awake: Vec<PeerNode>,
        to: Option<&str>,
        verb: &str,
        body: &B,
        wait: Duration,
    ) -> Vec<Said> {
        let all_failed = |why: &str| awake.iter().map(|member| Said::failed(member, why)).collect();
        let (Some(engine), Ok(body)) = (self.state.lock().engine.clone(), serde_json::to_value(body)) else {
            return all_failed("the engine of shared_state does not answer");
        };
        let Some((id, mut replies)) = self.expect(awake.len()) else {
            return all_failed("too many orders wait for answers already");
        };
        let deadline = tokio::time::Instant::now() + wait;
        let at = self.state.lock().clock.now();
        let order = Order::new((&id.0, at), (&self.run, &self.node), to, verb, body);
        if let Err(failure) = self.publish(&engine, &self.names().orders(), &order).await {
            return all_failed(&format!("the engine of shared_state: {failure}"));
        }
        let mut answers: HashMap<String, Result<Value, String>> = HashMap::new();
        while awake.iter().any(|member| !answers.contains_key(&member.run)) {
            tokio::select! {
                reply = replies.recv() => match reply {
                    Some(reply) if awake.iter().any(|member| member.run == reply.from) => {
                        answers.entry(reply.from).or_insert(reply.answer);
                    }
                    Some(_) => {}
                    None => break,
                },
                () = sleep_until(deadline) => break,
            }
        }
        let late = || Err(format!("no answer within {} ms", wait.as_millis()));
        let said = |member: PeerNode| Said {
            answer: answers.remove(&member.run).unwrap_or_else(late),
            node: member.node,
        };
        awake.into_iter().map(said).collect()
    }

    /// A place for the answers to an order.
    fn expect(&self, count: usize) -> Option<(Expected<'_>, mpsc::Receiver<Reply>)> {
        let mut asked = self.asked.lock();
        if asked.len() >= MOST_ASKED {
            return None;
        }
        let (sender, replies) = mpsc::channel(count.saturating_mul(2));
        let id = new_id();
        asked.insert(id.clone(), sender);
        Some((Expected(id, self), replies))
    }

    async fn publish(&self, engine: &Engine, channel: &str, said: &impl Serialize) -> Result<(), Failure> {
        let text = wire::text(said);
        if text.len() > wire::MESSAGE_MAX {
            return Err(Failure("the message is too long".to_owned()));
        }
        let mut commands = redis::pipe();
        commands.cmd("PUBLISH").arg(channel).arg(text);
        engine.run(&commands).await.map(drop)
    }

    /// Takes a node that is gone for good off the list: nobody waits for it or names it any more. One that comes back is
    /// on the list again with its next word.
    ///
    /// # Errors
    /// It is not known, not silent, or the engine does not answer.
    pub(crate) async fn forget(&self, node: &str) -> Result<(), ForgetError> {
        let (engine, mut meant) = {
            let state = self.state.lock();
            (state.engine.clone(), state.members.list(state.clock.now()))
        };
        meant.retain(|member| member.node == node);
        if meant.is_empty() {
            return Err(ForgetError::Unknown(node.to_owned()));
        }
        if meant.iter().any(|member| member.silent.is_none()) {
            return Err(ForgetError::Awake(node.to_owned()));
        }
        let engine = engine.ok_or_else(|| ForgetError::Engine("it does not answer".to_owned()))?;
        let runs: Vec<&str> = meant.iter().map(|member| member.run.as_str()).collect();
        let mut commands = redis::pipe();
        commands.cmd("HDEL").arg(self.names().nodes()).arg(&runs);
        let forgotten = engine.run(&commands).await;
        forgotten.map_err(|failure| ForgetError::Engine(failure.to_string()))?;
        self.state.lock().members.forget(&runs);
        Ok(())
    }

    fn names(&self) -> Names<'_> {
        Names(&self.dialer.config.prefix)
    }

    /// Takes the node off the list, at the end of the process.
    pub(crate) async fn leave(&self) {
        let engine = self.state.lock().engine.take();
        if let Some(engine) = engine {
            let mut commands = redis::pipe();
            commands.cmd("HDEL").arg(self.names().nodes()).arg(&self.run);
            commands.cmd("DEL").arg(self.names().sessions(&self.run));
            let _it_goes_by_itself = timeout(FAREWELL, engine.run(&commands)).await;
        }
    }
}

/// A place for answers, given up when it is dropped.
struct Expected<'a>(String, &'a Nodes);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.1.asked.lock().remove(&self.0);
    }
}

impl Said {
    fn silent(member: PeerNode) -> Self {
        let silent = member.silent.unwrap_or_default().as_secs();
        Self {
            node: member.node,
            answer: Err(format!("it has said nothing for {silent} s")),
        }
    }

    fn failed(member: &PeerNode, why: &str) -> Self {
        Self {
            node: member.node.clone(),
            answer: Err(why.to_owned()),
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn new_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}
