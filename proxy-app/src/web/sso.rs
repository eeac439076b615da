//! Single sign-on by certificate: a listener that knows only `/certauth` and `/certauth/admin` (HTTP §2.9, §5.6).
//!
//! The handshake has proved that the client holds the certificate. A lookup service finds its account and returns a
//! token, which the browser gets as the cookie of a login. Nothing of it is stored here.

use http::Method;
use mail_directory::attributes as a;
use mail_directory::{System, View};
use mail_proxy::audit::{Outcome, Record};
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use route_cache::lookup::certauth::{CertLogin, CertLoginError, Token};
use route_cache::{HostPort, bracketed};

use crate::http::answers::LocalAnswer;
use crate::tls::client_certs::{CertMode, ClientCertificate, ClientCerts};
use crate::web::client::{WebClient, client_of};
use crate::web::decision::RequestInfo;
use crate::web::phases::Web;
use crate::web::request_context::{RequestContext, answer_with};

/// Why the holder of a certificate does not get an account.
const FOREIGN: &str = "the certificate names somebody of a domain that does not trust its authority";
/// Where the administration console is, if no attribute says so.
const ADMIN_PORT: u16 = 6071;

/// What a client wants to log in to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SignOn {
    Mail,
    Admin,
}

impl SignOn {
    fn of(method: &Method, path: &str) -> Option<Self> {
        match (method, path) {
            (&Method::GET | &Method::HEAD, "/certauth") => Some(Self::Mail),
            (&Method::GET | &Method::HEAD, "/certauth/admin") => Some(Self::Admin),
            _ => None,
        }
    }

    fn cookie(self) -> &'static str {
        match self {
            Self::Mail => "ZM_AUTH_TOKEN",
            Self::Admin => "ZM_ADMIN_AUTH_TOKEN",
        }
    }
}

impl Web {
    /// Answers a request that came in by the listener of single sign-on.
    pub(crate) async fn sign_on(
        &self,
        session: &mut Session,
        context: &RequestContext,
        info: &RequestInfo,
    ) -> Result<bool> {
        let Some(web) = client_of(session) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a connection");
        };
        let request = session.req_header();
        let Some(sign_on_to) = SignOn::of(&request.method, request.uri.path()) else {
            return refused("this listener serves only /certauth");
        };
        let shown = web.shown.as_ref();
        let mode = shown.map_or(CertMode::Off, |shown| shown.policy.mode());
        let certificate = shown.and_then(|shown| shown.certificate.as_deref());
        let token = match (mode, certificate) {
            (CertMode::Off, _) => return refused("this host asks for no certificates"),
            (CertMode::On, None) => return refused("no certificate"),
            (CertMode::Optional, None) => None,
            (CertMode::On | CertMode::Optional, Some(certificate)) => {
                match self.owner(web, context, info, sign_on_to, certificate).await {
                    Ok(token) => Some(token),
                    Err(CertLoginError::NoService) => return refused("nobody can say whose certificate this is"),
                    // There are other ways to log in; the page shows them.
                    Err(_) if mode == CertMode::Optional => None,
                    Err(CertLoginError::Refused(_)) => return refused("the certificate is nobody's"),
                    Err(CertLoginError::CannotTell(_)) => {
                        return Error::e_explain(ErrorType::HTTPStatus(503), "no lookup service could tell");
                    }
                }
            }
        };
        let mut answer = LocalAnswer::redirect(302, &self.home_page(context, info, sign_on_to))?;
        answer.head.insert_header("Cache-Control", "no-store")?;
        if let Some(token) = token {
            let (name, value) = (sign_on_to.cookie(), token.value.expose());
            let cookie = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax");
            answer.head.append_header("Set-Cookie", cookie)?;
        }
        answer_with(answer, session, context).await?;
        Ok(true)
    }

    /// Looks up the account of the certificate, and records the answer.
    async fn owner(
        &self,
        web: &WebClient,
        context: &RequestContext,
        info: &RequestInfo,
        sign_on_to: SignOn,
        certificate: &ClientCertificate,
    ) -> Result<Token, CertLoginError> {
        let question = CertLogin {
            subject: &certificate.subject,
            admin: sign_on_to == SignOn::Admin,
            client: info.client,
            local: web.facts.client.local.ip(),
            host: info.host.as_deref(),
        };
        let config = self.env.config.load_full();
        let node_login = config.lookup.as_ref().and_then(|lookup| lookup.admin.as_ref());
        let told = match node_login {
            // A truncated name may be that of another account.
            _ if certificate.subject.is_empty() || !certificate.is_named_whole => Err(CertLoginError::Refused(
                "the certificate names nobody, or at too great length".to_owned(),
            )),
            Some(asks) => self.env.routes.cert_login(&question, asks).await,
            None => Err(CertLoginError::NoService),
        };
        let (system, vhost) = (&context.snapshot.system, context.vhost.as_ref());
        let here = vhost.and_then(|vhost| vhost.domain.as_deref());
        let told = told.and_then(|token| {
            let is_own = is_vouched_for(system, &config.node, here, token.account.as_deref());
            is_own
                .then_some(token)
                .ok_or_else(|| CertLoginError::Refused(FOREIGN.to_owned()))
        });
        if let Err(CertLoginError::NoService) = told {
            log::warn!("certificates log nobody in: directory.lookup has no zimbra service, or no admin_password_file");
        }
        self.record_sign_on(web, context, info, certificate, &told);
        told
    }

    fn record_sign_on(
        &self,
        web: &WebClient,
        context: &RequestContext,
        info: &RequestInfo,
        certificate: &ClientCertificate,
        told: &Result<Token, CertLoginError>,
    ) {
        let outcome = match told {
            Ok(_) => Outcome::Ok,
            Err(CertLoginError::Refused(_)) => Outcome::Refused,
            Err(CertLoginError::NoService | CertLoginError::CannotTell(_)) => Outcome::DirectoryDown,
        };
        self.env.audit.record(Record {
            request: Some(info.id.as_str().to_owned()),
            user: Some(certificate.subject.clone()),
            account: told.as_ref().ok().and_then(|token| token.account.clone()),
            mechanism: Some("certauth"),
            outcome: Some(outcome),
            why: told.as_ref().err().map(ToString::to_string),
            ..web.login_record(info.client, context.snapshot.generation)
        });
    }

    /// The page for a client that is logged in; other clients are asked for a password there.
    fn home_page(&self, context: &RequestContext, info: &RequestInfo, sign_on_to: SignOn) -> String {
        let config = self.env.config.load();
        let host = info.host.as_deref().unwrap_or(&config.node);
        let port = match sign_on_to {
            SignOn::Mail => context.snapshot.web.https_port,
            SignOn::Admin => {
                let node = context.snapshot.system.node(&config.node);
                node.port(&a::CARBONIO_ADMIN_PROXY_PORT).unwrap_or(ADMIN_PORT)
            }
        };
        format!("{}/?ignoreLoginURL=1", origin(host, port))
    }
}

