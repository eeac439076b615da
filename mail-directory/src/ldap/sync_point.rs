//! How far the directory has come: what must be asked to know whether something changed, and since when.
//!
//! OpenLDAP says so itself where it replicates: `contextCSN` names, for each server that takes changes, the last
//! one that arrived. Where it does not, the versions of entries and our clock must do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use ldap3::Scope;

use super::pool::{Extent, LdapError, Pool, Search};
use super::search_entry::{ENTRY_CSN, MODIFIED, SearchEntry};

/// Clocks of mail servers are kept together, but not to the second; a change may also be on its way for a while.
const SKEW: Duration = Duration::from_secs(120);

/// The state of the directory at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SyncPoint {
    /// The last change of each server, by its number.
    Csn(BTreeMap<String, String>),
    /// Nothing better than our clock.
    Clock(Timestamp),
}

/// Since when accounts must be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Since {
    /// Nothing changed.
    Now,
    /// Changes from here on, the oldest that may be missing.
    Csn(String),
    /// It cannot be told.
    Unknown,
}

impl SyncPoint {
    /// Asks the server. `holds` says whether entries of the mail system stand under a naming context.
    pub(super) async fn read(pool: &Pool, holds: impl Fn(&str) -> bool) -> Result<Self, LdapError> {
        let clock = Self::Clock(Timestamp::now());
        let root = base(pool, "").await?;
        let mut csns = Vec::new();
        for context in root.values(NAMING_CONTEXTS).iter().filter(|context| holds(context)) {
            // The root entry answers for a database without a suffix.
            let found = if context.is_empty() {
                root.clone()
            } else {
                base(pool, context).await?
            };
            match found.values(CONTEXT_CSN) {
                [] => return Ok(clock),
                own => csns.extend(own.to_vec()),
            }
        }
        match csns.is_empty() {
            true => Ok(clock),
            false => Ok(Self::of(csns)),
        }
    }

    /// Reads what [`SyncPoint`] writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.split_once(' ')? {
            (CSNS, csns) => Some(Self::of(csns.split(' ').map(str::to_owned).collect())),
            (CLOCK, time) => time.parse().map(Self::Clock).ok(),
            _ => None,
        }
    }

    fn of(csns: Vec<String>) -> Self {
        let mut last = BTreeMap::new();
        for csn in csns {
            let server = server_of(&csn).to_owned();
            let known: &mut String = last.entry(server).or_default();
            if *known < csn {
                *known = csn;
            }
        }
        Self::Csn(last)
    }

    /// What the attribute `contextCSN` says; `None` if it says nothing.
    pub(super) fn of_context(csns: &[String]) -> Option<Self> {
        let known: Vec<String> = csns.iter().filter(|csn| is_csn(csn)).cloned().collect();
        (!known.is_empty()).then(|| Self::of(known))
    }

    /// What a cookie of OpenLDAP says: `rid=…,sid=…,csn=…;…`. `None`: it is another server's.
    pub(super) fn of_cookie(cookie: &str) -> Option<Self> {
        let csns = cookie.split(',').find_map(|part| part.strip_prefix("csn="));
        let csns: Vec<String> = csns.unwrap_or_default().split(';').map(str::to_owned).collect();
        csns.iter().all(|csn| is_csn(csn)).then(|| Self::of(csns))
    }

    /// The cookie of this point.
    pub(super) fn cookie(&self) -> Option<String> {
        match self {
            Self::Csn(last) => {
                let csns: Vec<&str> = last.values().map(String::as_str).collect();
                Some(format!("rid=000,csn={}", csns.join(";")))
            }
            Self::Clock(_) => None,
        }
    }

    /// The later of both, for each server.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Csn(one), Self::Csn(other)) => Self::of(one.into_values().chain(other.into_values()).collect()),
            (one @ Self::Csn(_), Self::Clock(_)) => one,
            (Self::Clock(_), other) => other,
        }
    }

    /// Whether everything up to the other point has been seen. Clocks say nothing about that.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match other {
            Self::Csn(csns) => csns.values().all(|csn| self.has_seen(csn)),
            Self::Clock(_) => false,
        }
    }

    /// What may have changed between `before` and these.
    pub(super) fn since(&self, before: &Self) -> Since {
        let (Self::Csn(before), Self::Csn(now)) = (before, self) else {
            return match (before, self) {
                (Self::Clock(before), Self::Clock(_)) => Since::Csn(csn_of(*before - SKEW)),
                _ => Since::Unknown,
            };
        };
        let mut oldest: Option<&String> = None;
        for (server, last) in now {
            match before.get(server) {
                Some(known) if known == last => {}
                Some(known) if known < last => oldest = Some(oldest.map_or(known, |oldest| oldest.min(known))),
                // This server lags behind, or a new server takes changes.
                _ => return Since::Unknown,
            }
        }
        oldest.map_or(Since::Now, |oldest| Since::Csn(oldest.clone()))
    }

    /// Whether a change was there already when these were read.
    pub(super) fn has_seen(&self, csn: &str) -> bool {
        match self {
            Self::Csn(last) => last.get(server_of(csn)).is_some_and(|last| csn <= last.as_str()),
            Self::Clock(_) => false,
        }
    }
}

/// The kind of the point, and what it consists of, with blanks between.
impl fmt::Display for SyncPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Csn(last) => {
                f.write_str(CSNS)?;
                last.values().try_for_each(|csn| write!(f, " {csn}"))
            }
            Self::Clock(time) => write!(f, "{CLOCK} {time}"),
        }
    }
}

