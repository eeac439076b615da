//! Sessions of accounts that are on another server now are ended, each in its own time: their clients log in again and
//! reach the new one.
//!
//! The directory says which accounts have changed. Those of them that have a session are looked up again; a session
//! ends only if the directory itself says that its account is elsewhere.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mail_directory::News;
use mail_proxy::{CloseReason, LoggedIn, Proto};
use route_cache::{Lookup, Route, Service, Subject, Tier};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep, sleep_until};

use crate::app::App;
use crate::node::connections::Session;

/// Sessions end at least this fast, so that a few do not wait for the time that many need.
const STEP: Duration = Duration::from_millis(100);
/// How long after a change its accounts are looked at again: a login that was under way may have got in by the old
/// route.
const LOGINS_UNDER_WAY: Duration = Duration::from_secs(30);
/// Most accounts that are remembered for that; where more have changed, all sessions are looked at.
const MOST_REMEMBERED: usize = 100_000;
/// Pause between questions where all sessions are looked at: a hundred in a second.
const PACE: Duration = Duration::from_millis(10);

/// Longer than the grain of the cache's clock.
const TICK: Duration = Duration::from_millis(2);

/// Accounts that may have moved; `None`: all.
type MaybeMoved = Option<HashSet<String>>;

/// What has been learned in one look at the sessions.
type Asked = HashMap<(String, Service), Option<AccountPlace>>;

/// Changes that are to be looked at once more.
#[derive(Default)]
struct Later(VecDeque<(Instant, MaybeMoved)>);

impl Later {
    fn push(&mut self, changed: MaybeMoved) {
        let remembered: usize = self.0.iter().flat_map(|(_, one)| one).map(HashSet::len).sum();
        let due = Instant::now() + LOGINS_UNDER_WAY;
        match changed {
            Some(names) if remembered + names.len() <= MOST_REMEMBERED => self.0.push_back((due, Some(names))),
            _ => self.0 = [(due, None)].into(),
        }
    }

    /// The first that is due.
    async fn due(&mut self) -> MaybeMoved {
        match self.0.front() {
            Some((due, _)) => sleep_until(*due).await,
            None => std::future::pending().await,
        }
        self.0.pop_front().and_then(|(_, changed)| changed)
    }
}

impl App {
    /// Ends sessions whose accounts have moved, until it is dropped.
    pub(super) async fn end_moved_sessions(&self) {
        let mut news = self.routes.followed();
        let mut later = Later::default();
        loop {
            let changed = tokio::select! {
                told = news.recv() => {
                    let changed = match told {
                        Ok(News::Touched(accounts)) => {
                            Some(accounts.iter().flat_map(|account| account.names.clone()).collect())
                        }
                        Ok(News::Unknown) | Err(RecvError::Lagged(_)) => None,
                        Ok(News::MayBeGone | News::Reached(_) | News::Mark(_)) => continue,
                        Err(RecvError::Closed) => return,
                    };
                    later.push(changed.clone());
                    changed
                }
                again = later.due() => again,
            };
            self.look_at_sessions(changed).await;
        }
    }

    async fn look_at_sessions(&self, changed: MaybeMoved) {
        let Some(over) = self.config.load().mail.end_moved else {
            return;
        };
        let (mut moved, mut asked) = (Vec::new(), Asked::new());
        for session in self.sessions.logged_in(changed.as_ref()) {
            if self.has_moved(&session, &mut asked).await {
                moved.push(session);
            }
            if changed.is_none() {
                sleep(PACE).await;
            }
        }
        if !moved.is_empty() {
            log::info!("{} sessions end: their accounts are on another server now", moved.len());
            tokio::spawn(end(moved, over));
        }
    }

    /// Whether all accounts of a session are on another server than it is. A connection of the web may have several:
    /// it goes on for those that have not moved.
    async fn has_moved(&self, session: &Session, asked: &mut Asked) -> bool {
        for login in session.facts.handle.logins() {
            if !self.is_elsewhere(session, &login, asked).await {
                return false;
            }
        }
        true
    }

    async fn is_elsewhere(&self, session: &Session, login: &LoggedIn, asked: &mut Asked) -> bool {
        let Some(lookup) = lookup(session, login) else {
            return false;
        };
        let key = (login.account.clone(), lookup.service);
        let known = match asked.get(&key) {
            Some(known) => known.clone(),
            None => self
                .routes
                .route(&lookup)
                .await
                .ok()
                .and_then(|route| AccountPlace::of(route, login)),
        };
        // Out of a cache, it may be an old answer, and a session that has not moved must not end.
        let known = match known {
            Some(place) if !place.certain && place.differs(login) => self.certain_place(&lookup, login, place).await,
            known => known,
        };
        let elsewhere = known
            .as_ref()
            .is_some_and(|place| place.certain && place.differs(login));
        asked.insert(key, known);
        elsewhere
    }

    /// Where the directory itself says that the account is.
    async fn certain_place(&self, lookup: &Lookup, login: &LoggedIn, place: AccountPlace) -> Option<AccountPlace> {
        let mut again = self.routes.ask_again(lookup, Duration::ZERO).await;
        if again.is_none() {
            // It was asked in this very millisecond, for another session. Or it is down, and then it says nothing.
            sleep(TICK).await;
            again = self.routes.ask_again(lookup, Duration::ZERO).await;
        }
        match again {
            Some(again) => again.ok().and_then(|route| AccountPlace::of(route, login)),
            None => Some(place),
        }
    }
}

/// Where an account is now.
#[derive(Clone)]
struct AccountPlace {
    server: Arc<str>,
    /// The directory has said so just now.
    certain: bool,
}

impl AccountPlace {
    fn of(route: Route, login: &LoggedIn) -> Option<Self> {
        (*route.account == login.account).then_some(Self {
            server: route.server,
            certain: route.tier == Tier::Directory,
        })
    }

    fn differs(&self, login: &LoggedIn) -> bool {
        !login.server.is_empty() && !self.server.eq_ignore_ascii_case(&login.server)
    }
}

/// The account of a login, for the service of its session.
fn lookup(session: &Session, login: &LoggedIn) -> Option<Lookup> {
    let service = match session.facts.proto {
        Proto::Imap => Service::Imap,
        Proto::Pop3 => Service::Pop3,
        Proto::Http => Service::Web,
        Proto::Stream => return None,
    };
    Some(Lookup {
        subject: Subject::Login(login.account.clone()),
        service,
        client: session.facts.client.addr.ip(),
        local: session.facts.client.local.ip(),
        host: None,
    })
}

/// Ends them one after the other within this time.
async fn end(sessions: Vec<Arc<Session>>, over: Duration) {
    let step = (over / u32::try_from(sessions.len()).unwrap_or(u32::MAX)).min(STEP);
    for session in sessions {
        session.facts.handle.end(CloseReason::Moved);
        sleep(step).await;
    }
}
