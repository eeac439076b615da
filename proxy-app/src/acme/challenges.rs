//! Answers to the challenges that are open: by HTTP-01 (RFC 8555 §8.3) and by TLS-ALPN-01 (RFC 8737), for the web
//! listeners.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use async_trait::async_trait;
use openssl::ssl::SslContext;
use parking_lot::Mutex;

/// What is answered to which challenge.
#[derive(Default)]
pub(crate) struct Challenges {
    open: Mutex<OpenChallenges>,
    /// Other nodes, which the authority may ask as well.
    others: OnceLock<Arc<dyn OtherAnswerers>>,
}

#[derive(Default)]
struct OpenChallenges {
    /// By token.
    answers: HashMap<String, String>,
    /// Names, in lower case, the newest last. There may be two of a name: of an order, and of a request to ourselves.
    contexts: Vec<OwnHandshake>,
    /// How many handshakes there have been.
    numbered: u64,
    /// Those of orders of other nodes.
    of_others: Vec<OthersChallenge>,
}

/// A handshake of this node for a name.
struct OwnHandshake {
    number: u64,
    name: String,
    context: SslContext,
}

/// A challenge of an order of another node.
#[derive(Clone)]
pub(crate) struct OthersChallenge {
    /// The authority's token.
    pub token: String,
    /// What it is answered with.
    pub answer: OthersAnswer,
    /// Until when.
    pub until: Instant,
}

/// What a challenge is answered with.
#[derive(Clone)]
pub(crate) enum OthersAnswer {
    /// A file.
    Text(String),
    /// A handshake for this name, which is in lower case.
    Handshake(String, SslContext),
}

/// Other nodes that answer challenges of this one.
#[async_trait]
pub(crate) trait OtherAnswerers: Send + Sync {
    /// They answer this challenge when it returns, as far as they can: its kind, its name, and the key authorization.
    async fn open(&self, token: &str, kind: &'static str, name: &str, answer: &str);

    /// They need not answer it any more.
    fn close(&self, token: &str);
}

/// An answer, until it is dropped.
pub(crate) struct OpenChallenge {
    challenges: Arc<Challenges>,
    asked: AskedFor,
    /// By this token other nodes know it.
    told: Option<String>,
}

/// By what an authority asks for an answer.
enum AskedFor {
    Token(String),
    /// A name, by the number of its handshake.
    Name(u64),
}

impl Challenges {
    /// Answers a token from now on.
    pub(crate) fn open(self: &Arc<Self>, token: &str, answer: String) -> OpenChallenge {
        self.open.lock().answers.insert(token.to_owned(), answer);
        self.opened(AskedFor::Token(token.to_owned()))
    }

    /// Does handshakes for a challenge of this name in this context from now on.
    pub(crate) fn open_handshakes(self: &Arc<Self>, name: &str, context: SslContext) -> OpenChallenge {
        let mut open = self.open.lock();
        open.numbered += 1;
        let number = open.numbered;
        open.contexts.push(OwnHandshake {
            number,
            name: name.to_owned(),
            context,
        });
        drop(open);
        self.opened(AskedFor::Name(number))
    }

    fn opened(self: &Arc<Self>, asked: AskedFor) -> OpenChallenge {
        OpenChallenge {
            challenges: self.clone(),
            asked,
            told: None,
        }
    }

    /// Tells others of challenges from now on.
    pub(crate) fn tell(&self, others: Arc<dyn OtherAnswerers>) {
        let _they_are_told_already = self.others.set(others);
    }

    /// Answers these of other nodes, and no others.
    pub(crate) fn answer_for_others(&self, challenges: Vec<OthersChallenge>) {
        self.open.lock().of_others = challenges;
    }

    /// What is answered for other nodes.
    pub(crate) fn of_others(&self) -> Vec<OthersChallenge> {
        self.open.lock().of_others.clone()
    }

