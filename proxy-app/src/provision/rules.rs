//! Checks an entry as a change would make it. Nothing is written before this accepts it.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use mail_directory::attributes::{self as a, Attribute};
use mail_directory::edit::EntryKind;
use mail_directory::names;
use mail_directory::{Entry, System};

use crate::provision::{CommandOutput, NAME_TAKEN, ProvisionError, SharedNames, certificate, values};
use crate::tls::ciphers::CipherList;

/// Never changed once they are set: other entries and the place in the tree depend on them.
const IMMUTABLE: [&Attribute; 3] = [&a::ID, &a::DOMAIN_NAME, &a::MAIL_DELIVERY_ADDRESS];
/// Attributes that hold one host name or address.
const HOSTS: [&Attribute; 6] = [
    &a::SERVICE_HOSTNAME,
    &a::PUBLIC_SERVICE_HOSTNAME,
    &a::EXTERNAL_IMAP_HOSTNAME,
    &a::EXTERNAL_IMAP_SSL_HOSTNAME,
    &a::EXTERNAL_POP3_HOSTNAME,
    &a::EXTERNAL_POP3_SSL_HOSTNAME,
];
/// Ports that one node listens on at the same time.
const LISTENERS: [&Attribute; 7] = [
    &a::MAIL_PROXY_PORT,
    &a::MAIL_SSL_PROXY_PORT,
    &a::CARBONIO_ADMIN_PROXY_PORT,
    &a::IMAP_PROXY_BIND_PORT,
    &a::IMAP_SSL_PROXY_BIND_PORT,
    &a::POP3_PROXY_BIND_PORT,
    &a::POP3_SSL_PROXY_BIND_PORT,
];

/// An entry before and after the change.
pub(crate) struct ProposedEntry<'a> {
    pub(crate) system: &'a System,
    pub(crate) kind: EntryKind,
    pub(crate) before: &'a Entry,
    pub(crate) after: &'a Entry,
    pub(crate) shared_names: SharedNames,
}

