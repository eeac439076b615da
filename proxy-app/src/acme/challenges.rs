//! Answers to the challenges that are open: by HTTP-01 (RFC 8555 §8.3) and by TLS-ALPN-01 (RFC 8737), for the web
//! listeners.

use std::collections::HashMap;
use std::sync::Arc;

use openssl::ssl::SslContext;
use parking_lot::Mutex;

/// What is answered to which challenge.
#[derive(Default)]
pub(crate) struct Challenges(Mutex<OpenChallenges>);

#[derive(Default)]
struct OpenChallenges {
    /// By token.
    answers: HashMap<String, String>,
    /// By name, in lower case.
    contexts: HashMap<String, SslContext>,
}

/// An answer, until it is dropped.
pub(crate) struct OpenChallenge {
    challenges: Arc<Challenges>,
    asked: AskedFor,
}

/// By what an authority asks for an answer.
enum AskedFor {
    Token(String),
    Name(String),
}

impl Challenges {
    /// Answers a token from now on.
    pub(crate) fn open(self: &Arc<Self>, token: &str, answer: String) -> OpenChallenge {
        self.0.lock().answers.insert(token.to_owned(), answer);
        self.opened(AskedFor::Token(token.to_owned()))
    }

    /// Does handshakes for a challenge of this name in this context from now on.
    pub(crate) fn open_handshakes(self: &Arc<Self>, name: &str, context: SslContext) -> OpenChallenge {
        self.0.lock().contexts.insert(name.to_owned(), context);
        self.opened(AskedFor::Name(name.to_owned()))
    }

    fn opened(self: &Arc<Self>, asked: AskedFor) -> OpenChallenge {
        OpenChallenge {
            challenges: self.clone(),
            asked,
        }
    }

    /// The answer to this token, if its challenge is open.
    pub(crate) fn answer(&self, token: &str) -> Option<String> {
        self.0.lock().answers.get(token).cloned()
    }

    /// Whether any name has a challenge for which there are handshakes.
    pub(crate) fn have_handshakes(&self) -> bool {
        !self.0.lock().contexts.is_empty()
    }

    /// The context of a handshake for a challenge of this name, if one is open.
    pub(crate) fn context(&self, name: &str) -> Option<SslContext> {
        self.0.lock().contexts.get(name).cloned()
    }
}

impl Drop for OpenChallenge {
    fn drop(&mut self) {
        let mut open = self.challenges.0.lock();
        match &self.asked {
            AskedFor::Token(token) => drop(open.answers.remove(token)),
            AskedFor::Name(name) => drop(open.contexts.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::challenge_certificate::challenge_context;

    #[test]
    fn a_challenge_is_answered_while_it_is_open() {
        let challenges = Arc::new(Challenges::default());
        let open = challenges.open("token", "token.print".to_owned());
        assert_eq!(challenges.answer("token").as_deref(), Some("token.print"));
        assert_eq!(challenges.answer("other"), None);
        drop(open);
        assert_eq!(challenges.answer("token"), None);
    }

    #[test]
    fn a_name_has_handshakes_while_its_challenge_is_open() {
        let challenges = Arc::new(Challenges::default());
        let context = challenge_context("a.test", "token.print").unwrap();
        let open = challenges.open_handshakes("a.test", context);
        assert!(challenges.have_handshakes() && challenges.context("a.test").is_some());
        assert!(challenges.context("b.test").is_none());
        drop(open);
        assert!(!challenges.have_handshakes());
    }
}
