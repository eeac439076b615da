//! What is refused before anything is known of the client: heads of requests that cannot be read, guessed tokens. Each
//! is a record of the audit log with address and reason, so that such addresses can be banned (fail2ban).
//!
//! Any client can cause them, so records are limited for each address and for all together. The rest is counted, in
//! the next record of the address and in a metric.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mail_proxy::audit::{Event, Outcome, Record};
use mail_proxy::{Client, ConnectionFacts, Proto};
use parking_lot::Mutex;

use crate::node::limits::Origin;

/// The time for which a share is given.
const WINDOW: Duration = Duration::from_secs(10);
/// Records for one address in that time: enough for any filter.
const ADDRESS_SHARE: u64 = 10;
/// Records for all addresses in that time, some 60 KB: a flood from many addresses must not fill the disk.
const SHARE: u64 = 300;
/// Addresses that are remembered. Beyond, those whose time is over make room.
const ADDRESSES: usize = 4096;

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its lines do not end with CRLF, are continued, or hold NUL or CR: two parsers could read it differently.
    BadHead,
    /// Its head is too long.
    LongHead,
    /// Its head takes too long.
    SlowHead,
    /// It is no request: HTTP/2 frames that only cost.
    Flood,
    /// It wants to be connected to somewhere.
    Connect,
    /// Its target is an absolute URL that is not valid here.
    BadUrl,
    /// The HTTP engine cannot read it: bad characters, a length or a coding that is none.
    Unreadable,
    /// It came in clear text to a listener with TLS.
    ClearText,
    /// It came to the admin API with a wrong token.
    Token,
    /// It came to the admin API with a Host that is not ours.
    AdminHost,
}

impl Reason {
    /// The label of the metric.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadHead => "bad_head",
            Self::LongHead => "long_head",
            Self::SlowHead => "slow_head",
            Self::Flood => "flood",
            Self::Connect => "connect",
            Self::BadUrl => "bad_url",
            Self::Unreadable => "unreadable",
            Self::ClearText => "clear_text",
            Self::Token => "token",
            Self::AdminHost => "admin_host",
        }
    }

    /// The words of the record.
    fn why(self) -> &'static str {
        match self {
            Self::BadHead => "a request head with bad line ends or control characters",
            Self::LongHead => "a request head that is too long",
            Self::SlowHead => "a request head that takes too long",
            Self::Flood => "HTTP/2 frames without number",
            Self::Connect => "CONNECT",
            Self::BadUrl => "a request target that is a bad URL",
            Self::Unreadable => "a request head that cannot be read",
            Self::ClearText => "clear text on a port with TLS",
            Self::Token => "a wrong token",
            Self::AdminHost => "a Host that is not ours",
        }
    }

    /// The status that its client hears, where a request of HTTP/1 is answered before the engine sees it.
    pub fn status(self) -> &'static str {
        match self {
            Self::LongHead => "431 Request Header Fields Too Large",
            Self::SlowHead => "408 Request Timeout",
            Self::Connect => "405 Method Not Allowed",
            Self::Token => "401 Unauthorized",
            Self::AdminHost => "403 Forbidden",
            Self::BadHead | Self::BadUrl | Self::Unreadable | Self::Flood | Self::ClearText => "400 Bad Request",
        }
    }
}

/// Where a refused request came in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusedConnection<'a> {
    /// Number of the connection; empty where it has none.
    pub id: &'a str,
    /// Address of the listener.
    pub listener: &'a str,
    /// Address of the client.
    pub client: SocketAddr,
    /// The balancer that spoke for it.
    pub via: Option<SocketAddr>,
}

impl<'a> RefusedConnection<'a> {
    /// On a connection of this client.
    pub(crate) fn new(id: &'a str, listener: &'a str, client: &Client) -> Self {
        RefusedConnection {
            id,
            listener,
            client: client.addr,
            via: client.via,
        }
    }

