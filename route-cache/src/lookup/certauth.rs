//! Logins by certificate: a lookup service maps the name in a certificate to an account, and returns a token for it
//! (MAIL §1.3, §1.4; HTTP §5.6).
//!
//! The only question whose answer carries an account's rights, so the node must prove its identity: with its own
//! password, never with a user's. Answers are not kept.

use std::net::IpAddr;

use mail_directory::Secret;
use zeroize::Zeroizing;

use super::wire::{self, PLACEHOLDER, Response};
use super::{Dialect, HandlerUrl, Services};
use crate::percent::{escape, unescape};

/// Longest token that is taken. Zimbra's have some 300 bytes; browsers keep cookies of up to 4096.
const MAX_TOKEN: usize = 3072;

/// The account that the node asks as.
#[derive(Debug, Clone)]
pub struct NodeLogin {
    user: String,
    password: Secret<String>,
}

impl NodeLogin {
    /// An account of applications (`cn=appaccts`) and its password.
    ///
    /// # Errors
    /// One of them cannot stand in a header field; the text says which.
    pub fn new(user: String, password: Secret<String>) -> Result<Self, &'static str> {
        let fits = |text: &str| !text.is_empty() && text.trim() == text && !text.contains(char::is_control);
        match (fits(&user), fits(password.expose())) {
            (false, _) => Err("the user cannot be sent: it is empty, or has blanks around it or control characters"),
            (_, false) => {
                Err("the password cannot be sent: it is empty, or has blanks around it or control characters")
            }
            _ => Ok(Self { user, password }),
        }
    }
}

/// The question: which account does this certificate belong to?
#[derive(Debug, Clone)]
pub struct CertLogin<'a> {
    /// The subject of the certificate, as in RFC 4514.
    pub subject: &'a str,
    /// Whether the token is to be good for administration.
    pub admin: bool,
    /// Address of the client.
    pub client: IpAddr,
    /// Address on which the client was accepted. Services answer only to some of these.
    pub local: IpAddr,
    /// The host that the client asked for.
    pub host: Option<&'a str>,
}

/// The account is logged in.
#[derive(Debug, Clone)]
pub struct Token {
    /// What proves it to mailbox servers. Octets that a cookie may have (RFC 6265 §4.1.1), and no others.
    pub value: Secret<String>,
    /// The account, if the service names it.
    pub account: Option<String>,
}

/// Why no account is logged in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertLoginError {
    /// There are no services that could be asked.
    #[error("no lookup service of Zimbra's protocol is asked for routes")]
    NoService,
    /// A service says no, in these words.
    #[error("{0}")]
    Refused(String),
    /// No service could tell.
    #[error("{0}")]
    CannotTell(String),
}

impl Services {
    /// The token of the first service that can tell.
    pub(crate) async fn cert_login(&self, question: &CertLogin<'_>, asks: &NodeLogin) -> Result<Token, CertLoginError> {
        if self.dialect != Dialect::Zimbra {
            return Err(CertLoginError::NoService);
        }
        let answer = self.first_to_tell(|url| request(question, asks, url), read).await;
        answer
            .map_err(CertLoginError::CannotTell)?
            .map_err(CertLoginError::Refused)
    }
}

