//! What each attribute means: its kind, its default, where it may stand. One table for every source.
//!
//! Only attributes with a meaning in this program stand here; all others are carried but not understood. The
//! constants are named like the attribute, without `zimbra`: [`IMAP_BIND_PORT`] is `zimbraImapBindPort`.
//! [`crate::View`] reads values through inheritance.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use crate::yaml::{nearest, network};

mod ignored;

/// An attribute of the directory.
#[derive(Debug)]
pub struct Attribute {
    /// Name as administrators write it. Compared without regard to case.
    pub name: &'static str,
    /// What a value looks like.
    pub kind: Kind,
    /// Values where no entry has one. Empty: there is no default.
    pub default: &'static [&'static str],
    /// Entries on which it has a meaning. One with [`Scope::Global`] is inherited from the global config.
    pub scopes: &'static [Scope],
    /// What it does, in one or two sentences.
    pub meaning: &'static str,
}

/// What the values of an attribute look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `TRUE` or `FALSE`, in any case.
    Flag,
    /// One text.
    Text,
    /// Any number of texts.
    List,
    /// A TCP port. 0, which LDAP uses for "unset", counts as absent.
    Port,
    /// A whole number.
    Number,
    /// `120000ms`, `10s`, `1m`, `1h`, `2d`, or a bare number of seconds.
    Duration,
    /// One of these words, in any case.
    Enum(&'static [&'static str]),
    /// Any number of these words, in any case.
    Words(&'static [&'static str]),
    /// Any number of IP addresses.
    Addresses,
    /// Any number of networks or addresses.
    Networks,
    /// PEM text with at least one block whose label ends so.
    Pem(&'static str),
}

/// A kind of entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The global config.
    Global,
    /// A server; inherits from the global config.
    Server,
    /// A domain; inherits from the global config.
    Domain,
    /// A domain, but never inherited from the global config: a certificate is good for its own names only.
    DomainAlone,
    /// A class of service.
    Cos,
    /// An account; inherits from its class of service.
    Account,
}

impl Attribute {
    /// Whether it has a meaning on entries of this kind.
    pub fn is_for(&self, scope: Scope) -> bool {
        let alone = scope == Scope::Domain && self.scopes.contains(&Scope::DomainAlone);
        alone || self.scopes.contains(&scope)
    }

    /// True if more than one value makes sense.
    pub fn is_multi(&self) -> bool {
        matches!(
            self.kind,
            Kind::List | Kind::Words(_) | Kind::Addresses | Kind::Networks
        )
    }

    /// What is wrong with `value`; the message never repeats key material.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("expected {what}, found {value:?}"));
        match self.kind {
            Kind::Text | Kind::List => Ok(()),
            Kind::Flag if flag(value).is_none() => wrong("TRUE or FALSE"),
            Kind::Port if value.parse::<u16>().is_err() => wrong("a port from 1 to 65535"),
            Kind::Number if value.parse::<u64>().is_err() => wrong("a whole number"),
            Kind::Duration if duration(value).is_none() => {
                wrong("a duration such as 120000ms, 10s, 1m, 1h, 2d or seconds")
            }
            Kind::Enum(words) | Kind::Words(words) if word(value, words).is_none() => {
                wrong(&format!("one of {}", words.join(", ")))
            }
            Kind::Addresses if value.parse::<IpAddr>().is_err() => wrong("an IP address"),
            Kind::Networks if network(value).is_none() => wrong("a network such as 10.0.0.0/8"),
            Kind::Pem(label) if !is_pem(value, label) => {
                Err(format!("expected PEM text with a block -----BEGIN … {label}-----"))
            }
            _ => Ok(()),
        }
    }
}

/// The attribute of this name, in any case.
pub fn find(name: &str) -> Option<&'static Attribute> {
    static INDEX: LazyLock<HashMap<String, &'static Attribute>> =
        LazyLock::new(|| ALL.iter().map(|a| (a.name.to_ascii_lowercase(), *a)).collect());
    INDEX.get(&name.to_ascii_lowercase()).copied()
}

/// The attribute that `name`, which is not one, was probably meant to be.
pub fn similar(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    if find(&lower).is_some() || ignored::is_ignored(name) {
        return None;
    }
    nearest(&lower, ALL.iter().map(|a| a.name))
}

/// Why an attribute that was set to protect something has no effect here.
pub(crate) fn protects_in_vain(name: &str, values: &[String]) -> Option<&'static str> {
    ignored::protects_in_vain(name, values)
}

/// Ignored attributes whose values say whether something should be protected.
pub(crate) fn protecting() -> impl Iterator<Item = &'static str> {
    ignored::PROTECTING.iter().map(|(name, _)| *name)
}