    /// The answer to this token, if its challenge is open.
    pub(crate) fn answer(&self, token: &str) -> Option<String> {
        let open = self.open.lock();
        let own = open.answers.get(token).cloned();
        own.or_else(|| {
            open.lasting().find_map(|one| match &one.answer {
                OthersAnswer::Text(answer) if one.token == token => Some(answer.clone()),
                _ => None,
            })
        })
    }

    /// Whether any name has a challenge for which there are handshakes.
    pub(crate) fn have_handshakes(&self) -> bool {
        let open = self.open.lock();
        let is_handshake = |one: &OthersChallenge| matches!(one.answer, OthersAnswer::Handshake(..));
        !open.contexts.is_empty() || open.lasting().any(is_handshake)
    }

    /// The context of a handshake for a challenge of this name, if one is open.
    pub(crate) fn context(&self, name: &str) -> Option<SslContext> {
        let open = self.open.lock();
        let mut own = open.contexts.iter().rev().filter(|own| own.name == name);
        own.next().map(|own| own.context.clone()).or_else(|| {
            // The node of an older one may have died: the authority asks about the newest.
            let handshakes = open.lasting().filter_map(|one| match &one.answer {
                OthersAnswer::Handshake(of, context) if of == name => Some((one.until, context)),
                _ => None,
            });
            let newest = handshakes.max_by_key(|(until, _)| *until);
            newest.map(|(_, context)| context.clone())
        })
    }
}

impl OpenChallenges {
    /// Those of other nodes whose time has not passed.
    fn lasting(&self) -> impl Iterator<Item = &OthersChallenge> {
        let now = Instant::now();
        self.of_others.iter().filter(move |one| one.until > now)
    }
}

impl OpenChallenge {
    /// Returns when other nodes, if there are any, answer it, too: the authority may ask them.
    pub(crate) async fn everywhere(mut self, token: &str, kind: &'static str, name: &str, answer: &str) -> Self {
        if let Some(others) = self.challenges.others.get().cloned() {
            self.told = Some(token.to_owned());
            others.open(token, kind, name, answer).await;
        }
        self
    }
}

impl Drop for OpenChallenge {
    fn drop(&mut self) {
        let mut open = self.challenges.open.lock();
        match &self.asked {
            AskedFor::Token(token) => drop(open.answers.remove(token)),
            AskedFor::Name(number) => open.contexts.retain(|own| own.number != *number),
        }
        drop(open);
        if let (Some(others), Some(token)) = (self.challenges.others.get(), &self.told) {
            others.close(token);
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
        let open = challenges.open_handshakes("a.test", context.clone());
        assert!(challenges.have_handshakes() && challenges.context("a.test").is_some());
        assert!(challenges.context("b.test").is_none());
        // Another one of the same name takes nothing away when it ends.
        drop(challenges.open_handshakes("a.test", context));
        assert!(challenges.context("a.test").is_some());
        drop(open);
        assert!(!challenges.have_handshakes());
    }

    #[test]
    fn challenges_of_other_nodes_are_answered_until_their_time() {
        let challenges = Challenges::default();
        let of_others = |until: Instant| {
            let context = challenge_context("a.test", "handshake.print").unwrap();
            let answers = [
                ("file", OthersAnswer::Text("file.print".to_owned())),
                ("handshake", OthersAnswer::Handshake("a.test".to_owned(), context)),
            ];
            answers.map(|(token, answer)| OthersChallenge {
                token: token.to_owned(),
                answer,
                until,
            })
        };
        let now = Instant::now();
        for (until, is_answered) in [(now + std::time::Duration::from_secs(60), true), (now, false)] {
            challenges.answer_for_others(of_others(until).into());
            assert_eq!(challenges.answer("file").is_some(), is_answered);
            assert_eq!(challenges.answer("handshake"), None, "it is not for a file");
            assert_eq!(challenges.have_handshakes(), is_answered);
            assert_eq!(challenges.context("a.test").is_some(), is_answered);
        }
    }
}
