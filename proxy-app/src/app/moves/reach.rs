//! What a move asks of the nodes: that nobody gets in, that nobody is in any more, that the new route is known. It is
//! asked of this node and, with `shared_state`, of every other one at the same time; none is passed over in silence.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mail_directory::Touched;
use mail_proxy::CloseReason;
use route_cache::{Held, Hold, Lookup, Service, Subject, Tier};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};
use utoipa::ToSchema;

use crate::app::App;
use crate::app::moves::rivals::MoveClaim;
use crate::app::moves::{MoveScope, Unfinished};
use crate::nodes::{ANSWERS, Nodes, Said, Standing, StandingOrder};

/// How long a node may leave a question unanswered that was not silent before: a busy machine is no reason to undo.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest reason that a node takes, in bytes.
const TEXT_MAX: usize = 512;
/// Bytes of names in one question to a node: with its form around them they fit into a request.
const NAMES_MAX: usize = 32 * 1024;
/// How often it is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// How many sessions of an account have not ended yet.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SessionsLeft {
    /// Sessions, and logins under way.
    pub left: usize,
}

/// How many sessions accounts have on a node.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SessionsThere {
    /// By account; one without any is left out.
    pub sessions: HashMap<String, usize>,
}

/// Whether an account goes to a server.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct RouteConfirmed {
    /// Whether it does.
    pub goes: bool,
    /// Why not.
    pub why_not: Option<String>,
}

/// The nodes.
pub(super) struct MoveReach {
    app: Arc<App>,
    scope: MoveScope,
    /// Who has ordered it; the other nodes record it.
    by: String,
}

/// How the nodes are asked for the end of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urge {
    /// For the first time.
    First,
    /// Until none is left.
    Again,
    /// Without waiting for their last commands.
    Now,
}

/// How far the new route is known.
pub(super) struct Confirmation {
    /// Why a node that has answered does not go to the new server.
    pub why_not: Option<String>,
    /// Nodes that have not answered, each with the reason.
    pub missing: Vec<String>,
}

impl MoveReach {
    pub(super) fn new(app: Arc<App>, scope: MoveScope, by: String) -> Self {
        Self { app, scope, by }
    }

    /// Whether its move may begin.
    ///
    /// # Errors
    /// Another node moves the account; somebody holds it already, and that hold must not end with the move; or a node
    /// has been silent for too long to be asked.
    pub(super) fn may_begin(&self, claim: &Unfinished) -> Result<(), String> {
        if let Some(why) = self.rival(claim) {
            return Err(why);
        }
        match self.is_held(&claim.account) {
            true => Err("it is held already: release it first".to_owned()),
            false => self.long_silent().map_or(Ok(()), Err),
        }
    }

    /// New logins of the account wait: here at once, and on every other node.
    ///
    /// # Errors
    /// A node does not do it, or does not answer; or it moves the account itself, and began before.
    pub(super) async fn hold(&self, claim: &Unfinished, reason: &str, lasts: Duration) -> Result<(), String> {
        if let Some(why) = self.rival(claim) {
            return Err(why);
        }
        let account = claim.account.as_str();
        let since = SystemTime::now();
        let reason = shortened(reason);
        let hold = Hold {
            held: Held::Account(account.to_owned()),
            reason: reason.clone(),
            since,
            until: since + lasts,
        };
        self.note(&hold, false);
        self.app.routes.holds().begin(hold).map_err(|error| error.to_string())?;
        let order = json!({"account": account, "exact": true, "seconds": lasts.as_secs().max(1), "reason": reason,
            "by": self.by, "move_since": claim.since});
        let ask = || self.ask::<serde_json::Value>("POST /v1/holds?", order.clone());
        self.patiently(claim, ask).await.map(drop)
    }

    /// Whether they still do.
    pub(super) fn is_held(&self, account: &str) -> bool {
        self.held_for(account).is_some()
    }

