//! An entry as it counts: its own values, else inherited ones, else the default of the attribute.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::attributes::{self, Attribute, Kind, Scope};
use crate::entry::Entry;
use crate::yaml::network;

/// An entry together with what it inherits from. Values that cannot be read count as absent, so the next level
/// counts; [`crate::System::check`] reports them.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    own: Option<&'a Entry>,
    parent: Option<&'a Entry>,
    /// What must stand in the scopes of an attribute for it to be inherited.
    inherits: Inherits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inherits {
    /// Everything that may stand in the global config, except what is for domains only.
    DomainFromGlobal,
    /// Everything that may stand in the global config.
    ServerFromGlobal,
    /// What may stand on a class of service, except its own id.
    AccountFromCos,
}

impl<'a> View<'a> {
    pub(crate) fn new(own: Option<&'a Entry>, parent: Option<&'a Entry>, inherits: Inherits) -> Self {
        View { own, parent, inherits }
    }

    /// The entry itself; `None` for a node without an entry, which has the global config only.
    pub fn entry(&self) -> Option<&'a Entry> {
        self.own
    }

    /// Name of the entry, or nothing.
    pub fn name(&self) -> &'a str {
        self.own.map_or("", Entry::name)
    }

    /// Name of the entry that this one inherits from, or nothing.
    pub fn parent_name(&self) -> &'a str {
        self.parent.map_or("", Entry::name)
    }

    /// `TRUE`? False where nothing is set and there is no default.
    pub fn flag(&self, attribute: &Attribute) -> bool {
        self.flag_if_set(attribute)
            .unwrap_or_else(|| attribute.default.first().is_some_and(|d| *d == "TRUE"))
    }

    /// What the entry or its parent says, without the default.
    pub fn flag_if_set(&self, attribute: &Attribute) -> Option<bool> {
        self.set(attribute, attributes::flag)
    }

    /// The text.
    pub fn text(&self, attribute: &Attribute) -> Option<&'a str> {
        self.set(attribute, Some).or(attribute.default.first().copied())
    }

    /// All values, of the entry or, if it has none, of its parent, or the defaults.
    pub fn list(&self, attribute: &Attribute) -> Vec<&'a str> {
        for level in self.levels(attribute) {
            let values = level.values(attribute.name);
            if !values.is_empty() {
                return values.iter().map(String::as_str).collect();
            }
        }
        attribute.default.to_vec()
    }

    /// The port; 0 counts as unset. `None` only if there is no default.
    pub fn port(&self, attribute: &Attribute) -> Option<u16> {
        self.read(attribute, port)
    }

    /// The port in the attribute of this name, which is known or not. For `…PortAttribute`.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        if let Some(attribute) = attributes::find(name) {
            return self.port(attribute);
        }
        let levels = [self.own, self.parent];
        levels
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.first(name))
            .find_map(port)
    }

    /// The number; 0 where nothing is set and there is no default.
    pub fn number(&self, attribute: &Attribute) -> u64 {
        self.read(attribute, |value| value.parse().ok()).unwrap_or(0)
    }

    /// What the entry or its parent says, without the default.
    pub fn number_if_set(&self, attribute: &Attribute) -> Option<u64> {
        self.set(attribute, |value| value.parse().ok())
    }

    /// The duration; zero where nothing is set and there is no default.
    pub fn duration(&self, attribute: &Attribute) -> Duration {
        self.read(attribute, attributes::duration).unwrap_or(Duration::ZERO)
    }

    /// The word of an attribute of [`Kind::Enum`], spelled as in the table; empty where nothing is set and
    /// there is no default.
    pub fn choice(&self, attribute: &Attribute) -> &'static str {
        let words = match attribute.kind {
            Kind::Enum(words) => words,
            _ => &[],
        };
        self.read(attribute, |value| attributes::word(value, words))
            .unwrap_or("")
    }

    /// The addresses; those that cannot be read are left out. IPv4 in IPv6 form counts as IPv4.
    pub fn addresses(&self, attribute: &Attribute) -> Vec<IpAddr> {
        let values = self.list(attribute);
        values
            .iter()
            .filter_map(|v| v.parse().ok())
            .map(|a: IpAddr| a.to_canonical())
            .collect()
    }

    /// The networks; those that cannot be read are left out.
    pub fn networks(&self, attribute: &Attribute) -> Vec<IpNet> {
        self.list(attribute).iter().filter_map(|value| network(value)).collect()
    }

    /// Everything that counts, as one entry: what is written on it, what it inherits, and the defaults of what has
    /// a meaning on it.
    pub fn as_it_counts(&self) -> Entry {
        let mut entry = self.own.cloned().unwrap_or_default();
        for attribute in attributes::ALL.iter().filter(|attribute| self.has_meaning(attribute)) {
            entry.set(attribute.name, self.list(attribute));
        }
        entry
    }

    fn has_meaning(&self, attribute: &Attribute) -> bool {
        match (self.inherits, self.parent) {
            (Inherits::ServerFromGlobal, None) => attribute.is_for(Scope::Global),
            (Inherits::ServerFromGlobal, _) => attribute.is_for(Scope::Server),
            (Inherits::DomainFromGlobal, _) => attribute.is_for(Scope::Domain),
            (Inherits::AccountFromCos, _) => attribute.is_for(Scope::Account),
        }
    }

    fn read<T>(&self, attribute: &Attribute, read: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        self.set(attribute, &read)
            .or_else(|| attribute.default.first().copied().and_then(read))
    }

    fn set<T>(&self, attribute: &Attribute, read: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        self.levels(attribute)
            .find_map(|entry| read(entry.first(attribute.name)?))
    }

    /// The entry, then what it inherits this attribute from.
    fn levels(&self, attribute: &Attribute) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let inherited = match self.inherits {
            Inherits::ServerFromGlobal => attribute.scopes.contains(&Scope::Global),
            Inherits::DomainFromGlobal => {
                attribute.scopes.contains(&Scope::Global) && !attribute.scopes.contains(&Scope::DomainAlone)
            }
            Inherits::AccountFromCos => attribute.scopes.contains(&Scope::Cos) && attribute.name != attributes::ID.name,
        };
        self.own.into_iter().chain(self.parent.filter(|_| inherited))
    }
}

fn port(value: &str) -> Option<u16> {
    value.parse().ok().filter(|port| *port > 0)
}
