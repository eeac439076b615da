//! Another service's word on logins: it is asked after the rules have let an attempt through, and told how it ended.
//!
//! What is sent and how is its implementation's; the limits on time, too. It is asked alike about names that nobody has.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::{Action, Answered, Claim, Finding, Rule, Throttle, Ticket};

/// What a client is told about when it may try again; the service does not say.
const REFUSED_FOR: Duration = Duration::from_secs(59);
/// Longest text of a client about itself that is passed on.
const DEVICE_MAX: usize = 256;

/// How a login came in.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoginChannel<'a> {
    /// `imap`, `pop3` or `http`.
    pub protocol: &'static str,
    /// Whether it came in TLS.
    pub tls: bool,
    /// What the client says it is.
    pub device: &'a str,
    /// It proves who somebody is by a token, which nobody guesses: its failures say nothing of the account.
    pub token: bool,
}

/// A login, as the service hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyLogin {
    /// Canonical name of the account, or the name that no account has.
    pub account: String,
    /// Address of the client.
    pub client: IpAddr,
    /// 12 bits of a keyed hash of name and password, if there is a key.
    pub hash: Option<u16>,
    /// `imap`, `pop3` or `http`.
    pub protocol: &'static str,
    /// Whether it came in TLS.
    pub tls: bool,
    /// What the client says it is.
    pub device: String,
}

/// What the service says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyAnswer {
    /// The mailbox server may be asked.
    Pass,
    /// After so much time.
    Delay(Duration),
    /// Not at all.
    Refuse,
}

/// How a login ended, for the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyEnd {
    /// The password was right.
    Right,
    /// Name or password was wrong.
    Wrong,
    /// The service itself has refused it.
    Refused,
}

/// The service.
#[async_trait]
pub trait LoginPolicy: Send + Sync {
    /// Whether its answers are recorded only.
    fn is_dry(&self) -> bool;

    /// What is to become of a login. It takes no longer than its time limit, whatever the service does.
    async fn allow(&self, login: &PolicyLogin) -> PolicyAnswer;

    /// How a login ended. It does not wait.
    fn report(&self, login: &PolicyLogin, end: PolicyEnd);
}

impl PolicyLogin {
    pub(super) fn of(claim: &Claim<'_>) -> Self {
        let LoginChannel {
            protocol, tls, device, ..
        } = claim.channel;
        Self {
            account: claim.account.to_owned(),
            client: claim.client.to_canonical(),
            hash: claim.password.and_then(|mark| mark.shared_hash(claim.account)),
            protocol,
            tls,
            device: device.chars().take(DEVICE_MAX).collect(),
        }
    }
}

impl PolicyAnswer {
    /// What it does, with a delay of at most so much.
    pub(super) fn finding(self, longest: Duration) -> Option<Finding> {
        let (action, lasts) = match self {
            Self::Pass => return None,
            Self::Delay(time) => (Action::Delay(time.min(longest)), time.min(longest)),
            Self::Refuse => (Action::Refuse, REFUSED_FOR),
        };
        Some(Finding {
            rule: Rule::Policy,
            action,
            count: 0,
            lasts,
        })
    }
}

impl Throttle {
    /// Asks another service from now on, or none.
    pub fn set_policy(&self, policy: Option<Arc<dyn LoginPolicy>>) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    pub(super) fn policy(&self) -> Option<Arc<dyn LoginPolicy>> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the service that has let an attempt through how it ended.
    pub(super) fn report(&self, ticket: &Ticket, answer: Answered) {
        let end = match answer {
            Answered::Right | Answered::Accepted => PolicyEnd::Right,
            Answered::Wrong => PolicyEnd::Wrong,
            Answered::Unknown => return,
        };
        if let (Some(login), Some(policy)) = (&ticket.policy, self.policy()) {
            policy.report(login, end);
        }
    }
}
