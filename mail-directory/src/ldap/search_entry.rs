//! What a search finds: entries as the server sent them, taken apart without trusting their form.
//!
//! The library's own way of doing this panics where an entry is malformed or a name is not UTF-8.

use ldap3::ResultEntry;

use super::name_attribute;
use crate::attributes;
use crate::directory::OLD_ADDRESS;
use crate::edit::EntryKind;
use crate::entry::Entry;
use crate::names::fold;

/// An entry as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct SearchEntry {
    /// Its distinguished name.
    pub(super) dn: String,
    attributes: Vec<(String, Vec<String>)>,
}

impl SearchEntry {
    /// `None` for what is no entry, or none that can be read. Values that are not UTF-8 are left out: no
    /// attribute with a meaning here can have one.
    pub(super) fn of(result: ResultEntry) -> Option<Self> {
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
        Some(Self { dn, attributes })
    }

    /// An entry that was taken apart elsewhere.
    pub(super) fn new(dn: String, attributes: Vec<(String, Vec<String>)>) -> Self {
        Self { dn, attributes }
    }

    /// Bytes of its names and values.
    pub(super) fn size(&self) -> usize {
        let attributes = self.attributes.iter();
        let values = attributes.map(|(name, values)| name.len() + values.iter().map(String::len).sum::<usize>());
        self.dn.len() + values.sum::<usize>()
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

    /// What the directory calls an entry of this kind. One without a readable name is called by its place: an account
    /// without an address can never be found by name.
    pub(super) fn name(&self, kind: EntryKind) -> String {
        match (kind, self.first(name_attribute(kind))) {
            (EntryKind::Config, _) => kind.name().to_owned(),
            (_, Some(name)) => name.to_owned(),
            (EntryKind::Accounts, None) => self.dn.clone(),
            (_, None) => name_from(&self.dn),
        }
    }

    /// The entry, of this kind, with all attributes but those that only tell its version.
    pub(super) fn into_entry(self, kind: EntryKind) -> Entry {
        let name = self.name(kind);
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

/// `dc=a,dc=example` → `a.example`; `cn=x,…` → `x`.
fn name_from(dn: &str) -> String {
    let parts: Vec<&str> = dn
        .split(',')
        .filter_map(|part| part.trim().strip_prefix("dc="))
        .collect();
    match parts.is_empty() {
        true => dn.split([',', '=']).nth(1).unwrap_or(dn).to_owned(),
        false => parts.join("."),
    }
}

/// RFC 4511 §4.5.2: `[APPLICATION 4]`.
const SEARCH_RESULT_ENTRY: u64 = 4;

/// OpenLDAP's change sequence number of an entry.
pub(super) const ENTRY_CSN: &str = "entryCSN";
/// The time of the last change (RFC 4512 §3.4.4); what other servers have.
pub(super) const MODIFIED: &str = "modifyTimestamp";

/// What an account that changed is known by: its names, those that it had before, and its version.
pub(super) const NAMES_AND_VERSION: [&str; 6] = [
    attributes::ID.name,
    attributes::MAIL_DELIVERY_ADDRESS.name,
    attributes::MAIL_ALIAS.name,
    OLD_ADDRESS,
    ENTRY_CSN,
    MODIFIED,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_made_from_the_place() {
        assert_eq!(name_from("dc=a,dc=example"), "a.example");
        assert_eq!(name_from("cn=gold,cn=cos,cn=zimbra"), "gold");
        assert_eq!(name_from("odd"), "odd");
    }
}
