//! POP3 (RFC 1939, 2449, 2595, 5034) until a user is logged in: the machine that faces the client ([`Pop3Login`]), the
//! one that faces the mailbox server ([`Pop3Upstream`]), and what an operator may choose.
//!
//! No command of the transaction state is known here, and no APOP: the proxy has no password to compute with.

mod capabilities;
mod login;
mod upstream;

use std::sync::Arc;

use crate::learned::LearnedCapabilities;
use crate::login::LoginLimits;

pub use login::{Pop3Dialect, Pop3Login};
pub use upstream::{Pop3Dialogue, Pop3Upstream};

/// What an operator may choose for clients that are not logged in yet.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The greeting behind `+OK `.
    pub greeting: String,
    /// The capabilities, one line each, without those that depend on the channel.
    pub capabilities: Vec<String>,
    /// What the mailbox servers have said of themselves.
    pub learned: Arc<LearnedCapabilities>,
    /// Whether that is shown instead of `capabilities`, once it is known.
    pub shows_learned: bool,
    /// What is offered, and when the dialogue ends.
    pub limits: LoginLimits,
}

/// `zimbraReverseProxyPop3EnabledCapability` as it is shipped (MAIL §4).
const CAPABILITIES: [&str; 5] = ["EXPIRE 31 USER", "TOP", "UIDL", "USER", "XOIP"];

impl Default for Settings {
    fn default() -> Self {
        Self {
            greeting: "POP3 ready".to_owned(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            learned: Arc::new(LearnedCapabilities::new(&capabilities::FORM)),
            shows_learned: false,
            limits: LoginLimits::default(),
        }
    }
}

impl Settings {
    /// Writes the greeting of a new connection.
    fn greet(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("+OK {}\r\n", self.greeting).as_bytes());
    }

    /// For a client that has asked for this name in TLS, each with its end of line.
    fn capabilities(&self, name: Option<&str>) -> String {
        let learned = self.shows_learned.then(|| self.learned.shared(name)).flatten();
        let lines: Vec<&str> = match &learned {
            Some(shared) => shared.lines().collect(),
            None => self.capabilities.iter().map(String::as_str).collect(),
        };
        lines.iter().map(|line| format!("{line}\r\n")).collect()
    }
}
