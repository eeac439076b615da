//! Virtual hosts of the web: what a requested host name means, in the handshake and in each request.
//!
//! A virtual host is a domain as its web users see it. Host names are looked up here and nowhere else, so that
//! handshake and request cannot disagree. [`crate::tls`] decides which certificate is shown.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Uri};
use mail_directory::yaml::{Problem, Problems, Severity, warning};
use mail_directory::{System, View, attributes as a, names};

use crate::tls::client_certs::{CertMode, ClientCerts, PolicyId};
use crate::tls::host_headers::HostHeaders;
use crate::tls::revocation::RevocationLists;

/// A domain as its web users see it; or the settings where no domain has the requested name.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    /// The domain; `None` for a host name of no domain.
    pub domain: Option<Arc<str>>,
    /// Where users log in (`carbonioWebUILoginURL`); a path or an `http` or `https` URL. `None`: the usual page.
    pub login_url: Option<HeaderValue>,
    /// Where users go after logging out (`carbonioWebUILogoutURL`).
    pub logout_url: Option<HeaderValue>,
    /// Where administrators log in (`carbonioAdminUILoginURL`).
    pub admin_login_url: Option<HeaderValue>,
    /// Where administrators go after logging out (`carbonioAdminUILogoutURL`).
    pub admin_logout_url: Option<HeaderValue>,
    /// Headers of every answer: `zimbraReverseProxyResponseHeaders`, and `Content-Security-Policy` from
    /// `carbonioReverseProxyResponseCSPHeader` with the hosts of the four URLs in its `connect-src`.
    pub headers: HostHeaders,
    /// Whether clients are asked for certificates, and which.
    pub client_certs: Arc<ClientCerts>,
}

/// All virtual hosts of the directory.
#[derive(Debug)]
pub(crate) struct VirtualHosts {
    exact: HashMap<String, Arc<VirtualHost>>,
    /// By the part of `*.name` that follows the star.
    wildcard: HashMap<String, Arc<VirtualHost>>,
    /// By `zimbraVirtualIPAddress`.
    by_address: HashMap<IpAddr, Arc<VirtualHost>>,
    by_domain: HashMap<String, Arc<VirtualHost>>,
    other: Arc<VirtualHost>,
    /// Names that are ours although no domain has them.
    own: Vec<String>,
    strict: bool,
}

/// Why a request for a host is not served on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Names are strict, and this is not one of ours: 400.
    UnknownHost,
    /// The host asks for other client certificates than the one the connection was made for: 421 (RFC 9110
    /// §15.5.20), upon which the client makes a connection for this host.
    Misdirected,
    /// The host asks for client certificates, and the connection is in clear text: 403.
    NeedsTls,
}

impl Refusal {
    /// The status of the answer.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::UnknownHost => 400,
            Self::Misdirected => 421,
            Self::NeedsTls => 403,
        }
    }

    /// The same in words, for the log.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::UnknownHost => "no virtual host has this name, and names are strict",
            Self::Misdirected => "the connection was made for a host with other rules for client certificates",
            Self::NeedsTls => "the host asks for client certificates, which clear text cannot carry",
        }
    }
}

