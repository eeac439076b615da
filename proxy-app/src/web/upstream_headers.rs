//! The headers that a server gets from us with a request: `X-Forwarded-For` and its family, the client certificate,
//! the request id, `Host`, and those of the location.

use http::header::{HOST, HeaderMap, HeaderValue, InvalidHeaderValue};
use route_cache::{HostPort, Server, bracketed};

use crate::http::headers::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PORT, X_FORWARDED_PROTO, X_REQUEST_ID};
use crate::locations::HostRule;
use crate::tls::client_certs::PresentedCert;
use crate::web::client::WebClient;
use crate::web::decision::{ProxyRequest, RequestInfo};

/// Sets them, after those of `headers::dropped` are removed. `X-Forwarded-For` is one address and never a chain: mailbox
/// servers compare the whole value (HTTP §6.2).
///
/// # Errors
/// A name of the configuration that cannot stand in a header.
pub(crate) fn set(
    headers: &mut HeaderMap,
    web: &WebClient,
    info: &RequestInfo,
    proxied: &ProxyRequest,
    server: &Server,
) -> Result<(), InvalidHeaderValue> {
    let forward = proxied.forward();
    headers.reserve(8);
    if forward.forwarded {
        headers.insert(X_FORWARDED_FOR, web.forwarded.client(info.client));
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(info.scheme));
        headers.insert(X_FORWARDED_PORT, web.forwarded.port(info.port));
        if let Some(host) = &info.host_as_sent {
            headers.insert(X_FORWARDED_HOST, host.clone());
        }
    }
    let shown = web.shown.iter().flat_map(PresentedCert::headers);
    shown.for_each(|(name, value)| drop(headers.insert(name, value)));
    headers.insert(X_REQUEST_ID, info.id.value().clone());
    let host = match &forward.host {
        HostRule::Keep => match &info.host_as_sent {
            Some(host) => host.clone(),
            None => HeaderValue::from_str(&HostPort::from(web.facts.client.local).to_string())?,
        },
        HostRule::Upstream if proxied.mailbox().is_none() => HeaderValue::from_str(proxied.group())?,
        HostRule::Upstream => HeaderValue::from_str(&server.address().authority())?,
        HostRule::Text(text) => {
            let local = || web.facts.client.local.ip().to_string();
            let host = info.host.clone().unwrap_or_else(local);
            let text = text.replace("{host}", &bracketed(&host));
            HeaderValue::from_str(&text.replace("{port}", &server.port.to_string()))?
        }
    };
    headers.insert(HOST, host);
    for (name, value) in &forward.set_headers {
        headers.insert(name, value.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::headers;

    #[test]
    fn clients_cannot_send_what_we_add() {
        for name in [
            X_FORWARDED_FOR,
            X_FORWARDED_PROTO,
            X_FORWARDED_PORT,
            X_FORWARDED_HOST,
            X_REQUEST_ID,
        ] {
            let sent = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]);
            assert_eq!(headers::dropped(&sent), [name]);
        }
    }
}
