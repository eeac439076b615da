//! Rewrites the place that a server sends a browser to, for the address that the browser used (HTTP §2.4): a server
//! knows its own name, port and scheme, and the browser knows ours.

use http::HeaderMap;
use http::header::{LOCATION, REFRESH};
use mail_directory::names;

/// The names that a server may use for itself, and the client's names for us.
#[derive(Debug, Clone)]
pub(crate) struct Relocation<'a> {
    /// `http` or `https`, as the client sees it.
    pub(crate) scheme: &'a str,
    /// The Host header as the client sent it.
    pub(crate) host_as_sent: &'a str,
    /// The requested host, in lower case, without port.
    pub(crate) host: &'a str,
    /// The port that the client sees.
    pub(crate) our_port: u16,
    /// Names and addresses of the server.
    pub(crate) server: &'a [&'a str],
    /// Its port.
    pub(crate) server_port: u16,
}

impl Relocation<'_> {
    /// Whether an answer sends a browser anywhere.
    pub(crate) fn is_in(headers: &HeaderMap) -> bool {
        headers.contains_key(LOCATION) || headers.contains_key(REFRESH)
    }

    /// The headers to replace, with their new values.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Vec<(http::HeaderName, String)> {
        let mut changed = Vec::new();
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        if let Some(new) = location.and_then(|url| self.url(url)) {
            changed.push((LOCATION, new));
        }
        let refresh = headers.get(REFRESH).and_then(|value| value.to_str().ok());
        if let Some(new) = refresh.and_then(|value| self.refresh(value)) {
            changed.push((REFRESH, new));
        }
        changed
    }

    /// `5; url=https://store1:8443/x`
    fn refresh(&self, value: &str) -> Option<String> {
        let at = value.to_ascii_lowercase().find("url=")? + "url=".len();
        let (before, url) = value.split_at(at);
        Some(format!("{before}{}", self.url(url)?))
    }

    fn url(&self, url: &str) -> Option<String> {
        let (scheme, rest) = url.split_once("://")?;
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = split(authority)?;
        let port = port.unwrap_or(default_port);
        self.leads_here(&host, port, default_port)
            .then(|| format!("{}://{}{path}", self.scheme, self.host_as_sent))
    }

    /// Another port of our host may be another service, and is not changed.
    fn leads_here(&self, host: &str, port: u16, default_port: u16) -> bool {
        let ours = host == self.host && (port == default_port || port == self.our_port || port == self.server_port);
        let theirs = self.server.iter().any(|name| names::host(name) == host);
        ours || theirs && (port == self.server_port || port == default_port)
    }
}

/// Host in lower case without brackets, and port.
fn split(authority: &str) -> Option<(String, Option<u16>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let port = port.strip_prefix(':').map(str::parse).transpose().ok()?;
        return Some((host.to_ascii_lowercase(), port));
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host.to_ascii_lowercase(), Some(port.parse().ok()?))),
        None => Some((authority.to_ascii_lowercase(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_lead_back_to_us() {
        let relocation = Relocation {
            scheme: "https",
            host_as_sent: "Mail.a.example:8443",
            host: "mail.a.example",
            our_port: 8443,
            server: &["store1.example.test", "127.0.0.2", "::2"],
            server_port: 8080,
        };
        for (url, expected) in [
            ("http://mail.a.example/x?y#z", Some("https://Mail.a.example:8443/x?y#z")),
            ("http://MAIL.a.example:8443/x", Some("https://Mail.a.example:8443/x")),
            ("http://mail.a.example:8080/x", Some("https://Mail.a.example:8443/x")),
            ("https://mail.a.example:8080", Some("https://Mail.a.example:8443")),
            ("https://mail.a.example:9000/x", None),
            (
                "https://store1.example.test:8080/x",
                Some("https://Mail.a.example:8443/x"),
            ),
            ("http://127.0.0.2/x", Some("https://Mail.a.example:8443/x")),
            ("http://[::2]:8080/x", Some("https://Mail.a.example:8443/x")),
            ("https://store1.example.test:9999/x", None),
            ("https://other.example/x", None),
            ("https://mail.a.example.evil/x", None),
            ("https://mail.a.example@evil/x", None),
            ("/x", None),
            ("ftp://mail.a.example/x", None),
            ("//mail.a.example/x", None),
        ] {
            assert_eq!(relocation.url(url).as_deref(), expected, "{url}");
        }
        assert_eq!(
            relocation.refresh("5; URL=http://127.0.0.2:8080/x").as_deref(),
            Some("5; URL=https://Mail.a.example:8443/x")
        );
        assert_eq!(relocation.refresh("5"), None);
    }
}