impl VirtualHosts {
    /// The virtual hosts of a directory, for the node of this name. A value that cannot be used is left out with a
    /// warning; client certificate rules that cannot be used stay as they were in `before`, or admit no client.
    pub(crate) fn build(
        system: &System,
        node_name: &str,
        revoked: &Arc<RevocationLists>,
        before: Option<&Self>,
        problems: &mut Problems,
    ) -> Self {
        let node = system.node(node_name);
        let mut policies = Policies {
            known: HashMap::new(),
            revoked,
        };
        let other = {
            let before = before.map(|vhosts| vhosts.other.client_certs.clone());
            let client_certs = policies.of(&node, "the node", before, Severity::Error, problems);
            // Login pages and headers belong to domains; a host of no domain has those of the global config.
            Arc::new(vhost(None, &system.global(), "config", client_certs, problems))
        };
        let mut vhosts = Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            by_address: HashMap::new(),
            by_domain: HashMap::new(),
            other,
            own: own_names(system, &node, node_name),
            strict: node.flag(&a::REVERSE_PROXY_STRICT_SERVER_NAME_ENABLED),
        };
        for domain in system.domains() {
            let (names, addresses) = (
                domain.list(&a::VIRTUAL_HOSTNAME),
                domain.addresses(&a::VIRTUAL_IP_ADDRESS),
            );
            if names.is_empty() && addresses.is_empty() {
                continue;
            }
            let key = format!("domains.{}", domain.name());
            let old = before.and_then(|vhosts| vhosts.by_domain.get(domain.name()));
            let old = old.map(|vhost| vhost.client_certs.clone());
            let client_certs = policies.of(&domain, &key, old, Severity::Warning, problems);
            let vhost = Arc::new(vhost(Some(domain.name()), &domain, &key, client_certs, problems));
            vhosts.add(domain.name(), &names, &addresses, vhost);
        }
        vhosts
    }

    /// Where two domains claim the same name, the first one has it, as in the rest of the directory.
    fn add(&mut self, domain: &str, names: &[&str], addresses: &[IpAddr], vhost: Arc<VirtualHost>) {
        for name in names {
            let name = folded(name);
            match name.strip_prefix("*.") {
                Some(parent) => self.wildcard.entry(parent.to_owned()).or_insert_with(|| vhost.clone()),
                None => self.exact.entry(name).or_insert_with(|| vhost.clone()),
            };
        }
        for address in addresses {
            self.by_address.entry(*address).or_insert_with(|| vhost.clone());
        }
        self.by_domain.insert(domain.to_owned(), vhost);
    }

    /// The virtual host for a host (in lower case, without port and final dot) that was requested at a local address:
    /// by name, then by the longest `*.` pattern, then by the address, else the one for all others.
    pub(crate) fn of(&self, host: Option<&str>, local: IpAddr) -> &Arc<VirtualHost> {
        host.and_then(|host| self.by_name(host))
            .or_else(|| self.by_address.get(&local.to_canonical()))
            .unwrap_or(&self.other)
    }

    /// The virtual host that has this name as a virtual host name.
    pub(crate) fn by_name(&self, host: &str) -> Option<&Arc<VirtualHost>> {
        self.exact.get(host).or_else(|| {
            let parents = host.match_indices('.').map(|(at, _)| &host[at + 1..]);
            parents.filter_map(|parent| self.wildcard.get(parent)).next()
        })
    }

    /// Whether a name may be asked for: always, unless `zimbraReverseProxyStrictServerNameEnabled` says that only
    /// ours may.
    pub(crate) fn admits(&self, host: &str) -> bool {
        !self.strict || self.by_name(host).is_some() || self.own.iter().any(|own| own == host) || self.is_address(host)
    }

    /// Whether only our names may be asked for.
    pub(crate) fn is_strict(&self) -> bool {
        self.strict
    }

    /// Whether a request for `host`, which is one of `vhost`, must be refused on a connection with this client
    /// certificate policy, which is `None` in clear text.
    ///
    /// # Errors
    /// It must be refused, and why.
    pub(crate) fn check(
        &self,
        host: Option<&str>,
        vhost: &VirtualHost,
        connection: Option<PolicyId>,
    ) -> Result<(), Refusal> {
        if host.is_some_and(|host| !self.admits(host)) {
            return Err(Refusal::UnknownHost);
        }
        let wanted = &vhost.client_certs;
        match connection {
            Some(id) if id == wanted.id() => Ok(()),
            Some(_) => Err(Refusal::Misdirected),
            None if wanted.mode() == CertMode::On => Err(Refusal::NeedsTls),
            None => Ok(()),
        }
    }

    /// Which names have which client certificate rules, for those that have some. Where two of these are equal, a
    /// session that began with one of the names may be resumed with the other.
    pub(crate) fn rules(&self) -> BTreeMap<String, PolicyId> {
        let named = |prefix: &'static str, map: &HashMap<String, Arc<VirtualHost>>| -> Vec<(String, PolicyId)> {
            map.iter()
                .map(|(name, vhost)| (format!("{prefix}{name}"), vhost.client_certs.id()))
                .collect()
        };
        let addresses = self.by_address.iter();
        let addresses = addresses.map(|(address, vhost)| (address.to_string(), vhost.client_certs.id()));
        let all = named("", &self.exact).into_iter().chain(named("*.", &self.wildcard));
        let all = all
            .chain(addresses)
            .chain([(String::new(), self.other.client_certs.id())]);
        all.filter(|(_, id)| *id != ClientCerts::off().id()).collect()
    }

    /// The rules for client certificates of all names.
    pub(crate) fn policies(&self) -> HashSet<PolicyId> {
        let named = self.exact.values().chain(self.wildcard.values());
        let all = named.chain(self.by_address.values()).chain([&self.other]);
        all.map(|vhost| vhost.client_certs.id()).collect()
    }

    fn is_address(&self, host: &str) -> bool {
        host.parse()
            .is_ok_and(|address: IpAddr| self.by_address.contains_key(&address.to_canonical()))
    }
}

