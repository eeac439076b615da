//! The move of one account: hold, end its sessions, copy, change the directory, wait until the nodes have it, release.
//!
//! Until the directory is changed every step can be undone, and is when a later one fails. From then on there is only
//! the way forward.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mail_directory::edit::{EditError, EntryKind, Swap};
use mail_directory::{Entry, attributes as a, names};
use tokio::time::{Instant, sleep};

use crate::app::App;
use crate::app::moves::reach::{MoveReach, Urge, imap_of};
use crate::app::moves::{MoveJob, Step, Unfinished};
use crate::config::Source;
use crate::provision::SharedNames;
use crate::provision::change::CheckedEditor;

/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(50);
/// How long sessions may end by themselves: longer than their last commands may take.
const LAST_COMMANDS: Duration = Duration::from_secs(8);
/// The same where the directory has to answer.
const ASK: Duration = Duration::from_secs(1);
/// How long the hold goes on from here where the directory does not say what has become of a change.
const UNSURE: Duration = Duration::from_secs(60);
/// How long the directory must say the old server before a change without an answer counts as not made: it may still
/// lie in the queue of a server that was slow, whose next answer comes before it.
const QUEUED: Duration = Duration::from_secs(5);
/// How long a node may leave unanswered whether it has the new route. It holds the account itself, and asks the
/// directory before it lets it in.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);
/// Where its mail is delivered: Zimbra changes it with the server.
const TRANSPORT: &str = "zimbraMailTransport";

/// How a move has ended.
pub(super) struct Ended {
    pub(super) step: Step,
    why: Option<String>,
}

impl Ended {
    pub(super) fn as_planned(step: Step) -> Self {
        Self { step, why: None }
    }

    /// As the log says it.
    pub(super) fn said(&self) -> String {
        let why = self.why.as_ref().map(|why| format!(": {why}"));
        format!("{}{}", self.step.name(), why.unwrap_or_default())
    }
}

impl App {
    /// Moves an account of an order.
    pub(super) async fn move_account(self: &Arc<Self>, job: &MoveJob, at: usize) {
        let begun = Instant::now();
        let ended = self.moved(job, at).await.unwrap_or_else(|why| Ended {
            step: Step::Undone,
            why: Some(why),
        });
        self.say(job, at, &ended.said());
        job.note(at, |one| {
            (one.step, one.why, one.took) = (ended.step, ended.why, Some(begun.elapsed()));
        });
    }

    async fn moved(self: &Arc<Self>, job: &MoveJob, at: usize) -> Result<Ended, String> {
        let order = &job.order;
        let entry = self.entry(&order.accounts[at]).await?;
        let entry = entry.ok_or("there is no such account")?;
        let account = names::account(entry.first(a::MAIL_DELIVERY_ADDRESS.name).unwrap_or(entry.name()));
        let attribute = self.mail_host_attribute();
        let from = entry
            .first(&attribute)
            .ok_or("the directory says no server of it")?
            .to_owned();
        job.note(at, |one| (one.account, one.from) = (account.clone(), from.clone()));
        if self.is_same_server(&from, &order.to) {
            return Ok(Ended::as_planned(Step::There));
        }
        let route = self.routes.route(&imap_of(&account)).await;
        if route.is_ok_and(|route| route.external) {
            return Err("its route leads to an external server".to_owned());
        }
        let claim = Unfinished {
            account: account.clone(),
            from,
            to: order.to.clone(),
            changing: false,
            scope: order.scope.clone(),
            since: self.nodes.as_ref().map_or_else(now, |nodes| nodes.time()),
        };
        if !self.moves.claim(claim.clone()) {
            return Err("another move of it is under way".to_owned());
        }
        let reach = self.reach(order.scope.clone(), &order.who);
        if let Err(why) = reach.may_begin(&claim) {
            self.moves.ended(&account);
            return Err(why);
        }
        let ended = self.with_hold(job, at, &entry, (&reach, &claim)).await;
        let step = ended.as_ref().map_or(Step::Undone, |ended| ended.step);
        self.end_move(&reach, &claim, step).await;
        ended
    }

