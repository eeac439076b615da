//! Pingora's HTTP engine, as this node configures it.

use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;

use crate::app::env::WebEnv;
use crate::http::HEAD_MAX;
use crate::web::phases::Web;

/// Most answers at once on an HTTP/2 connection. Browsers wait when there are more; each that its client does not read
/// costs memory.
const STREAMS: u32 = 64;

/// What the engine keeps for the socket of one HTTP/2 answer; its own default is 400 KiB.
const SEND_BUFFER: usize = 16 * 1024;

/// How much HTTP/2 clients may have at once, and how much of it the engine keeps.
fn h2_options() -> H2Options {
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_MAX as u32)
        .max_send_buffer_size(SEND_BUFFER);
    options
}

/// The HTTP engine of this node.
pub(crate) fn engine(env: &Arc<WebEnv>, conf: &Arc<ServerConf>) -> Arc<HttpProxy<Web>> {
    let mut proxy = pingora_proxy::http_proxy(conf, Web::new(env.clone(), conf));
    let mut options = pingora::apps::HttpServerOptions::default();
    options.h2_idle_timeout = Some(H2_IDLE);
    // Refused by a phase of ours.
    options.allow_connect_method_proxying = true;
    proxy.server_options = Some(options);
    proxy.h2_options = Some(h2_options());
    Arc::new(proxy)
}

/// An HTTP/2 connection without streams is closed after this.
const H2_IDLE: Duration = Duration::from_secs(180);
