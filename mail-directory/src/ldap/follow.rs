//! Follows the directory: changes are told by the server where it offers that, and looked for where it does not, or
//! while it does not work.
//!
//! Each time that telling begins or ends there is a look, so that nothing is missed in between.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::open::Opener;
use super::sync_wire::SyncEnd;
use super::syncrepl::{Inbox, Told, Waiting, consume};
use super::{LdapDirectory, Url, log_problems};
use crate::directory::{Apply, News};
use crate::losses::Losses;
use crate::system::System;
use crate::yaml::Problems;

/// How long a server is left alone that has ended the telling, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// The same for one that does not offer it.
const NOT_OFFERED: Duration = Duration::from_secs(60);
/// A telling that lasted so long did work.
const WORKED: Duration = Duration::from_secs(10);
/// How often at most there is a look all the same, where a server has come further than it told: something changed
/// that does not count here, or was lost.
const CHECK: Duration = Duration::from_secs(60);

/// What the follower remembers from look to look.
pub(super) struct Watch {
    apply: Arc<Apply>,
    poll: Duration,
    /// The directory could not be read at the last look.
    failing: bool,
    /// What is in the file with the last good reading.
    kept: Option<Arc<System>>,
    looked: Instant,
    /// When the server is asked next to tell changes, and how often it failed to.
    try_at: Instant,
    failures: u32,
    /// Why it ended the last time, as it was logged.
    logged: Option<String>,
}

impl LdapDirectory {
    /// Never returns.
    pub(super) async fn watch_changes(&self, poll: Duration, apply: Arc<Apply>) {
        let now = Instant::now();
        let mut watch = Watch {
            apply,
            poll,
            failing: false,
            kept: None,
            looked: now,
            try_at: now,
            failures: 0,
            logged: None,
        };
        if self.sync.is_none() {
            self.announcer.not_told("directory.ldap.sync is off".to_owned());
        }
        self.look(&mut watch).await;
        loop {
            let next_look = watch.looked + watch.poll;
            let next_try = self.sync.as_ref().map(|_| watch.try_at);
            sleep_until(next_try.map_or(next_look, |next_try| next_try.min(next_look))).await;
            let now = Instant::now();
            if let (Some(opener), true) = (&self.sync, next_try.is_some_and(|next_try| next_try <= now)) {
                self.be_told(opener, &mut watch).await;
            } else {
                self.look(&mut watch).await;
            }
        }
    }

    async fn look(&self, watch: &mut Watch) {
        self.refresh_and_log(&watch.apply, &mut watch.failing).await;
        self.keep(&mut watch.kept, watch.failing).await;
        watch.looked = Instant::now();
    }

    /// Takes over what the server tells, until that ends.
    async fn be_told(&self, opener: &Opener, watch: &mut Watch) {
        if watch.failing {
            self.look(watch).await;
        }
        let Some(url) = self.pool.preferred().filter(|_| !watch.failing).cloned() else {
            watch.leave_alone(BACK_OFF.0);
            return;
        };
        let (inbox, mut began) = (Inbox::default(), None);
        let end = tokio::select! {
            end = consume(opener, &url, &self.announcer, &inbox) => end,
            end = self.take_told(&url, &inbox, watch, &mut began) => end,
        };
        watch.ended(&url, &end, began);
        self.announcer.not_told(end.to_string());
        if began.is_some() {
            // What was told and not taken over is found, too.
            self.look(watch).await;
        }
    }

    /// Runs until something told cannot be taken over.
    async fn take_told(&self, url: &Url, inbox: &Inbox, watch: &mut Watch, began: &mut Option<Instant>) -> SyncEnd {
        loop {
            let told = inbox.take().await;
            if let Err(end) = self.take_over(url, told, watch, began).await {
                return end;
            }
            if self.pool.preferred().is_some_and(|now| now != url) {
                return SyncEnd::Elsewhere;
            }
        }
    }

    async fn take_over(
        &self,
        url: &Url,
        told: Told,
        watch: &mut Watch,
        began: &mut Option<Instant>,
    ) -> Result<(), SyncEnd> {
        if told.began {
            // From here on changes are told; those before are looked for.
            self.look(watch).await;
            *began = Some(Instant::now());
            if watch.failing {
                return Err(SyncEnd::Unread("the directory cannot be searched".to_owned()));
            }
            log::info!("directory server {url} tells changes from now on");
            watch.logged = None;
            self.announcer.told_by(url.to_string());
        }
        let further = told.server.clone();
        self.put_in_force(told, watch).await?;
        let is_behind = match &further {
            Some(server) => !self.reading.lock().await.covers(server),
            None => false,
        };
        if is_behind && watch.looked.elapsed() >= CHECK.max(watch.poll) {
            self.look(watch).await;
        }
        Ok(())
    }

    /// What was told is in force when this returns, and the listeners know.
    async fn put_in_force(&self, told: Told, watch: &mut Watch) -> Result<(), SyncEnd> {
        let mut reading = self.reading.lock().await;
        let mut problems = Problems::new();
        if !told.entries.is_empty() {
            let before = self.system.load_full();
            let renewed = reading
                .renew_told(&self.pool, &before, Losses::Few, &told.entries, &mut problems)
                .await;
            if let Some(system) = renewed.map_err(|error| SyncEnd::Unread(error.to_string()))? {
                self.adopt(Arc::new(system), &watch.apply, Losses::Few, &mut problems)
                    .await;
            }
        }
        if told.may_be_gone {
            self.announcer.announce(News::MayBeGone);
        }
        if let Some(point) = told.point {
            reading.advance(point);
        }
        if let Some(point) = reading.reached() {
            self.announcer.announce(News::Reached(point.into()));
        }
        drop(reading);
        self.announcer.was_read();
        log_problems(&problems);
        self.keep(&mut watch.kept, watch.failing).await;
        Ok(())
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Some(entries) if entries.is_empty())
    }
}

impl Watch {
    /// Twice as long each time, but not longer than the most.
    fn leave_alone(&mut self, first: Duration) {
        let pause = first * 2_u32.pow(self.failures.min(16));
        self.failures += 1;
        self.try_at = Instant::now() + pause.min(BACK_OFF.1.max(first));
    }

    /// Says when to try again. The same reason is logged once.
    fn ended(&mut self, url: &Url, end: &SyncEnd, began: Option<Instant>) {
        let now = Instant::now();
        if began.is_some_and(|began| now - began >= WORKED) {
            self.failures = 0;
        }
        self.leave_alone(match end {
            SyncEnd::NotOffered | SyncEnd::NoPoint => NOT_OFFERED,
            _ => BACK_OFF.0,
        });
        let words = format!("directory server {url} tells no changes, they are looked for: {end}");
        match self.logged.as_ref() == Some(&words) {
            true => log::debug!("{words}"),
            false if matches!(end, SyncEnd::NotOffered | SyncEnd::NoPoint | SyncEnd::Elsewhere) => {
                log::info!("{words}");
            }
            false => log::warn!("{words}"),
        }
        self.logged = Some(words);
    }
}
