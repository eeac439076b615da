//! Orders, carried out: so many accounts at one time, at a pace; and what a previous process has left half done.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mail_directory::attributes as a;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::app::App;
use crate::app::moves::one::Ended;
use crate::app::moves::reach::MoveReach;
use crate::app::moves::{MoveJob, MoveOrder, MoveScope, Moves, Step, Unfinished};

/// Accounts that are under way at one time, each with its hold.
const AT_ONCE: usize = 8;

impl App {
    /// The moves of this node.
    pub(crate) fn moves(&self) -> &Moves {
        &self.moves
    }

    /// Begins to carry out an order. It goes on without the caller.
    pub(crate) fn begin_moves(self: &Arc<Self>, order: MoveOrder) -> Arc<MoveJob> {
        let job = self.moves.order(order);
        self.moves.spawn(self.clone().carry_out(job.clone()));
        job
    }

    async fn carry_out(self: Arc<Self>, job: Arc<MoveJob>) {
        let mut under_way = JoinSet::new();
        for at in 0..job.order.accounts.len() {
            if job.is_cancelled() {
                job.note(at, |one| {
                    one.step = Step::Undone;
                    one.why = Some("cancelled before it began".to_owned());
                });
                continue;
            }
            if at > 0 {
                sleep(job.order.pause).await;
            }
            while under_way.len() >= AT_ONCE {
                under_way.join_next().await;
            }
            let (app, job) = (self.clone(), job.clone());
            under_way.spawn(async move { app.move_account(&job, at).await });
        }
        under_way.join_all().await;
    }

    /// Stops what is under way, for a new process that goes on from what the state file says.
    pub(crate) async fn leave_moves(self: &Arc<Self>) {
        let tasks = self.moves.take_tasks();
        tasks.iter().for_each(JoinHandle::abort);
        for task in tasks {
            // It was told to.
            let _aborted = task.await;
        }
        self.moves.jobs().iter().for_each(|job| job.leave());
        self.moves.left.store(true, Ordering::Relaxed);
        self.keep_state().await;
    }

    /// Ends what a previous process has left half done: undone where the directory was not changed, completed where it
    /// was.
    pub(crate) fn resume_moves(self: &Arc<Self>) {
        self.moves.left.store(false, Ordering::Relaxed);
        for left in self.moves.unfinished() {
            self.moves.spawn(self.clone().settle_left(left));
        }
    }

    async fn settle_left(self: Arc<Self>, left: Unfinished) {
        let reach = self.reach(left.scope.clone(), "portico");
        let ended = match left.changing {
            true => self.settle(&reach, &left, self.may_follow_unanswered()).await,
            false => Ended::as_planned(Step::Undone),
        };
        let act = format!(
            "move {} from {} to {}: {} after a new start",
            left.account,
            left.from,
            left.to,
            ended.said()
        );
        self.end_move(&reach, &left, ended.step).await;
        self.audit_act("portico", act);
    }

    /// The nodes of a scope, asked for this administrator.
    pub(super) fn reach(self: &Arc<Self>, scope: MoveScope, by: &str) -> MoveReach {
        MoveReach::new(self.clone(), scope, by.to_owned())
    }

    /// Name of the attribute that says on which server an account is.
    pub(crate) fn mail_host_attribute(&self) -> String {
        let snapshot = self.snapshot.load();
        let global = snapshot.system.global();
        let named = global.text(&a::REVERSE_PROXY_MAIL_HOST_ATTRIBUTE);
        named.unwrap_or(a::MAIL_HOST.name).to_owned()
    }
}
