//! Routes of deleted accounts. LDAP tells what changed, but not what was deleted; so after a change there, the
//! directory is asked, some names at a time, whether the cached accounts still exist.

use std::sync::Arc;
use std::time::Duration;

use mail_directory::{Touched, domain_of};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::RouteCache;
use super::known::{Kept, KeptValue};
use crate::key::Key;
use crate::source::Source;

/// Names in one question: a filter of some kilobytes, which an indexed directory answers in milliseconds.
const AT_ONCE: usize = 200;
/// Time between questions, so that a large cache is no load: a hundred thousand accounts take eight minutes.
const PAUSE: Duration = Duration::from_secs(1);
/// If more names than this are missing, they are not deleted: the node has lost a right to read them.
const BELIEVABLE: usize = 20;

impl RouteCache {
    /// Goes once through everything in the cache each time that `moved` is notified, until it is dropped.
    pub(crate) async fn sweep(&self, moved: &Notify) {
        if matches!(self.source, Source::Services(_)) {
            // They know accounts that this directory need not know.
            return std::future::pending().await;
        }
        loop {
            moved.notified().await;
            self.sweep_once().await;
        }
    }

    async fn sweep_once(&self) {
        let mut place = self.known.begin();
        loop {
            sleep(PAUSE).await;
            let mut next = place;
            let names = self.known.walk(&mut next, AT_ONCE, name_on_a_server);
            if names.is_empty() {
                return;
            }
            match self.directory.gone(&names).await {
                Ok(gone) => {
                    self.forget_gone(&names, gone);
                    place = next;
                }
                Err(error) => log::debug!("accounts that are gone cannot be looked for: {error}"),
            }
        }
    }

    fn forget_gone(&self, asked: &[Arc<str>], gone: Vec<Arc<str>>) {
        if gone.is_empty() {
            return;
        }
        if gone.len() == asked.len() && asked.len() > BELIEVABLE {
            log::warn!(
                "the directory knows none of {} accounts any more; were access rights lost?",
                gone.len()
            );
            return;
        }
        log::debug!("{} accounts are gone from the directory", gone.len());
        let touched: Vec<Touched> = gone
            .iter()
            .map(|name| Touched {
                names: vec![name.to_string()],
                ids: Vec::new(),
            })
            .collect();
        self.forget_accounts(&touched);
    }
}

/// The address of an account on a server of the directory. An account on an external server may have no entry.
fn name_on_a_server(key: &Key, known: &Kept) -> Option<Arc<str>> {
    match (key, &known.what) {
        (Key::Name(name), KeptValue::Here(placement)) if placement.server().is_some() => {
            Some(name.clone()).filter(|name| domain_of(name).is_some())
        }
        _ => None,
    }
}
