//! From a placement to a route, with the servers, ports and modes of the moment (MAIL §1.7 steps 3 to 6).

use std::net::IpAddr;
use std::sync::Arc;

use mail_directory::{System, View, attributes, names};

use crate::key::Key;
use crate::placement::Placement;
use crate::protocol::{EXTERNAL, Protocol};
use crate::route::{Lookup, Route, RouteError, Server, ServerPool, Service, Subject, Tier};

/// The route for a lookup in one protocol, given what is known of its subject (`None`: no such account).
pub(crate) fn route(
    lookup: &Lookup,
    key: &Key,
    placement: Option<&Placement>,
    system: &System,
    protocol: Protocol,
    tier: Tier,
) -> Result<Route, RouteError> {
    let name = placement.map_or(key.text(), |placement| &placement.account);
    let domain = system.domain_of(name);
    allowed(domain, lookup.client)?;
    let plan = RoutePlan {
        lookup,
        name,
        domain,
        protocol,
        tier,
    };
    let Some(placement) = placement else {
        return plan.split_domain().ok_or(RouteError::UnknownUser);
    };
    let route = plan.of(placement, system);
    if plan.wants_external(placement) && !route.as_ref().is_ok_and(|route| route.external) {
        log::info!("external route of {name} is incomplete for {}", protocol.name());
    }
    route
}

/// The route of an account in one protocol for a client that its domain admits.
pub(crate) fn of_admitted(
    lookup: &Lookup,
    placement: &Placement,
    system: &System,
    protocol: Protocol,
) -> Result<Route, RouteError> {
    let plan = RoutePlan {
        lookup,
        name: &placement.account,
        domain: system.domain_of(&placement.account),
        protocol,
        tier: Tier::Memory,
    };
    plan.of(placement, system)
}

/// Step 3: the domain's list of client addresses, IPv4 and IPv6. It also guards accounts that exist only at an
/// external server. A list without a readable entry admits no client.
fn allowed(domain: Option<View<'_>>, client: IpAddr) -> Result<(), RouteError> {
    let Some(domain) = domain else {
        return Ok(());
    };
    let list = &attributes::DOMAIN_ALLOWED_IPS;
    if domain.list(list).is_empty() {
        return Ok(());
    }
    let client = client.to_canonical();
    if domain.networks(list).iter().any(|network| network.contains(&client)) {
        return Ok(());
    }
    Err(RouteError::NotAllowed {
        domain: domain.name().to_owned(),
    })
}

/// What is known when a route is made.
struct RoutePlan<'a> {
    lookup: &'a Lookup,
    /// The account, or the qualified login if there is none.
    name: &'a Arc<str>,
    domain: Option<View<'a>>,
    protocol: Protocol,
    tier: Tier,
}

