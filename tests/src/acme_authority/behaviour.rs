//! What an authority offers, refuses, and lies about, as its test wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::validation::{ChallengeKind, ValidationPorts};

/// What a request is about (RFC 8555 §7.1; RFC 9773 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// The directory.
    Directory,
    /// A new nonce.
    NewNonce,
    /// A new account, or one that is there.
    NewAccount,
    /// A new order.
    NewOrder,
    /// An order, read.
    Order,
    /// An authorization, read.
    Authorization,
    /// A challenge, which is to be looked at.
    Challenge,
    /// The request for the certificate of an order.
    Finalize,
    /// A certificate, read.
    Certificate,
    /// When a certificate is to be renewed.
    RenewalInfo,
    /// Anything else.
    Elsewhere,
}

/// How an authority deals with its clients. The default is a good one.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// The challenges that it offers, in this order.
    pub offers: Vec<ChallengeKind>,
    /// Where it looks at challenges.
    pub ports: ValidationPorts,
    /// How long its certificates are good: seconds since their begin, and until their end.
    pub life: [i64; 2],
    /// Names for which there is no order.
    pub refused: BTreeSet<String>,
    /// Names that it does not find when it looks.
    pub unknown: BTreeSet<String>,
    /// It does not look at challenges yet.
    pub looks_later: bool,
    /// When it wants certificates renewed, in seconds from now; none: it does not say so.
    pub renewal: Option<[i64; 2]>,
    /// At this resource the client has asked too often, and is put off by so many seconds.
    pub limit: Option<(Resource, u64)>,
    /// Of so many good nonces one is refused; 0: none.
    pub refused_nonces: usize,
    /// Accounts are closed.
    pub closes_accounts: bool,
    /// How long each answer takes.
    pub delay: Duration,
    /// By which names it says to stand in CAA records.
    pub caa_identities: Vec<String>,
    /// The kinds of certificates that it says to have.
    pub profiles: BTreeSet<String>,
    /// Accounts of its own, with their keys. If there are any, others must be bound to one of them.
    pub own_accounts: BTreeMap<String, Vec<u8>>,
    /// What is wrong with its answers.
    pub lie: Option<Lie>,
}

/// What a bad authority does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// At this resource it answers something that is not JSON.
    Garbage(Resource),
    /// At this resource its answer is larger than anything that a client needs.
    Oversized(Resource),
    /// At this resource it answers with this status, and puts off by so many seconds.
    Down(Resource, u16, u64),
    /// Its certificates are for other names.
    OtherNames,
    /// Its certificates are for another key.
    OtherKey,
    /// It never decides on an order, and says that this takes an hour.
    Undecided,
    /// Its orders are at this place; none: it does not say where.
    Location(Option<&'static str>),
    /// Its authorizations are for another name.
    OtherAuthorization,
}

impl Default for Behaviour {
    fn default() -> Self {
        let day = 24 * 60 * 60;
        Self {
            offers: vec![ChallengeKind::Dns01, ChallengeKind::Http01, ChallengeKind::TlsAlpn01],
            ports: ValidationPorts { http: 80, tls: 443 },
            life: [60 * 60, 90 * day],
            refused: BTreeSet::new(),
            unknown: BTreeSet::new(),
            looks_later: false,
            renewal: None,
            limit: None,
            refused_nonces: 5,
            closes_accounts: false,
            delay: Duration::ZERO,
            caa_identities: Vec::new(),
            profiles: BTreeSet::new(),
            own_accounts: BTreeMap::new(),
            lie: None,
        }
    }
}
