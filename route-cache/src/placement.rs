//! Where an account is: what its entry says of it, as far as routes depend on it (MAIL §1.7 steps 2 and 4).
//!
//! [`place`] asks the directory and returns a [`Placement`], which may be kept. Nothing is kept here.

use std::sync::Arc;

use mail_directory::{AccountBy, Directory, DirectoryError, Entry, System, View, attributes, names};

use crate::key::Key;
use crate::max_sessions;
use crate::protocol::{EXTERNAL, Protocol};

/// What the directory says of an account, as far as routes depend on it. Small: there may be a million.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Canonical name: the folded delivery address.
    pub(crate) account: Arc<str>,
    /// Its server, as `zimbraMailHost` names it; shared with the system where it knows that server.
    pub(crate) mail_host: Option<Arc<str>>,
    /// `porticoAccountMaxSessions` of the account or of its class of service.
    pub(crate) max_sessions: Option<u32>,
    /// What few accounts have.
    pub(crate) special: Option<Box<Special>>,
}

/// What an account says about its login name and its external server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Special {
    /// The name to log in with, where `zimbraReverseProxyUserNameAttribute` says so.
    pub(crate) login: Option<Arc<str>>,
    /// `zimbraReverseProxyUseExternalRoute`.
    pub(crate) external: Option<bool>,
    /// Host and port by place in [`EXTERNAL`].
    pub(crate) servers: [(Option<Box<str>>, Option<u16>); 4],
    /// A lookup service named these servers, each for its own protocol; it has to be asked for the others.
    pub(crate) piecemeal: bool,
    /// `zimbraAccountStatus` is `maintenance`.
    pub(crate) maintenance: bool,
    /// A mailbox server has named its server.
    pub(crate) by_referral: bool,
}

/// Names of the attributes that a [`Placement`] was read from. When the global config names others, what was
/// kept is no longer true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlacementAttributes {
    pub(crate) mail_host: String,
    pub(crate) login: Option<String>,
}

impl PlacementAttributes {
    /// Whether the name to log in with is another attribute than the name of the account.
    pub(crate) fn names_logins(&self) -> bool {
        self.login.is_some()
    }

    /// What the global config says now.
    pub(crate) fn of(system: &System) -> Self {
        let global = system.global();
        let mail_host = global
            .text(&attributes::REVERSE_PROXY_MAIL_HOST_ATTRIBUTE)
            .unwrap_or_default();
        let login = global.text(&attributes::REVERSE_PROXY_USER_NAME_ATTRIBUTE);
        Self {
            mail_host: mail_host.to_owned(),
            login: login.map(str::to_owned),
        }
    }

    /// Whether this is still what the global config says. Asked at every lookup, so it copies nothing.
    pub(crate) fn is_of(&self, system: &System) -> bool {
        let global = system.global();
        global.text(&attributes::REVERSE_PROXY_MAIL_HOST_ATTRIBUTE) == Some(&self.mail_host)
            && global.text(&attributes::REVERSE_PROXY_USER_NAME_ATTRIBUTE) == self.login.as_deref()
    }
}

/// What a source says of an account.
pub(crate) struct SourceAnswer {
    /// Where the account is; `None`: there is no such account.
    pub(crate) placement: Option<Placement>,
    /// Whether the name that was asked for is, wherever it is typed, another name of that account.
    pub(crate) alias: bool,
}

/// Asks the directory where an account is.
pub(crate) async fn place(
    directory: &dyn Directory,
    system: &System,
    key: &Key,
) -> Result<Option<Placement>, DirectoryError> {
    let entry = entry(directory, system, key).await?;
    Ok(entry.map(|entry| placement(&entry, key, system)))
}

/// Asks the directory for an account. In an alias domain the target domain is asked next (step 4).
pub(crate) async fn entry(
    directory: &dyn Directory,
    system: &System,
    key: &Key,
) -> Result<Option<Arc<Entry>>, DirectoryError> {
    let by = match key {
        Key::Name(name) | Key::Bare(name) => AccountBy::Name(name.to_string()),
        Key::Id(id) => AccountBy::Id(id.to_string()),
    };
    let mut entry = directory.account(&by).await?;
    if entry.is_none()
        && let Some(name) = in_target_domain(key, system)
    {
        entry = directory.account(&AccountBy::Name(name)).await?;
    }
    Ok(entry)
}

/// `user@alias.domain` → `user@target.domain`.
fn in_target_domain(key: &Key, system: &System) -> Option<String> {
    let Key::Name(name) = key else {
        return None;
    };
    let (user, domain) = name.rsplit_once('@')?;
    let target = system.target_of_alias(&system.domain(domain)?)?;
    Some(format!("{user}@{}", names::host(target.name())))
}

