//! What is wrong with the entries of a directory. It only reports problems; callers decide what to do about them.

use std::collections::HashMap;
use std::hash::Hash;

use crate::attributes::{self, Attribute, Scope};
use crate::entry::Entry;
use crate::names::{fold, host as host_name};
use crate::system::{Entries, System, address};
use crate::yaml::{Problem, Problems, Severity};

impl System {
    /// What is wrong with the entries: values that cannot be read, names claimed twice, targets that are not
    /// there, attributes that look mistyped.
    pub fn check(&self) -> Problems {
        system(self)
    }
}

/// All problems of everything but accounts.
fn system(system: &System) -> Problems {
    let mut problems = Problems::new();
    entry(&system.config, "config", Scope::Global, &mut problems);
    let sections = [
        (&system.servers, "servers", Scope::Server),
        (&system.domains, "domains", Scope::Domain),
        (&system.cos, "cos", Scope::Cos),
    ];
    for (entries, section, scope) in sections {
        for one in entries.values() {
            entry(one, &format!("{section}.{}", one.name()), scope, &mut problems);
        }
    }
    // As in Carbonio, this is reported and accepted: the first domain in the alphabet has the name.
    let mut shared = Problems::new();
    unique(
        &system.domains,
        "domains",
        &attributes::VIRTUAL_HOSTNAME,
        |v| Some(host_name(v)),
        &mut shared,
    );
    for problem in shared {
        problems.push(Problem {
            severity: Severity::Warning,
            ..problem
        });
    }
    unique(
        &system.domains,
        "domains",
        &attributes::VIRTUAL_IP_ADDRESS,
        address,
        &mut problems,
    );
    unique(
        &system.domains,
        "domains",
        &attributes::ID,
        |v| Some(fold(v)),
        &mut problems,
    );
    unique(&system.cos, "cos", &attributes::ID, |v| Some(fold(v)), &mut problems);
    alias_targets(system, &mut problems);
    problems
}

/// The problems of one account, except those that it shares with others.
pub(crate) fn account(system: &System, one: &Entry, problems: &mut Problems) {
    let path = format!("accounts.{}", one.name());
    entry(one, &path, Scope::Account, problems);
    let attribute = &attributes::MAIL_HOST;
    if let Some(host) = one.first(attribute.name)
        && system.server(host).is_none()
    {
        let message = format!("server {host} is not in the directory");
        report(one, &path, attribute.name, message, Severity::Warning, problems);
    }
}

/// A problem with an attribute of an entry.
pub(crate) fn report(
    entry: &Entry,
    path: &str,
    attribute: &str,
    message: String,
    severity: Severity,
    problems: &mut Problems,
) {
    let file = entry.origin().map(|origin| origin.file.clone());
    let key = format!("{path}.{attribute}");
    problems.push(Problem {
        file,
        line: entry.line_of(attribute),
        key,
        message,
        severity,
    });
}

fn entry(entry: &Entry, path: &str, scope: Scope, problems: &mut Problems) {
    for (name, values) in entry.iter() {
        match attributes::find(name) {
            Some(attribute) => known_attribute(entry, path, scope, attribute, values, problems),
            None => unknown_attribute(entry, path, name, values, problems),
        }
    }
}

fn known_attribute(
    entry: &Entry,
    path: &str,
    scope: Scope,
    attribute: &Attribute,
    values: &[String],
    problems: &mut Problems,
) {
    for message in values.iter().filter_map(|value| attribute.check(value).err()) {
        report(entry, path, attribute.name, message, Severity::Error, problems);
    }
    // Set where all listeners read it, it may be meant for mail, too.
    if attribute.name == attributes::REVERSE_PROXY_CLIENT_CERT_MODE.name
        && values.first().is_some_and(|mode| mode.eq_ignore_ascii_case("on"))
    {
        let message = "counts for web clients only: IMAP and POP3 ask for no certificate".to_owned();
        report(entry, path, attribute.name, message, Severity::Warning, problems);
    }
    if values.len() > 1 && !attribute.is_multi() {
        let message = format!("has {} values, but only the first counts", values.len());
        report(entry, path, attribute.name, message, Severity::Error, problems);
    }
    // In LDAP the schema decides where an attribute may stand.
    if entry.origin().is_some() && !attribute.is_for(scope) {
        let message = "has no effect on this kind of entry".to_owned();
        report(entry, path, attribute.name, message, Severity::Warning, problems);
    }
}

/// In LDAP the schema knows all names; only a file can have a mistyped one.
fn unknown_attribute(entry: &Entry, path: &str, name: &str, values: &[String], problems: &mut Problems) {
    if let Some(why) = attributes::protects_in_vain(name, values) {
        let message = format!("protects nothing here: {why}");
        report(entry, path, name, message, Severity::Warning, problems);
    }
    if entry.origin().is_some()
        && let Some(near) = attributes::similar(name)
    {
        let message = format!("is not a known attribute; did you mean {near}?");
        report(entry, path, name, message, Severity::Warning, problems);
    }
}

/// No two entries may have the same value.
fn unique<K: Hash + Eq>(
    entries: &Entries,
    section: &str,
    attribute: &Attribute,
    key: impl Fn(&str) -> Option<K>,
    problems: &mut Problems,
) {
    let mut seen: HashMap<K, &str> = HashMap::new();
    for entry in entries.values() {
        for value in entry.values(attribute.name) {
            let Some(key) = key(value) else {
                continue;
            };
            let first = *seen.entry(key).or_insert(entry.name());
            if first != entry.name() {
                let message = format!("{value} already belongs to {first}");
                let path = format!("{section}.{}", entry.name());
                report(entry, &path, attribute.name, message, Severity::Error, problems);
            }
        }
    }
}

fn alias_targets(system: &System, problems: &mut Problems) {
    for domain in system
        .domains()
        .filter(|d| d.choice(&attributes::DOMAIN_TYPE) == "alias")
    {
        let Some(entry) = domain.entry() else {
            continue;
        };
        let message = match domain.text(&attributes::DOMAIN_ALIAS_TARGET_ID) {
            None => "is an alias domain, but names no target".to_owned(),
            Some(id) if system.domain_by_id(id).is_none() => format!("no domain has the zimbraId {id}"),
            Some(_) => continue,
        };
        let attribute = attributes::DOMAIN_ALIAS_TARGET_ID.name;
        report(
            entry,
            &format!("domains.{}", entry.name()),
            attribute,
            message,
            Severity::Error,
            problems,
        );
    }
}
