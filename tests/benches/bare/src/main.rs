//! The least that a proxy on Pingora can be: every request goes to one server, with one header more. What Portico costs
//! beyond it is Portico's own.
//!
//! `bare HTTP HTTPS CERTIFICATE KEY SERVER`: the two addresses to listen on, the files of the certificate, the server.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use pingora::http::RequestHeader;
use pingora::listeners::tls::TlsSettings;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct ToServer(SocketAddr);

#[async_trait]
impl ProxyHttp for ToServer {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        _ctx: &mut (),
    ) -> pingora::Result<()> {
        match session.client_addr().and_then(|client| client.as_inet()) {
            Some(client) => upstream.insert_header("X-Forwarded-For", client.ip().to_string()),
            None => Ok(()),
        }
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [http, https, certificate, key, server_address] = &words[..] else {
        bail!("usage: bare HTTP HTTPS CERTIFICATE KEY SERVER");
    };
    let to_server = ToServer(server_address.parse().context("the address of the server")?);
    let conf = ServerConf {
        threads: 1,
        work_stealing: false,
        upstream_keepalive_pool_size: 512,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, to_server);
    service.add_tcp(http);
    let mut tls = TlsSettings::intermediate(certificate, key)?;
    tls.enable_h2();
    service.add_tls_with_settings(https, None, tls);
    server.add_service(service);
    server.run_forever()
}
