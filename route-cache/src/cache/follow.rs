//! Keeps the cache in step with the directory: what is said to have changed there is forgotten here.

use mail_directory::News;
use tokio::sync::broadcast::error::RecvError;
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
            let told = match news.recv().await {
                Ok(told) => told,
                Err(RecvError::Lagged(_)) => News::Unknown,
                Err(RecvError::Closed) => return,
            };
            match &told {
                News::Touched(accounts) => {
                    log::debug!("{} accounts changed in the directory", accounts.len());
                    self.forget_accounts(accounts);
                }
                News::MayBeGone => moved.notify_one(),
                News::Reached(point) => self.reached(point.clone()),
                News::Unknown => self.expire(),
            }
            // It is no failure if nobody listens.
            let _ = self.followed.send(told);
        }
    }
}
