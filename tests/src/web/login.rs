//! The logins of the little web server: SOAP and JSON `AuthRequest`, HTTP Basic, and the token they return.

use std::fmt::Write;

use anyhow::Result;
use openssl::base64::decode_block;
use serde_json::{Value, json};

use super::Account;
use super::http::{Request, Stream, respond};

/// A `ZM_AUTH_TOKEN` for this id: key version, signature (of no key), data.
pub fn auth_token(id: &str) -> String {
    let mut clear = String::new();
    for (name, value) in [
        ("id", id),
        ("exp", "1893456000000"),
        ("type", "zimbra"),
        ("tid", "123456789"),
    ] {
        let _fits = write!(clear, "{name}={}:{value};", value.len());
    }
    format!("0_{}_{}", "ab".repeat(20), super::hex(clear.as_bytes()))
}

/// Answers an `AuthRequest`: a token in a cookie, or the fault without a reason.
pub(super) fn answer(accounts: &[Account], body: &[u8], out: &mut dyn Stream) -> Result<()> {
    let text = String::from_utf8_lossy(body);
    let json = serde_json::from_str::<Value>(&text).ok();
    let (name, password) = match &json {
        Some(json) => names_of_json(json),
        None => (element(&text, "account"), element(&text, "password")),
    };
    let account = accounts.iter().find(|a| a.name == name && a.password == password);
    let body = match (account, json.is_some()) {
        (Some(_), true) => json!({"Body": {"AuthResponse": {"lifetime": 3600}}}).to_string(),
        (Some(_), false) => soap("<AuthResponse xmlns=\"urn:zimbraAccount\"><lifetime>3600</lifetime></AuthResponse>"),
        (None, true) => json!({"Body": {"Fault": {"Detail": {"Error": {"Code": "account.AUTH_FAILED"}}}}}).to_string(),
        (None, false) => soap(
            "<soap:Fault><soap:Detail><Error xmlns=\"urn:zimbra\"><Code>account.AUTH_FAILED</Code></Error>\
             </soap:Detail></soap:Fault>",
        ),
    };
    match account {
        Some(account) => {
            let cookie = format!("ZM_AUTH_TOKEN={}; Path=/; HttpOnly; Secure", auth_token(&account.id));
            respond(out, 200, &[("Set-Cookie", &cookie)], body.as_bytes())
        }
        None => respond(out, 500, &[], body.as_bytes()),
    }
}

/// Answers a login at the authentication service, in JSON.
pub(super) fn answer_zx(accounts: &[Account], body: &[u8], out: &mut dyn Stream) -> Result<()> {
    let login: Value = serde_json::from_slice(body).unwrap_or_default();
    match accounts
        .iter()
        .find(|a| login["user"] == a.name.as_str() && login["password"] == a.password.as_str())
    {
        Some(account) => {
            let cookie = format!("ZM_AUTH_TOKEN={}; Path=/; HttpOnly; Secure", auth_token(&account.id));
            respond(out, 200, &[("Set-Cookie", &cookie)], b"{}")
        }
        None => respond(out, 401, &[], b"{}"),
    }
}

/// Whether this path asks for HTTP Basic.
pub(super) fn wants_basic(path: &str) -> bool {
    ["/dav/", "/principals/", "/Microsoft-Server-ActiveSync", "/ews/"]
        .iter()
        .any(|p| path.starts_with(p))
}

/// Whether the request has the right one.
pub(super) fn basic_is_good(accounts: &[Account], request: &Request) -> bool {
    let Some((scheme, basic)) = request.header("authorization").and_then(|a| a.split_once(' ')) else {
        return false;
    };
    if !scheme.eq_ignore_ascii_case("basic") {
        return false;
    }
    let Ok(decoded) = decode_block(basic) else { return false };
    let text = String::from_utf8_lossy(&decoded).into_owned();
    accounts.iter().any(|a| text == format!("{}:{}", a.name, a.password))
}

fn names_of_json(json: &Value) -> (String, String) {
    let request = &json["Body"]["AuthRequest"];
    let text = |v: &Value| v.as_str().or(v["_content"].as_str()).unwrap_or_default().to_owned();
    (text(&request["account"]), text(&request["password"]))
}

/// The text of the first element of this name.
fn element(xml: &str, name: &str) -> String {
    let inner = xml
        .split_once(&format!("<{name}"))
        .and_then(|(_, rest)| rest.split_once('>'));
    let text = inner
        .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")))
        .map_or("", |(text, _)| text);
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'");
    text.replace("&amp;", "&")
}

fn soap(body: &str) -> String {
    format!(
        "<soap:Envelope xmlns:soap=\"http://www.w3.org/2003/05/soap-envelope\"><soap:Body>{body}</soap:Body></soap:Envelope>"
    )
}