/// Equal rules are one object, so that a thousand domains that inherit one list of authorities hold it once.
struct Policies<'a> {
    known: HashMap<PolicyId, Arc<ClientCerts>>,
    revoked: &'a Arc<RevocationLists>,
}

impl Policies<'_> {
    fn of(
        &mut self,
        entry: &View<'_>,
        key: &str,
        before: Option<Arc<ClientCerts>>,
        severity: Severity,
        problems: &mut Problems,
    ) -> Arc<ClientCerts> {
        let mode = match entry.choice(&a::REVERSE_PROXY_CLIENT_CERT_MODE) {
            "on" => CertMode::On,
            "optional" => CertMode::Optional,
            _ => CertMode::Off,
        };
        let depth = u32::try_from(entry.number(&a::REVERSE_PROXY_CLIENT_CERT_DEPTH)).unwrap_or(u32::MAX);
        let authorities = entry.text(&a::REVERSE_PROXY_CLIENT_CERT_CA).unwrap_or_default();
        let policy = ClientCerts::new(mode, authorities, depth).unwrap_or_else(|error| {
            let kept = before.filter(|before| before.mode() == mode);
            let then = match (&kept, severity) {
                (Some(_), _) => "; the previous authorities stay in use",
                (None, _) => "; no certificate is good",
            };
            problems.push(Problem {
                file: None,
                line: None,
                key: format!("{key}.zimbraReverseProxyClientCertCA"),
                message: format!("{error}{then}"),
                severity: if kept.is_some() { Severity::Warning } else { severity },
            });
            kept.map_or_else(|| ClientCerts::refuse_all(mode), |kept| (*kept).clone())
        });
        let policy = policy.with_lists(self.revoked);
        let shared = self.known.entry(policy.id()).or_insert_with(|| {
            warn_without_list(&policy, problems);
            Arc::new(policy)
        });
        shared.clone()
    }
}

/// Warns of authorities of which there is no list, where there are lists.
pub(crate) fn warn_without_list(rules: &ClientCerts, problems: &mut Problems) {
    for name in rules.without_list() {
        let message = format!("it has no list of {name}: none of its certificates counts as revoked");
        let missing = warning("tls.client_crl_file".to_owned(), message);
        if !problems.iter().any(|known| *known == missing) {
            problems.push(missing);
        }
    }
}

fn vhost(
    domain: Option<&str>,
    entry: &View<'_>,
    key: &str,
    client_certs: Arc<ClientCerts>,
    problems: &mut Problems,
) -> VirtualHost {
    let mut url = |attribute: &a::Attribute| {
        let text = entry.text(attribute)?;
        let good = url(text);
        if good.is_none() {
            let message = format!("expected a path or an http or https URL, found {text:?}");
            problems.push(left_out(format!("{key}.{}", attribute.name), message));
        }
        good
    };
    let [login_url, logout_url, admin_login_url, admin_logout_url] = [
        url(&a::CARBONIO_WEB_UI_LOGIN_URL),
        url(&a::CARBONIO_WEB_UI_LOGOUT_URL),
        url(&a::CARBONIO_ADMIN_UI_LOGIN_URL),
        url(&a::CARBONIO_ADMIN_UI_LOGOUT_URL),
    ];
    let urls = [&login_url, &logout_url, &admin_login_url, &admin_logout_url];
    let headers = headers(entry, key, &urls, problems);
    VirtualHost {
        domain: domain.map(Arc::from),
        login_url,
        logout_url,
        admin_login_url,
        admin_logout_url,
        headers,
        client_certs,
    }
}