impl RoutePlan<'_> {
    /// Steps 4 to 6.
    fn of(&self, placement: &Placement, system: &System) -> Result<Route, RouteError> {
        match self.external(placement) {
            Some(route) => Ok(route),
            None => self.internal(placement, system),
        }
    }

    /// The account is not in the directory, but its domain has an external server for such accounts.
    fn split_domain(&self) -> Option<Route> {
        let flag = &attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE_IF_ACCOUNT_NOT_EXIST;
        let is_name = matches!(self.lookup.subject, Subject::Login(_));
        self.domain.filter(|domain| is_name && domain.flag(flag))?;
        self.external_server(None)
    }

    /// Step 5: the account's own setting, else that of its domain.
    fn wants_external(&self, placement: &Placement) -> bool {
        let flag = &attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE;
        let wanted = placement
            .external()
            .unwrap_or_else(|| self.domain.is_some_and(|domain| domain.flag(flag)));
        wanted && self.protocol.external().is_some()
    }

    /// An incomplete address counts as none.
    fn external(&self, placement: &Placement) -> Option<Route> {
        self.wants_external(placement)
            .then(|| self.external_server(Some(placement)))?
    }

    fn external_server(&self, placement: Option<&Placement>) -> Option<Route> {
        let place = self.protocol.external()?;
        let (host_attribute, port_attribute) = EXTERNAL[place];
        let own = placement.map(|placement| placement.external_server(place));
        let (own_host, own_port) = own.unwrap_or_default();
        let host = own_host.or_else(|| self.domain?.text(host_attribute))?;
        let port = own_port.or_else(|| self.domain?.port(port_attribute))?;
        let host = &*names::reachable(host);
        let server: Arc<str> = Arc::from(host);
        Some(Route {
            account: self.name.clone(),
            login: self.external_login(placement.map_or(self.name, Placement::login)),
            host: server.clone(),
            server,
            port,
            tls: self.protocol.upstream_tls(host),
            external: true,
            tier: self.tier,
            maintenance: placement.is_some_and(Placement::is_in_maintenance),
            max_sessions: placement.and_then(|placement| placement.max_sessions),
        })
    }

    fn external_login(&self, login: &Arc<str>) -> Arc<str> {
        let flag = &attributes::REVERSE_PROXY_EXTERNAL_ROUTE_INCLUDE_ORIGINAL_AUTHUSERNAME;
        match &self.lookup.subject {
            Subject::Login(typed) if self.domain.is_some_and(|domain| domain.flag(flag)) => Arc::from(&**typed),
            Subject::Login(_) | Subject::Id(_) => login.clone(),
        }
    }

    /// Steps 4 and 6: the account's server and its port.
    fn internal(&self, placement: &Placement, system: &System) -> Result<Route, RouteError> {
        let missing = |text: String| Err(RouteError::NoRoute(text));
        let Some(mail_host) = placement.mail_host() else {
            return missing(format!("mailhost not found for user: {}", self.name));
        };
        let Some(server) = system.server(mail_host) else {
            return missing(format!("server {mail_host} is not in the directory"));
        };
        let server = self.protocol.at(server, system).map_err(RouteError::NoRoute)?;
        Ok(Route {
            account: placement.account.clone(),
            login: placement.login().clone(),
            server: server.name,
            host: server.host,
            port: server.port,
            tls: server.tls,
            external: false,
            tier: self.tier,
            maintenance: placement.is_in_maintenance(),
            max_sessions: placement.max_sessions,
        })
    }
}

impl ServerPool {
    /// The servers of this group; `node` names the proxy whose modes count. A server whose port is missing, or that
    /// is named and not there, is left out.
    pub fn servers(self, system: &System, node: &str) -> Vec<Server> {
        let node = system.node(node);
        let (service, named) = match self {
            Self::Web => (Service::Web, None),
            Self::Admin => (Service::Admin, None),
            Self::Ews => (Service::Web, Some(&attributes::REVERSE_PROXY_UPSTREAM_EWS_SERVERS)),
            Self::Login => (Service::Web, Some(&attributes::REVERSE_PROXY_UPSTREAM_LOGIN_SERVERS)),
        };
        let protocol = Protocol::of(service, node);
        let found: Vec<View<'_>> = match named {
            None => system.web_servers().collect(),
            Some(list) => node
                .list(list)
                .into_iter()
                .filter_map(|name| system.server(name))
                .collect(),
        };
        let reached = found.into_iter().filter_map(|server| protocol.at(server, system).ok());
        reached.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use mail_directory::Directory;
    use mail_directory::file::YamlDirectory;

    use super::*;
    use crate::placement::place;
    use crate::route::UpstreamTls;

