//! Keeps the cache in step with the directory: what is said to have changed there is forgotten here.

use std::sync::Arc;

use mail_directory::{News, Touched};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, broadcast};

use super::RouteCache;

impl RouteCache {
    /// Forgets accounts as the directory says that they changed, and looks for those that are gone, until it is
    /// dropped or the directory has no more to say. The caller makes the directory look for changes
    /// ([`mail_directory::Directory::watch`]).
    pub async fn follow_directory(&self) {
        let moved = Notify::new();
        // In parallel: what changed must not wait for a question about others.
        tokio::select! {
            () = self.follow_news(&moved) => {}
            () = self.sweep(&moved) => {}
        }
    }

    /// Which accounts changed in the directory, from now on; each is told when the cache has forgotten it.
    pub fn followed(&self) -> broadcast::Receiver<News> {
        self.followed.subscribe()
    }

    async fn follow_news(&self, moved: &Notify) {
        let first = self.news.lock().take();
        let mut news = first.unwrap_or_else(|| {
            // News before this moment was missed, so what this node keeps is forgotten. What nodes share stays: other
            // nodes were listening.
            self.clear_here();
            self.directory.news()
        });
        loop {
            let mut batch = Batch::default();
            let Some(first) = received(news.recv().await) else {
                return;
            };
            batch.add(first);
            // What came meanwhile is followed at once: a pass through the whole cache is due to each batch.
            while let Some(more) = at_hand(news.try_recv()) {
                batch.add(more);
            }
            self.follow_batch(batch, moved);
        }
    }

    fn follow_batch(&self, batch: Batch, moved: &Notify) {
        if batch.unknown {
            self.expire();
            self.tell(News::Unknown);
        }
        if !batch.accounts.is_empty() {
            log::debug!("{} accounts changed in the directory", batch.accounts.len());
            self.forget_accounts(&batch.accounts);
            self.tell(News::Touched(batch.accounts.into()));
        }
        if batch.may_be_gone {
            moved.notify_one();
        }
        if let Some(point) = batch.point {
            self.reached(point);
        }
        batch.marks.iter().for_each(|mark| mark.notify_one());
    }

    fn tell(&self, news: News) {
        let _nobody_listens = self.followed.send(news);
    }
}

/// News that are followed together.
#[derive(Default)]
struct Batch {
    accounts: Vec<Touched>,
    unknown: bool,
    may_be_gone: bool,
    point: Option<Arc<str>>,
    marks: Vec<Arc<Notify>>,
}

impl Batch {
    fn add(&mut self, news: News) {
        match news {
            News::Touched(accounts) => self.accounts.extend(accounts.iter().cloned()),
            News::Unknown => self.unknown = true,
            News::MayBeGone => self.may_be_gone = true,
            News::Reached(point) => self.point = Some(point),
            News::Mark(mark) => self.marks.push(mark),
        }
    }
}

/// `None` at the end. Who has missed some of them does not know what changed.
fn received(news: Result<News, RecvError>) -> Option<News> {
    match news {
        Ok(news) => Some(news),
        Err(RecvError::Lagged(_)) => Some(News::Unknown),
        Err(RecvError::Closed) => None,
    }
}

/// `None` where there are none now.
fn at_hand(news: Result<News, TryRecvError>) -> Option<News> {
    match news {
        Ok(news) => Some(news),
        Err(TryRecvError::Lagged(_)) => Some(News::Unknown),
        Err(TryRecvError::Empty | TryRecvError::Closed) => None,
    }
}
