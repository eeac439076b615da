//! TLS sessions with servers: the next connection to the same name offers one, which saves the server a signature, and us
//! the look at its certificate (RFC 8446 section 2.2, RFC 5077).
//!
//! A session counts for what was proved when it began. So it is offered under the same name and the same rule only, in
//! the context whose authorities and own certificate it began with, and for an hour.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{Ssl, SslConnectorBuilder, SslRef, SslSession, SslSessionCacheMode, SslVersion};
use parking_lot::Mutex;

use super::set_session::{self, SessionsContext};

/// How long a session is offered. A certificate that expires meanwhile, or is taken back, counts no longer than that.
const OFFERED: Duration = Duration::from_secs(60 * 60);
/// Sessions of one name, at most. Those of TLS 1.3 are used once (RFC 8446 appendix C.4), and logins come at one time.
const OF_A_NAME: usize = 16;
/// Names, at most. A session with its certificates takes some kilobytes.
const NAMES: usize = 256;

/// Under which name a handshake is done.
static NAME: LazyLock<Index<Ssl, SessionName>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("there are thousands of them, and this is one of two"));

/// What a session is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SessionName {
    /// The name in the certificate, and in SNI.
    pub(super) name: Box<str>,
    /// Whether the certificate was verified.
    pub(super) verified: bool,
}

/// The sessions of one context.
pub(super) struct ServerSessions {
    kept: Arc<Mutex<KeptSessions<SslSession>>>,
    context: SessionsContext,
}

/// By name; the newest last.
struct KeptSessions<S>(HashMap<SessionName, Vec<KeptSession<S>>>);

#[derive(Clone)]
struct KeptSession<S> {
    session: S,
    since: Instant,
    /// Whether it is used once: else its server could tell that two connections are the same client's.
    is_for_once: bool,
}

impl ServerSessions {
    /// Keeps those that begin in this context.
    pub(super) fn of(builder: &mut SslConnectorBuilder) -> Self {
        let kept = Arc::new(Mutex::new(KeptSessions(HashMap::new())));
        let keeper = kept.clone();
        builder.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        builder.set_new_session_callback(move |ssl, session| {
            if let Some(name) = ssl.ex_data(*NAME) {
                let kept = KeptSession {
                    session,
                    since: Instant::now(),
                    is_for_once: ssl.version2() == Some(SslVersion::TLS1_3),
                };
                keeper.lock().keep(name, kept);
            }
        });
        let context = SessionsContext::of_builder(builder);
        Self { kept, context }
    }

    /// Has a handshake offer a session, if there is one, and its own sessions kept under this name.
    ///
    /// # Errors
    /// The TLS library does not take it.
    pub(super) fn offer(&self, ssl: &mut SslRef, name: SessionName) -> Result<(), ErrorStack> {
        let session = self.kept.lock().take(&name, Instant::now());
        ssl.set_ex_data(*NAME, name);
        match session {
            Some(session) => set_session::offer(ssl, &session, self.context),
            None => Ok(()),
        }
    }

    /// A handshake has failed: it may be because of the session.
    pub(super) fn forget(&self, ssl: &SslRef) {
        if let Some(name) = ssl.ex_data(*NAME) {
            self.kept.lock().0.remove(name);
        }
    }
}

impl<S: Clone> KeptSessions<S> {
    fn keep(&mut self, name: &SessionName, new: KeptSession<S>) {
        if !self.0.contains_key(name) && self.0.len() >= NAMES {
            let newest = |kept: &[KeptSession<S>]| kept.last().map(|last| last.since);
            let stalest = self.0.iter().min_by_key(|(_, kept)| newest(kept));
            if let Some(name) = stalest.map(|(name, _)| name.clone()) {
                self.0.remove(&name);
            }
        }
        let kept = self.0.entry(name.clone()).or_default();
        if kept.len() >= OF_A_NAME {
            kept.remove(0);
        }
        kept.push(new);
    }

    /// The newest of a name. It is kept where it can be used again.
    fn take(&mut self, name: &SessionName, now: Instant) -> Option<S> {
        let kept = self.0.get_mut(name)?;
        let newest = kept.pop()?;
        if now.duration_since(newest.since) >= OFFERED {
            self.0.remove(name);
            return None;
        }
        if !newest.is_for_once {
            kept.push(newest.clone());
        }
        Some(newest.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str, verified: bool) -> SessionName {
        let name = name.into();
        SessionName { name, verified }
    }

    fn kept(session: usize, since: Instant, is_for_once: bool) -> KeptSession<usize> {
        KeptSession {
            session,
            since,
            is_for_once,
        }
    }

    #[test]
    fn the_newest_is_offered_first_and_for_its_name_only() {
        let mut sessions = KeptSessions(HashMap::new());
        let (store, now) = (name("store", true), Instant::now());
        for session in 0..=OF_A_NAME {
            sessions.keep(&store, kept(session, now, true));
        }
        for other in [name("store", false), name("store2", true)] {
            assert_eq!(sessions.take(&other, now), None);
        }
        let taken: Vec<_> = std::iter::from_fn(|| sessions.take(&store, now)).collect();
        let each_once_without_the_oldest: Vec<_> = (1..=OF_A_NAME).rev().collect();
        assert_eq!(taken, each_once_without_the_oldest);
        sessions.keep(&store, kept(1, now, false));
        assert_eq!([0, 1].map(|_| sessions.take(&store, now)), [Some(1), Some(1)]);
    }

    #[test]
    fn an_old_one_is_not_offered() {
        let mut sessions = KeptSessions(HashMap::new());
        let (store, now) = (name("store", true), Instant::now());
        sessions.keep(&store, kept(1, now, false));
        sessions.keep(&store, kept(2, now, false));
        let almost = now + OFFERED - Duration::from_secs(1);
        assert_eq!(sessions.take(&store, almost), Some(2));
        assert_eq!(sessions.take(&store, now + OFFERED), None);
        assert!(sessions.0.is_empty(), "those before it are older");
    }

    #[test]
    fn names_are_bounded() {
        let mut sessions = KeptSessions(HashMap::new());
        let now = Instant::now();
        let at = |number: usize| now + Duration::from_secs(number as u64);
        for number in 0..=NAMES {
            sessions.keep(&name(&number.to_string(), true), kept(number, at(number), true));
        }
        assert_eq!(sessions.0.len(), NAMES);
        let stalest = sessions.take(&name("0", true), at(NAMES));
        assert_eq!((stalest, sessions.take(&name("1", true), at(NAMES))), (None, Some(1)));
    }
}
