//! What a search finds: entries as the server sent them, taken apart without trusting their form.
//!
//! The library's own way of doing this panics where an entry is malformed or a name is not UTF-8.

use ldap3::ResultEntry;

use crate::directory::{Entry, fold};

/// An entry as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// Its distinguished name.
    pub(super) dn: String,
    attributes: Vec<(String, Vec<String>)>,
}

impl Found {
    /// `None` for what is no entry, or none that can be read. Values that are not UTF-8 are left out: no
    /// attribute with a meaning here can have one.
    pub(super) fn of(result: ResultEntry) -> Option<Found> {
        let mut parts = result
            .0
            .match_id(SEARCH_RESULT_ENTRY)?
            .expect_constructed()?
            .into_iter();
        let dn = String::from_utf8(parts.next()?.expect_primitive()?).ok()?;
        let mut attributes = Vec::new();
        for attribute in parts.next()?.expect_constructed()? {
            let mut parts = attribute.expect_constructed()?.into_iter();
            let name = String::from_utf8(parts.next()?.expect_primitive()?).ok()?;
            let values = parts.next()?.expect_constructed()?.into_iter();
            let values = values.filter_map(|value| String::from_utf8(value.expect_primitive()?).ok());
            attributes.push((name, values.collect()));
        }
        Some(Found { dn, attributes })
    }

    /// All values of an attribute.
    pub(super) fn values(&self, attribute: &str) -> &[String] {
        let found = self
            .attributes
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(attribute));
        found.map_or(&[], |(_, values)| values)
    }

    /// The first value of an attribute.
    pub(super) fn first(&self, attribute: &str) -> Option<&str> {
        self.values(attribute).first().map(String::as_str)
    }

    /// The name under which this entry is remembered.
    pub(super) fn key(&self) -> String {
        fold(&self.dn)
    }

    /// The entry of this name with all attributes but those that only tell its version.
    pub(super) fn into_entry(self, name: &str) -> Entry {
        let mut entry = Entry::new(name);
        for (attribute, values) in self.attributes {
            if ![ENTRY_CSN, MODIFIED]
                .iter()
                .any(|stamp| attribute.eq_ignore_ascii_case(stamp))
            {
                entry.set(&attribute, values);
            }
        }
        entry
    }
}

/// RFC 4511 §4.5.2: `[APPLICATION 4]`.
const SEARCH_RESULT_ENTRY: u64 = 4;

/// OpenLDAP's change sequence number of an entry.
pub(super) const ENTRY_CSN: &str = "entryCSN";
/// The time of the last change (RFC 4512 §3.4.4); what other servers have.
pub(super) const MODIFIED: &str = "modifyTimestamp";
