//! The records of the audit log: what clients did and what became of it, one record for each attempt and each ending.
//!
//! Adding a field is an API change: operators' scripts read these.

use std::net::SocketAddr;
use std::time::Duration;

use route_cache::Route;
use serde::Serialize;

use crate::proto::Proto;
use crate::throttle::{Action, Admitted, Finding};

/// How a login attempt ended. The words are those of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Logged in.
    Ok,
    /// A web server has answered otherwise than by a refusal of name and password, as it also answers without a login.
    NotRefused,
    /// The mailbox server refused name or password.
    BadCredentials,
    /// The mailbox server had another reason to refuse, which stands in `why`: maintenance, a limit, a password
    /// that must be changed.
    Refused,
    /// The password was right, but the mailbox server takes no more logins of this user now.
    Limit,
    /// The mailbox server is well, and said that it cannot take this login now.
    Busy,
    /// The password is longer than any that is taken.
    PasswordTooLong,
    /// The directory has no account of this name.
    UnknownUser,
    /// The account's logins wait, and this one waited for too long.
    Held,
    /// The account exists, but there is no way to its server, or not from this client's address.
    NoRoute,
    /// The mailbox server could not be reached, or broke off.
    UpstreamDown,
    /// The directory could not be asked.
    DirectoryDown,
    /// Too many logins have failed: nobody was asked.
    Throttled,
    /// A password was offered in clear text where that is not allowed.
    TlsRequired,
    /// The client does not speak the protocol.
    ProtocolError,
    /// The client went away before the attempt ended.
    ClientGone,
    /// We or an administrator ended the connection before the attempt had ended.
    Ended,
}

impl Outcome {
    /// The word in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotRefused => "not_refused",
            Self::BadCredentials => "bad_credentials",
            Self::Refused => "refused",
            Self::Limit => "limit",
            Self::Busy => "busy",
            Self::PasswordTooLong => "password_too_long",
            Self::UnknownUser => "unknown_user",
            Self::Held => "held",
            Self::NoRoute => "no_route",
            Self::UpstreamDown => "upstream_down",
            Self::DirectoryDown => "directory_down",
            Self::Throttled => "throttled",
            Self::TlsRequired => "tls_required",
            Self::ProtocolError => "protocol_error",
            Self::ClientGone => "client_gone",
            Self::Ended => "ended",
        }
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A mail login attempt.
    Login,
    /// The end of a mail session.
    SessionEnd,
    /// A web login attempt, as seen from the mailbox server's answer.
    WebLogin,
    /// The configuration changed.
    Config,
    /// A certificate changed, or could not.
    Certificate,
    /// An administrator did something over the admin API, or a client showed a wrong token.
    Admin,
    /// A web request was refused before anything was known of it.
    Refused,
}

/// Who ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The client closed, or said LOGOUT / QUIT before login.
    Client,
    /// The mailbox server closed.
    Upstream,
    /// We did: a limit, a deadline, idle, a drain; `why` says which.
    Portico,
    /// An administrator did.
    Kick,
}

/// One line of the audit log. Absent values are left out. The writer adds `time`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Record {
    /// What happened.
    pub event: Option<Event>,
    /// Number of the connection, unique on this node: joins the lines of one session.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub conn: String,
    /// Id of the web request, which the server and the client got too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Address of the listener.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub listener: String,
    /// `imap`, `pop3`, `http` or `stream`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
    /// TLS version and cipher towards the client (`TLSv1.3 TLS_AES_256_GCM_SHA384`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Server name that the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Address and port of the client.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client: String,
    /// Address and port of the balancer that spoke for it in a PROXY header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Login name as typed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Who authenticated, where that is not the user (the authentication identity of SASL PLAIN).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authcid: Option<String>,
    /// Canonical name of the account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// `host:port` of the mailbox server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Where the route came from: `memory`, `stale`, `directory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<&'static str>,
    /// How the client logged in: a name of `mechanism.rs`, or on the web `BASIC`, `SOAP`, `JSON`, `certauth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<&'static str>,
    /// How the attempt ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// How often it happened, where one record stands for several times; where a rule of the throttle is named, the
    /// failures that it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The rule of the throttle that has delayed or refused the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'static str>,
    /// What it did: `delayed`, `refused`; in dry run what it would have done: `would_delay`, `would_refuse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle: Option<&'static str>,
    /// Seconds until it would do so no more, without further failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// Milliseconds for which it was delayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_held: Option<u64>,
    /// A reason, to be read by administrators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Where the dialogue stood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<&'static str>,
    /// Milliseconds until the route was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_lookup: Option<u64>,
    /// Milliseconds until the mailbox server was connected, TLS included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_connect: Option<u64>,
    /// Milliseconds from there to the mailbox server's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_login: Option<u64>,
    /// Bytes from the client, after login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
    /// Bytes to the client, after login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
    /// Seconds from accept to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// Who ended the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<EndedBy>,
    /// Who did it over the admin API: `uid 0`, or address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// What was done there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<String>,
    /// Number of the configuration that the connection was born with.
    pub generation: u64,
}

impl Record {
    /// Notes how an attempt got through the throttle.
    pub fn note_admitted(&mut self, admitted: &Admitted) {
        if let Some(finding) = &admitted.finding {
            self.note(finding, admitted.held);
            self.throttle = Some(match (admitted.dry_run, finding.action) {
                (false, _) => "delayed",
                (true, Action::Refuse) => "would_refuse",
                (true, _) => "would_delay",
            });
        }
    }

    /// Notes why the throttle has refused an attempt.
    pub fn note(&mut self, finding: &Finding, held: Duration) {
        self.rule = Some(finding.rule.name());
        self.throttle = Some("refused");
        self.count = Some(u64::from(finding.count));
        self.retry_after = Some(finding.retry_after());
        self.ms_held = u64::try_from(held.as_millis()).ok().filter(|held| *held > 0);
    }

    /// A record of something that a client did, to be filled in.
    pub fn of_client(event: Event, proto: Proto, listener: &str, client: SocketAddr, via: Option<SocketAddr>) -> Self {
        Self {
            event: Some(event),
            listener: listener.to_owned(),
            proto: Some(proto),
            client: client.to_string(),
            via: via.map(|via| via.to_string()),
            ..Self::default()
        }
    }
}

/// A part of a login that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From accept to the client's own address: with a PROXY header, the wait for it.
    Accept,
    /// The TLS handshake with the client.
    Tls,
    /// Asking where the account lives.
    Lookup,
    /// Connecting to the mailbox server, TLS included.
    Connect,
    /// From there to the mailbox server's answer.
    Login,
}

/// Where records go. Writing must not block the caller.
pub trait Audit: Send + Sync {
    /// Takes one record.
    fn record(&self, record: Record);

    /// Takes the time that a part of a login took, whatever came of it.
    fn phase(&self, _phase: Phase, _proto: Proto, _took: Duration) {}

    /// How many records were lost since the process started.
    fn lost(&self) -> u64 {
        0
    }

    /// Takes whether a mailbox server could be connected to.
    fn connected(&self, _route: &Route, _ok: bool) {}
}
