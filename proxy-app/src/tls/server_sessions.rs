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
use openssl::ssl::{Ssl, SslConnectorBuilder, SslRef, SslSessionCacheMode, SslVersion};
use parking_lot::Mutex;

use super::set_session::{self, OwnSession};

/// How long a session is offered, from the handshake in which a certificate was shown. One that expires meanwhile, or is
/// taken back, counts no longer than that.
const OFFERED: Duration = Duration::from_secs(60 * 60);
/// Sessions of one name, at most. Those of TLS 1.3 are used once (RFC 8446 appendix C.4), and logins come at one time.
const OF_A_NAME: usize = 16;
/// Names, at most. A session with its certificates takes some kilobytes.
const NAMES: usize = 256;

/// What a handshake is done for.
static HANDSHAKE: LazyLock<Index<Ssl, SessionHandshake>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("there are thousands of them, and this is one of two"));

struct SessionHandshake {
    name: SessionName,
    /// When the certificate was shown of the session that is offered.
    proved: Option<Instant>,
}

/// What a session is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SessionName {
    /// The name in the certificate, and in SNI.
    pub(super) name: Box<str>,
    /// Whether the certificate was verified.
    pub(super) verified: bool,
}

/// The sessions of one context.
pub(super) struct ServerSessions(Arc<Mutex<KeptSessions<OwnSession>>>);

/// By name.
struct KeptSessions<S>(HashMap<SessionName, NameSessions<S>>);

struct NameSessions<S> {
    /// The newest last.
    sessions: Vec<KeptSession<S>>,
    /// When a handshake has failed that offered one.
    failed: Option<Instant>,
}

#[derive(Clone)]
struct KeptSession<S> {
    session: S,
    /// When the certificate was shown.
    proved: Instant,
    /// Whether it is used once: else its server could tell that two connections are the same client's.
    is_for_once: bool,
}

/// A handshake that may offer a session. If it comes to no good end, no more are offered for some time: the server may
/// stumble over its own sessions.
pub(super) struct OfferedSession<'s> {
    sessions: &'s ServerSessions,
    /// `None`: nothing was offered, or it has come to its end.
    name: Option<SessionName>,
}

impl ServerSessions {
    /// Keeps those that begin in this context.
    pub(super) fn of(builder: &mut SslConnectorBuilder) -> Self {
        let kept = Arc::new(Mutex::new(KeptSessions(HashMap::new())));
        let keeper = kept.clone();
        builder.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        builder.set_new_session_callback(move |ssl, session| {
            let Some(handshake) = ssl.ex_data(*HANDSHAKE) else {
                return;
            };
            let now = Instant::now();
            let kept = KeptSession {
                session: OwnSession::of(ssl, session),
                // A resumed connection has shown no certificate, and its new sessions count for the old one.
                proved: handshake.proved.filter(|_| ssl.session_reused()).unwrap_or(now),
                is_for_once: ssl.version2() == Some(SslVersion::TLS1_3),
            };
            keeper.lock().keep(&handshake.name, kept, now);
        });
        Self(kept)
    }

    /// Has a handshake offer a session, if there is one, and its own sessions kept under this name.
    ///
    /// # Errors
    /// The TLS library does not take it.
    pub(super) fn offer(&self, ssl: &mut SslRef, name: SessionName) -> Result<OfferedSession<'_>, ErrorStack> {
        let kept = self.0.lock().take(&name, Instant::now());
        let offered = OfferedSession {
            sessions: self,
            name: kept.is_some().then(|| name.clone()),
        };
        let proved = kept.as_ref().map(|kept| kept.proved);
        ssl.set_ex_data(*HANDSHAKE, SessionHandshake { name, proved });
        if let Some(kept) = kept {
            set_session::offer(ssl, &kept.session)?;
        }
        Ok(offered)
    }
}

impl OfferedSession<'_> {
    /// The handshake has come to its end.
    pub(super) fn succeeded(mut self) {
        self.name = None;
    }
}

impl Drop for OfferedSession<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.sessions.0.lock().fail(name, Instant::now());
        }
    }
}

impl<S: Clone> KeptSessions<S> {
    fn keep(&mut self, name: &SessionName, new: KeptSession<S>, now: Instant) {
        if !self.0.contains_key(name) && self.0.len() >= NAMES {
            let newest = |kept: &NameSessions<S>| kept.sessions.last().map(|last| last.proved);
            let stalest = self.0.iter().min_by_key(|(_, kept)| newest(kept));
            if let Some(name) = stalest.map(|(name, _)| name.clone()) {
                self.0.remove(&name);
            }
        }
        let kept = self.0.entry(name.clone()).or_default();
        if kept.failed.is_some_and(|failed| now.duration_since(failed) < OFFERED) {
            return;
        }
        if !new.is_for_once {
            // The newest serves all.
            kept.sessions.clear();
        }
        if kept.sessions.len() >= OF_A_NAME {
            kept.sessions.remove(0);
        }
        kept.sessions.push(new);
    }

