//! Limits of heavy requests of the admin API: so many at one time, the others wait.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Those of one router.
pub(crate) struct Turns {
    /// Changes of the directory: each waits for the previous ones there. One that has begun goes on when its client
    /// has gone.
    pub changes: Arc<Semaphore>,
    /// Lists of domains. One that has begun is made to its end, also when its client has gone.
    pub lists: Arc<Semaphore>,
    /// Previews of changes. One that has begun is made to its end, also when its client has gone.
    pub previews: Arc<Semaphore>,
    /// Purges of routes.
    pub purges: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            changes: Arc::new(Semaphore::new(4)),
            lists: Arc::new(Semaphore::new(4)),
            previews: Arc::new(Semaphore::new(1)),
            purges: Arc::new(Semaphore::new(16)),
        }
    }
}
