//! IMAP (RFC 9051, RFC 3501) until a user is logged in: the machine that faces the client ([`ImapLogin`]), the one that
//! faces the mailbox server ([`ImapUpstream`]), and what an operator may choose.
//!
//! No command of the authenticated state is known here.

mod capabilities;
mod command;
mod login;
mod response_code;
mod upstream;

use std::sync::Arc;

use crate::learned::LearnedCapabilities;
use crate::login::LoginLimits;

pub use command::Tag;
pub use login::{ImapDialect, ImapLogin};
pub use upstream::{ImapDialogue, ImapUpstream};

/// The last line of an IMAP session that we end ourselves (MAIL §3.1).
pub const FAREWELL: &[u8] = b"* BYE IMAP server terminating connection\r\n";

/// What a logged-in client hears when an administrator ends its session.
pub const KICKED: &[u8] = b"* BYE session ended by the administrator\r\n";

/// What a logged-in client hears when its account is on another server now.
pub const MOVED: &[u8] = b"* BYE your mailbox has moved, please log in again\r\n";

/// What an operator may choose for clients that are not logged in yet.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The greeting behind `* OK `.
    pub greeting: String,
    /// The capabilities, without those that depend on the channel. Empty: a short list that is always true.
    pub capabilities: Vec<String>,
    /// What the mailbox servers have said of themselves.
    pub learned: Arc<LearnedCapabilities>,
    /// Whether that is shown instead of `capabilities`, once it is known.
    pub shows_learned: bool,
    /// What is offered, and when the dialogue ends.
    pub limits: LoginLimits,
    /// What we answer to `ID`.
    pub id: Vec<(String, String)>,
}

/// `zimbraReverseProxyImapEnabledCapability` as it is shipped (MAIL §3.2).
const CAPABILITIES: &str = "ACL BINARY CATENATE CHILDREN CONDSTORE ENABLE ESEARCH ESORT I18NLEVEL=1 ID IDLE IMAP4rev1 \
    LIST-EXTENDED LIST-STATUS LITERAL+ MULTIAPPEND NAMESPACE QRESYNC QUOTA RIGHTS=ektx SASL-IR SEARCHRES SORT \
    THREAD=ORDEREDSUBJECT UIDPLUS UNSELECT WITHIN XLIST";

/// What stands in where that attribute is empty (MAIL §3.2).
const FALLBACK_CAPABILITIES: &str = "IMAP4rev1 ID LITERAL+ SASL-IR IDLE NAMESPACE";

impl Default for Settings {
    fn default() -> Self {
        let id = [("NAME", "Portico"), ("VERSION", env!("CARGO_PKG_VERSION"))];
        Self {
            greeting: "IMAP4rev1 proxy server ready".to_owned(),
            capabilities: CAPABILITIES.split_whitespace().map(str::to_owned).collect(),
            learned: Arc::new(LearnedCapabilities::new(&capabilities::FORM)),
            shows_learned: false,
            limits: LoginLimits::default(),
            id: id.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        }
    }
}

impl Settings {
    /// Writes the greeting of a new connection.
    fn greet(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("* OK {}\r\n", self.greeting).as_bytes());
    }

    /// For a client that has asked for this name in TLS.
    fn capabilities(&self, name: Option<&str>) -> String {
        let learned = self.shows_learned.then(|| self.learned.shared(name)).flatten();
        learned.map_or_else(|| self.written_capabilities(), |shared| shared.to_string())
    }

    fn written_capabilities(&self) -> String {
        match self.capabilities.is_empty() {
            true => FALLBACK_CAPABILITIES.to_owned(),
            false => self.capabilities.join(" "),
        }
    }
}

/// A quoted string (RFC 9051 section 9), whatever the value: what such a string cannot hold, or what other parsers
/// stumble over, is left out.
fn quoted(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quote(value, &mut quoted);
    quoted
}

/// The same behind other text.
fn quote(value: &str, out: &mut String) {
    let safe = value
        .bytes()
        .filter(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
    out.push('"');
    out.extend(safe.map(char::from));
    out.push('"');
}