/// Whether the domain of an account trusts the authorities that vouch for a client at this domain's host. The
/// authorities of one domain may write any name into a certificate, also that of an account of another domain.
fn is_vouched_for(system: &System, node: &str, here: Option<&str>, account: Option<&str>) -> bool {
    let here = here.and_then(|name| system.domain(name));
    let there = account.and_then(|account| system.domain_of(account));
    if let (Some(here), Some(there)) = (&here, &there)
        && here.name() == there.name()
    {
        return true;
    }
    if there.is_none() {
        // The service names no account, or none of ours: the account of the token is not known. That is safe where all
        // domains trust the same authorities.
        let of_node = system.node(node);
        let own = of_node.text(&a::REVERSE_PROXY_CLIENT_CERT_CA);
        return own.is_some()
            && system
                .domains()
                .all(|domain| domain.text(&a::REVERSE_PROXY_CLIENT_CERT_CA) == own);
    }
    let trusted = |domain: Option<View<'_>>| {
        let entry = domain.unwrap_or_else(|| system.node(node));
        let authorities = entry.text(&a::REVERSE_PROXY_CLIENT_CERT_CA)?.to_owned();
        // In any spelling.
        Some(ClientCerts::new(CertMode::On, &authorities, 0).ok()?.id())
    };
    trusted(here).is_some_and(|here| trusted(there) == Some(here))
}

fn refused(why: &'static str) -> Result<bool> {
    Error::e_explain(ErrorType::HTTPStatus(403), why)
}

fn origin(host: &str, port: u16) -> String {
    match port {
        443 => format!("https://{}", bracketed(host)),
        port => format!("https://{}", HostPort::new(host, port)),
    }
}

#[cfg(test)]
mod tests {
    use mail_directory::Entry;

    use super::*;

    #[test]
    fn an_account_that_is_not_named_is_vouched_for_where_all_trust_the_same() {
        let entry = |name: &str, authorities: Option<&str>| {
            let mut entry = Entry::new(name);
            entry.set(a::REVERSE_PROXY_CLIENT_CERT_CA.name, authorities);
            entry
        };
        let vouched = |of_all, of_b, account| {
            let domains = [entry("a.test", None), entry("b.test", of_b)];
            let system = System::new(entry("config", of_all), [], domains, []);
            is_vouched_for(&system, "node.test", Some("a.test"), account)
        };
        for account in [None, Some("root"), Some("eve@elsewhere.test")] {
            assert!(vouched(Some("one"), None, account));
            assert!(!vouched(Some("one"), Some("another"), account));
            assert!(!vouched(None, None, account));
        }
        assert!(vouched(Some("one"), Some("another"), Some("alice@a.test")));
    }

    #[test]
    fn two_paths_and_no_other() {
        let of = |path| SignOn::of(&Method::GET, path);
        assert_eq!(of("/certauth"), Some(SignOn::Mail));
        assert_eq!(of("/certauth/admin"), Some(SignOn::Admin));
        for other in [
            "/",
            "/certauth/",
            "//certauth",
            "/certauth/x",
            "/CERTAUTH",
            "/x/../certauth",
            "/certauth/admin/",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(SignOn::of(&Method::POST, "/certauth"), None);
    }

    #[test]
    fn origins() {
        assert_eq!(origin("mail.a.example", 443), "https://mail.a.example");
        assert_eq!(origin("fd00::1", 6071), "https://[fd00::1]:6071");
    }
}