fn headers(entry: &View<'_>, key: &str, urls: &[&Option<HeaderValue>], problems: &mut Problems) -> HostHeaders {
    let mut headers = Vec::new();
    let attribute = &a::REVERSE_PROXY_RESPONSE_HEADERS;
    for line in entry.list(attribute) {
        match header(line) {
            Some(header) => headers.push(header),
            None => {
                let message = format!("expected \"Name: value\", found {line:?}");
                problems.push(left_out(format!("{key}.{}", attribute.name), message));
            }
        }
    }
    let csp = entry.text(&a::CARBONIO_REVERSE_PROXY_RESPONSE_CSP_HEADER);
    if let Some(csp) = csp.filter(|csp| !csp.trim().is_empty()) {
        let sources: Vec<String> = urls.iter().filter_map(|url| origin(url.as_ref()?)).collect();
        match HeaderValue::from_str(&with_sources(csp, &sources)) {
            Ok(value) => headers.push((http::header::CONTENT_SECURITY_POLICY, value)),
            Err(_) => problems.push(left_out(
                format!("{key}.{}", a::CARBONIO_REVERSE_PROXY_RESPONSE_CSP_HEADER.name),
                "it cannot be sent as a header".to_owned(),
            )),
        }
    }
    HostHeaders::new(headers)
}

/// `Name: value`. In LDAP some values stand in double quotes of their own (HTTP §6.3).
fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let value = value.trim();
    let value = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value);
    let value = HeaderValue::from_str(value).ok()?;
    Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
}

/// A policy with these sources in its `connect-src`; without that directive it is left as it is.
fn with_sources(csp: &str, sources: &[String]) -> String {
    let is_connect = |directive: &str| {
        directive
            .split_whitespace()
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case("connect-src"))
    };
    let directives = csp.split(';').map(|directive| {
        if !is_connect(directive) {
            return directive.to_owned();
        }
        let mut grown = directive.trim_end().to_owned();
        for source in sources {
            if !grown
                .split_whitespace()
                .any(|present| present.eq_ignore_ascii_case(source))
            {
                grown.push(' ');
                grown.push_str(source);
            }
        }
        grown
    });
    directives.collect::<Vec<_>>().join(";").trim().to_owned()
}

/// Scheme and authority of a URL that has them.
fn origin(url: &HeaderValue) -> Option<String> {
    let uri: Uri = url.to_str().ok()?.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

/// A URL or path that a browser may be sent to: it must not be able to run as a script.
fn url(text: &str) -> Option<HeaderValue> {
    let uri: Uri = text.parse().ok()?;
    let good = match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) => !authority.as_str().contains('@'),
        (None, None) => text.starts_with('/') && !text.starts_with("//"),
        _ => false,
    };
    HeaderValue::from_str(text).ok().filter(|_| good)
}