    /// On this connection.
    pub(crate) fn of(facts: &'a ConnectionFacts) -> Self {
        RefusedConnection::new(&facts.id, &facts.listener, &facts.client)
    }
}

/// Clients that were refused lately.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<RecentRefusals>);

#[derive(Default)]
struct RecentRefusals {
    addresses: HashMap<Origin, RecordShare>,
    all: Option<RecordShare>,
}

struct RecordShare {
    begun: Instant,
    records: u64,
    left_out: u64,
}

impl RecordShare {
    fn new(now: Instant) -> Self {
        Self {
            begun: now,
            records: 0,
            left_out: 0,
        }
    }

    /// Whether there may be one more record.
    fn has_room(&mut self, most: u64, now: Instant) -> bool {
        if now.duration_since(self.begun) >= WINDOW {
            (self.begun, self.records) = (now, 0);
        }
        self.records < most
    }
}

impl Refusals {
    /// For how many refusals of this address a record would stand now; `None` if there may be none.
    pub(crate) fn share(&self, address: IpAddr, now: Instant) -> Option<u64> {
        let mut recent = self.0.lock();
        let RecentRefusals { addresses, all } = &mut *recent;
        let (origin, all) = (Origin::of(address), all.get_or_insert_with(|| RecordShare::new(now)));
        if addresses.len() >= ADDRESSES && !addresses.contains_key(&origin) {
            addresses.retain(|_, share| now.duration_since(share.begun) < WINDOW);
            if addresses.len() >= ADDRESSES {
                return None;
            }
        }
        let own = addresses.entry(origin).or_insert_with(|| RecordShare::new(now));
        if !own.has_room(ADDRESS_SHARE, now) || !all.has_room(SHARE, now) {
            own.left_out += 1;
            return None;
        }
        own.records += 1;
        all.records += 1;
        Some(1 + std::mem::take(&mut own.left_out))
    }
}

/// The record of a refusal, which stands for so many.
pub(crate) fn record(connection: RefusedConnection<'_>, reason: Reason, count: u64, generation: u64) -> Record {
    let (event, outcome) = match reason {
        // A guess, like those of passwords.
        Reason::Token => (Event::Admin, Some(Outcome::BadCredentials)),
        _ => (Event::Refused, None),
    };
    Record {
        conn: connection.id.to_owned(),
        outcome,
        count: (count > 1).then_some(count),
        why: Some(reason.why().to_owned()),
        generation,
        ..Record::of_client(
            event,
            Proto::Http,
            connection.listener,
            connection.client,
            connection.via,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(refusals: &Refusals, address: [u8; 4], times: usize, now: Instant) -> Vec<u64> {
        let shares = (0..times).filter_map(|_| refusals.share(address.into(), now));
        shares.collect()
    }

    #[test]
    fn an_address_has_its_share_and_the_rest_is_counted() {
        let (refusals, begun) = (Refusals::default(), Instant::now());
        assert_eq!(refused(&refusals, [192, 0, 2, 1], 100, begun), [1; 10]);
        assert_eq!(refused(&refusals, [192, 0, 2, 2], 1, begun), [1]);
        let later = begun + WINDOW;
        assert_eq!(refused(&refusals, [192, 0, 2, 1], 2, later), [91, 1]);
    }

    #[test]
    fn all_addresses_together_have_one_share() {
        let (refusals, begun) = (Refusals::default(), Instant::now());
        let from = |number: u32| number.to_be_bytes();
        let records = |from_: std::ops::Range<u32>, now| -> usize {
            from_.map(|number| refused(&refusals, from(number), 1, now).len()).sum()
        };
        assert_eq!(records(0..100_000, begun), SHARE as usize);
        assert!(refusals.0.lock().addresses.len() <= ADDRESSES);
        assert_eq!(records(0..1, begun + WINDOW), 1);
        assert_eq!(records(200_000..200_001, begun + WINDOW), 1);
    }
}