const CSNS: &str = "csn";
const CLOCK: &str = "clock";
const NAMING_CONTEXTS: &str = "namingContexts";
/// The attribute in which OpenLDAP says how far it has come.
pub(super) const CONTEXT_CSN: &str = "contextCSN";

async fn base(pool: &Pool, dn: &str) -> Result<SearchEntry, LdapError> {
    let search = Search {
        base: dn.to_owned(),
        scope: Scope::Base,
        filter: "(objectClass=*)".to_owned(),
        attributes: Arc::new([NAMING_CONTEXTS, CONTEXT_CSN].map(str::to_owned)),
        extent: Extent::Few(1),
    };
    Ok(pool
        .search(search)
        .await?
        .entries
        .into_iter()
        .next()
        .unwrap_or_default())
}

/// `time#count#server#modification`: the number of the server that took the change.
fn server_of(csn: &str) -> &str {
    csn.split('#').nth(2).unwrap_or_default()
}

/// The form of OpenLDAP's change sequence numbers.
fn is_csn(csn: &str) -> bool {
    csn.len() == CSN.len()
        && csn.chars().zip(CSN.chars()).all(|(c, form)| match form {
            '0' => c.is_ascii_hexdigit(),
            form => c == form,
        })
}

const CSN: &str = "00000000000000.000000Z#000000#000#000000";

fn csn_of(time: Timestamp) -> String {
    format!("{}.000000Z#000000#000#000000", time.strftime("%Y%m%d%H%M%S"))
}

/// The attribute that tells the versions of entries, and `since` in its form.
pub(super) fn stamp(since: &str, has_csn: bool) -> (&'static str, String) {
    match has_csn {
        true => (ENTRY_CSN, since.to_owned()),
        false => (MODIFIED, format!("{}Z", since.split('.').next().unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(csns: &[&str]) -> SyncPoint {
        SyncPoint::of(csns.iter().map(|csn| csn.to_string()).collect())
    }

    #[track_caller]
    fn check(before: &[&str], now: &[&str], expected: Since) {
        assert_eq!(point(now).since(&point(before)), expected);
    }

    const A1: &str = "20260101000001.000000Z#000000#001#000000";
    const A2: &str = "20260101000002.000000Z#000000#001#000000";
    const B1: &str = "20260101000001.500000Z#000000#002#000000";
    const B2: &str = "20260101000003.000000Z#000000#002#000000";

    #[test]
    fn each_server_is_followed_on_its_own() {
        check(&[A1], &[A1], Since::Now);
        check(&[A1], &[A2], Since::Csn(A1.to_owned()));
        check(&[A2, B1], &[A2, B2], Since::Csn(B1.to_owned()));
        check(&[A1, B1], &[A2, B2], Since::Csn(A1.to_owned()));
        check(&[A1], &[A1, B1], Since::Unknown);
        check(&[A2], &[A1], Since::Unknown);
        assert!(point(&[A1, B2]).has_seen(A1) && point(&[A1, B2]).has_seen(B1));
        assert!(!point(&[A1, B2]).has_seen(A2) && !point(&[A1]).has_seen(B1));
    }

    #[test]
    fn a_point_can_be_written_and_read() {
        for point in [
            point(&[A1]),
            point(&[A1, B2]),
            SyncPoint::Clock("2026-01-01T00:02:05.25Z".parse().unwrap()),
        ] {
            assert_eq!(SyncPoint::parse(&point.to_string()), Some(point));
        }
        for odd in ["", "csn", "clock soon", "uuid 1"] {
            assert_eq!(SyncPoint::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn cookies_say_how_far_a_server_has_come() {
        let known = point(&[A1, B1]);
        assert_eq!(known.cookie().unwrap(), format!("rid=000,csn={A1};{B1}"));
        assert_eq!(SyncPoint::of_cookie(&known.cookie().unwrap()), Some(known.clone()));
        assert_eq!(
            SyncPoint::of_cookie(&format!("rid=1,sid=001,csn={A2}")),
            Some(point(&[A2]))
        );
        for odd in ["", "rid=1", "csn=", "csn=soon", "#389", &format!("csn={A1};")] {
            assert_eq!(SyncPoint::of_cookie(odd), None, "{odd}");
        }
        assert_eq!(SyncPoint::of_context(&[A1.to_owned()]), Some(point(&[A1])));
        assert_eq!(SyncPoint::of_context(&["x".to_owned()]), None);
        assert_eq!(known.clone().and(point(&[A2])), point(&[A2, B1]));
        assert!(point(&[A2, B1]).covers(&known) && known.covers(&point(&[B1])));
        assert!(!known.covers(&point(&[A2])) && !point(&[A2]).covers(&known));
    }

    #[test]
    fn our_clock_is_not_trusted_to_the_second() {
        let time = |text: &str| SyncPoint::Clock(text.parse().unwrap());
        let since = time("2026-01-01T00:02:05Z").since(&time("2026-01-01T00:02:01.5Z"));
        assert_eq!(since, Since::Csn("20260101000001.000000Z#000000#000#000000".to_owned()));
        assert_eq!(time("2026-01-01T00:02:05Z").since(&point(&[A1])), Since::Unknown);
        let csn = "20260101000001.000000Z#000000#000#000000";
        assert_eq!(stamp(csn, false), ("modifyTimestamp", "20260101000001Z".to_owned()));
        assert_eq!(stamp(csn, true), ("entryCSN", csn.to_owned()));
    }
}