    /// Everything while it is held.
    async fn with_hold(
        self: &Arc<Self>,
        job: &MoveJob,
        at: usize,
        entry: &Entry,
        (reach, claim): (&MoveReach, &Unfinished),
    ) -> Result<Ended, String> {
        let order = &job.order;
        let reason = format!("moves to {}: {}", order.to, order.reason);
        // Whoever goes on after this process knows that there may be a hold.
        self.keep_state().await;
        reach.hold(claim, &reason, order.lasts).await?;
        let end = Instant::now() + order.lasts;
        self.keep_state().await;
        job.note(at, |one| one.step = Step::Held);
        self.say(job, at, &format!("held: {}", order.reason));
        self.end_sessions(job, at, (reach, claim), end).await?;
        if let Some(copy) = &order.copy {
            job.note(at, |one| one.step = Step::Copying);
            self.say(job, at, "the mail is copied");
            copy.run(&claim.account, &claim.from, &claim.to).await?;
        }
        // Somebody may have released it, or the copy has taken too long.
        if !reach.is_held(&claim.account) || Instant::now() >= end {
            return Err("its hold has ended before the directory was changed".to_owned());
        }
        self.end_sessions(job, at, (reach, claim), end).await?;
        job.note(at, |one| one.step = Step::Changing);
        self.moves.is_changing(&claim.account);
        self.keep_state().await;
        match self.change_server(entry, claim).await {
            Ok(()) => Ok(self.confirmed(reach, claim, order.lasts).await),
            Err(error) => match self.settle(reach, claim, self.may_follow(&error)).await {
                undone if undone.step == Step::Undone => Err(error.to_string()),
                completed => Ok(completed),
            },
        }
    }

    /// Ends its sessions until there is none, nor a login under way.
    async fn end_sessions(
        self: &Arc<Self>,
        job: &MoveJob,
        at: usize,
        (reach, claim): (&MoveReach, &Unfinished),
        end: Instant,
    ) -> Result<(), String> {
        let (begun, mut most, mut urge) = (Instant::now(), 0, Urge::First);
        loop {
            let there = reach.kick(claim, urge).await?;
            most = most.max(there);
            if there == 0 {
                break;
            }
            if Instant::now() >= end {
                return Err(format!("{there} sessions have not ended in time"));
            }
            sleep(LOOK).await;
            urge = match begun.elapsed() > LAST_COMMANDS {
                true => Urge::Now,
                false => Urge::Again,
            };
        }
        if most > 0 {
            job.note(at, |one| one.sessions += most);
            self.say(job, at, &format!("{most} sessions ended"));
        }
        Ok(())
    }

    /// The one change: from the old server to the new one, if the old one still stands there.
    async fn change_server(&self, entry: &Entry, claim: &Unfinished) -> Result<(), EditError> {
        let mut editor = self.editor().await.map_err(EditError::Failed)?;
        let mut swaps = vec![Swap {
            attribute: self.mail_host_attribute(),
            from: claim.from.clone(),
            to: claim.to.clone(),
        }];
        let old = entry.first(TRANSPORT).unwrap_or_default();
        let port = old
            .strip_prefix("lmtp:")
            .and_then(|rest| rest.rsplit_once(':'))
            .filter(|(host, _)| host.eq_ignore_ascii_case(&claim.from));
        if let Some((_, port)) = port {
            swaps.push(Swap {
                attribute: TRANSPORT.to_owned(),
                from: old.to_owned(),
                to: format!("lmtp:{}:{port}", claim.to),
            });
        }
        editor.swap(EntryKind::Accounts, entry.name(), &swaps).await
    }

    /// Waits until the nodes go to the new server. Meanwhile logins wait. A node that does not answer is named.
    async fn confirmed(self: &Arc<Self>, reach: &MoveReach, claim: &Unfinished, lasts: Duration) -> Ended {
        let begun = Instant::now();
        let (mut pause, mut round) = (LOOK, 0);
        loop {
            let found = reach.goes_to(&claim.account, &claim.to, round).await;
            let missing = (!found.missing.is_empty()).then(|| format!("not confirmed by {}", found.missing.join("; ")));
            let is_late = missing.is_none() || begun.elapsed() >= CONFIRMED_WITHIN;
            let why = match (found.why_not, missing) {
                (None, why) if is_late => return Ended { step: Step::Done, why },
                (why_not, missing) => why_not.or(missing),
            };
            if begun.elapsed() >= lasts {
                return Ended {
                    step: Step::Unconfirmed,
                    why,
                };
            }
            self.hold_on(reach, claim, lasts).await;
            sleep(pause).await;
            (pause, round) = ((2 * pause).min(ASK), round + 1);
        }
    }