/// Names of the node itself, and those under which users find the service.
fn own_names(system: &System, node: &View<'_>, node_name: &str) -> Vec<String> {
    let public = system
        .domains()
        .filter_map(|domain| domain.text(&a::PUBLIC_SERVICE_HOSTNAME));
    let global = system.global();
    let names = [node_name, node.name()]
        .into_iter()
        .chain(node.text(&a::SERVICE_HOSTNAME));
    let names = names.chain(public).chain(global.text(&a::PUBLIC_SERVICE_HOSTNAME));
    let mut names: Vec<String> = names.filter(|name| !name.is_empty()).map(folded).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn folded(name: &str) -> String {
    names::host(name)
}

fn left_out(key: String, message: String) -> Problem {
    Problem {
        file: None,
        line: None,
        key,
        message: format!("{message}; it is left out"),
        severity: Severity::Warning,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mail_directory::Entry;

    use super::*;

    /// An authority of a test, only to be read.
    const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBiDCCAS2gAwIBAgIULjBPhoHZAP0cGSXuXYjkYpshMtswCgYIKoZIzj0EAwIw\n\
        GTEXMBUGA1UEAwwObWFpbC5hLmV4YW1wbGUwHhcNMjYxMTI1MTQyMTE4WhcNMjYx\n\
        MjI1MTQyMTE4WjAZMRcwFQYDVQQDDA5tYWlsLmEuZXhhbXBsZTBZMBMGByqGSM49\n\
        AgEGCCqGSM49AwEHA0IABAziH4xnKcDPoeRXYa3EGhpSgyF/7d2JSsKrcx7HRGmL\n\
        VDSG+4RZ6hblDcyYw5ceuSZLTJVbRO5L1FqnxcRzSuqjUzBRMB0GA1UdDgQWBBTt\n\
        mFrtcUgiLbnfQQhgWNEORoQLaDAfBgNVHSMEGDAWgBTtmFrtcUgiLbnfQQhgWNEO\n\
        RoQLaDAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQDtdHRNIZtG\n\
        WqA91LZe121Wtvg3HVpjBIU5G6JRlGdT+AIhAPrVV8hSCNzFHAh3Wx8RSXzTOue6\n\
        GVi8mTKw0diEW4l0\n\
        -----END CERTIFICATE-----\n";
    const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 99));

    fn entry(name: &str, attributes: &[(&str, &str)]) -> Entry {
        let mut entry = Entry::new(name);
        for (attribute, value) in attributes {
            entry.set(attribute, value.split('|'));
        }
        entry
    }

    fn build(config: &[(&str, &str)], domains: Vec<Entry>) -> (VirtualHosts, Problems) {
        let system = System::new(entry("config", config), [entry("proxy.test", &[])], domains, []);
        let mut problems = Problems::new();
        (
            VirtualHosts::build(&system, "proxy.test", &Arc::default(), None, &mut problems),
            problems,
        )
    }

    fn two_domains() -> Vec<Entry> {
        vec![
            entry(
                "a.test",
                &[
                    ("zimbraVirtualHostname", "Mail.A.test|*.wild.test"),
                    ("zimbraVirtualIPAddress", "192.0.2.7"),
                ],
            ),
            entry(
                "b.test",
                &[("zimbraVirtualHostname", "mail.b.test|*.deep.wild.test|mail.a.test")],
            ),
        ]
    }

    #[test]
    fn a_virtual_host_is_found_by_name_then_pattern_then_address() {
        let (vhosts, _) = build(&[], two_domains());
        let by_address = "192.0.2.7".parse().unwrap();
        for (host, local, domain) in [
            (Some("mail.a.test"), ELSEWHERE, Some("a.test")),
            (Some("x.wild.test"), ELSEWHERE, Some("a.test")),
            (Some("x.deep.wild.test"), ELSEWHERE, Some("b.test")),
            (Some("mail.b.test"), by_address, Some("b.test")),
            (Some("unknown.test"), by_address, Some("a.test")),
            (None, by_address, Some("a.test")),
            (Some("wild.test"), ELSEWHERE, None),
            (None, ELSEWHERE, None),
        ] {
            assert_eq!(vhosts.of(host, local).domain.as_deref(), domain, "{host:?} at {local}");
        }
    }

    #[test]
    fn strict_names_admit_ours_only() {
        let (vhosts, _) = build(&[], two_domains());
        assert!(vhosts.admits("unknown.test"));
        let strict = [
            ("zimbraReverseProxyStrictServerNameEnabled", "TRUE"),
            ("zimbraPublicServiceHostname", "public.test"),
        ];
        let (vhosts, _) = build(&strict, two_domains());
        for (host, admitted) in [
            ("mail.a.test", true),
            ("x.wild.test", true),
            ("proxy.test", true),
            ("public.test", true),
            ("192.0.2.7", true),
            ("unknown.test", false),
            ("192.0.2.8", false),
        ] {
            assert_eq!(vhosts.admits(host), admitted, "{host}");
        }
    }

    #[test]
    fn urls_that_could_run_or_mislead_are_left_out() {
        for (text, good) in [
            ("/static/login/", true),
            ("https://sso.test/x?a=b", true),
            ("http://sso.test", true),
            ("//evil.test/", false),
            ("javascript:alert(1)", false),
            ("https://user@evil.test/", false),
            ("ftp://a.test/", false),
            ("login", false),
            ("/a b", false),
        ] {
            assert_eq!(url(text).is_some(), good, "{text}");
        }
        let (vhosts, problems) = build(&[("carbonioWebUILogoutURL", "javascript:x")], vec![]);
        assert!(vhosts.of(None, ELSEWHERE).logout_url.is_none());
        assert!(problems.to_string().contains("carbonioWebUILogoutURL"), "{problems}");
    }

    #[test]
    fn headers_and_the_login_hosts_in_the_policy() {
        let mut domains = two_domains();
        domains[0].set("carbonioWebUILoginURL", ["https://sso.test/login"]);
        let config = [
            (
                "zimbraReverseProxyResponseHeaders",
                "X-One: \"1; mode=block\"|broken|X-Two:2",
            ),
            (
                "carbonioReverseProxyResponseCSPHeader",
                "default-src 'self'; Connect-Src 'self'; img-src *;",
            ),
        ];
        let (vhosts, problems) = build(&config, domains);
        let of = |host| {
            let headers = &vhosts.of(Some(host), ELSEWHERE).headers;
            let lines = headers
                .into_iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(
            of("mail.a.test"),
            [
                "x-one: 1; mode=block",
                "x-two: 2",
                "content-security-policy: default-src 'self'; Connect-Src 'self' https://sso.test; img-src *;",
            ]
        );
        assert!(of("mail.b.test")[2].contains("Connect-Src 'self'; img-src"));
        assert!(problems.to_string().contains("\"broken\""), "{problems}");
    }

    #[test]
    fn rules_for_certificates_are_inherited_shared_and_closed_without_authorities() {
        let mut domains = two_domains();
        domains[0].set("zimbraReverseProxyClientCertMode", ["on"]);
        let (vhosts, problems) = build(&[], domains.clone());
        let policy = |host| vhosts.of(Some(host), ELSEWHERE).client_certs.clone();
        assert_eq!(
            (policy("mail.a.test").mode(), policy("mail.b.test").mode()),
            (CertMode::On, CertMode::Off)
        );
        assert!(problems.to_string().contains("no certificate is good"), "{problems}");
        assert!(!problems.has_errors());
        let names: Vec<_> = vhosts.rules().into_keys().collect();
        assert_eq!(names, ["*.wild.test", "192.0.2.7", "mail.a.test"]);

        let off = Some(ClientCerts::off().id());
        let on = Some(policy("mail.a.test").id());
        for (host, connection, expected) in [
            ("mail.a.test", on, Ok(())),
            ("mail.a.test", off, Err(Refusal::Misdirected)),
            ("mail.a.test", None, Err(Refusal::NeedsTls)),
            ("mail.b.test", off, Ok(())),
            ("mail.b.test", on, Err(Refusal::Misdirected)),
            ("mail.b.test", None, Ok(())),
        ] {
            assert_eq!(
                vhosts.check(Some(host), vhosts.of(Some(host), ELSEWHERE), connection),
                expected,
                "{host} {connection:?}"
            );
        }
        // On the whole node it is a mistake that locks all clients out.
        let (_, problems) = build(&[("zimbraReverseProxyClientCertMode", "optional")], vec![]);
        assert!(problems.has_errors(), "{problems}");
    }

    #[test]
    fn authorities_that_break_do_not_lock_everybody_out() {
        let mut domains = two_domains();
        let system = |domains: Vec<Entry>| System::new(Entry::new("config"), [], domains, []);
        domains[0].set("zimbraReverseProxyClientCertMode", ["on"]);
        domains[0].set("zimbraReverseProxyClientCertCA", [AUTHORITY]);
        let mut problems = Problems::new();
        let good = VirtualHosts::build(
            &system(domains.clone()),
            "proxy.test",
            &Arc::default(),
            None,
            &mut problems,
        );
        assert!(problems.is_empty(), "{problems}");
        domains[0].set("zimbraReverseProxyClientCertCA", ["no certificate"]);
        let broken = VirtualHosts::build(
            &system(domains),
            "proxy.test",
            &Arc::default(),
            Some(&good),
            &mut problems,
        );
        assert!(problems.to_string().contains("stay in use"), "{problems}");
        assert_eq!(broken.rules(), good.rules());
        assert!(!good.rules().is_empty());
    }
}
