//! Lines of the access log: what became of a request, in either form.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Instant;

use route_cache::bracketed;

use crate::app::env::WebEnv;
use crate::config::AccessFormat;
use crate::node::logs;
use crate::node::redaction::{escaped, redact};
use crate::web::client::WebClient;
use crate::web::decision::RequestInfo;

/// Room for a usual line.
const USUAL: usize = 512;

/// The facts of a line of the access log. Absent texts are `None`; all are raw and are cleaned by [`line()`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct AccessEntry<'a> {
    /// The client's address.
    pub client: &'a str,
    /// The client's port.
    pub client_port: u16,
    /// The user of Basic authentication.
    pub user: Option<&'a str>,
    /// Time at the end of the request, as `02/Jan/2026:15:04:05 +0000`.
    pub time: &'a str,
    /// The method.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The requested host, without port.
    pub host: Option<&'a str>,
    /// Path and query as sent.
    pub target: &'a str,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub protocol: &'a str,
    /// Status of the answer; 0 when there was none.
    pub status: u16,
    /// Bytes sent, headers included.
    pub bytes: u64,
    /// The Referer header.
    pub referer: Option<&'a str>,
    /// The User-Agent header.
    pub user_agent: Option<&'a str>,
    /// Address and port of each server that was tried, joined by `, `; `None` for an answer of our own.
    pub upstream: Option<&'a str>,
    /// Our address.
    pub local: &'a str,
    /// Our port.
    pub local_port: u16,
    /// Which side ended the answer too early: `server` or `client`.
    pub incomplete: Option<&'a str>,
}

/// What a line in JSON has beside an [`AccessEntry`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct AccessMore<'a> {
    /// Id of the request.
    pub request: &'a str,
    /// Number of the connection.
    pub conn: &'a str,
    /// The location.
    pub location: Option<&'a str>,
    /// Seconds from the request's head to the end of the answer.
    pub duration: f64,
}

/// One line of the access log as JSON, without line end. Absent texts are left out.
pub(crate) fn json(entry: &AccessEntry<'_>, more: AccessMore<'_>) -> String {
    let mut line = serde_json::json!({
        "time": entry.time,
        "request": more.request,
        "conn": more.conn,
        "client": entry.client,
        "client_port": entry.client_port,
        "method": entry.method,
        "scheme": entry.scheme,
        "target": redact(entry.target),
        "protocol": entry.protocol,
        "status": entry.status,
        "bytes": entry.bytes,
        "local": entry.local,
        "local_port": entry.local_port,
        "duration": (more.duration * 1e6).round() / 1e6,
    });
    for (name, value) in [
        ("user", entry.user.map(Cow::Borrowed)),
        ("host", entry.host.map(Cow::Borrowed)),
        ("referer", entry.referer.map(redact)),
        ("user_agent", entry.user_agent.map(Cow::Borrowed)),
        ("upstream", entry.upstream.map(Cow::Borrowed)),
        ("location", more.location.map(Cow::Borrowed)),
        ("incomplete", entry.incomplete.map(Cow::Borrowed)),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            line[name] = value.into_owned().into();
        }
    }
    line.to_string()
}

/// One line of the access log, without line end, in the format of HTTP §6.5 (two blanks after the bracket). An IPv6
/// address stands in brackets before its port, unlike in nginx, where the two run together.
pub(crate) fn line(entry: &AccessEntry<'_>) -> String {
    const WHOLE: &str = "a String takes everything";
    let user = text(entry.user);
    let user = match user.contains(' ') {
        true => Cow::Owned(user.replace(' ', "\\x20")),
        false => user,
    };
    let host = entry.host.map(bracketed);
    let referer = entry
        .referer
        .filter(|referer| !referer.is_empty())
        .map_or(Cow::Borrowed("-"), redact);
    let mut line = String::with_capacity(USUAL);
    let (client, time) = (bracketed(entry.client), entry.time);
    write!(line, "{client}:{} - {user} [{time}]  \"", entry.client_port).expect(WHOLE);
    line.extend([&*escaped(entry.method), " ", entry.scheme, "://"]);
    line.extend([&*text(host.as_deref()), &*redact(entry.target), " ", entry.protocol]);
    write!(line, "\" {:03} {} \"", entry.status, entry.bytes).expect(WHOLE);
    line.extend([&*referer, "\" \"", &*text(entry.user_agent), "\" \""]);
    line.extend([&*text(entry.upstream), "\" \"", &*bracketed(entry.local)]);
    write!(line, ":{}\"", entry.local_port).expect(WHOLE);
    if let Some(who) = entry.incomplete {
        line.extend([" incomplete=", who]);
    }
    line
}

/// `-` for what is absent or empty, as in every access log.
pub(crate) fn text(value: Option<&str>) -> Cow<'_, str> {
    match value {
        None | Some("") => Cow::Borrowed("-"),
        Some(value) => escaped(value),
    }
}

/// What became of a request, for the access log.
pub(crate) struct AccessRecord<'a> {
    /// User of Basic authentication.
    pub(crate) user: Option<&'a str>,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
    /// The servers that were tried.
    pub(crate) upstream: &'a str,
    pub(crate) location: Option<&'a str>,
    /// Which side ended the answer too early.
    pub(crate) incomplete: Option<&'static str>,
    pub(crate) begun: Instant,
}