    /// What has become of a change without an answer, or that another process has begun: asked until the directory says
    /// it, and for the old server says so for some time. Until then nobody knows where the account is, and its logins
    /// wait.
    pub(super) async fn settle(self: &Arc<Self>, reach: &MoveReach, claim: &Unfinished, old_for: Duration) -> Ended {
        let mut old_since = None;
        loop {
            match self.entry(&claim.account).await {
                Ok(Some(entry)) => {
                    let now = entry.first(&self.mail_host_attribute()).unwrap_or_default().to_owned();
                    if self.is_same_server(&now, &claim.to) {
                        return self.confirmed(reach, claim, UNSURE).await;
                    }
                    if old_since.get_or_insert_with(Instant::now).elapsed() >= old_for {
                        return Ended::as_planned(Step::Undone);
                    }
                }
                Ok(None) => return Ended::as_planned(Step::Undone),
                Err(why) => {
                    old_since = None;
                    log::warn!("{}: whether it has moved is not known yet: {why}", claim.account);
                }
            }
            self.hold_on(reach, claim, UNSURE).await;
            sleep(ASK).await;
        }
    }

    /// How long a change that has failed so may still be made.
    fn may_follow(&self, error: &EditError) -> Duration {
        let has_queue = matches!(self.config.load().directory.source, Source::Ldap(_));
        // Another server may say that it is not as it was because the first one has made the change.
        match (has_queue, error) {
            (true, EditError::Failed(_) | EditError::Changed(_)) => QUEUED,
            _ => Duration::ZERO,
        }
    }

    /// How long one may still be made that a previous process has begun.
    pub(super) fn may_follow_unanswered(&self) -> Duration {
        self.may_follow(&EditError::Failed(String::new()))
    }

    /// Has its logins wait longer, where they would soon not wait any more.
    async fn hold_on(self: &Arc<Self>, reach: &MoveReach, claim: &Unfinished, lasts: Duration) {
        let lasts = lasts.max(UNSURE);
        if reach.held_for(&claim.account).is_some_and(|left| left > lasts / 2) {
            return;
        }
        let reason = format!("moves to {}", claim.to);
        if let Err(error) = reach.hold(claim, &reason, lasts).await {
            log::warn!("{}: {error}", claim.account);
        }
        self.keep_state().await;
    }

    /// Its logins go on, unless they would reach the old server.
    pub(super) async fn end_move(self: &Arc<Self>, reach: &MoveReach, claim: &Unfinished, ended: Step) {
        if ended != Step::Unconfirmed {
            reach.release(claim).await;
        }
        self.moves.ended(&claim.account);
        self.keep_state().await;
    }

    /// The entry as the directory has it now.
    async fn entry(&self, key: &str) -> Result<Option<Entry>, String> {
        let mut editor = self.editor().await?;
        let found = editor.find(EntryKind::Accounts, key).await;
        found.map_err(|error| error.to_string())
    }

    /// The directory, open for changes.
    pub(crate) async fn editor(&self) -> Result<CheckedEditor, String> {
        let config = self.config.load_full();
        let open = move || CheckedEditor::open(&config, None, SharedNames::Refused);
        let opened = tokio::task::spawn_blocking(open)
            .await
            .map_err(|error| error.to_string())?;
        opened.map_err(|error| format!("the directory cannot be changed: {error}"))
    }

    /// Whether two names are of one server: its entry's, or its host's.
    fn is_same_server(&self, one: &str, other: &str) -> bool {
        let snapshot = self.snapshot.load();
        let key = |name: &str| snapshot.system.server_key(name).cloned();
        names::host(one) == names::host(other) || (key(one).is_some() && key(one) == key(other))
    }

    fn say(&self, job: &MoveJob, at: usize, what: &str) {
        let one = job.account(at);
        let from = match one.from.is_empty() {
            true => String::new(),
            false => format!(" from {}", one.from),
        };
        let act = format!("move {}{from} to {}: {what}", one.account, job.order.to);
        self.audit_act(&job.order.who, act);
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
