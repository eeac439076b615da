//! The way of the messages that client and mailbox server hold with each other while a login is under way: from the
//! attempt, which has the server, to the dialogue, which has the client, and back.

use std::time::Duration;

use mail_directory::Secret;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::credentials::Proof;
use crate::login_failure::LoginFailure;

/// How long after its first message a client hears the first one of the server. A server that is asked answers sooner;
/// for a name that none is asked about it is made here at once, and the time must not tell which of the two it was.
pub(crate) const CHALLENGE_WAIT: Duration = Duration::from_millis(250);

/// A message for the client, who is to answer.
pub(crate) struct Challenge {
    /// The message, before base64.
    pub(crate) message: Vec<u8>,
    /// Takes the answer. Dropped, it says that there is none.
    pub(crate) answer: oneshot::Sender<Secret<Vec<u8>>>,
}

/// The attempt's end.
pub(crate) struct Conversation {
    to: Option<mpsc::Sender<Challenge>>,
    /// Whether the client has had a message: what it says from then on is meant for one server only.
    pub(crate) begun: bool,
}

/// The dialogue's end.
pub(crate) struct Messages(Option<mpsc::Receiver<Challenge>>);

impl Messages {
    /// The next message. `None`: there is none any more.
    pub(crate) async fn next(&mut self) -> Option<Challenge> {
        self.0.as_mut()?.recv().await
    }

    /// Takes no more.
    pub(crate) fn close(&mut self) {
        self.0 = None;
    }
}

impl Conversation {
    /// Both ends. Only an exchange has messages to hold; all other logins need no way for them.
    pub(crate) fn about(proof: &Proof) -> (Self, Messages) {
        let way = matches!(proof, Proof::Exchange(_)).then(|| mpsc::channel(1));
        let (to, messages) = way.unzip();
        (Self { to, begun: false }, Messages(messages))
    }

    /// Says a message to the client, the first one not before `from`, and waits for its answer.
    ///
    /// # Errors
    /// The client gives none, or does not wait any more.
    pub(crate) async fn ask(&mut self, message: Vec<u8>, from: Instant) -> Result<Secret<Vec<u8>>, LoginFailure> {
        if !self.begun {
            sleep_until(from).await;
            self.begun = true;
        }
        let to = self.to.as_ref().ok_or(LoginFailure::Withdrawn)?;
        let (answer, answered) = oneshot::channel();
        let said = to.send(Challenge { message, answer }).await;
        said.map_err(|_| LoginFailure::Withdrawn)?;
        answered.await.map_err(|_| LoginFailure::Withdrawn)
    }
}