    const SYSTEM: &str = "
config: {zimbraDefaultDomainName: a.test}
servers:
  proxy.test: {zimbraServiceEnabled: proxy}
  clear.test: {zimbraServiceEnabled: proxy, zimbraReverseProxySSLToUpstreamEnabled: FALSE}
  store1.test: {zimbraServiceHostname: 127.0.0.2, zimbraImapSSLBindPort: 1993, zimbraServiceEnabled: mailbox}
  store2: {zimbraServiceHostname: host2.test, zimbraMailSSLPort: 0}
  store3: {zimbraServiceHostname: 127.0.0.3}
domains:
  a.test: {}
  v.test: {zimbraVirtualHostname: [mail.v.test, '*.w.test'], zimbraVirtualIPAddress: 192.0.2.7}
  guarded.test: {zimbraDomainAllowedIPs: [10.0.0.0/8, 'fd00::/8', 192.0.2.1]}
  broken.test: {zimbraId: id-broken}
  alias.test: {zimbraDomainType: alias, zimbraDomainAliasTargetId: id-target}
  target.test: {zimbraId: id-target}
  ext.test:
    zimbraReverseProxyUseExternalRoute: TRUE
    zimbraExternalImapSSLHostname: imap.ext.test
    zimbraExternalImapSSLPort: 993
    zimbraExternalPop3SSLHostname: pop.ext.test
  split.test:
    zimbraReverseProxyUseExternalRouteIfAccountNotExist: TRUE
    zimbraReverseProxyExternalRouteIncludeOriginalAuthusername: TRUE
    zimbraExternalImapHostname: old.split.test
    zimbraExternalImapPort: 143
    zimbraExternalImapSSLHostname: old.split.test
    zimbraExternalImapSSLPort: 994
    zimbraDomainAllowedIPs: 192.0.2.0/24
accounts:
  alice@a.test: {zimbraMailHost: store1.test, zimbraMailAlias: [Al@a.test, al@v.test], zimbraId: ID-Alice}
  key: {zimbraMailDeliveryAddress: Bob@a.test, zimbraMailHost: HOST2.test, uid: bobby}
  carl@v.test: {zimbraMailHost: store3}
  nohost@a.test: {}
  lost@a.test: {zimbraMailHost: gone.test}
  dora@guarded.test: {zimbraMailHost: store1.test}
  emil@target.test: {zimbraMailHost: store1.test}
  own@alias.test: {zimbraMailHost: store2}
  fay@ext.test: {zimbraMailHost: store1.test}
  gil@ext.test: {zimbraMailHost: store1.test, zimbraReverseProxyUseExternalRoute: FALSE}
  hal@ext.test: {zimbraMailHost: store1.test, zimbraExternalImapSSLPort: 1234, zimbraExternalPop3SSLPort: 5}
  ida@a.test:
    zimbraMailHost: store1.test
    zimbraReverseProxyUseExternalRoute: TRUE
    zimbraExternalImapSSLHostname: ida.test
    zimbraExternalImapSSLPort: 999
  jo@split.test: {zimbraMailHost: store1.test}
";

    fn lookup(subject: Subject, service: Service) -> Lookup {
        let address = "192.0.2.1".parse().unwrap();
        Lookup {
            subject,
            service,
            client: address,
            local: "192.0.2.99".parse().unwrap(),
            host: None,
        }
    }

    fn imap(login: &str) -> Lookup {
        lookup(Subject::Login(login.to_owned()), Service::Imap)
    }

    /// The route on `node`, in one line: account, login, server, host:port, TLS name.
    async fn answer(directory: &YamlDirectory, lookup: &Lookup, node: &str) -> String {
        let system = directory.system();
        let result = async {
            let key = Key::of(lookup, &system)?;
            let placement = place(directory, &system, &key).await?;
            let protocol = Protocol::of(lookup.service, system.node(node));
            route(lookup, &key, placement.as_ref(), &system, protocol, Tier::Directory)
        };
        match result.await {
            Err(error) => error.to_string(),
            Ok(r) => {
                let tls = match r.tls {
                    UpstreamTls::Clear => "clear".to_owned(),
                    UpstreamTls::Implicit { name } => name.to_string(),
                    UpstreamTls::StartTls { name } => format!("starttls {name}"),
                };
                format!("{} {} {} {}:{} {tls}", r.account, r.login, r.server, r.host, r.port)
            }
        }
    }