pub(crate) fn of_request(
    env: &WebEnv,
    web: &WebClient,
    request: &http::request::Parts,
    info: &RequestInfo,
    record: AccessRecord<'_>,
) -> String {
    let text = |name| {
        request
            .headers
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok())
    };
    let entry = AccessEntry {
        client: &info.client.to_string(),
        client_port: web.facts.client.addr.port(),
        user: record.user,
        time: &logs::local_time(),
        method: request.method.as_str(),
        scheme: info.scheme,
        host: info.host.as_deref(),
        target: request.uri.path_and_query().map_or("/", |target| target.as_str()),
        protocol: protocol(request.version),
        status: record.status,
        bytes: record.bytes,
        referer: text(http::header::REFERER),
        user_agent: text(http::header::USER_AGENT),
        upstream: (!record.upstream.is_empty()).then_some(record.upstream),
        local: &web.facts.client.local.ip().to_string(),
        local_port: web.facts.client.local.port(),
        incomplete: record.incomplete,
    };
    match env.config.load().log.access_format {
        AccessFormat::Carbonio => line(&entry),
        AccessFormat::Json => json(
            &entry,
            AccessMore {
                request: info.id.as_str(),
                conn: &web.facts.id,
                location: record.location,
                duration: record.begun.elapsed().as_secs_f64(),
            },
        ),
    }
}

pub(crate) fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: AccessEntry<'static> = AccessEntry {
        client: "198.51.100.7",
        client_port: 50000,
        user: None,
        time: "02/Jan/2026:15:04:05 +0100",
        method: "GET",
        scheme: "https",
        host: Some("mail.example.com"),
        target: "/home/~/?fmt=json",
        protocol: "HTTP/2.0",
        status: 200,
        bytes: 1234,
        referer: None,
        user_agent: None,
        upstream: None,
        local: "192.0.2.1",
        local_port: 443,
        incomplete: None,
    };

    #[track_caller]
    fn check_line(entry: AccessEntry<'_>, expected: &str) {
        assert_eq!(line(&entry), expected);
    }

    #[test]
    fn access_lines_in_json() {
        let more = AccessMore {
            request: "0123456789abcdef",
            conn: "1-2",
            location: Some("prefix /home/"),
            duration: 0.012_345_678,
        };
        let entry = AccessEntry {
            target: "/home/~/?zauthtoken=0_1_2",
            user_agent: Some("x\"\n"),
            ..ENTRY
        };
        let line = json(&entry, more);
        assert!(!line.contains('\n') && !line.contains("0_1_2"), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["request"], "0123456789abcdef");
        assert_eq!(value["location"], "prefix /home/");
        assert_eq!(value["duration"], 0.012_346);
        assert_eq!(value["user_agent"], "x\"\n");
        assert_eq!(value.get("referer"), None);
    }

    #[test]
    fn access_lines() {
        check_line(
            ENTRY,
            r#"198.51.100.7:50000 - - [02/Jan/2026:15:04:05 +0100]  "GET https://mail.example.com/home/~/?fmt=json HTTP/2.0" 200 1234 "-" "-" "-" "192.0.2.1:443""#,
        );
        check_line(
            AccessEntry {
                incomplete: Some("server"),
                ..ENTRY
            },
            r#"198.51.100.7:50000 - - [02/Jan/2026:15:04:05 +0100]  "GET https://mail.example.com/home/~/?fmt=json HTTP/2.0" 200 1234 "-" "-" "-" "192.0.2.1:443" incomplete=server"#,
        );
        check_line(
            AccessEntry {
                client: "2001:db8::7",
                user: Some("bob"),
                referer: Some("https://mail.example.com/carbonio/?zjwt=x"),
                user_agent: Some("Mozilla/5.0 (X11)"),
                upstream: Some("10.0.0.1:8443, 10.0.0.2:8443"),
                local: "2001:db8::1",
                ..ENTRY
            },
            r#"[2001:db8::7]:50000 - bob [02/Jan/2026:15:04:05 +0100]  "GET https://mail.example.com/home/~/?fmt=json HTTP/2.0" 200 1234 "https://mail.example.com/carbonio/?zjwt=***" "Mozilla/5.0 (X11)" "10.0.0.1:8443, 10.0.0.2:8443" "[2001:db8::1]:443""#,
        );
        check_line(
            AccessEntry {
                user: Some("bob [x]\n"),
                host: None,
                target: "/?zauthtoken=0_1_2",
                status: 0,
                bytes: 0,
                referer: Some(""),
                user_agent: Some("x\" \"y\r\nz"),
                ..ENTRY
            },
            r#"198.51.100.7:50000 - bob\x20[x]\x0A [02/Jan/2026:15:04:05 +0100]  "GET https://-/?zauthtoken=*** HTTP/2.0" 000 0 "-" "x\x22 \x22y\x0D\x0Az" "-" "192.0.2.1:443""#,
        );
    }
}