    /// The newest of a name. It is kept where it can be used again.
    fn take(&mut self, name: &SessionName, now: Instant) -> Option<KeptSession<S>> {
        let sessions = &mut self.0.get_mut(name)?.sessions;
        sessions.retain(|kept| now.duration_since(kept.proved) < OFFERED);
        let newest = sessions.pop()?;
        if !newest.is_for_once {
            sessions.push(newest.clone());
        }
        Some(newest)
    }

    fn fail(&mut self, name: SessionName, now: Instant) {
        self.0.insert(
            name,
            NameSessions {
                sessions: Vec::new(),
                failed: Some(now),
            },
        );
    }
}

impl<S> Default for NameSessions<S> {
    fn default() -> Self {
        Self {
            sessions: Vec::new(),
            failed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str, verified: bool) -> SessionName {
        let name = name.into();
        SessionName { name, verified }
    }

    fn kept(session: usize, proved: Instant, is_for_once: bool) -> KeptSession<usize> {
        KeptSession {
            session,
            proved,
            is_for_once,
        }
    }

    fn taken(sessions: &mut KeptSessions<usize>, name: &SessionName, now: Instant) -> Option<usize> {
        sessions.take(name, now).map(|kept| kept.session)
    }

    #[test]
    fn the_newest_is_offered_first_and_for_its_name_only() {
        let mut sessions = KeptSessions(HashMap::new());
        let (store, now) = (name("store", true), Instant::now());
        for session in 0..=OF_A_NAME {
            sessions.keep(&store, kept(session, now, true), now);
        }
        for other in [name("store", false), name("store2", true)] {
            assert_eq!(taken(&mut sessions, &other, now), None);
        }
        let all: Vec<_> = std::iter::from_fn(|| taken(&mut sessions, &store, now)).collect();
        let each_once_without_the_oldest: Vec<_> = (1..=OF_A_NAME).rev().collect();
        assert_eq!(all, each_once_without_the_oldest);
        sessions.keep(&store, kept(1, now, false), now);
        sessions.keep(&store, kept(2, now, false), now);
        assert_eq!([0, 1].map(|_| taken(&mut sessions, &store, now)), [Some(2), Some(2)]);
        assert_eq!(sessions.0[&store].sessions.len(), 1);
    }

    /// The story that must not be: each resumed connection brings new sessions, and an old certificate counts for ever.
    #[test]
    fn a_certificate_counts_for_an_hour_however_often_its_session_is_resumed() {
        let mut sessions = KeptSessions(HashMap::new());
        let (store, begun) = (name("store", true), Instant::now());
        sessions.keep(&store, kept(0, begun, true), begun);
        let (mut now, mut resumed) = (begun, 0);
        while let Some(offered) = sessions.take(&store, now) {
            resumed += 1;
            sessions.keep(&store, kept(resumed, offered.proved, true), now);
            now += Duration::from_secs(600);
        }
        assert_eq!((resumed, now), (6, begun + OFFERED));
    }

    #[test]
    fn nothing_is_offered_to_a_server_that_has_stumbled() {
        let mut sessions = KeptSessions(HashMap::new());
        let (store, now) = (name("store", true), Instant::now());
        sessions.keep(&store, kept(1, now, true), now);
        sessions.keep(&store, kept(2, now, true), now);
        assert_eq!(taken(&mut sessions, &store, now), Some(2));
        sessions.fail(store.clone(), now);
        sessions.keep(&store, kept(3, now, true), now);
        assert_eq!(taken(&mut sessions, &store, now), None);
        let later = now + OFFERED;
        sessions.keep(&store, kept(4, later, true), later);
        assert_eq!(taken(&mut sessions, &store, later), Some(4));
    }

    #[test]
    fn names_are_bounded() {
        let mut sessions = KeptSessions(HashMap::new());
        let now = Instant::now();
        let at = |number: usize| now + Duration::from_secs(number as u64);
        for number in 0..=NAMES {
            sessions.keep(
                &name(&number.to_string(), true),
                kept(number, at(number), true),
                at(number),
            );
        }
        assert_eq!(sessions.0.len(), NAMES);
        let stalest = taken(&mut sessions, &name("0", true), at(NAMES));
        assert_eq!(
            (stalest, taken(&mut sessions, &name("1", true), at(NAMES))),
            (None, Some(1))
        );
    }
}
