//! Listeners as their clients meet them, and what is different between two states of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mail_proxy::StartTls;
use openssl::ssl::SslVersion;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::snapshot::{MailMode, Snapshot};
use crate::config::{Listener, ListenerTls, Serve};

/// A listener that opens, closes or meets its clients in another way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ListenerChange {
    /// Its address.
    pub address: String,
    /// `opens`, `closes`, `changes`
    pub change: String,
    /// What it is now; absent where it opens.
    pub before: Option<String>,
    /// What it would be; absent where it closes.
    pub after: Option<String>,
}

/// What each listener does.
pub(crate) type Doors = BTreeMap<SocketAddr, Door>;

/// What a listener does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    /// As a sentence.
    does: String,
    /// With these ciphers, if it speaks TLS and does not leave them to the library: a long list, which is shown where
    /// it is what differs.
    ciphers: Option<String>,
}

/// What the listeners do under this snapshot.
pub(crate) fn doors(listeners: &[Listener], snapshot: &Snapshot) -> Doors {
    let each = listeners.iter();
    each.map(|listener| (listener.address, door(listener, snapshot)))
        .collect()
}

/// The listeners that open, close or change, by address.
pub(crate) fn changes(before: &Doors, after: &Doors) -> Vec<ListenerChange> {
    let mut all: Vec<&SocketAddr> = before.keys().chain(after.keys()).collect();
    all.sort_unstable();
    all.dedup();
    let change = |address: &SocketAddr| {
        let (before, after) = (before.get(address), after.get(address));
        let is_same = |(before, after): (&Door, &Door)| before.does == after.does;
        let shown = |door: &Door| match before.zip(after).is_some_and(is_same) {
            true => door.with_ciphers(),
            false => door.does.clone(),
        };
        let change = match (before, after) {
            (None, _) => "opens",
            (_, None) => "closes",
            (Some(before), Some(after)) if before == after => return None,
            _ => "changes",
        };
        Some(ListenerChange {
            address: address.to_string(),
            change: change.to_owned(),
            before: before.map(shown),
            after: after.map(shown),
        })
    };
    all.into_iter().filter_map(change).collect()
}

impl ListenerChange {
    /// As one line.
    pub(crate) fn line(&self) -> String {
        let Self { address, change, .. } = self;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => format!("{address} {change}: {after} (now {before})"),
            (one, other) => {
                let what = one.as_ref().or(other.as_ref());
                format!("{address} {change}: {}", what.map_or("", String::as_str))
            }
        }
    }
}

impl Door {
    fn with_ciphers(&self) -> String {
        let ciphers = self.ciphers.as_deref().unwrap_or("those of Portico");
        format!("{}, ciphers {ciphers}", self.does)
    }
}

fn door(listener: &Listener, snapshot: &Snapshot) -> Door {
    let speaks_tls = listener.tls != ListenerTls::Off;
    Door {
        does: described(listener, snapshot),
        ciphers: snapshot.acceptors.profile().ciphers.clone().filter(|_| speaks_tls),
    }
}

fn described(listener: &Listener, snapshot: &Snapshot) -> String {
    let serves = match listener.serve {
        Serve::Web => "web",
        Serve::Imap => "imap",
        Serve::Pop3 => "pop3",
        Serve::AdminConsole => "admin-console",
        Serve::Sso => "sso",
        Serve::Lookup => "lookup",
        Serve::Stream => "stream",
    };
    let clear = match listener.serve {
        Serve::Web => clear_web(snapshot),
        _ => "in clear text".to_owned(),
    };
    match listener.tls {
        ListenerTls::Off => format!("{serves}, {clear}"),
        ListenerTls::Implicit => format!("{serves}, TLS{}", versions(snapshot)),
        ListenerTls::StartTls => {
            let of_directory = match listener.serve {
                Serve::Pop3 => snapshot.pop3_starttls,
                _ => snapshot.imap_starttls,
            };
            match listener.starttls.unwrap_or(of_directory) {
                StartTls::Off => format!("{serves}, no STARTTLS, logins in clear text"),
                StartTls::On => format!("{serves}, STARTTLS{}, logins in clear text too", versions(snapshot)),
                StartTls::Only => format!("{serves}, STARTTLS{}, no login before it", versions(snapshot)),
            }
        }
    }
}

fn clear_web(snapshot: &Snapshot) -> String {
    match snapshot.web.mode {
        MailMode::Https => "in clear text, refuses".to_owned(),
        MailMode::Redirect => format!("in clear text, redirects to port {}", snapshot.web.https_port),
        MailMode::Both => "in clear text, serves".to_owned(),
    }
}

/// The versions of TLS.
fn versions(snapshot: &Snapshot) -> String {
    let profile = snapshot.acceptors.profile();
    format!(" {} to {}", version(profile.min), version(profile.max))
}

fn version(version: SslVersion) -> &'static str {
    match version {
        SslVersion::TLS1 => "1.0",
        SslVersion::TLS1_1 => "1.1",
        SslVersion::TLS1_2 => "1.2",
        _ => "1.3",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_that_differ_are_found() {
        let doors = |all: &[(&str, &str)]| -> Doors {
            let door = |what: &str| Door {
                does: what.to_owned(),
                ciphers: None,
            };
            let each = all.iter();
            each.map(|(address, what)| (address.parse().unwrap(), door(what)))
                .collect()
        };
        let before = doors(&[
            ("127.0.0.1:80", "web, redirects"),
            ("127.0.0.1:110", "pop3"),
            ("127.0.0.1:143", "imap"),
        ]);
        let after = doors(&[
            ("127.0.0.1:80", "web, serves"),
            ("127.0.0.1:143", "imap"),
            ("[::1]:143", "imap"),
        ]);
        assert!(changes(&before, &before).is_empty());
        let lines: Vec<String> = changes(&before, &after).iter().map(ListenerChange::line).collect();
        assert_eq!(
            lines,
            [
                "127.0.0.1:80 changes: web, serves (now web, redirects)",
                "127.0.0.1:110 closes: pop3",
                "[::1]:143 opens: imap",
            ]
        );
    }

    #[test]
    fn ciphers_are_shown_where_they_are_what_differs() {
        let doors = |does: &str, ciphers: Option<&str>| -> Doors {
            let door = Door {
                does: does.to_owned(),
                ciphers: ciphers.map(str::to_owned),
            };
            [("127.0.0.1:993".parse().unwrap(), door)].into()
        };
        let line = |before: &Doors, after: &Doors| changes(before, after)[0].line();
        let before = doors("imap, TLS", None);
        assert_eq!(
            line(&before, &doors("imap, TLS", Some("A:B"))),
            "127.0.0.1:993 changes: imap, TLS, ciphers A:B (now imap, TLS, ciphers those of Portico)"
        );
        let line = line(&before, &doors("imap, STARTTLS", Some("A:B")));
        assert_eq!(line, "127.0.0.1:993 changes: imap, STARTTLS (now imap, TLS)");
    }
}
