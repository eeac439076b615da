//! Answers that wait because their client does not read: how many there may be, and which connection is ended when
//! there are more.
//!
//! What waits for a client waits in our memory, up to some hundred KiB for each answer (docs/threat-model.md). A
//! client that asks for much and reads nothing, or a byte now and then, would fill it. No client is refused: when there
//! are too many, the connection that takes its answers most slowly is ended.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::node::limits::{NodeLimits, Origin};

/// A connection that has just begun to wait is spared while others have waited longer.
const NOT_YET: Duration = Duration::from_secs(2);

/// All answers that wait.
#[derive(Default)]
pub(super) struct Unread {
    counts: Mutex<UnreadCounts>,
}

#[derive(Default)]
struct UnreadCounts {
    next: u64,
    answers: usize,
    by_origin: HashMap<Origin, usize>,
    /// Only connections on which something waits.
    entries: HashMap<u64, UnreadConnection>,
    ended: u64,
}

struct UnreadConnection {
    answers: usize,
    origin: Option<Origin>,
    since: Instant,
    /// Bytes that its client has taken since then.
    taken: u64,
    end: Arc<Notify>,
}

impl UnreadConnection {
    /// Bytes a second.
    fn pace(&self, now: Instant) -> u64 {
        self.taken / now.saturating_duration_since(self.since).as_secs().max(1)
    }
}

impl UnreadCounts {
    fn set(&mut self, id: u64, origin: Option<Origin>, answers: usize, end: &Arc<Notify>) {
        let before = self.entries.get(&id).map_or(0, |entry| entry.answers);
        self.answers = self.answers + answers - before;
        if let Some(origin) = origin {
            let count = self.by_origin.entry(origin).or_default();
            *count = *count + answers - before;
            if *count == 0 {
                self.by_origin.remove(&origin);
            }
        }
        if answers == 0 {
            self.entries.remove(&id);
            return;
        }
        let entry = self.entries.entry(id).or_insert_with(|| UnreadConnection {
            answers,
            origin,
            since: Instant::now(),
            taken: 0,
            end: end.clone(),
        });
        entry.answers = answers;
    }

    /// Ends the slowest of these connections; what waits there is counted no more.
    fn end_slowest(&mut self, of: Option<Origin>) {
        let now = Instant::now();
        let waited = |entry: &UnreadConnection| now.saturating_duration_since(entry.since);
        let slowest = self
            .entries
            .iter()
            .filter(|(_, entry)| of.is_none() || entry.origin == of)
            .min_by_key(|(_, entry)| {
                let waited = waited(entry);
                (waited < NOT_YET, entry.pace(now), Duration::MAX - waited)
            });
        let Some((&id, entry)) = slowest else { return };
        let (origin, end) = (entry.origin, entry.end.clone());
        end.notify_one();
        self.set(id, origin, 0, &end);
        self.ended += 1;
    }
}

/// A connection whose answers are counted. Nothing of it waits any more once it is dropped.
pub(crate) struct AnswerCounter {
    limits: Arc<NodeLimits>,
    id: u64,
    origin: Option<Origin>,
    answers: usize,
    end: Arc<Notify>,
}

impl NodeLimits {
    /// A connection of a client at this address.
    pub(crate) fn answer_counter(self: &Arc<Self>, address: IpAddr) -> AnswerCounter {
        let exempt = self
            .settings
            .load()
            .exempt
            .iter()
            .any(|network| network.contains(&address));
        let mut counts = self.unread.counts.lock();
        counts.next += 1;
        AnswerCounter {
            limits: self.clone(),
            id: counts.next,
            origin: (!exempt).then(|| Origin::of(address)),
            answers: 0,
            end: Arc::default(),
        }
    }
}

impl AnswerCounter {
    /// Sets how many of its answers wait. Ends the slowest connections if there are too many in all.
    pub(crate) fn waits(&mut self, answers: usize) {
        if self.answers == answers {
            return;
        }
        self.answers = answers;
        let settings = self.limits.settings.load();
        let mut counts = self.limits.unread.counts.lock();
        counts.set(self.id, self.origin, answers, &self.end);
        let ended = counts.ended;
        if let Some(origin) = self.origin {
            while above(counts.by_origin.get(&origin), settings.unread_answers_per_address) {
                counts.end_slowest(Some(origin));
            }
        }
        while above(Some(&counts.answers), settings.unread_answers) {
            counts.end_slowest(None);
        }
        let now = counts.ended;
        drop(counts);
        if now > ended {
            self.limits.log_unread(now);
        }
    }

    /// The client has taken this many bytes.
    pub(crate) fn took(&self, bytes: usize) {
        if self.answers > 0
            && let Some(entry) = self.limits.unread.counts.lock().entries.get_mut(&self.id)
        {
            entry.taken += bytes as u64;
        }
    }

    /// Notified when this connection must end.
    pub(crate) fn end(&self) -> Arc<Notify> {
        self.end.clone()
    }
}

impl Drop for AnswerCounter {
    fn drop(&mut self) {
        if self.answers > 0 {
            let mut counts = self.limits.unread.counts.lock();
            counts.set(self.id, self.origin, 0, &self.end);
        }
    }
}

fn above(count: Option<&usize>, limit: usize) -> bool {
    limit != 0 && count.is_some_and(|&count| count > limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::limits::LimitsConfig;

    fn limits(answers: usize, per_address: usize) -> Arc<NodeLimits> {
        NodeLimits::new(LimitsConfig {
            unread_answers: answers,
            unread_answers_per_address: per_address,
            exempt: vec!["10.0.0.0/8".parse().unwrap()],
            ..LimitsConfig::default()
        })
    }

    fn is_ended(counter: &AnswerCounter) -> bool {
        use futures_util::FutureExt;
        counter.end.notified().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_goes() {
        let limits = limits(3, 0);
        let mut readers: Vec<AnswerCounter> = (0..3).map(|_| limits.answer_counter([192, 0, 2, 1].into())).collect();
        for counter in &mut readers {
            counter.waits(1);
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        for (counter, bytes) in readers.iter().zip([100_000, 20, 5000]) {
            counter.took(bytes);
        }
        let mut newest = limits.answer_counter([192, 0, 2, 2].into());
        newest.waits(1);
        assert_eq!(readers.iter().map(is_ended).collect::<Vec<_>>(), [false, true, false]);
        assert!(!is_ended(&newest));
        assert_eq!(limits.unread.counts.lock().answers, 3);
        readers[2].waits(0);
        drop(newest);
        assert_eq!(limits.unread.counts.lock().answers, 1);
        drop(readers);
        let counts = limits.unread.counts.lock();
        assert!(counts.by_origin.is_empty() && counts.entries.is_empty() && counts.answers == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn each_address_has_its_share() {
        let limits = limits(0, 5);
        let mut first = limits.answer_counter([192, 0, 2, 1].into());
        first.waits(5);
        let mut other = limits.answer_counter([192, 0, 2, 9].into());
        other.waits(5);
        let mut exempt = limits.answer_counter([10, 0, 0, 1].into());
        exempt.waits(500);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!is_ended(&first) && !is_ended(&other) && !is_ended(&exempt));
        let mut second = limits.answer_counter([192, 0, 2, 1].into());
        second.waits(1);
        assert!(is_ended(&first) && !is_ended(&second) && !is_ended(&other));
        // More than there may be, on one connection.
        second.waits(6);
        assert!(is_ended(&second));
        assert_eq!(limits.unread.counts.lock().answers, 505);
    }
}