    /// For how long they will, by what this node knows.
    pub(super) fn held_for(&self, account: &str) -> Option<Duration> {
        let holds = self.app.routes.holds().all();
        let hold = holds
            .iter()
            .find(|hold| hold.held == Held::Account(account.to_owned()))?;
        Some(hold.until.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// They go on, unless a move of another node holds them. A node that does not hear of it now does when it joins
    /// again.
    pub(super) async fn release(&self, claim: &Unfinished) {
        if self.rival(claim).is_some() {
            return;
        }
        let account = claim.account.as_str();
        if let Some(hold) = self.app.routes.holds().release(&Held::Account(account.to_owned())) {
            self.note(&hold, true);
        }
        let order = json!({"account": account, "exact": true, "by": self.by, "move_since": claim.since});
        let said = self.ask_all("POST /v1/holds/release?", order).await;
        for said in said.unwrap_or_default() {
            if let Err(why) = said.answer {
                log::warn!("{account} is released, but not by {}: {why}", said.node);
            }
        }
    }

    /// Has the sessions of an account end on every node, and returns how many there are; logins that are past the hold
    /// count, and end as sessions do.
    ///
    /// # Errors
    /// A node does not answer.
    pub(super) async fn kick(&self, claim: &Unfinished, urge: Urge) -> Result<usize, String> {
        let account = claim.account.as_str();
        let now = urge == Urge::Now;
        let here = self.app.end_sessions_of(account, now);
        let order = json!({"account": account, "now": now, "again": urge != Urge::First, "by": self.by});
        let ask = || self.ask::<SessionsLeft>("POST /v1/sessions/end?", order.clone());
        let there = self.patiently(claim, ask).await?;
        let left = there.iter().map(|(_, there)| there.left);
        Ok(left.fold(here, usize::saturating_add))
    }

    /// Has every node look at the directory, and says whether all send the account to this server now. `round`: how
    /// often that was asked before.
    pub(super) async fn goes_to(&self, account: &str, server: &str, round: usize) -> Confirmation {
        let order = json!({"account": account, "server": server, "again": round > 0, "by": self.by});
        let (here, there) = tokio::join!(
            self.app.goes_to(account, server),
            self.ask_all("POST /v1/routes/confirm?", order)
        );
        let mut found = Confirmation {
            why_not: here.err(),
            missing: Vec::new(),
        };
        for said in there.unwrap_or_else(|why| vec![why]) {
            let node = said.node.clone();
            match read::<RouteConfirmed>(said) {
                Ok((_, confirmed)) if confirmed.goes => {}
                Ok((_, confirmed)) => {
                    let why = confirmed.why_not.unwrap_or_default();
                    found.why_not.get_or_insert(format!("{node}: {why}"));
                }
                Err(why) => found.missing.push(why),
            }
        }
        found
    }

    /// The other nodes that are asked; `None`: there are none.
    fn others(&self) -> Option<&Nodes> {
        self.app.nodes.as_deref().filter(|_| !self.scope.local)
    }

    fn note(&self, hold: &Hold, over: bool) {
        if let Some(nodes) = self.others() {
            let mut order = StandingOrder::of_hold(hold);
            order.over = over;
            nodes.note(order);
        }
    }

    /// A node that was asked in vain for so long already that it need not be asked.
    fn long_silent(&self) -> Option<String> {
        let nodes = self.others()?;
        if matches!(nodes.standing(), Standing::Alone { .. }) {
            // Nobody is heard of then; who asks them is told why.
            return None;
        }
        let gone = nodes.members().into_iter().find(|member| {
            let silent = member.silent.is_some_and(|silent| silent > PATIENCE);
            silent && !nodes.is_this(member) && !self.scope.without.contains(&member.node)
        })?;
        let silent = gone.silent.unwrap_or_default().as_secs();
        Some(format!("{}: it has said nothing for {silent} s", gone.node))
    }

    /// Why this move does not go on, if another node's does.
    fn rival(&self, claim: &Unfinished) -> Option<String> {
        let own = MoveClaim {
            since: claim.since,
            node: self.app.config.load().node.clone(),
        };
        self.app.moves.rival(&claim.account, &own)
    }

    /// Asks until every node has answered, or one has not for too long, or another move of the account goes on.
    async fn patiently<T, F>(&self, claim: &Unfinished, ask: impl Fn() -> F) -> Result<T, String>
    where
        F: Future<Output = Result<T, String>>,
    {
        let end = Instant::now() + PATIENCE;
        loop {
            match ask().await {
                Err(_) if Instant::now() < end => match self.rival(claim) {
                    Some(why) => return Err(why),
                    None => sleep(ASK_AGAIN).await,
                },
                answered => return answered,
            }
        }
    }

    /// What every other node has answered.
    async fn ask<T: DeserializeOwned>(&self, verb: &str, body: serde_json::Value) -> Result<Vec<(String, T)>, String> {
        let said = self.ask_all(verb, body).await;
        let said = said.map_err(|away| read::<T>(away).err().unwrap_or_default())?;
        said.into_iter().map(read).collect()
    }

    /// What every other node has said. Fails as a whole where none can be asked.
    async fn ask_all(&self, verb: &str, body: serde_json::Value) -> Result<Vec<Said>, Said> {
        let Some(nodes) = self.others() else {
            return Ok(Vec::new());
        };
        if let Standing::Alone { why, .. } = nodes.standing() {
            return Err(Said {
                node: "the other nodes".to_owned(),
                answer: Err(format!("shared_state is away: {why}")),
            });
        }
        let mut said = nodes.order(None, verb, &body, ANSWERS).await;
        said.retain(|said| !self.scope.without.contains(&said.node));
        Ok(said)
    }
}

/// The accounts in portions that fit into a request each.
fn portions(accounts: &[String]) -> Vec<Vec<&String>> {
    let (mut portions, mut size) = (vec![Vec::new()], 0);
    for account in accounts {
        // A name in JSON takes at most six bytes for one.
        let bytes = 6 * account.len() + 3;
        if size + bytes > NAMES_MAX {
            portions.push(Vec::new());
            size = 0;
        }
        size += bytes;
        portions
            .iter_mut()
            .last()
            .into_iter()
            .for_each(|last| last.push(account));
    }
    portions
}

/// As much of it as other nodes take.
fn shortened(reason: &str) -> String {
    let fits = reason
        .char_indices()
        .take_while(|(at, c)| at + c.len_utf8() <= TEXT_MAX);
    fits.map(|(_, c)| c).collect()
}

/// A node with its answer; else a sentence that names it.
fn read<T: DeserializeOwned>(said: Said) -> Result<(String, T), String> {
    let Said { node, answer } = said;
    let named = |why: String| format!("{node}: {why}");
    match answer.map_err(named)? {
        serde_json::Value::Null => Err(named("it does not know the account".to_owned())),
        answer => {
            let answer = serde_json::from_value(answer).map_err(|error| named(error.to_string()))?;
            Ok((node, answer))
        }
    }
}

impl App {
    /// How many sessions these accounts have on all nodes of a scope, and which nodes do not say it, with the reason.
    pub(crate) async fn sessions_on_all_nodes(
        self: &Arc<Self>,
        accounts: &[String],
        scope: MoveScope,
    ) -> (HashMap<String, usize>, Vec<String>) {
        let reach = self.reach(scope, "a dry run");
        let mut counts = self
            .sessions
            .counts_of(&accounts.iter().cloned().collect::<HashSet<_>>());
        let mut missing = Vec::new();
        for portion in portions(accounts) {
            let said = reach
                .ask_all("POST /v1/sessions/count?", json!({ "accounts": portion }))
                .await;
            for said in said.unwrap_or_else(|away| vec![away]) {
                match read::<SessionsThere>(said) {
                    Ok((_, there)) => {
                        let sessions = there.sessions.into_iter();
                        sessions.for_each(|(account, count)| *counts.entry(account).or_default() += count);
                    }
                    Err(why) => missing.push(why),
                }
            }
            if !missing.is_empty() {
                // Asked again for the next portion it would be waited for again.
                break;
            }
        }
        (counts, missing)
    }

    /// Has the sessions of an account on this node end, and returns how many there are, with logins under way.
    pub(crate) fn end_sessions_of(&self, account: &str, now: bool) -> usize {
        let [sessions, logins] = self.sessions.of_account(account);
        for session in &sessions {
            session
                .facts
                .handle
                .end(if now { CloseReason::Kick } else { CloseReason::Moved });
        }
        if now {
            logins
                .iter()
                .for_each(|login| login.facts.handle.end(CloseReason::Kick));
        }
        sessions.len() + logins.len()
    }

    /// Looks at the directory, and says whether this node sends the account to this server now.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) async fn goes_to(self: &Arc<Self>, account: &str, server: &str) -> Result<(), String> {
        // Whatever becomes of this: nobody gets in by what was known before.
        self.forget_account(account);
        let looked = self.look_at_directory().await;
        self.forget_account(account);
        let route = match self.routes.ask_again(&imap_of(account), Duration::ZERO).await {
            Some(route) => route,
            None => self.routes.route(&imap_of(account)).await,
        };
        match (route, looked) {
            (Ok(route), _) if route.tier == Tier::Directory && route.server.eq_ignore_ascii_case(server) => Ok(()),
            (_, Err(problems)) => Err(problems.first_error()),
            (Ok(route), Ok(())) => Err(format!("the directory still says {}", route.server)),
            (Err(error), Ok(())) => Err(error.to_string()),
        }
    }

    /// The directory is asked at the next login of an account.
    pub(crate) fn forget_account(&self, account: &str) {
        let touched = Touched {
            names: vec![account.to_owned()],
            ids: Vec::new(),
        };
        self.routes.forget_accounts(&[touched]);
    }
}

/// The account, as nobody in particular asks for it.
pub(super) fn imap_of(account: &str) -> Lookup {
    let nobody = Ipv4Addr::UNSPECIFIED.into();
    Lookup {
        subject: Subject::Login(account.to_owned()),
        service: Service::Imap,
        client: nobody,
        local: nobody,
        host: None,
    }
}