impl ProposedEntry<'_> {
    /// Refuses the change, or accepts it with warnings.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn check(&self, output: &mut CommandOutput) -> Result<(), ProvisionError> {
        for (name, values) in self.after.iter() {
            if self.before.values(name) != values {
                self.attribute(name, values, output)?;
            }
        }
        for attribute in IMMUTABLE {
            let before = self.before.values(attribute.name);
            if !before.is_empty() && before != self.after.values(attribute.name) {
                return Err(ProvisionError::request(format!("{} is immutable", attribute.name)));
            }
        }
        self.ports()?;
        self.virtual_hosts(output)?;
        certificate::check(self.kind, self.before, self.after, output)
    }

    fn attribute(&self, name: &str, values: &[String], output: &mut CommandOutput) -> Result<(), ProvisionError> {
        let Some(attribute) = a::find(name) else {
            return self.unknown(name);
        };
        if !attribute.is_for(self.kind.scope()) {
            output.warn(format!("WARNING: {name} has no effect on a {}", self.kind.one()));
        }
        if values.len() > 1 && !attribute.is_multi() {
            return Err(ProvisionError::value(format!(
                "{name}: it takes one value, not {}",
                values.len()
            )));
        }
        let before = self.before.values(name);
        for value in values.iter().filter(|value| !before.contains(value)) {
            let checked = attribute.check(value).and_then(|()| self.value(attribute, value));
            checked.map_err(|message| ProvisionError::value(format!("{name}: {message}")))?;
        }
        Ok(())
    }

    /// A name that resembles one of the table is a typing error; any other belongs to another program.
    fn unknown(&self, name: &str) -> Result<(), ProvisionError> {
        match a::similar(name).filter(|_| self.before.values(name).is_empty()) {
            None => Ok(()),
            Some(near) => Err(ProvisionError::service(
                "account.INVALID_ATTR_NAME",
                format!("invalid attr name: {name} is not known; did you mean {near}?"),
            )),
        }
    }

    /// Rules beyond the kind of the attribute.
    fn value(&self, attribute: &Attribute, value: &str) -> Result<(), String> {
        let is = |other: &Attribute| std::ptr::eq(attribute, other);
        let system = self.system;
        let wrong = |what: &str| Err(format!("{value:?} {what}"));
        match value {
            _ if is(&a::VIRTUAL_HOSTNAME) && !values::is_virtual_host(value) => {
                wrong("is not a host name with its domain, such as mail.example.com or *.example.com")
            }
            _ if HOSTS.iter().any(|host| is(host)) && !values::is_host(value) => wrong("is not a host name or address"),
            _ if is(&a::MAIL_HOST) && system.server(value).is_none() => wrong("is not the name of a server"),
            _ if is(&a::MAIL_ALIAS) && !values::is_address(value) => wrong("is not an address"),
            _ if is(&a::DOMAIN_ALIAS_TARGET_ID) && system.domain_by_id(value).is_none() => {
                wrong("is not the zimbraId of a domain")
            }
            _ if (is(&a::COS_ID) || is(&a::DOMAIN_DEFAULT_COS_ID)) && system.class(value).is_none() => {
                wrong("is not a class of service")
            }
            _ if is(&a::VIRTUAL_IP_ADDRESS) => self.free_address(value),
            _ if is(&a::REVERSE_PROXY_SSL_CIPHERS) => ciphers(value),
            _ => Ok(()),
        }
    }

    fn free_address(&self, value: &str) -> Result<(), String> {
        let address: Option<IpAddr> = value.parse().ok();
        let owner = address.and_then(|address| self.system.domain_by_address(address));
        match owner
            .map(|domain| domain.name())
            .filter(|name| *name != self.before.name())
        {
            Some(other) => Err(format!("{value} already belongs to {other}")),
            None => Ok(()),
        }
    }

    /// Two listeners of a node cannot have one port.
    fn ports(&self) -> Result<(), ProvisionError> {
        let is_changed = |port: &&Attribute| self.before.values(port.name) != self.after.values(port.name);
        if !matches!(self.kind, EntryKind::Servers | EntryKind::Config) || !LISTENERS.iter().any(is_changed) {
            return Ok(());
        }
        let config = match self.kind {
            EntryKind::Config => self.after.clone(),
            _ => self.system.global().entry().cloned().unwrap_or_default(),
        };
        let server = (self.kind == EntryKind::Servers).then(|| self.after.clone());
        let system = System::new(config, server, [], []);
        let node = system.node(if self.kind == EntryKind::Servers {
            self.after.name()
        } else {
            ""
        });
        let mut taken = BTreeMap::new();
        for attribute in LISTENERS {
            let Some(port) = node.port(attribute) else { continue };
            if let Some(other) = taken.insert(port, attribute.name) {
                let names = format!("{other} and {}", attribute.name);
                return Err(ProvisionError::request(format!(
                    "port {port} conflict between {names} on {}",
                    self.after.name()
                )));
            }
        }
        Ok(())
    }

    /// Names that another domain has, too: the first one of the alphabet keeps them.
    fn virtual_hosts(&self, output: &mut CommandOutput) -> Result<(), ProvisionError> {
        let name = a::VIRTUAL_HOSTNAME.name;
        let (before, after) = (self.before.values(name), self.after.values(name));
        let known: HashSet<&String> = before.iter().collect();
        let new = after.iter().filter(|host| !known.contains(host));
        let conflicts = new.filter_map(|host| {
            let owner = self.system.domain_by_host(host)?;
            let is_other = names::host(owner.name()) != names::host(self.after.name());
            let mut hosts = owner.list(&a::VIRTUAL_HOSTNAME).into_iter();
            // A pattern of another domain leaves room for a name of its own.
            let has = is_other && hosts.any(|name| names::host(name) == names::host(host));
            has.then(|| format!("{host} ({})", owner.name()))
        });
        let conflicts = conflicts.collect::<Vec<String>>().join(", ");
        match self.shared_names {
            _ if self.kind != EntryKind::Domains || conflicts.is_empty() => {}
            SharedNames::Refused => {
                let message = format!("these virtual host names already belong to another domain: {conflicts}");
                return Err(ProvisionError::service(NAME_TAKEN, message));
            }
            SharedNames::Warned => output.line(format!(
                "WARNING: Virtual hostname conflicts detected. The following virtual hostnames are already in use by \
                 other domains: {conflicts}  This may cause routing issues.",
            )),
        }
        Ok(())
    }
}