/// `TRUE` or `FALSE` in any case.
pub(crate) fn flag(value: &str) -> Option<bool> {
    match value {
        _ if value.eq_ignore_ascii_case("true") => Some(true),
        _ if value.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// A duration in one of the forms of Zimbra.
pub(crate) fn duration(value: &str) -> Option<Duration> {
    let value = value.trim();
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let number: u64 = value[..digits].parse().ok()?;
    let seconds = match &value[digits..] {
        "ms" => return Some(Duration::from_millis(number)),
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// The word of the table that `value` is, in any case.
pub(crate) fn word(value: &str, words: &[&'static str]) -> Option<&'static str> {
    words.iter().copied().find(|word| word.eq_ignore_ascii_case(value))
}

/// Whether `text` holds well-formed PEM blocks, at least one of them with a label that ends in `label`. What
/// is inside is for the TLS library to judge.
fn is_pem(text: &str, label: &str) -> bool {
    let mut found = false;
    let mut open: Option<&str> = None;
    let mut letters = 0;
    for line in text.lines().map(str::trim) {
        match (open, boundary(line, "-----BEGIN "), boundary(line, "-----END ")) {
            (None, Some(begin), _) => (open, letters) = (Some(begin), 0),
            (None, None, None) => {}
            (Some(begin), None, Some(end)) if begin == end && letters > 0 && letters % 4 == 0 => {
                found |= begin.ends_with(label);
                open = None;
            }
            (Some(_), None, None) if line.bytes().all(is_base64) => letters += line.len(),
            // Headers of old encrypted keys: "Proc-Type: …". They are not counted as content.
            (Some(_), None, None) if line.contains(": ") => {}
            _ => return false,
        }
    }
    found && open.is_none()
}

fn boundary<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    line.strip_prefix(start)?.strip_suffix("-----")
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// The reference page of all attributes: docs/attributes.md is exactly this.
pub fn markdown() -> String {
    let mut page = String::from(INTRODUCTION);
    for (title, attributes) in SECTIONS {
        let _ = write!(
            page,
            "\n## {title}\n\n| attribute | on | values | default | meaning |\n|---|---|---|---|---|\n"
        );
        for attribute in *attributes {
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} | {} |",
                attribute.name,
                scopes_text(attribute.scopes),
                kind_text(attribute.kind),
                default_text(attribute.default),
                attribute.meaning,
            );
        }
    }
    page.push_str(IGNORED_INTRODUCTION);
    for ignored in ignored::IGNORED {
        for name in ignored.names {
            let _ = writeln!(page, "| `{name}` | {} |", ignored.why);
        }
    }
    page
}

const INTRODUCTION: &str = "# Attributes

The attributes of the directory that Portico uses, from LDAP or the YAML file. Names are case-insensitive. A server
and a domain inherit unset attributes from the global config, an account from its class of service. Durations are
written `120000ms`, `10s`, `1m`, `1h`, `2d`; a bare number is seconds. Flags are `TRUE` or `FALSE`. All other
attributes are kept but have no effect.
";

const IGNORED_INTRODUCTION: &str = "
## Ignored

These are used by the proxy of Carbonio or Zimbra, or look as if they were, but have no effect here. They can stay in
the directory; `portico check` warns only if one of them enables a login limit or Kerberos, which does not protect
here.

| attribute | why |
|---|---|
";

fn scopes_text(scopes: &[Scope]) -> String {
    let names = scopes.iter().map(|scope| match scope {
        Scope::Global => "config",
        Scope::Server => "server",
        Scope::Domain | Scope::DomainAlone => "domain",
        Scope::Cos => "cos",
        Scope::Account => "account",
    });
    names.collect::<Vec<_>>().join(", ")
}

fn kind_text(kind: Kind) -> String {
    match kind {
        Kind::Flag => "flag".to_owned(),
        Kind::Text => "text".to_owned(),
        Kind::List => "texts".to_owned(),
        Kind::Port => "port".to_owned(),
        Kind::Number => "number".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::Enum(words) => format!("`{}`", words.join("`, `")),
        Kind::Words(words) => format!("any of `{}`", words.join("`, `")),
        Kind::Addresses => "addresses".to_owned(),
        Kind::Networks => "networks".to_owned(),
        Kind::Pem(_) => "PEM".to_owned(),
    }
}

fn default_text(default: &[&str]) -> String {
    match default {
        [] => "–".to_owned(),
        values => format!("`{}`", values.join("`, `")),
    }
}

/// Defines a constant for each attribute, and the lists of all of them.
macro_rules! attributes {
    ($($title:literal {
        $($constant:ident: $name:literal, $kind:expr, $default:expr, $scopes:expr, $meaning:literal;)*
    })*) => {
        $($(
            #[doc = concat!("`", $name, "`: ", $meaning)]
            pub static $constant: Attribute = Attribute {
                name: $name,
                kind: $kind,
                default: &$default,
                scopes: &$scopes,
                meaning: $meaning,
            };
        )*)*

        /// Every attribute that has a meaning here.
        pub static ALL: &[&Attribute] = &[$($(&$constant,)*)*];

        /// The same, by subject, in the order of the reference page.
        static SECTIONS: &[(&str, &[&Attribute])] = &[$(($title, &[$(&$constant,)*]),)*];
    };
}

attributes! {
    "Web listeners" {
        REVERSE_PROXY_HTTP_ENABLED: "zimbraReverseProxyHttpEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Serve web users on this node.";
        REVERSE_PROXY_MAIL_MODE: "zimbraReverseProxyMailMode", Kind::Enum(&["https", "redirect", "both"]), ["redirect"], [Scope::Global, Scope::Server],
            "Mode of the clear-text web port. `https`: there is no such port, and one in the node file answers 403; `redirect`: every request is redirected to HTTPS; `both`: it serves like the TLS port.";
        MAIL_PROXY_PORT: "zimbraMailProxyPort", Kind::Port, ["80"], [Scope::Global, Scope::Server],
            "Clear-text web port; 0 means unset.";
        MAIL_SSL_PROXY_PORT: "zimbraMailSSLProxyPort", Kind::Port, ["443"], [Scope::Global, Scope::Server],
            "TLS web port; 0 means unset.";
        MAIL_SSL_PROXY_CLIENT_CERT_PORT: "zimbraMailSSLProxyClientCertPort", Kind::Port, ["3443"], [Scope::Global, Scope::Server],
            "TLS port for logins by client certificate, if certificates are requested somewhere and `directory.lookup.admin_password_file` is set; 0 means unset.";
        CARBONIO_ADMIN_PROXY_PORT: "carbonioAdminProxyPort", Kind::Port, ["6071"], [Scope::Global, Scope::Server],
            "TLS port of the administration console.";
        REVERSE_PROXY_STRICT_SERVER_NAME_ENABLED: "zimbraReverseProxyStrictServerNameEnabled", Kind::Flag, ["FALSE"], [Scope::Global, Scope::Server],
            "Serve only host names that belong to a domain or to this node: any other Host is answered 400, any other name in a TLS handshake with the alert `unrecognized_name`. LDAP's own default is TRUE, but the installer and the container of Carbonio set FALSE, since its proxy would not start otherwise; so deployed systems have FALSE.";
        IP_MODE: "zimbraIPMode", Kind::Enum(&["ipv4", "ipv6", "both"]), ["ipv4"], [Scope::Global, Scope::Server],
            "Address families of the listeners made from port attributes, and of connections to servers.";
    }
    "Mail listeners" {
        REVERSE_PROXY_MAIL_ENABLED: "zimbraReverseProxyMailEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Serve IMAP and POP3 users on this node.";
        REVERSE_PROXY_MAIL_IMAP_ENABLED: "zimbraReverseProxyMailImapEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Listen for IMAP on the clear-text port.";
        REVERSE_PROXY_MAIL_IMAPS_ENABLED: "zimbraReverseProxyMailImapsEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Listen for IMAP on the TLS port.";
        REVERSE_PROXY_MAIL_POP3_ENABLED: "zimbraReverseProxyMailPop3Enabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Listen for POP3 on the clear-text port.";
        REVERSE_PROXY_MAIL_POP3S_ENABLED: "zimbraReverseProxyMailPop3sEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Listen for POP3 on the TLS port.";
        IMAP_PROXY_BIND_PORT: "zimbraImapProxyBindPort", Kind::Port, ["143"], [Scope::Global, Scope::Server],
            "Clear-text IMAP port of the proxy.";
        IMAP_SSL_PROXY_BIND_PORT: "zimbraImapSSLProxyBindPort", Kind::Port, ["993"], [Scope::Global, Scope::Server],
            "TLS IMAP port of the proxy.";
        POP3_PROXY_BIND_PORT: "zimbraPop3ProxyBindPort", Kind::Port, ["110"], [Scope::Global, Scope::Server],
            "Clear-text POP3 port of the proxy.";
        POP3_SSL_PROXY_BIND_PORT: "zimbraPop3SSLProxyBindPort", Kind::Port, ["995"], [Scope::Global, Scope::Server],
            "TLS POP3 port of the proxy.";
    }
    "Login dialogue" {
        REVERSE_PROXY_IMAP_START_TLS_MODE: "zimbraReverseProxyImapStartTlsMode", Kind::Enum(&["on", "off", "only"]), ["only"], [Scope::Global, Scope::Server],
            "STARTTLS on the clear-text IMAP port: offered (`on`), absent (`off`), or required before login (`only`).";
        REVERSE_PROXY_IMAP_SASL_PLAIN_ENABLED: "zimbraReverseProxyImapSaslPlainEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Offer AUTH PLAIN to IMAP clients.";
        REVERSE_PROXY_IMAP_EXPOSE_VERSION_ON_BANNER: "zimbraReverseProxyImapExposeVersionOnBanner", Kind::Flag, ["FALSE"], [Scope::Global, Scope::Server],
            "Show name and version in the IMAP greeting.";
        REVERSE_PROXY_POP3_START_TLS_MODE: "zimbraReverseProxyPop3StartTlsMode", Kind::Enum(&["on", "off", "only"]), ["only"], [Scope::Global, Scope::Server],
            "STLS on the clear-text POP3 port: offered (`on`), absent (`off`), or required before login (`only`).";
        REVERSE_PROXY_POP3_SASL_PLAIN_ENABLED: "zimbraReverseProxyPop3SaslPlainEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Offer AUTH PLAIN to POP3 clients.";
        REVERSE_PROXY_POP3_EXPOSE_VERSION_ON_BANNER: "zimbraReverseProxyPop3ExposeVersionOnBanner", Kind::Flag, ["FALSE"], [Scope::Global, Scope::Server],
            "Show name and version in the POP3 greeting.";
        REVERSE_PROXY_IMAP_ENABLED_CAPABILITY: "zimbraReverseProxyImapEnabledCapability", Kind::List, ["ACL", "BINARY", "CATENATE", "CHILDREN", "CONDSTORE", "ENABLE", "ESEARCH", "ESORT", "I18NLEVEL=1", "ID", "IDLE", "IMAP4rev1", "LIST-EXTENDED", "LIST-STATUS", "LITERAL+", "MULTIAPPEND", "NAMESPACE", "QRESYNC", "QUOTA", "RIGHTS=ektx", "SASL-IR", "SEARCHRES", "SORT", "THREAD=ORDEREDSUBJECT", "UIDPLUS", "UNSELECT", "WITHIN", "XLIST"], [Scope::Global, Scope::Server],
            "IMAP capabilities shown before login. A list other than the default is shown as it is; with the default, \
             clients see what all mailbox servers have, as soon as each has said it with a login; of these, those that logins under the name have met for which the client asks in TLS.";
        REVERSE_PROXY_POP3_ENABLED_CAPABILITY: "zimbraReverseProxyPop3EnabledCapability", Kind::List, ["EXPIRE 31 USER", "TOP", "UIDL", "USER", "XOIP"], [Scope::Global, Scope::Server],
            "POP3 capabilities shown before login. A list other than the default is shown as it is, but for `XOIP`, which is \
             for proxies and not accepted from clients; with the default, clients see what all mailbox servers list, as \
             for IMAP.";
        REVERSE_PROXY_PASS_ERRORS: "zimbraReverseProxyPassErrors", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Pass the mailbox server's own text for a failed login to the client.";
        REVERSE_PROXY_AUTH_WAIT_INTERVAL: "zimbraReverseProxyAuthWaitInterval", Kind::Duration, ["10s"], [Scope::Global, Scope::Server],
            "How long a client waits for the response to a failed login. A login for which the mailbox server takes longer than this and 5 seconds counts as failed; a longer wait hides the server's own delays.";
    }
    "Guessing of passwords" {
        REVERSE_PROXY_IP_LOGIN_LIMIT: "zimbraReverseProxyIPLoginLimit", Kind::Number, ["0"], [Scope::Global, Scope::Server],
            "Failed logins of one address, in any protocol, from which further ones are refused: `throttle.address.refuse_from` of the node file, which wins. In Zimbra it counts connections. 0 means unset.";
        REVERSE_PROXY_IP_LOGIN_LIMIT_TIME: "zimbraReverseProxyIPLoginLimitTime", Kind::Duration, ["3600"], [Scope::Global, Scope::Server],
            "The time after which such a failure counts half.";
        REVERSE_PROXY_IP_LOGIN_IMAP_LIMIT: "zimbraReverseProxyIPLoginImapLimit", Kind::Number, ["0"], [Scope::Global, Scope::Server],
            "Like `zimbraReverseProxyIPLoginLimit`: all protocols count together here, and the smallest of these limits applies.";
        REVERSE_PROXY_IP_LOGIN_IMAP_LIMIT_TIME: "zimbraReverseProxyIPLoginImapLimitTime", Kind::Duration, ["3600"], [Scope::Global, Scope::Server],
            "Its time.";
        REVERSE_PROXY_IP_LOGIN_POP3_LIMIT: "zimbraReverseProxyIPLoginPop3Limit", Kind::Number, ["0"], [Scope::Global, Scope::Server],
            "Like `zimbraReverseProxyIPLoginImapLimit`.";
        REVERSE_PROXY_IP_LOGIN_POP3_LIMIT_TIME: "zimbraReverseProxyIPLoginPop3LimitTime", Kind::Duration, ["3600"], [Scope::Global, Scope::Server],
            "Its time.";
        REVERSE_PROXY_USER_LOGIN_LIMIT: "zimbraReverseProxyUserLoginLimit", Kind::Number, ["0"], [Scope::Global, Scope::Server],
            "Failed logins at one account from networks where it is not known, from which further ones from there are refused: `throttle.account.refuse_from` of the node file, which wins. In Zimbra it counts logins that succeed. 0 means unset.";
        REVERSE_PROXY_USER_LOGIN_LIMIT_TIME: "zimbraReverseProxyUserLoginLimitTime", Kind::Duration, ["3600"], [Scope::Global, Scope::Server],
            "The time after which such a failure counts half.";
        REVERSE_PROXY_IP_THROTTLE_WHITELIST: "zimbraReverseProxyIPThrottleWhitelist", Kind::Networks, [], [Scope::Global, Scope::Server],
            "Networks whose failed logins are neither counted nor refused, besides those of `throttle.allow` of the node file.";
        REVERSE_PROXY_IP_THROTTLE_MSG: "zimbraReverseProxyIpThrottleMsg", Kind::Text, [], [Scope::Global, Scope::Server],
            "What a client is told whose address has too many failed logins.";
        REVERSE_PROXY_USER_THROTTLE_MSG: "zimbraReverseProxyUserThrottleMsg", Kind::Text, [], [Scope::Global, Scope::Server],
            "What a client is told whose account has too many failed logins.";
    }
    "Sessions at once" {
        PORTICO_ACCOUNT_MAX_SESSIONS: "porticoAccountMaxSessions", Kind::Number, [], [Scope::Global, Scope::Domain, Scope::Cos, Scope::Account],
            "Mail sessions of one account at once, over IMAP and POP3 together, in the place of `limits.sessions_per_account` of the node file. The account's own value counts, else that of its class of service, of its domain, of the global config. 0: no limit. Portico's own: LDAP needs `conf/portico.schema`.";
        PORTICO_DOMAIN_MAX_SESSIONS: "porticoDomainMaxSessions", Kind::Number, [], [Scope::Global, Scope::Domain],
            "The same of all accounts of a domain together, in the place of `limits.sessions_per_domain`. 0: no limit.";
        PORTICO_SERVER_MAX_SESSIONS: "porticoServerMaxSessions", Kind::Number, [], [Scope::Global, Scope::Server],
            "The same at one mailbox server, in the place of `limits.sessions_per_server`. 0: no limit.";
    }
    "Towards mailbox servers" {
        REVERSE_PROXY_SSL_TO_UPSTREAM_ENABLED: "zimbraReverseProxySSLToUpstreamEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Use TLS to mailbox servers; also selects the clear-text or the TLS port of the server.";
        REVERSE_PROXY_CONNECT_TIMEOUT: "zimbraReverseProxyConnectTimeout", Kind::Duration, ["120000ms"], [Scope::Global, Scope::Server],
            "Timeout for the login of a mail client at its server, where it is less than `mail.server_login_timeout` of the node file; connecting and the server's greeting have limits of their own, together under 5 seconds.";
        REVERSE_PROXY_SEND_IMAP_ID: "zimbraReverseProxySendImapId", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Send the client's address to the IMAP server with ID.";
        REVERSE_PROXY_SEND_POP3_XOIP: "zimbraReverseProxySendPop3Xoip", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Send the client's address to the POP3 server with XOIP.";
        PORTICO_SERVER_START_TLS: "porticoServerStartTls", Kind::Flag, ["FALSE"], [Scope::Global, Scope::Server],
            "Use the clear-text IMAP and POP3 ports of the mailbox server, and begin TLS there with STARTTLS and STLS. No password is said without it.";
        PORTICO_SERVER_TELL: "porticoServerTell", Kind::Words(&["zimbra", "dovecot", "proxy_v1", "proxy_v2", "none"]), [], [Scope::Global, Scope::Server],
            "What the mailbox server is told of mail clients, in the place of the two flags above. `zimbra`: IMAP ID with X-ORIGINATING-IP and X-VIA, POP3 XOIP; `dovecot`: IMAP ID with x-originating-ip and the like, POP3 XCLIENT; `proxy_v1` or `proxy_v2`: a PROXY header; `none`: nothing. `mail.servers` of the node file wins.";
        REVERSE_PROXY_UPSTREAM_CONNECT_TIMEOUT: "zimbraReverseProxyUpstreamConnectTimeout", Kind::Duration, ["25"], [Scope::Global, Scope::Server],
            "Timeout for connecting to a web server, but never more than 4 seconds; a bare number is seconds.";
        REVERSE_PROXY_UPSTREAM_READ_TIMEOUT: "zimbraReverseProxyUpstreamReadTimeout", Kind::Duration, ["60s"], [Scope::Global, Scope::Server],
            "Longest silence of a web server before and within its response.";
        REVERSE_PROXY_UPSTREAM_SEND_TIMEOUT: "zimbraReverseProxyUpstreamSendTimeout", Kind::Duration, ["60s"], [Scope::Global, Scope::Server],
            "Longest time in which a web server accepts no bytes of a request.";
        REVERSE_PROXY_UPSTREAM_POLLING_TIMEOUT: "zimbraReverseProxyUpstreamPollingTimeout", Kind::Duration, ["1h"], [Scope::Global, Scope::Server],
            "Longest silence on long polls (ActiveSync, EWS), and on WebSockets.";
    }
    "Web pages and answers" {
        CARBONIO_WEB_UI_LOGIN_URL: "carbonioWebUILoginURL", Kind::Text, [], [Scope::Global, Scope::Domain],
            "Login page of the web client; absent: that of the location, `/static/login/`.";
        CARBONIO_WEB_UI_LOGOUT_URL: "carbonioWebUILogoutURL", Kind::Text, [], [Scope::Global, Scope::Domain],
            "Page after a logout from the web client. If set, `/logout` answers 200 and the client goes there itself.";
        CARBONIO_ADMIN_UI_LOGIN_URL: "carbonioAdminUILoginURL", Kind::Text, [], [Scope::Global, Scope::Domain],
            "Login page of administrators; absent: that of the location, `/static/login/`.";
        CARBONIO_ADMIN_UI_LOGOUT_URL: "carbonioAdminUILogoutURL", Kind::Text, [], [Scope::Global, Scope::Domain],
            "Page after a logout from the administration console. If set, `/logout` answers 200 there.";
        REVERSE_PROXY_UPSTREAM_EWS_SERVERS: "zimbraReverseProxyUpstreamEwsServers", Kind::List, [], [Scope::Global, Scope::Server],
            "Mailbox servers for Exchange Web Services: the group `ews`; absent: those requests go to any server's web side.";
        HTTP_COMPRESSION_ENABLED: "zimbraHttpCompressionEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Compress responses for clients that accept it. Which ones: `web.compress_authenticated` of the node file.";
    }
    "Groups of web servers" {
        MAIL_MODE: "zimbraMailMode", Kind::Text, ["http"], [Scope::Global, Scope::Server],
            "Whether the mailbox server serves web users: with `http`, `https`, `both`, `mixed` and `redirect` it does. With any other value it gets no unauthenticated requests.";
        MAIL_PROXY_MAX_FAILS: "zimbraMailProxyMaxFails", Kind::Number, ["1"], [Scope::Global, Scope::Server],
            "Failed requests to the mailbox server, within the reconnect timeout, after which it is ejected and gets no unauthenticated requests; 0: it is never ejected.";
        MAIL_PROXY_RECONNECT_TIMEOUT: "zimbraMailProxyReconnectTimeout", Kind::Duration, ["10"], [Scope::Global, Scope::Server],
            "How long such a server stays ejected; longer each time it fails again. A bare number is seconds.";
        REVERSE_PROXY_UPSTREAM_LOGIN_SERVERS: "zimbraReverseProxyUpstreamLoginServers", Kind::List, [], [Scope::Global, Scope::Server],
            "Mailbox servers for logins: the group `login`.";
    }
    "TLS" {
        SSL_CERTIFICATE: "zimbraSSLCertificate", Kind::Pem("CERTIFICATE"), [], [Scope::Global, Scope::Server, Scope::DomainAlone],
            "Certificate, leaf then chain, as PEM. A domain's is used for its virtual host names.";
        SSL_PRIVATE_KEY: "zimbraSSLPrivateKey", Kind::Pem("PRIVATE KEY"), [], [Scope::Global, Scope::Server, Scope::DomainAlone],
            "Private key of the certificate, as PEM, not encrypted.";
        PORTICO_ACME: "porticoAcme", Kind::Enum(&["off", "on"]), [], [Scope::Global, Scope::Domain],
            "Whether Portico gets the certificate of the domain's virtual host names from the ACME authority of the node file and renews it: [certificates.md](certificates.md). Absent: as `acme.domains` of the node file says. A certificate that was uploaded is left alone as long as it is valid. Portico's own: LDAP needs `conf/portico.schema`.";
        PORTICO_ACME_FINGERPRINT: "porticoAcmeFingerprint", Kind::Text, [], [Scope::DomainAlone],
            "SHA-256, in hexadecimal, of the certificate that Portico has got for the domain and put into `zimbraSSLCertificate`. Written by Portico: as long as the two fit, it renews the certificate.";
        REVERSE_PROXY_SSL_PROTOCOLS: "zimbraReverseProxySSLProtocols", Kind::Words(&["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]), ["TLSv1.2", "TLSv1.3"], [Scope::Global, Scope::Server],
            "TLS versions to accept.";
        REVERSE_PROXY_SSL_CIPHERS: "zimbraReverseProxySSLCiphers", Kind::Text, ["ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"], [Scope::Global, Scope::Server],
            "Ciphers up to TLS 1.2, with OpenSSL's names, as far as AWS-LC has them.";
    }
    "Client certificates" {
        REVERSE_PROXY_CLIENT_CERT_MODE: "zimbraReverseProxyClientCertMode", Kind::Enum(&["off", "optional", "on"]), ["off"], [Scope::Global, Scope::Server, Scope::Domain],
            "Whether web clients are asked for a certificate: no (`off`), yes (`optional`), or refused without a valid one (`on`). A domain's value applies to its virtual hosts, a server's to all other names.";
        REVERSE_PROXY_CLIENT_CERT_CA: "zimbraReverseProxyClientCertCA", Kind::Pem("CERTIFICATE"), [], [Scope::Global, Scope::Server, Scope::Domain],
            "CAs of client certificates, as PEM; at most 64.";
        REVERSE_PROXY_CLIENT_CERT_DEPTH: "zimbraReverseProxyClientCertDepth", Kind::Number, ["10"], [Scope::Global, Scope::Server, Scope::Domain],
            "Maximum number of intermediates between a CA and a client's certificate.";
    }
    "Servers" {
        SERVICE_HOSTNAME: "zimbraServiceHostname", Kind::Text, [], [Scope::Server],
            "Name or address at which the server is reached; absent: the name of the entry.";
        SERVICE_ENABLED: "zimbraServiceEnabled", Kind::List, [], [Scope::Server],
            "Services that run on the server: `mailbox`, `proxy`, …";
        SERVICE_INSTALLED: "zimbraServiceInstalled", Kind::List, [], [Scope::Server],
            "Services that are installed on the server, for information. Those that run are in `zimbraServiceEnabled`.";
        REVERSE_PROXY_LOOKUP_TARGET: "zimbraReverseProxyLookupTarget", Kind::Flag, ["FALSE"], [Scope::Global, Scope::Server],
            "The server gets unauthenticated web requests, and answers lookups.";
        REVERSE_PROXY_AVAILABLE_LOOKUP_TARGETS: "zimbraReverseProxyAvailableLookupTargets", Kind::List, [], [Scope::Global, Scope::Server],
            "Servers that this node may ask for routes, by name, if `directory.lookup` of the node file has no handlers; only those that are lookup targets. Absent: all lookup targets. Read at the start.";
        EXTENSION_BIND_PORT: "zimbraExtensionBindPort", Kind::Port, ["7072"], [Scope::Global, Scope::Server],
            "TLS port at which the mailbox server answers lookups.";
        IMAP_BIND_PORT: "zimbraImapBindPort", Kind::Port, ["7143"], [Scope::Global, Scope::Server],
            "Clear-text IMAP port of the mailbox server.";
        IMAP_SSL_BIND_PORT: "zimbraImapSSLBindPort", Kind::Port, ["7993"], [Scope::Global, Scope::Server],
            "TLS IMAP port of the mailbox server.";
        POP3_BIND_PORT: "zimbraPop3BindPort", Kind::Port, ["7110"], [Scope::Global, Scope::Server],
            "Clear-text POP3 port of the mailbox server.";
        POP3_SSL_BIND_PORT: "zimbraPop3SSLBindPort", Kind::Port, ["7995"], [Scope::Global, Scope::Server],
            "TLS POP3 port of the mailbox server.";
        MAIL_PORT: "zimbraMailPort", Kind::Port, ["8080"], [Scope::Global, Scope::Server],
            "Clear-text web port of the mailbox server.";
        MAIL_SSL_PORT: "zimbraMailSSLPort", Kind::Port, ["8443"], [Scope::Global, Scope::Server],
            "TLS web port of the mailbox server.";
        ADMIN_PORT: "zimbraAdminPort", Kind::Port, ["7071"], [Scope::Global, Scope::Server],
            "TLS administration port of the mailbox server.";
    }
    "Domains" {
        DEFAULT_DOMAIN_NAME: "zimbraDefaultDomainName", Kind::Text, [], [Scope::Global],
            "Domain of logins without a domain, if neither the host name nor the address determines it.";
        DOMAIN_NAME: "zimbraDomainName", Kind::Text, [], [Scope::Domain],
            "Name of the domain.";
        DOMAIN_TYPE: "zimbraDomainType", Kind::Enum(&["local", "alias"]), ["local"], [Scope::Domain],
            "`alias`: addresses in it are aliases of the same addresses in the target domain.";
        DOMAIN_ALIAS_TARGET_ID: "zimbraDomainAliasTargetId", Kind::Text, [], [Scope::Domain],
            "`zimbraId` of the target domain of an alias domain.";
        DOMAIN_DEFAULT_COS_ID: "zimbraDomainDefaultCOSId", Kind::Text, [], [Scope::Domain],
            "Class of service, by id, of accounts without one.";
        VIRTUAL_HOSTNAME: "zimbraVirtualHostname", Kind::List, [], [Scope::Domain],
            "Host names that belong to the domain; `*.name` matches all names below.";
        VIRTUAL_IP_ADDRESS: "zimbraVirtualIPAddress", Kind::Addresses, [], [Scope::Domain],
            "Local addresses that belong to the domain.";
        DOMAIN_ALLOWED_IPS: "zimbraDomainAllowedIPs", Kind::Networks, [], [Scope::Domain],
            "Networks from which accounts of the domain may log in; absent: from any.";
        PUBLIC_SERVICE_HOSTNAME: "zimbraPublicServiceHostname", Kind::Text, [], [Scope::Global, Scope::Domain],
            "Host name under which users see the service; a known name where host names are strict.";
        REVERSE_PROXY_RESPONSE_HEADERS: "zimbraReverseProxyResponseHeaders", Kind::List, ["Strict-Transport-Security: max-age=31536000", "Permissions-Policy: geolocation=(self), microphone=(self)", "Referrer-Policy: same-origin", "X-Content-Type-Options: nosniff", "X-Robots-Tag: noindex, nofollow", "X-Frame-Options: sameorigin"], [Scope::Global, Scope::Domain],
            "Headers of web responses, one `Name: value` each.";
        CARBONIO_REVERSE_PROXY_RESPONSE_CSP_HEADER: "carbonioReverseProxyResponseCSPHeader", Kind::Text, ["default-src 'self' data: blob: cid:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src * data: blob: cid:; font-src 'self' data:; connect-src 'self'; media-src * blob: data: cid:; object-src 'none'; child-src 'self' blob: data: cid:; frame-src 'self' blob: data: cid:; frame-ancestors 'self'; form-action 'self';"], [Scope::Global, Scope::Domain],
            "Content-Security-Policy of web responses; the hosts of the login and logout URLs are added to its `connect-src`.";
    }
    "Accounts" {
        ID: "zimbraId", Kind::Text, [], [Scope::Server, Scope::Domain, Scope::Cos, Scope::Account],
            "Immutable id of the entry.";
        MAIL_DELIVERY_ADDRESS: "zimbraMailDeliveryAddress", Kind::Text, [], [Scope::Account],
            "Canonical name of the account; absent: the name of the entry.";
        MAIL_ALIAS: "zimbraMailAlias", Kind::List, [], [Scope::Account],
            "Further addresses of the account.";
        MAIL_HOST: "zimbraMailHost", Kind::Text, [], [Scope::Account],
            "Server that holds the mailbox, by its `zimbraServiceHostname` or entry name.";
        COS_ID: "zimbraCOSId", Kind::Text, [], [Scope::Account],
            "Class of service of the account, by id or name.";
        ACCOUNT_STATUS: "zimbraAccountStatus", Kind::Enum(&["active", "lockout", "locked", "maintenance", "closed", "pending"]), ["active"], [Scope::Account],
            "Whether the account may log in. The mailbox server decides; `portico route explain` shows it.";
        IMAP_ENABLED: "zimbraImapEnabled", Kind::Flag, ["TRUE"], [Scope::Cos, Scope::Account],
            "Whether the account may use IMAP. The mailbox server decides; `portico route explain` shows it.";
        POP3_ENABLED: "zimbraPop3Enabled", Kind::Flag, ["TRUE"], [Scope::Cos, Scope::Account],
            "Whether the account may use POP3. The mailbox server decides; `portico route explain` shows it.";
    }
    "Routing" {
        REVERSE_PROXY_MAIL_HOST_ATTRIBUTE: "zimbraReverseProxyMailHostAttribute", Kind::Text, ["zimbraMailHost"], [Scope::Global],
            "Attribute of the account that names its server.";
        REVERSE_PROXY_USER_NAME_ATTRIBUTE: "zimbraReverseProxyUserNameAttribute", Kind::Text, [], [Scope::Global],
            "Attribute of the account that holds the name to log in with at the server.";
        REVERSE_PROXY_IMAP_PORT_ATTRIBUTE: "zimbraReverseProxyImapPortAttribute", Kind::Text, ["zimbraImapBindPort"], [Scope::Global],
            "Attribute of the server that holds the port for Imap.";
        REVERSE_PROXY_IMAP_SSL_PORT_ATTRIBUTE: "zimbraReverseProxyImapSSLPortAttribute", Kind::Text, ["zimbraImapSSLBindPort"], [Scope::Global],
            "Attribute of the server that holds the port for ImapSSL.";
        REVERSE_PROXY_POP3_PORT_ATTRIBUTE: "zimbraReverseProxyPop3PortAttribute", Kind::Text, ["zimbraPop3BindPort"], [Scope::Global],
            "Attribute of the server that holds the port for Pop3.";
        REVERSE_PROXY_POP3_SSL_PORT_ATTRIBUTE: "zimbraReverseProxyPop3SSLPortAttribute", Kind::Text, ["zimbraPop3SSLBindPort"], [Scope::Global],
            "Attribute of the server that holds the port for Pop3SSL.";
        REVERSE_PROXY_HTTP_PORT_ATTRIBUTE: "zimbraReverseProxyHttpPortAttribute", Kind::Text, ["zimbraMailPort"], [Scope::Global],
            "Attribute of the server that holds the port for Http.";
        REVERSE_PROXY_HTTP_SSL_PORT_ATTRIBUTE: "zimbraReverseProxyHttpSSLPortAttribute", Kind::Text, ["zimbraMailSSLPort"], [Scope::Global],
            "Attribute of the server that holds the port for HttpSSL.";
        REVERSE_PROXY_ADMIN_PORT_ATTRIBUTE: "zimbraReverseProxyAdminPortAttribute", Kind::Text, ["zimbraAdminPort"], [Scope::Global],
            "Attribute of the server that holds the port for Admin.";
        REVERSE_PROXY_USE_EXTERNAL_ROUTE: "zimbraReverseProxyUseExternalRoute", Kind::Flag, [], [Scope::Domain, Scope::Account],
            "Send mail clients of the account, or of the domain, to the external server.";
        REVERSE_PROXY_USE_EXTERNAL_ROUTE_IF_ACCOUNT_NOT_EXIST: "zimbraReverseProxyUseExternalRouteIfAccountNotExist", Kind::Flag, ["FALSE"], [Scope::Domain],
            "Send mail clients whose account is not in the directory to the external server.";
        REVERSE_PROXY_EXTERNAL_ROUTE_INCLUDE_ORIGINAL_AUTHUSERNAME: "zimbraReverseProxyExternalRouteIncludeOriginalAuthusername", Kind::Flag, ["FALSE"], [Scope::Global, Scope::Domain],
            "Log in at the external server with the name as the user typed it.";
        EXTERNAL_IMAP_HOSTNAME: "zimbraExternalImapHostname", Kind::Text, [], [Scope::Domain, Scope::Account],
            "External server for clear-text IMAP.";
        EXTERNAL_IMAP_PORT: "zimbraExternalImapPort", Kind::Port, [], [Scope::Domain, Scope::Account],
            "Port of the external server for clear-text IMAP.";
        EXTERNAL_IMAP_SSL_HOSTNAME: "zimbraExternalImapSSLHostname", Kind::Text, [], [Scope::Domain, Scope::Account],
            "External server for TLS IMAP.";
        EXTERNAL_IMAP_SSL_PORT: "zimbraExternalImapSSLPort", Kind::Port, [], [Scope::Domain, Scope::Account],
            "Port of the external server for TLS IMAP.";
        EXTERNAL_POP3_HOSTNAME: "zimbraExternalPop3Hostname", Kind::Text, [], [Scope::Domain, Scope::Account],
            "External server for clear-text POP3.";
        EXTERNAL_POP3_PORT: "zimbraExternalPop3Port", Kind::Port, [], [Scope::Domain, Scope::Account],
            "Port of the external server for clear-text POP3.";
        EXTERNAL_POP3_SSL_HOSTNAME: "zimbraExternalPop3SSLHostname", Kind::Text, [], [Scope::Domain, Scope::Account],
            "External server for TLS POP3.";
        EXTERNAL_POP3_SSL_PORT: "zimbraExternalPop3SSLPort", Kind::Port, [], [Scope::Domain, Scope::Account],
            "Port of the external server for TLS POP3.";
    }
    "Route cache" {
        REVERSE_PROXY_CACHE_ENTRY_TTL: "zimbraReverseProxyCacheEntryTTL", Kind::Duration, ["1h"], [Scope::Global],
            "TTL of entries written to memcached; in memory `route_cache.ttl` of the node file applies. Read at the start.";
        REVERSE_PROXY_ZMLOOKUP_CACHING_ENABLED: "zimbraReverseProxyZmlookupCachingEnabled", Kind::Flag, ["TRUE"], [Scope::Global, Scope::Server],
            "Use memcached, if the node file names servers. Read at the start.";
        REVERSE_PROXY_CACHE_RECONNECT_INTERVAL: "zimbraReverseProxyCacheReconnectInterval", Kind::Duration, ["1m"], [Scope::Global, Scope::Server],
            "How long a failed memcached server is not used.";
        REVERSE_PROXY_ROUTE_LOOKUP_TIMEOUT_CACHE: "zimbraReverseProxyRouteLookupTimeoutCache", Kind::Duration, ["60s"], [Scope::Global, Scope::Server],
            "How long a failed lookup service is asked only if no other is left.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\nBBB=\n-----END CERTIFICATE-----\n";

    #[test]
    fn names_are_unique_and_defaults_are_good() {
        let mut names: Vec<_> = ALL.iter().map(|a| a.name.to_ascii_lowercase()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for attribute in ALL {
            assert!(
                attribute.default.iter().all(|value| attribute.check(value).is_ok()),
                "{}",
                attribute.name
            );
            assert!(
                attribute.default.len() <= 1 || attribute.is_multi(),
                "{}",
                attribute.name
            );
            assert!(attribute.meaning.ends_with(['.', '…']), "{}", attribute.name);
        }
    }

    #[test]
    fn names_are_found_in_any_case_and_guessed_when_mistyped() {
        assert_eq!(find("ZIMBRAMAILHOST").map(|a| a.name), Some("zimbraMailHost"));
        assert!(find("zimbraFoo").is_none());
        assert_eq!(similar("zimbraMailHots"), Some("zimbraMailHost"));
        assert_eq!(similar("zimbraVirtualHostnames"), Some("zimbraVirtualHostname"));
        assert_eq!(similar("zimbramailhost"), None);
        assert_eq!(similar("zimbraLmtpBindPort"), None);
        assert_eq!(similar("displayName"), None);
    }

    #[test]
    fn durations_have_all_forms_of_zimbra() {
        let ms = Duration::from_millis;
        for (text, duration_) in [
            ("10s", Some(ms(10_000))),
            ("1m", Some(ms(60_000))),
            ("1h", Some(ms(3_600_000))),
            ("2d", Some(ms(172_800_000))),
            ("120000ms", Some(ms(120_000))),
            ("0ms", Some(ms(0))),
            ("007m", Some(ms(420_000))),
            ("1H", None),
            ("1.5h", None),
            ("1 h", None),
            ("+1s", None),
            ("1hm", None),
            ("25", Some(ms(25_000))),
            ("0", Some(ms(0))),
            ("", None),
            ("h", None),
            ("-1s", None),
            ("1w", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(duration(text), duration_, "{text}");
        }
    }

    #[test]
    fn values_are_checked_by_kind() {
        let good: &[(&Attribute, &str)] = &[
            (&REVERSE_PROXY_MAIL_ENABLED, "true"),
            (&REVERSE_PROXY_MAIL_ENABLED, "FALSE"),
            (&IMAP_BIND_PORT, "0"),
            (&REVERSE_PROXY_MAIL_MODE, "HTTPS"),
            (&DOMAIN_ALLOWED_IPS, "fd00::/8"),
            (&DOMAIN_ALLOWED_IPS, "192.0.2.1"),
            (&VIRTUAL_IP_ADDRESS, "::1"),
            (&REVERSE_PROXY_SSL_PROTOCOLS, "tlsv1.2"),
            (&SSL_CERTIFICATE, CERTIFICATE),
            (
                &SSL_PRIVATE_KEY,
                "text\n-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----",
            ),
        ];
        for (attribute, value) in good {
            assert_eq!(attribute.check(value), Ok(()), "{}", attribute.name);
        }
        let bad: &[(&Attribute, &str)] = &[
            (&REVERSE_PROXY_MAIL_ENABLED, "yes"),
            (&IMAP_BIND_PORT, "65536"),
            (&REVERSE_PROXY_MAIL_MODE, "mixed"),
            (&REVERSE_PROXY_AUTH_WAIT_INTERVAL, "soon"),
            (&DOMAIN_ALLOWED_IPS, "10.0.0.0/33"),
            (&VIRTUAL_IP_ADDRESS, "mail"),
            (&SSL_CERTIFICATE, "MIIB"),
            (&SSL_CERTIFICATE, "-----BEGIN CERTIFICATE-----\nAAAA\n"),
            (
                &SSL_CERTIFICATE,
                "-----BEGIN CERTIFICATE-----\nA!AA\n-----END CERTIFICATE-----",
            ),
            (
                &SSL_CERTIFICATE,
                "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
            ),
            (&SSL_PRIVATE_KEY, CERTIFICATE),
        ];
        for (attribute, value) in bad {
            let message = attribute.check(value).unwrap_err();
            assert!(!message.contains("AAAA"), "{message}");
        }
    }

    #[test]
    fn what_is_ignored_is_known_to_be_and_nothing_else() {
        let ignored = || ignored::IGNORED.iter().flat_map(|ignored| ignored.names);
        for name in ignored() {
            assert!(find(name).is_none() && similar(name).is_none(), "{name}");
            assert_eq!(markdown().matches(&format!("\n| `{name}` |")).count(), 1, "{name}");
            assert_eq!(
                ignored().filter(|other| other.eq_ignore_ascii_case(name)).count(),
                1,
                "{name}"
            );
        }
        assert!(ignored::IGNORED.iter().all(|ignored| ignored.why.ends_with('.')));
        for (name, unset) in ignored::PROTECTING {
            let set = |value: &str| protects_in_vain(&name.to_lowercase(), &[value.to_owned()]);
            assert!(set(unset).is_none() && set("7").is_some(), "{name}");
        }
        assert_eq!(
            protects_in_vain("zimbraReverseProxyLogLevel", &["debug".to_owned()]),
            None
        );
    }

    #[test]
    fn the_reference_page_has_every_attribute_once() {
        let page = markdown();
        for attribute in ALL {
            assert_eq!(
                page.matches(&format!("\n| `{}` |", attribute.name)).count(),
                1,
                "{}",
                attribute.name
            );
        }
    }
}
