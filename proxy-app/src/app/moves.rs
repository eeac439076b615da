//! Moves of accounts to another mailbox server, as this node carries them out: which are under way, what they have come
//! to, and what the next process has to know of them.
//!
//! How they are carried out is in `run` and `one`, what is asked of the nodes in `reach`, the administrator's own
//! program in `copy` ([ADR 0020](../../../docs/adr/0020-moves-run-in-the-node.md)).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::app::moves::copy::CopyProgram;
use crate::app::moves::rivals::{MoveClaim, MovesElsewhere};

pub(crate) mod copy;
mod one;
pub(crate) mod reach;
pub(crate) mod rivals;
mod run;

/// Orders that are remembered.
const REMEMBERED: usize = 64;

/// What is to be moved, and how.
#[derive(Debug, Clone)]
pub(crate) struct MoveOrder {
    /// Names of the accounts.
    pub accounts: Vec<String>,
    /// Name of the server's entry.
    pub to: String,
    /// How long an account may be held.
    pub lasts: Duration,
    /// Why; for administrators.
    pub reason: String,
    /// Copies the mail.
    pub copy: Option<CopyProgram>,
    /// Pause between the beginnings of two moves.
    pub pause: Duration,
    /// Who has ordered it.
    pub who: String,
    /// Which nodes take part.
    pub scope: MoveScope,
}

/// Which nodes take part in a move. Default: all that are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MoveScope {
    /// Only this one.
    #[serde(default)]
    pub local: bool,
    /// All but these, which are known not to be there.
    #[serde(default)]
    pub without: Vec<String>,
}

/// How far the move of an account has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has not begun.
    Waiting,
    /// New logins wait, sessions end.
    Held,
    /// The mail is copied.
    Copying,
    /// The directory is changed.
    Changing,
    /// It is on the new server, and the nodes know.
    Done,
    /// It was there already.
    There,
    /// It is where it was, and so are its logins.
    Undone,
    /// The directory says the new server, but not every node sees that.
    Unconfirmed,
}

impl Step {
    /// Its word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Held => "held",
            Self::Copying => "copying",
            Self::Changing => "changing",
            Self::Done => "moved",
            Self::There => "already there",
            Self::Undone => "undone",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    fn is_last(self) -> bool {
        matches!(self, Self::Done | Self::There | Self::Undone | Self::Unconfirmed)
    }
}

/// One account of an order.
#[derive(Debug, Clone)]
pub(crate) struct AccountMove {
    /// Its name.
    pub account: String,
    /// Where it was.
    pub from: String,
    /// How far it is.
    pub step: Step,
    /// Why it was undone, or which node has not confirmed it.
    pub why: Option<String>,
    /// Sessions that were ended.
    pub sessions: usize,
    /// How long it took.
    pub took: Option<Duration>,
}

impl AccountMove {
    fn waiting(account: &str) -> Self {
        Self {
            account: account.to_owned(),
            from: String::new(),
            step: Step::Waiting,
            why: None,
            sessions: 0,
            took: None,
        }
    }
}

/// An order that is carried out.
pub(crate) struct MoveJob {
    /// Its number on this node.
    pub id: u64,
    /// The order.
    pub order: MoveOrder,
    accounts: Mutex<Vec<AccountMove>>,
    cancelled: AtomicBool,
}

impl MoveJob {
    /// Its accounts as they are now.
    pub(crate) fn accounts(&self) -> Vec<AccountMove> {
        self.accounts.lock().clone()
    }

    /// One of them.
    fn account(&self, at: usize) -> AccountMove {
        self.accounts.lock()[at].clone()
    }

    /// Whether something is still to be done.
    pub(crate) fn is_running(&self) -> bool {
        self.accounts.lock().iter().any(|one| !one.step.is_last())
    }

    /// What has not begun is not begun any more.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// A new process ends what is under way.
    fn leave(&self) {
        for one in self.accounts.lock().iter_mut().filter(|one| !one.step.is_last()) {
            one.step = match one.step {
                Step::Changing => Step::Unconfirmed,
                _ => Step::Undone,
            };
            one.why = Some("a new process has taken over".to_owned());
        }
    }

    fn note(&self, at: usize, change: impl FnOnce(&mut AccountMove)) {
        change(&mut self.accounts.lock()[at]);
    }
}

/// A move that has begun and not ended, for the next process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    /// Name of the account.
    pub account: String,
    /// Its server before.
    pub from: String,
    /// Its server after.
    pub to: String,
    /// The directory may have been changed already.
    pub changing: bool,
    /// Which nodes take part: also in what the next process does about it.
    #[serde(default)]
    pub scope: MoveScope,
    /// When it began, in milliseconds since 1970.
    #[serde(default)]
    pub since: u64,
}

