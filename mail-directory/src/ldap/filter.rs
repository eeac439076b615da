//! Search filters: the only place where text from outside becomes part of one (RFC 4515 §3).

use std::borrow::Cow;
use std::sync::Arc;

use crate::attributes;
use crate::directory::AccountBy;
use crate::edit::EntryKind;
use crate::names;

/// Class of all accounts. Lists and groups have addresses too, and must not get a route.
pub(super) const ACCOUNTS: &str = "(objectClass=zimbraAccount)";

/// Finds one account (MAIL §7.3).
pub(super) fn account(by: &AccountBy) -> String {
    let (delivery, alias) = (attributes::MAIL_DELIVERY_ADDRESS.name, attributes::MAIL_ALIAS.name);
    match by {
        AccountBy::Name(name) => {
            let any = any_of(&[delivery, alias], &names::spellings(name));
            format!("(&(|{any}){ACCOUNTS})")
        }
        AccountBy::Id(id) => format!("(&({}={}){ACCOUNTS})", attributes::ID.name, escape(id)),
    }
}

/// Finds the accounts that have one of these as delivery address.
pub(super) fn addresses(names: &[Arc<str>]) -> String {
    let delivery = attributes::MAIL_DELIVERY_ADDRESS.name;
    let any: String = names
        .iter()
        .map(|name| any_of(&[delivery], &names::spellings(name)))
        .collect();
    format!("(&(|{any}){ACCOUNTS})")
}

/// Finds accounts whose `stamp` (`entryCSN` or `modifyTimestamp`) is not older than `since`.
pub(super) fn accounts_since(stamp: &str, since: &str) -> String {
    format!("(&{ACCOUNTS}({stamp}>={}))", escape(since))
}

/// Finds every entry of a kind.
pub(super) fn every(kind: EntryKind) -> String {
    match kind {
        EntryKind::Config => "(objectClass=*)".to_owned(),
        EntryKind::Servers => "(objectClass=zimbraServer)".to_owned(),
        EntryKind::Domains => "(objectClass=zimbraDomain)".to_owned(),
        EntryKind::Cos => "(objectClass=zimbraCOS)".to_owned(),
        EntryKind::Accounts => ACCOUNTS.to_owned(),
    }
}

/// Finds the entry of this name or id; an account also by alias.
pub(super) fn entry(kind: EntryKind, key: &str) -> String {
    let names: &[&str] = match kind {
        EntryKind::Config => return every(kind),
        EntryKind::Servers | EntryKind::Cos => &["cn"],
        EntryKind::Domains => &[attributes::DOMAIN_NAME.name],
        EntryKind::Accounts => &[attributes::MAIL_DELIVERY_ADDRESS.name, attributes::MAIL_ALIAS.name],
    };
    let mut spellings = names::spellings(&kind.key(key));
    spellings.push(key.to_owned());
    spellings.dedup();
    let any = any_of(names, &spellings);
    format!("(&{}(|{any}({}={})))", every(kind), attributes::ID.name, escape(key))
}

/// Finds the alias entries of the account with this id.
pub(super) fn aliases_of(id: &str) -> String {
    format!("(&(objectClass=zimbraAlias)(zimbraAliasTargetId={}))", escape(id))
}

/// One of these attributes has one of these values.
fn any_of(attributes: &[&str], values: &[String]) -> String {
    let each = |value: &String| {
        let value = escape(value).into_owned();
        attributes
            .iter()
            .map(move |attribute| format!("({attribute}={value})"))
            .collect::<String>()
    };
    values.iter().map(each).collect()
}

/// Any value, escaped for a filter.
fn escape(value: &str) -> Cow<'_, str> {
    ldap3::ldap_escape(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn international_names_are_asked_for_as_they_may_be_written() {
        let written = "(zimbraDomainName=xn--bcher-kva.test)(zimbraDomainName=bücher.test)";
        for key in ["xn--bcher-kva.test", "bücher.test"] {
            assert!(entry(EntryKind::Domains, key).contains(written), "{key}");
        }
        let eve = account(&AccountBy::Name("eve@xn--bcher-kva.test".to_owned()));
        assert!(
            eve.contains("(zimbraMailAlias=eve@xn--bcher-kva.test)")
                && eve.contains("(zimbraMailAlias=eve@bücher.test)")
        );
    }

    #[test]
    fn nobody_can_end_the_filter() {
        for (name, written) in [
            ("a@b", "a@b"),
            ("*)(uid=*", r"\2a\29\28uid=\2a"),
            ("a\\2a\0", r"a\5c2a\00"),
            ("müller@b", "müller@b"),
        ] {
            let by_name = account(&AccountBy::Name(name.to_owned()));
            let expected = format!(
                "(&(|(zimbraMailDeliveryAddress={written})(zimbraMailAlias={written}))(objectClass=zimbraAccount))"
            );
            assert_eq!(by_name, expected);
            assert!(ldap3::parse_filter(&by_name).is_ok());
            let by_key = entry(EntryKind::Cos, name);
            assert_eq!(
                by_key,
                format!("(&(objectClass=zimbraCOS)(|(cn={written})(zimbraId={written})))")
            );
            assert!(ldap3::parse_filter(&by_key).is_ok() && ldap3::parse_filter(aliases_of(name)).is_ok());
            let one_of = addresses(&[Arc::from(name), Arc::from("x")]);
            assert_eq!(
                one_of,
                format!(
                    "(&(|(zimbraMailDeliveryAddress={written})(zimbraMailDeliveryAddress=x))(objectClass=zimbraAccount))"
                )
            );
            assert!(ldap3::parse_filter(&one_of).is_ok());
            let by_id = account(&AccountBy::Id(name.to_owned()));
            assert_eq!(by_id, format!("(&(zimbraId={written})(objectClass=zimbraAccount))"));
        }
    }
}