/// The request, header fields in the order of MAIL §1.3.
fn request(question: &CertLogin<'_>, asks: &NodeLogin, url: &HandlerUrl) -> Zeroizing<Vec<u8>> {
    let password = asks.password.expose();
    let mut head = wire::Head::get(url);
    head.add("Auth-Method", "certauth");
    head.add("Auth-User", &escape(question.subject));
    head.add("Auth-Pass", PLACEHOLDER);
    head.add("Auth-Protocol", "httpssl");
    head.add("Auth-Login-Attempt", "0");
    head.add("X-Proxy-IP", &question.local.to_canonical().to_string());
    head.add("Client-IP", &question.client.to_canonical().to_string());
    if question.admin {
        head.add("Auth-Zimbra-Admin", "True");
    }
    if let Some(host) = question.host.filter(|host| wire::is_host(host)) {
        head.add("X-Proxy-Host", host);
    }
    head.add("Auth-Admin-User", &asks.user);
    let (name, end) = ("Auth-Admin-Pass: ", "\r\n\r\n");
    let head = head.into_text();
    // With room for all of it: a buffer that grows leaves its content behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(head.len() + name.len() + password.len() + end.len()));
    for part in [head.as_str(), name, password, end] {
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

/// The outer error is a service that could not tell, the inner one a no.
fn read(response: &Response) -> Result<Result<Token, String>, String> {
    match response.field("auth-status") {
        None => Err("there is no Auth-Status in its answer".to_owned()),
        Some(text @ "unable to search LDAP") => Err(text.to_owned()),
        Some("OK") => token(response).map(Ok).map_err(str::to_owned),
        Some(text) => Ok(Err(text.to_owned())),
    }
}

fn token(response: &Response) -> Result<Token, &'static str> {
    let value = response.field("auth-pass").unwrap_or_default();
    // RFC 6265 §4.1.1.
    let octet = |byte: u8| matches!(byte, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e);
    if value.is_empty() || value.len() > MAX_TOKEN || !value.bytes().all(octet) || value == PLACEHOLDER {
        return Err("there is no good token in its answer");
    }
    let account = response.field("auth-user").and_then(unescape);
    Ok(Token {
        value: Secret::new(value.to_owned()),
        account: account.filter(|account| !account.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = r"emailAddress=rossi@a.example,CN=Rossi\, M 100%,C=IT";

    fn asks() -> NodeLogin {
        NodeLogin::new("zmnginx".to_owned(), Secret::new("s3 cr3t".to_owned())).unwrap()
    }

    fn text(admin: bool, host: &str) -> String {
        let question = CertLogin {
            subject: SUBJECT,
            admin,
            client: "203.0.113.7".parse().unwrap(),
            local: "::ffff:192.0.2.10".parse().unwrap(),
            host: Some(host),
        };
        let url = HandlerUrl::parse("https://[fd00::1]/x", Dialect::Zimbra).unwrap();
        String::from_utf8(request(&question, &asks(), &url).to_vec()).unwrap()
    }

    #[test]
    fn the_question_is_that_of_mail_1_3() {
        let expected = "GET /x HTTP/1.1\r\nHost: [fd00::1]\r\nAuth-Method: certauth\r\n\
            Auth-User: emailAddress=rossi@a.example,CN=Rossi\\,%20M%20100%25,C=IT\r\nAuth-Pass: _password_\r\n\
            Auth-Protocol: httpssl\r\nAuth-Login-Attempt: 0\r\nX-Proxy-IP: 192.0.2.10\r\nClient-IP: 203.0.113.7\r\n\
            X-Proxy-Host: mail.a.example\r\nAuth-Admin-User: zmnginx\r\nAuth-Admin-Pass: s3 cr3t\r\n\r\n";
        assert_eq!(text(false, "mail.a.example"), expected);
        assert!(text(true, "a").contains("\r\nAuth-Zimbra-Admin: True\r\nX-Proxy-Host: a\r\n"));
        assert!(!text(true, "a\r\nX: y").contains("X-Proxy-Host"));
    }

    #[test]
    fn only_what_fits_into_a_line_is_sent() {
        for (user, password) in [
            ("", "x"),
            ("x", ""),
            ("a\r\nb", "x"),
            ("x", "a\nb"),
            ("x", " a"),
            ("x", "a\0"),
        ] {
            let login = NodeLogin::new(user.to_owned(), Secret::new(password.to_owned()));
            assert!(login.is_err(), "{user:?} {password:?}");
        }
        assert!(!format!("{:?}", asks()).contains("s3 cr3t"));
    }

    fn answer(fields: &str) -> Result<Result<(String, Option<String>), String>, String> {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        let response = wire::response(head.as_bytes()).unwrap().unwrap();
        read(&response).map(|said| said.map(|token| (token.value.expose().clone(), token.account)))
    }

    #[test]
    fn tokens_are_such_that_a_cookie_can_hold_them() {
        let good = "Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 9999\r\nAuth-Pass: 0_a9f_69643d";
        let token = "0_a9f_69643d".to_owned();
        assert_eq!(answer(good), Ok(Ok((token.clone(), None))));
        let named = format!("{good}\r\nAuth-User: rossi@a.example");
        assert_eq!(answer(&named), Ok(Ok((token, Some("rossi@a.example".to_owned())))));
        let long = "x".repeat(MAX_TOKEN + 1);
        for bad in ["", "a;Domain=x", "a b", "a,b", "a\"b", "a\\b", "é", "_password_", &long] {
            let said = answer(&format!("Auth-Status: OK\r\nAuth-Pass: {bad}"));
            assert!(said.is_err(), "{bad:?}: {said:?}");
        }
        assert!(answer("Auth-Status: OK").is_err());
    }

    #[test]
    fn a_no_is_no_failure() {
        assert_eq!(
            answer("Auth-Status: user not found: x"),
            Ok(Err("user not found: x".to_owned()))
        );
        assert!(answer("Auth-Status: unable to search LDAP").is_err());
        assert!(answer("X: y").is_err());
    }
}