    #[track_caller]
    fn check(lookup: &Lookup, expected: &str) {
        check_on(SYSTEM, "proxy.test", lookup, expected);
    }

    #[track_caller]
    fn check_on(yaml: &str, node: &str, lookup: &Lookup, expected: &str) {
        let (directory, _) = YamlDirectory::parse(yaml, Path::new("d.yaml")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(answer(&directory, lookup, node));
        assert_eq!(found, expected, "{lookup:?}");
    }

    const ALICE: &str = "alice@a.test alice@a.test store1.test 127.0.0.2:1993 store1.test";

    #[test]
    fn names_are_qualified() {
        let with = |host: Option<&str>, local: &str| {
            let host = host.map(str::to_owned);
            Lookup {
                host,
                local: local.parse().unwrap(),
                ..imap("carl")
            }
        };
        let carl = "carl@v.test carl@v.test store3 127.0.0.3:7993 127.0.0.3";
        check(&imap("alice"), ALICE);
        check(&imap("ALICE@A.Test"), ALICE);
        check(&with(None, "192.0.2.99"), "no such account");
        check(&with(Some("mail.v.test"), "192.0.2.99"), carl);
        check(&with(Some("Any.W.test"), "192.0.2.99"), carl);
        check(&with(Some("unknown.test"), "192.0.2.7"), carl);
        check(&with(None, "::ffff:192.0.2.7"), carl);
        let other = Lookup {
            host: Some("mail.v.test".to_owned()),
            ..imap("alice@a.test")
        };
        check(&other, ALICE);
        let no_default = SYSTEM.replace("zimbraDefaultDomainName: a.test", "");
        check_on(&no_default, "proxy.test", &imap("alice"), "no such account");
    }

    #[test]
    fn names_that_are_none_are_refused_before_the_directory_is_asked() {
        let long = "a".repeat(513);
        for name in [
            "",
            "al\0ice@a.test",
            "alice@a.test\r\n",
            "\u{85}alice@a.test",
            "\u{7f}",
            &long,
        ] {
            check(&imap(name), "no such account");
            check(&lookup(Subject::Id(name.to_owned()), Service::Web), "no such account");
        }
        for name in [
            "@",
            "alice@",
            "@a.test",
            "alice@@a.test",
            "al ice@a.test",
            "alice @a.test",
            "*",
            "alice@a.test@a.test",
        ] {
            check(&imap(name), "no such account");
        }
    }

    #[test]
    fn accounts_are_found_by_name_alias_and_id_and_called_by_their_canonical_name() {
        check(&imap("al@a.test"), ALICE);
        check(&imap("AL@V.test"), ALICE);
        check(&imap("  al@a.test "), ALICE);
        check(&lookup(Subject::Id("id-ALICE".to_owned()), Service::Imap), ALICE);
        check(
            &lookup(Subject::Id("alice@a.test".to_owned()), Service::Imap),
            "no such account",
        );
        check(&imap("id-alice"), "no such account");
        check(&imap("bob"), "bob@a.test bob@a.test store2 host2.test:7993 host2.test");
        check(&imap("nobody@a.test"), "no such account");
        check(&imap("nobody@nowhere.test"), "no such account");
    }

    #[test]
    fn alias_domains_stand_for_their_target() {
        let emil = "emil@target.test emil@target.test store1.test 127.0.0.2:1993 store1.test";
        check(&imap("emil@alias.test"), emil);
        check(
            &imap("own@alias.test"),
            "own@alias.test own@alias.test store2 host2.test:7993 host2.test",
        );
        check(&imap("nobody@alias.test"), "no such account");
    }

    #[test]
    fn ports_follow_service_mode_and_the_attribute_that_names_them() {
        let subject = || Subject::Login("alice".to_owned());
        for (service, node, port, tls) in [
            (Service::Imap, "proxy.test", 1993, "store1.test"),
            (Service::Imap, "clear.test", 7143, "clear"),
            (Service::Imap, "no-such-node", 1993, "store1.test"),
            (Service::Pop3, "proxy.test", 7995, "store1.test"),
            (Service::Pop3, "clear.test", 7110, "clear"),
            (Service::Web, "proxy.test", 8443, "store1.test"),
            (Service::Web, "clear.test", 8080, "clear"),
            (Service::Admin, "proxy.test", 7071, "store1.test"),
            (Service::Admin, "clear.test", 7071, "store1.test"),
        ] {
            let expected = format!("alice@a.test alice@a.test store1.test 127.0.0.2:{port} {tls}");
            check_on(SYSTEM, node, &lookup(subject(), service), &expected);
        }
        let bob = lookup(Subject::Login("bob".to_owned()), Service::Web);
        check(&bob, "bob@a.test bob@a.test store2 host2.test:8443 host2.test");
        let named = SYSTEM
            .replace("config: {", "config: {zimbraReverseProxyHttpSSLPortAttribute: myPort, ")
            .replace("zimbraMailSSLPort: 0", "MYPORT: 4444");
        check_on(
            &named,
            "proxy.test",
            &bob,
            "bob@a.test bob@a.test store2 host2.test:4444 host2.test",
        );
        let alice = lookup(subject(), Service::Web);
        check_on(
            &named,
            "proxy.test",
            &alice,
            "missing port for protocol httpssl on server store1.test",
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check(&imap("nohost"), "mailhost not found for user: nohost@a.test");
        check(&imap("lost"), "server gone.test is not in the directory");
    }

    #[test]
    fn domains_admit_their_networks_only() {
        let dora = "dora@guarded.test dora@guarded.test store1.test 127.0.0.2:1993 store1.test";
        let refused = "client address is not allowed on domain guarded.test";
        for (client, expected) in [
            ("10.1.2.3", dora),
            ("::ffff:10.1.2.3", dora),
            ("192.0.2.1", dora),
            ("fd00::1", dora),
            ("192.0.2.2", refused),
            ("2001:db8::1", refused),
            ("::10.1.2.3", refused),
        ] {
            check(
                &Lookup {
                    client: client.parse().unwrap(),
                    ..imap("dora@guarded.test")
                },
                expected,
            );
        }
        // Unknown accounts have no external server here, so nothing is gained by hiding the list.
        check(
            &Lookup {
                client: "192.0.2.2".parse().unwrap(),
                ..imap("x@guarded.test")
            },
            refused,
        );
    }

    #[test]
    fn external_routes_are_the_accounts_or_else_the_domains() {
        let internal = |name: &str| format!("{name}@ext.test {name}@ext.test store1.test 127.0.0.2:1993 store1.test");
        check(
            &imap("fay@ext.test"),
            "fay@ext.test fay@ext.test imap.ext.test imap.ext.test:993 imap.ext.test",
        );
        check(&imap("gil@ext.test"), &internal("gil"));
        check(
            &imap("hal@ext.test"),
            "hal@ext.test hal@ext.test imap.ext.test imap.ext.test:1234 imap.ext.test",
        );
        check(&imap("ida"), "ida@a.test ida@a.test ida.test ida.test:999 ida.test");
        let pop3 = |login: &str| Lookup {
            service: Service::Pop3,
            ..imap(login)
        };
        check(
            &pop3("hal@ext.test"),
            "hal@ext.test hal@ext.test pop.ext.test pop.ext.test:5 pop.ext.test",
        );
        // Incomplete: the domain has no port for POP3.
        check(
            &pop3("fay@ext.test"),
            "fay@ext.test fay@ext.test store1.test 127.0.0.2:7995 store1.test",
        );
        // Nor anything for clear IMAP.
        let clear = "fay@ext.test fay@ext.test store1.test 127.0.0.2:7143 clear";
        check_on(SYSTEM, "clear.test", &imap("fay@ext.test"), clear);
        let web = Lookup {
            service: Service::Web,
            ..imap("fay@ext.test")
        };
        check(&web, "fay@ext.test fay@ext.test store1.test 127.0.0.2:8443 store1.test");
    }

    #[test]
    fn split_domains_send_unknown_accounts_to_their_other_server() {
        let known = "jo@split.test jo@split.test store1.test 127.0.0.2:1993 store1.test";
        check(&imap("jo@split.test"), known);
        let typed = "new@split.test New@SPLIT.test old.split.test old.split.test:994 old.split.test";
        check(&imap("New@SPLIT.test"), typed);
        let clear = "new@split.test new@split.test old.split.test old.split.test:143 clear";
        check_on(SYSTEM, "clear.test", &imap("new@split.test"), clear);
        for service in [Service::Pop3, Service::Web, Service::Admin] {
            check(
                &Lookup {
                    service,
                    ..imap("new@split.test")
                },
                "no such account",
            );
        }
        let elsewhere = Lookup {
            client: "10.0.0.1".parse().unwrap(),
            ..imap("new@split.test")
        };
        check(&elsewhere, "client address is not allowed on domain split.test");
    }

    #[test]
    fn the_login_name_may_come_from_an_attribute() {
        let named = SYSTEM.replace("config: {", "config: {zimbraReverseProxyUserNameAttribute: UID, ");
        check_on(
            &named,
            "proxy.test",
            &imap("bob"),
            "bob@a.test bobby store2 host2.test:7993 host2.test",
        );
        check_on(&named, "proxy.test", &imap("alice"), ALICE);
        let hosts = SYSTEM.replace("config: {", "config: {zimbraReverseProxyMailHostAttribute: otherHost, ");
        check_on(
            &hosts,
            "proxy.test",
            &imap("alice"),
            "mailhost not found for user: alice@a.test",
        );
    }

    /// Two questions may share a key only if they are about the same qualified name, or the same id.
    #[test]
    fn different_subjects_never_share_a_key() {
        let (directory, _) = YamlDirectory::parse(SYSTEM, Path::new("d.yaml")).unwrap();
        let system = directory.system();
        let words = [
            "a", "b", "A", "a@a.test", "a@v.test", "b@a.test", "id", "user=a", "a;ip=1", "ä", "Ä", "a@A.TEST",
        ];
        let hosts = [None, Some("mail.v.test"), Some("x.w.test"), Some("a.test"), Some("*")];
        let locals = ["192.0.2.7", "192.0.2.8", "::1"];
        let mut seen: HashMap<Key, (bool, String)> = HashMap::new();
        for word in words {
            for host in hosts {
                for local in locals {
                    let login = Lookup {
                        host: host.map(str::to_owned),
                        local: local.parse().unwrap(),
                        ..imap(word)
                    };
                    let virtual_domain = matches!(host, Some("mail.v.test" | "x.w.test")) || local == "192.0.2.7";
                    let domain = if virtual_domain { "v.test" } else { "a.test" };
                    let bare = !word.contains('@');
                    let meant = if bare {
                        format!("{word}@{domain}")
                    } else {
                        word.to_owned()
                    }
                    .to_lowercase();
                    let key = Key::of(&login, &system).unwrap();
                    assert_eq!(*seen.entry(key).or_insert((true, meant.clone())), (true, meant));
                    let id = Lookup {
                        subject: Subject::Id(word.to_owned()),
                        ..login
                    };
                    let meant = (false, word.to_lowercase());
                    assert_eq!(
                        *seen.entry(Key::of(&id, &system).unwrap()).or_insert(meant.clone()),
                        meant
                    );
                }
            }
        }
    }
}
