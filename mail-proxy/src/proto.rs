//! What is spoken with a client.

use std::fmt;

use route_cache::Service;
use serde::{Deserialize, Serialize};

/// What a listener's clients speak, as logs, lists and metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proto {
    /// IMAP.
    Imap,
    /// POP3.
    Pop3,
    /// HTTP, in any version.
    Http,
    /// Bytes, whatever they mean.
    Stream,
}

impl Proto {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Imap, Self::Pop3, Self::Http, Self::Stream];

    /// The name in audit records, lists and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
            Self::Http => "http",
            Self::Stream => "stream",
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which mail protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// IMAP (RFC 9051, RFC 3501).
    Imap,
    /// POP3 (RFC 1939).
    Pop3,
}

impl Protocol {
    /// The same among all that clients speak.
    pub fn proto(self) -> Proto {
        match self {
            Self::Imap => Proto::Imap,
            Self::Pop3 => Proto::Pop3,
        }
    }

    pub(crate) fn service(self) -> Service {
        match self {
            Self::Imap => Service::Imap,
            Self::Pop3 => Service::Pop3,
        }
    }
}