fn already(claim: &MoveClaim) -> String {
    format!("{} moves it already", claim.node)
}

/// The moves of this node.
#[derive(Default)]
pub(crate) struct Moves {
    jobs: Mutex<BTreeMap<u64, Arc<MoveJob>>>,
    ordered: AtomicU64,
    unfinished: Mutex<BTreeMap<String, Unfinished>>,
    /// They are left to another process.
    left: AtomicBool,
    /// Those of other nodes.
    elsewhere: Mutex<MovesElsewhere>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Moves {
    /// All orders, the newest last.
    pub(crate) fn jobs(&self) -> Vec<Arc<MoveJob>> {
        self.jobs.lock().values().cloned().collect()
    }

    /// One order.
    pub(crate) fn job(&self, id: u64) -> Option<Arc<MoveJob>> {
        self.jobs.lock().get(&id).cloned()
    }

    /// What has begun and not ended.
    pub(super) fn unfinished(&self) -> Vec<Unfinished> {
        self.unfinished.lock().values().cloned().collect()
    }

    fn order(&self, order: MoveOrder) -> Arc<MoveJob> {
        let job = Arc::new(MoveJob {
            id: self.ordered.fetch_add(1, Ordering::Relaxed) + 1,
            accounts: Mutex::new(
                order
                    .accounts
                    .iter()
                    .map(|account| AccountMove::waiting(account))
                    .collect(),
            ),
            order,
            cancelled: AtomicBool::new(false),
        });
        let mut jobs = self.jobs.lock();
        let over = jobs.iter().find(|(_, job)| !job.is_running()).map(|(id, _)| *id);
        if let Some(over) = over.filter(|_| jobs.len() >= REMEMBERED) {
            jobs.remove(&over);
        }
        jobs.insert(job.id, job.clone());
        job
    }

    /// Takes over what a previous process has begun.
    pub(super) fn take_over(&self, left: Vec<Unfinished>) {
        let left = left.into_iter().map(|one| (one.account.clone(), one));
        *self.unfinished.lock() = left.collect();
    }

    fn take_tasks(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.tasks.lock())
    }

    /// Begins the move of an account, unless there is one.
    fn claim(&self, claimed: Unfinished) -> bool {
        let mut unfinished = self.unfinished.lock();
        let free = !unfinished.contains_key(&claimed.account);
        if free {
            unfinished.insert(claimed.account.clone(), claimed);
        }
        free
    }

    /// The move of an account that this node carries out.
    fn own(&self, account: &str, here: &str) -> Option<MoveClaim> {
        if self.left.load(Ordering::Relaxed) {
            return None;
        }
        let unfinished = self.unfinished.lock();
        unfinished.get(account).map(|own| MoveClaim {
            since: own.since,
            node: here.to_owned(),
        })
    }

    /// A move of another node holds the account until then.
    ///
    /// # Errors
    /// That of this node goes on.
    pub(crate) fn give_way(
        &self,
        account: &str,
        theirs: MoveClaim,
        until: SystemTime,
        here: &str,
    ) -> Result<(), String> {
        match self.own(account, here).filter(|own| *own < theirs) {
            Some(own) => Err(already(&own)),
            None => {
                self.elsewhere.lock().note(account, theirs, until);
                Ok(())
            }
        }
    }

    /// A move of another node has ended. False: another one holds the account.
    pub(crate) fn ended_elsewhere(&self, account: &str, theirs: &MoveClaim, here: &str) -> bool {
        let is_ours = self.own(account, here).is_some_and(|own| own != *theirs);
        !is_ours && self.elsewhere.lock().ended(account, theirs)
    }

    /// An administrator has released the account.
    pub(crate) fn released(&self, account: &str) {
        self.elsewhere.lock().forget(account);
    }

    /// Why the move of an account by this node does not go on, if another one does.
    fn rival(&self, account: &str, own: &MoveClaim) -> Option<String> {
        let elsewhere = self.elsewhere.lock();
        elsewhere.of(account).filter(|theirs| *theirs < own).map(already)
    }

    fn is_changing(&self, account: &str) {
        let mut unfinished = self.unfinished.lock();
        unfinished
            .get_mut(account)
            .into_iter()
            .for_each(|one| one.changing = true);
    }

    fn ended(&self, account: &str) {
        self.unfinished.lock().remove(account);
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(task));
    }
}
