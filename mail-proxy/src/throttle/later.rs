//! Failures that count from a moment on: just before their clients hear of them. One task counts all of them, and ends
//! when none is left; so a flood of guesses is no flood of tasks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Answered, Throttle, Ticket, lock};

/// Failures that wait, at most: as many as there may be connections before login. For one more the next one counts,
/// whose client hears of it soonest.
const MOST: usize = 50_000;
/// How many count before other tasks have a turn.
const AT_ONCE: usize = 64;

/// The failures that do not count yet, by the moment at which they will.
#[derive(Default)]
pub(super) struct Later {
    queue: Mutex<Queue>,
    /// One counts sooner than those before it.
    sooner: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<(Instant, u64), Ticket>,
    /// Tells those apart that count at the same moment.
    number: u64,
    /// There is a task that counts them.
    is_running: bool,
}

/// What is to be done with a failure that has been added.
struct Added {
    /// There is no task yet.
    begins: bool,
    /// There is no room for this one any more.
    too_many: Option<Ticket>,
}

impl Later {
    fn add(&self, ticket: Ticket, at: Instant) -> Added {
        let mut queue = lock(&self.queue);
        let too_many = (queue.waiting.len() >= MOST).then(|| queue.waiting.pop_first());
        queue.number += 1;
        let key = (at, queue.number);
        queue.waiting.insert(key, ticket);
        if queue.waiting.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.sooner.notify_one();
        }
        Added {
            begins: !std::mem::replace(&mut queue.is_running, true),
            too_many: too_many.flatten().map(|(_, ticket)| ticket),
        }
    }

    /// Those that count now, or when the next one will. `None`: there are none, and the task ends.
    fn due(&self, now: Instant) -> Option<Result<Vec<Ticket>, Instant>> {
        let mut queue = lock(&self.queue);
        let Some((&(first, _), _)) = queue.waiting.first_key_value() else {
            queue.is_running = false;
            return None;
        };
        if first > now {
            return Some(Err(first));
        }
        let mut due = Vec::new();
        while due.len() < AT_ONCE
            && let Some(first) = queue.waiting.first_entry().filter(|first| first.key().0 <= now)
        {
            due.push(first.remove());
        }
        Some(Ok(due))
    }
}

/// Counts them. A runtime that ends may drop it at any wait, and the next failure begins another one.
struct CountingTask {
    throttle: Arc<Throttle>,
    /// None was left.
    is_done: bool,
}

impl Drop for CountingTask {
    fn drop(&mut self) {
        if !self.is_done {
            lock(&self.throttle.later.queue).is_running = false;
        }
    }
}

impl CountingTask {
    async fn run(mut self) {
        let throttle = &self.throttle;
        while let Some(due) = throttle.later.due(Instant::now()) {
            match due {
                Ok(due) => {
                    let now = throttle.now();
                    due.into_iter().for_each(|ticket| {
                        throttle.answered(ticket, Answered::Wrong, now);
                    });
                    tokio::task::yield_now().await;
                }
                Err(next) => {
                    tokio::select! {
                        () = sleep_until(next) => {}
                        () = throttle.later.sooner.notified() => {}
                    }
                }
            }
        }
        self.is_done = true;
    }
}

impl Throttle {
    /// Takes the answer to an attempt that has failed, and counts it from this moment on.
    pub fn fails_at(self: &Arc<Self>, ticket: Ticket, at: Instant) {
        let added = self.later.add(ticket, at);
        if let Some(ticket) = added.too_many {
            self.answered(ticket, Answered::Wrong, self.now());
        }
        if added.begins {
            let (throttle, is_done) = (self.clone(), false);
            tokio::spawn(CountingTask { throttle, is_done }.run());
        }
    }

    /// How many failures do not count yet.
    pub fn count_later(&self) -> usize {
        lock(&self.later.queue).waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::super::{Claim, Judgement, LoginChannel, Rule, ThrottleSettings};
    use super::*;

    fn ticket(throttle: &Throttle, account: &str, n: u32) -> Ticket {
        let claim = Claim {
            account,
            client: IpAddr::from((0x0b00_0000 + n).to_be_bytes()),
            password: None,
            channel: LoginChannel::default(),
        };
        match throttle.ask(&claim, Duration::ZERO, throttle.now()) {
            Judgement::Pass(ticket, _) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn failures(throttle: &Throttle) -> f32 {
        let report = throttle.explain("alice", IpAddr::from([192, 0, 2, 1]), throttle.now());
        let level = report.levels.iter().find(|level| level.rule == Rule::Account);
        level.map_or(0.0, |level| level.failures.round())
    }

    fn tasks() -> usize {
        tokio::runtime::Handle::current().metrics().num_alive_tasks()
    }

    /// The story: each failed login was a task that slept until its client was told.
    #[tokio::test(start_paused = true)]
    async fn one_task_counts_all_of_them_each_at_its_moment() {
        let throttle = Arc::new(Throttle::new(ThrottleSettings::default()));
        let begun = Instant::now();
        // The last one counts first.
        for n in (1..=6).rev() {
            throttle.fails_at(ticket(&throttle, "alice", n), begun + Duration::from_secs(n.into()));
            tokio::task::yield_now().await;
        }
        assert_eq!((tasks(), throttle.count_later(), failures(&throttle)), (1, 6, 0.0));
        for n in 1..=6 {
            sleep_until(begun + Duration::from_secs(n) + Duration::from_millis(1)).await;
            tokio::task::yield_now().await;
            assert_eq!(failures(&throttle), n as f32);
        }
        tokio::task::yield_now().await;
        assert_eq!((tasks(), throttle.count_later()), (0, 0));
        // And again.
        throttle.fails_at(ticket(&throttle, "alice", 7), Instant::now() + Duration::from_secs(1));
        assert_eq!(tasks(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((tasks(), failures(&throttle)), (0, 7.0));
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded_and_none_is_lost() {
        let throttle = Arc::new(Throttle::new(ThrottleSettings::default()));
        let at = Instant::now() + Duration::from_secs(10);
        throttle.fails_at(ticket(&throttle, "alice", 0), at);
        for n in 0..u32::try_from(MOST).unwrap() {
            throttle.fails_at(ticket(&throttle, &format!("user{n}"), n + 1), at);
        }
        // The first had to make room, and counts.
        assert_eq!((throttle.count_later(), failures(&throttle), tasks()), (MOST, 1.0, 1));
        tokio::time::sleep(Duration::from_secs(11)).await;
        while throttle.count_later() != 0 {
            tokio::task::yield_now().await;
        }
    }

    /// A task that its runtime drops leaves nothing undone for ever.
    #[test]
    fn the_end_of_a_runtime_is_not_the_end_of_counting() {
        let throttle = Arc::new(Throttle::new(ThrottleSettings::default()));
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap()
        };
        let first = runtime();
        first.block_on(async {
            throttle.fails_at(ticket(&throttle, "alice", 1), Instant::now() + Duration::from_millis(1));
        });
        drop(first);
        runtime().block_on(async {
            throttle.fails_at(ticket(&throttle, "alice", 2), Instant::now());
            while throttle.count_later() != 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert_eq!(failures(&throttle), 2.0);
    }
}