/// The TLS library knows which ciphers there are.
fn ciphers(value: &str) -> Result<(), String> {
    match CipherList::read(value).honoured {
        Some(_) => Ok(()),
        None => Err(format!("{value:?} names no cipher that the TLS library has")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, attributes: &[(&str, &[&str])]) -> Entry {
        let mut entry = Entry::new(name);
        for (attribute, values) in attributes {
            entry.set(attribute, values.iter().copied());
        }
        entry
    }

    /// The result of a change that adds these attributes to an entry with a `zimbraId` and one virtual host.
    fn checked(kind: EntryKind, attributes: &[(&str, &[&str])]) -> String {
        let system = System::new(
            entry("config", &[("zimbraImapProxyBindPort", &["1143"])]),
            [entry("s.test", &[])],
            [
                entry(
                    "a.test",
                    &[("zimbraId", &["1"]), ("zimbraVirtualHostname", &["m.a.test"])],
                ),
                entry(
                    "b.test",
                    &[("zimbraId", &["2"]), ("zimbraVirtualIPAddress", &["192.0.2.7"])],
                ),
            ],
            [entry("default", &[])],
        );
        let before = match kind {
            EntryKind::Domains => entry(
                "a.test",
                &[("zimbraId", &["1"]), ("zimbraVirtualHostname", &["m.a.test"])],
            ),
            _ => entry("s.test", &[("zimbraId", &["1"])]),
        };
        let mut after = before.clone();
        for (attribute, values) in attributes {
            after.set(attribute, values.iter().copied());
        }
        let proposed = ProposedEntry {
            system: &system,
            kind,
            before: &before,
            after: &after,
            shared_names: SharedNames::Warned,
        };
        let mut output = CommandOutput::default();
        match proposed.check(&mut output) {
            Ok(()) => output.out + &output.warnings.join("\n"),
            Err(ProvisionError::Service { code, message }) => format!("{code} {message}"),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(kind: EntryKind, attribute: &str, values: &[&str], expected: &str) {
        let said = checked(kind, &[(attribute, values)]);
        assert!(said.starts_with("account.") || said.starts_with("service."), "{said}");
        assert!(said.contains(expected), "{said}");
    }

    #[test]
    fn good_changes_are_taken_in_silence() {
        for (kind, attribute, values) in [
            (EntryKind::Servers, "zimbraReverseProxyMailMode", &["redirect"][..]),
            (EntryKind::Servers, "zimbraImapProxyBindPort", &["0"]),
            (EntryKind::Servers, "zimbraReverseProxySSLCiphers", &["ECDHE+AESGCM"]),
            (EntryKind::Domains, "zimbraVirtualHostname", &["m.a.test", "*.a.test"]),
            (EntryKind::Domains, "zimbraVirtualIPAddress", &["192.0.2.8"]),
            (EntryKind::Domains, "zimbraDomainDefaultCOSId", &["default"]),
            (EntryKind::Accounts, "zimbraMailHost", &["S.test"]),
            (EntryKind::Accounts, "displayName", &["anything"]),
        ] {
            assert_eq!(checked(kind, &[(attribute, values)]), "", "{attribute}");
        }
    }

    #[test]
    fn bad_changes_are_refused() {
        for (attribute, value, expected) in [
            (
                "zimbraReverseProxyMailMode",
                "mixed",
                "expected one of https, redirect, both",
            ),
            ("zimbraReverseProxyMailEnabled", "yes", "expected TRUE or FALSE"),
            ("zimbraImapProxyBindPort", "70000", "expected a port"),
            ("zimbraReverseProxyConnectTimeout", "soon", "expected a duration"),
            ("zimbraServiceHostname", "a b", "is not a host name or address"),
            ("zimbraReverseProxySSLCiphers", "NONSENSE", "names no cipher"),
            (
                "zimbraImapProxyBindPort",
                "993",
                "port 993 conflict between zimbraImapProxyBindPort and zimbraImapSSLProxyBindPort",
            ),
            ("zimbraPop3ProxyBindPort", "1143", "port 1143 conflict"),
            ("zimbraId", "2", "zimbraId is immutable"),
            ("zimbraId", "", "zimbraId is immutable"),
            ("zimbraMailHots", "x", "did you mean zimbraMailHost?"),
        ] {
            refused(EntryKind::Servers, attribute, &[value], expected);
        }
        refused(
            EntryKind::Servers,
            "zimbraReverseProxyMailMode",
            &["https", "both"],
            "takes one value",
        );
        for (attribute, value, expected) in [
            ("zimbraVirtualHostname", "mail", "is not a host name with its domain"),
            ("zimbraVirtualIPAddress", "192.0.2.7", "already belongs to b.test"),
            ("zimbraVirtualIPAddress", "mail", "expected an IP address"),
            ("zimbraDomainAllowedIPs", "10.0.0.0/40", "expected a network"),
            ("zimbraDomainAliasTargetId", "9", "is not the zimbraId of a domain"),
            ("zimbraDomainDefaultCOSId", "gold", "is not a class of service"),
            ("zimbraSSLCertificate", "MIIB", "expected PEM text"),
        ] {
            refused(EntryKind::Domains, attribute, &[value], expected);
        }
        refused(
            EntryKind::Accounts,
            "zimbraMailHost",
            &["x.test"],
            "is not the name of a server",
        );
        refused(EntryKind::Accounts, "zimbraMailAlias", &["x"], "is not an address");
    }

    #[test]
    fn names_of_other_domains_are_taken_with_a_warning() {
        let domain = [
            entry("a.test", &[]),
            entry("b.test", &[("zimbraVirtualHostname", &["M.b.test"])]),
        ];
        let system = System::new(Entry::new("config"), [], domain, []);
        let (before, after) = (
            entry("a.test", &[]),
            entry("a.test", &[("zimbraVirtualHostname", &["m.b.test", "m.a.test"])]),
        );
        let mut output = CommandOutput::default();
        let mut proposed = ProposedEntry {
            system: &system,
            kind: EntryKind::Domains,
            before: &before,
            after: &after,
            shared_names: SharedNames::Warned,
        };
        proposed.check(&mut output).unwrap();
        assert_eq!(
            output.out,
            "WARNING: Virtual hostname conflicts detected. The following virtual hostnames are already in use by other \
             domains: m.b.test (b.test)  This may cause routing issues.\n"
        );
        proposed.shared_names = SharedNames::Refused;
        let refused = proposed.check(&mut CommandOutput::default()).unwrap_err();
        let message = "these virtual host names already belong to another domain: m.b.test (b.test)";
        assert_eq!(refused, ProvisionError::service(NAME_TAKEN, message));
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let said = checked(EntryKind::Servers, &[("zimbraVirtualHostname", &["m.a.test"])]);
        assert_eq!(said, "WARNING: zimbraVirtualHostname has no effect on a server");
    }
}
