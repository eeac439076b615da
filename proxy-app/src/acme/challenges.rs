//! Answers to the challenges that are open, for the web listeners (RFC 8555 §8.3).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// What is answered to which token.
#[derive(Default)]
pub(crate) struct Challenges(Mutex<HashMap<String, String>>);

/// An answer, until it is dropped.
pub(crate) struct OpenChallenge {
    challenges: Arc<Challenges>,
    token: String,
}

impl Challenges {
    /// Answers a token from now on.
    pub(crate) fn open(self: &Arc<Self>, token: &str, answer: String) -> OpenChallenge {
        self.0.lock().insert(token.to_owned(), answer);
        OpenChallenge {
            challenges: self.clone(),
            token: token.to_owned(),
        }
    }

    /// The answer to this token, if its challenge is open.
    pub(crate) fn answer(&self, token: &str) -> Option<String> {
        self.0.lock().get(token).cloned()
    }
}

impl Drop for OpenChallenge {
    fn drop(&mut self) {
        self.challenges.0.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_answered_while_it_is_open() {
        let challenges = Arc::new(Challenges::default());
        let open = challenges.open("token", "token.print".to_owned());
        assert_eq!(challenges.answer("token").as_deref(), Some("token.print"));
        assert_eq!(challenges.answer("other"), None);
        drop(open);
        assert_eq!(challenges.answer("token"), None);
    }
}