/// What an entry says of its account's place.
pub(crate) fn placement(entry: &Entry, key: &Key, system: &System) -> Placement {
    let reading = PlacementAttributes::of(system);
    let account = names::account(
        entry
            .first(attributes::MAIL_DELIVERY_ADDRESS.name)
            .unwrap_or(entry.name()),
    );
    let mail_host = entry
        .first(&reading.mail_host)
        .map(|host| match system.server_key(host) {
            Some(shared) => shared.clone(),
            None => Arc::from(host),
        });
    let login = reading.login.and_then(|attribute| entry.first(&attribute));
    Placement {
        // One text for the key and the value, where they are the same.
        account: if **key.text() == *account {
            key.text().clone()
        } else {
            Arc::from(account)
        },
        mail_host,
        max_sessions: max_sessions::of(system.account(entry), &attributes::PORTICO_ACCOUNT_MAX_SESSIONS),
        special: special(system.account(entry), login),
    }
}

fn special(account: View<'_>, login: Option<&str>) -> Option<Box<Special>> {
    let found = Special {
        login: login.map(Arc::from),
        external: account.flag_if_set(&attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE),
        servers: EXTERNAL.map(|(host, port)| (account.text(host).map(Box::from), account.port(port))),
        piecemeal: false,
        maintenance: account.choice(&attributes::ACCOUNT_STATUS) == "maintenance",
        by_referral: false,
    };
    (found != Special::default()).then(|| Box::new(found))
}

impl Placement {
    /// An account on a server of the directory, where another source than its entry said so. That source also had the
    /// last word about external servers.
    pub(crate) fn on(server: &Arc<str>, account: Arc<str>, login: Option<Arc<str>>, system: &System) -> Self {
        let flag = &attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE;
        let elsewhere = system.domain_of(&account).is_some_and(|domain| domain.flag(flag));
        let special = Special {
            login,
            external: elsewhere.then_some(false),
            ..Special::default()
        };
        Self {
            account,
            mail_host: Some(server.clone()),
            max_sessions: None,
            special: (special != Special::default()).then(|| Box::new(special)),
        }
    }

    /// An account on a server that is not in the directory, known for one mail protocol only. `None` for the web.
    pub(crate) fn outside(
        protocol: Protocol,
        host: &str,
        port: u16,
        account: Arc<str>,
        login: Option<Arc<str>>,
    ) -> Option<Self> {
        let mut special = Special {
            login,
            external: Some(true),
            piecemeal: true,
            ..Special::default()
        };
        special.servers[protocol.external()?] = (Some(Box::from(host)), Some(port));
        Some(Self {
            account,
            mail_host: None,
            max_sessions: None,
            special: Some(Box::new(special)),
        })
    }

    /// Whether this says where to go for a protocol. If not, the source has to be asked for it.
    pub(crate) fn answers(&self, protocol: Protocol) -> bool {
        self.pieces()
            .is_none_or(|own| protocol.external().is_some_and(|place| own.servers[place].1.is_some()))
    }

    /// Adds what an older answer said of other protocols. False if there was nothing to add.
    pub(crate) fn join(&mut self, older: &Self) -> bool {
        let (Some(_), Some(theirs)) = (self.pieces(), older.pieces()) else {
            return false;
        };
        let Some(own) = self.special.as_mut().filter(|own| own.login == theirs.login) else {
            return false;
        };
        let mut joined = false;
        for (mine, other) in own.servers.iter_mut().zip(&theirs.servers) {
            if mine.1.is_none() && other.1.is_some() {
                mine.clone_from(other);
                joined = true;
            }
        }
        joined
    }

    /// The server of the directory that the account is on. `None` if it may be elsewhere for some protocol.
    pub(crate) fn server(&self) -> Option<&Arc<str>> {
        let inside = self.special.as_ref().is_none_or(|own| own.external != Some(true));
        self.mail_host.as_ref().filter(|_| inside)
    }

    /// Whether its mailbox is being worked on.
    pub(crate) fn is_in_maintenance(&self) -> bool {
        self.special.as_ref().is_some_and(|own| own.maintenance)
    }

    /// The same, named by a mailbox server.
    pub(crate) fn by_referral(mut self) -> Self {
        self.special.get_or_insert_default().by_referral = true;
        self
    }

    /// Whether a mailbox server has named its server.
    pub(crate) fn is_by_referral(&self) -> bool {
        self.special.as_ref().is_some_and(|own| own.by_referral)
    }

    fn pieces(&self) -> Option<&Special> {
        self.special.as_deref().filter(|own| own.piecemeal)
    }

    /// Its server, as `zimbraMailHost` names it.
    pub(crate) fn mail_host(&self) -> Option<&Arc<str>> {
        self.mail_host.as_ref()
    }

    /// What the account says of external servers: whether it is on one.
    pub(crate) fn external(&self) -> Option<bool> {
        self.special.as_ref()?.external
    }

    /// The external server that the account names, by place in [`EXTERNAL`].
    pub(crate) fn external_server(&self, place: usize) -> (Option<&str>, Option<u16>) {
        self.special.as_ref().map_or((None, None), |own| {
            let (host, port) = &own.servers[place];
            (host.as_deref(), *port)
        })
    }

    /// The name to log in with at the server.
    pub(crate) fn login(&self) -> &Arc<str> {
        let special = self.special.as_ref().and_then(|special| special.login.as_ref());
        special.unwrap_or(&self.account)
    }
}
