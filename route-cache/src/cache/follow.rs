//! Keeps the cache in step with the directory: what is said to have changed there is forgotten here.

use mail_directory::News;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;

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

    async fn follow_news(&self, moved: &Notify) {
        let first = self.news.lock().take();
        let mut news = first.unwrap_or_else(|| {
            // News before this moment was missed, so what this node keeps is forgotten. What nodes share stays: other
            // nodes were listening.
            self.clear_here();
            self.directory.news()
        });
        loop {
            match news.recv().await {
                Ok(News::Touched(accounts)) => {
                    log::debug!("{} accounts changed in the directory", accounts.len());
                    self.forget_accounts(&accounts);
                }
                Ok(News::MayBeGone) => moved.notify_one(),
                Ok(News::Reached(point)) => self.reached(point),
                Ok(News::Unknown) | Err(RecvError::Lagged(_)) => self.expire(),
                Err(RecvError::Closed) => return,
            }
        }
    }
}
