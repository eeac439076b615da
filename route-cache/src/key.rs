//! The subject of a lookup: names get their domain, and all spellings of one become one key (MAIL §1.7 step 1).

use std::sync::Arc;

use mail_directory::{System, attributes, domain_of, fold, names};

use crate::route::{Lookup, RouteError, Service, Subject};

/// Longest login name or id. Mail addresses end at 254; the mail proxy of nginx takes 256.
const MAX_SUBJECT: usize = 512;

/// The subject of a lookup in the one form under which it is cached and asked for: qualified and folded. Names and
/// ids can never be equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// `user@domain`.
    Name(Arc<str>),
    /// A `zimbraId`.
    Id(Arc<str>),
    /// A name without domain that only a lookup service can qualify, with the address and host that decide it:
    /// `user@[address;host]`.
    Bare(Arc<str>),
}

impl Key {
    /// Normalises the subject of a lookup; here and nowhere else. Fails for what cannot be the name of an account.
    pub(crate) fn of(lookup: &Lookup, system: &System) -> Result<Self, RouteError> {
        let key = match &lookup.subject {
            Subject::Login(name) => Self::Name(Arc::from(names::account(&qualify(acceptable(name)?, lookup, system)?))),
            Subject::Id(id) => Self::Id(Arc::from(fold(acceptable(id)?))),
        };
        Ok(key)
    }

    /// The subject of a lookup as a lookup service receives it. A name without domain gets that of the virtual host
    /// or the virtual address that the client connected to, if the directory knows it: Zimbra's service looks at the
    /// host for `http` only (HTTP §3.5), and nginx's receives neither. For other names the service knows better, and
    /// for the cache such a name belongs to the address and host where it was typed.
    pub(crate) fn for_service(lookup: &Lookup, system: &System) -> Result<Self, RouteError> {
        let typed = match &lookup.subject {
            Subject::Login(name) => acceptable(name)?,
            Subject::Id(id) => return Ok(Self::Id(Arc::from(fold(acceptable(id)?)))),
        };
        match domain_for(typed, lookup, system) {
            Some((_, By::Itself)) => Ok(Self::Name(Arc::from(names::account(typed)))),
            Some((domain, By::VirtualHost | By::VirtualAddress)) => {
                Ok(Self::Name(Arc::from(names::account(&format!("{typed}@{domain}")))))
            }
            Some((_, By::Default)) | None => {
                let host = lookup
                    .host
                    .as_deref()
                    .filter(|_| matches!(lookup.service, Service::Web | Service::Admin));
                let local = lookup.local.to_canonical();
                let (user, host) = (names::account(typed), names::host(host.unwrap_or_default()));
                Ok(Self::Bare(Arc::from(format!("{user}@[{local};{host}]"))))
            }
        }
    }

    pub(crate) fn text(&self) -> &Arc<str> {
        match self {
            Self::Name(text) | Self::Id(text) | Self::Bare(text) => text,
        }
    }
}

/// Names with control characters are attacks on logs, filters and protocols, and an empty name belongs to no account.
/// Blanks around a name are removed before it gets its domain.
fn acceptable(name: &str) -> Result<&str, RouteError> {
    let name = name.trim_matches(' ');
    if name.is_empty() || name.len() > MAX_SUBJECT || name.contains(char::is_control) {
        return Err(RouteError::UnknownUser);
    }
    Ok(name)
}

/// Adds the domain to a name without one: that of the host name the client asked for, else that of the local
/// address, else the default domain (MAIL §1.7 step 1, for all services alike).
pub(crate) fn qualify(name: &str, lookup: &Lookup, system: &System) -> Result<String, RouteError> {
    if name.contains('@') {
        return Ok(name.to_owned());
    }
    let (domain, _) = domain_for(name, lookup, system).ok_or(RouteError::UnknownUser)?;
    Ok(format!("{name}@{domain}"))
}

/// What the domain of a name was found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The name.
    Itself,
    /// The host name that the client asked for.
    VirtualHost,
    /// The address that the client connected to.
    VirtualAddress,
    /// The global config.
    Default,
}

/// The domain of a name, and what it was found by. Called at every lookup, so it copies nothing.
pub(crate) fn domain_for<'a>(name: &'a str, lookup: &Lookup, system: &'a System) -> Option<(&'a str, By)> {
    if let Some(domain) = domain_of(name) {
        return Some((domain, By::Itself));
    }
    if let Some(domain) = lookup.host.as_deref().and_then(|host| system.domain_by_host(host)) {
        return Some((domain.name(), By::VirtualHost));
    }
    if let Some(domain) = system.domain_by_address(lookup.local) {
        return Some((domain.name(), By::VirtualAddress));
    }
    let default = system.global().text(&attributes::DEFAULT_DOMAIN_NAME)?;
    Some((default, By::Default))
}
