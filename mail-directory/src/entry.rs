//! One entry: a name, and attributes with their values. It knows no inheritance.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::attributes;

/// Where an entry was written, if it was written in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// The line of the entry's name.
    pub line: usize,
}

/// An entry of the directory. Attribute names are found in any case; an empty text is no value, as in LDAP.
#[derive(Clone, Default)]
pub struct Entry {
    name: String,
    origin: Option<Origin>,
    /// Sorted by name without regard to case.
    values: Vec<Values>,
}

#[derive(Clone)]
struct Values {
    /// As the table of attributes spells it, else as it was written.
    name: Cow<'static, str>,
    values: Vec<String>,
    line: Option<usize>,
}

impl Entry {
    /// An entry without attributes. `name` is what the directory calls it: the host name of a server, the
    /// domain, the address of an account.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// The same, and where it was written.
    pub fn written_at(name: impl Into<String>, origin: Origin) -> Self {
        Self {
            name: name.into(),
            origin: Some(origin),
            values: Vec::new(),
        }
    }

    /// Replaces the values of `attribute`; no values removes it.
    pub fn set<V: Into<String>>(&mut self, attribute: &str, values: impl IntoIterator<Item = V>) {
        self.put(attribute, values.into_iter().map(Into::into).collect(), None);
    }

    /// The same, for a value that was written in this line.
    pub(crate) fn put(&mut self, attribute: &str, mut values: Vec<String>, line: Option<usize>) {
        values.retain(|value| !value.is_empty());
        values.shrink_to_fit();
        let name = match attributes::find(attribute) {
            Some(known) => Cow::Borrowed(known.name),
            None => Cow::Owned(attribute.to_owned()),
        };
        match self.position(attribute) {
            Ok(at) if values.is_empty() => drop(self.values.remove(at)),
            Ok(at) => self.values[at] = Values { name, values, line },
            Err(_) if values.is_empty() => {}
            Err(at) => {
                // An account has one or two, and there are very many accounts.
                self.values.reserve_exact(1);
                self.values.insert(at, Values { name, values, line });
            }
        }
    }

    /// What the directory calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was written.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// The line of an attribute, or of the entry.
    pub fn line_of(&self, attribute: &str) -> Option<usize> {
        let own = self.position(attribute).ok().and_then(|at| self.values[at].line);
        own.or(self.origin.as_ref().map(|origin| origin.line))
    }

    /// All values of an attribute; none if it is absent.
    pub fn values(&self, attribute: &str) -> &[String] {
        match self.position(attribute) {
            Ok(at) => &self.values[at].values,
            Err(_) => &[],
        }
    }

    /// The first value of an attribute.
    pub fn first(&self, attribute: &str) -> Option<&str> {
        self.values(attribute).first().map(String::as_str)
    }

    /// Every attribute with its values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.values.iter().map(|v| (&*v.name, v.values.as_slice()))
    }

    fn position(&self, attribute: &str) -> Result<usize, usize> {
        self.values.binary_search_by(|v| compare(&v.name, attribute))
    }
}

/// The order of two names without regard to case. Most have their first letters in common, and logins look for many:
/// bytes that are equal as they are need no second look, nor does a name that is the same in memory.
fn compare(one: &str, other: &str) -> Ordering {
    if std::ptr::eq(one, other) {
        return Ordering::Equal;
    }
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let differ = |(a, b): (&u8, &u8)| (a != b).then(|| a.to_ascii_lowercase().cmp(&b.to_ascii_lowercase()));
    let mut differences = one.iter().zip(other).filter_map(differ);
    let first = differences.find(|order| order.is_ne());
    first.unwrap_or(one.len().cmp(&other.len()))
}

/// Two entries are equal if their names and values are, wherever they were written.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.iter().eq(other.iter())
    }
}

/// Values are left out: one of them may be a private key.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, {} attributes)", self.name, self.values.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_small_letters() {
        let names = [
            "",
            "a",
            "Zimbra",
            "zimbraId",
            "zimbraid",
            "ZIMBRAIDS",
            "zimbra-x",
            "zimbra_x",
            "zimbraß",
        ];
        for one in names {
            for other in names {
                let expected = one.to_ascii_lowercase().cmp(&other.to_ascii_lowercase());
                assert_eq!(compare(one, other), expected, "{one} {other}");
            }
        }
    }
}
