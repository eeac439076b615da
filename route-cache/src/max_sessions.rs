//! How many mail sessions the directory allows at once: of an account, of a domain, at a server.

use mail_directory::attributes::{self as a, Attribute};
use mail_directory::{System, View};

/// What the directory says, where it says something; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaxSessions {
    /// Of the account.
    pub account: Option<u32>,
    /// Of all accounts of its domain.
    pub domain: Option<u32>,
    /// At its server.
    pub server: Option<u32>,
}

impl MaxSessions {
    /// `own`: of the account or its class of service. A server outside has none.
    pub(crate) fn find(system: &System, account: &str, own: Option<u32>, server: &str) -> Self {
        let domain = system.domain_of(account).unwrap_or_else(|| system.global());
        let server = system.server(server);
        Self {
            account: own.or_else(|| of(domain, &a::PORTICO_ACCOUNT_MAX_SESSIONS)),
            domain: of(domain, &a::PORTICO_DOMAIN_MAX_SESSIONS),
            server: server.and_then(|server| of(server, &a::PORTICO_SERVER_MAX_SESSIONS)),
        }
    }
}

/// The number of an entry. More than can ever be counted is as many as can.
pub(crate) fn of(entry: View<'_>, attribute: &Attribute) -> Option<u32> {
    let number = entry.number_if_set(attribute)?;
    Some(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use mail_directory::Entry;

    use super::*;

    #[test]
    fn the_nearest_number_counts() {
        let entry = |name: &str, values: &[(&str, &str)]| {
            let mut entry = Entry::new(name);
            values.iter().for_each(|(name, value)| entry.set(name, [*value]));
            entry
        };
        let config = entry(
            "config",
            &[("porticoAccountMaxSessions", "9"), ("porticoServerMaxSessions", "800")],
        );
        let domains = [
            entry(
                "a.test",
                &[("porticoAccountMaxSessions", "7"), ("porticoDomainMaxSessions", "0")],
            ),
            entry("b.test", &[("porticoDomainMaxSessions", "99999999999")]),
        ];
        let servers = [entry("s1", &[("porticoServerMaxSessions", "5")]), entry("s2", &[])];
        let system = System::new(config, servers, domains, []);
        let find = |account, own, server| {
            let max = MaxSessions::find(&system, account, own, server);
            (max.account, max.domain, max.server)
        };
        assert_eq!(find("x@a.test", Some(3), "s1"), (Some(3), Some(0), Some(5)));
        assert_eq!(find("x@a.test", None, "s2"), (Some(7), Some(0), Some(800)));
        assert_eq!(find("x@b.test", None, "elsewhere"), (Some(9), Some(u32::MAX), None));
    }
}
