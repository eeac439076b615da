//! Clients that speak HTTP/1.0: they know no chunks and no interim answers (RFC 9112 §6.1, RFC 9110 §15.2). A body
//! whose length is not known ends with the connection, as HTTP/1.0 has it.

use std::any::Any;
use std::sync::LazyLock;

use async_trait::async_trait;
use http::Version;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::modules::http::{HttpModule, HttpModuleBuilder, HttpModules, Module};
use pingora_proxy::Session;

/// The modules of a request of an old client. Those of all others have none: each costs several allocations.
static MODULES: LazyLock<HttpModules> = LazyLock::new(|| {
    let mut modules = HttpModules::new();
    modules.add_module(Box::new(Unchunked));
    modules
});

/// Keeps from an old client what it does not know, before anything is answered.
pub(crate) fn respect(session: &mut Session) {
    if session.req_header().version < Version::HTTP_11 {
        session.as_downstream_mut().set_ignore_info_resp(true);
        session.downstream_modules_ctx = MODULES.build_ctx();
    }
}

/// Lets the connection end behind an answer of unknown length.
pub(crate) fn end_behind(session: &mut Session, response: &ResponseHeader) {
    let old = session.req_header().version < Version::HTTP_11;
    if old && !response.status.is_informational() && !response.headers.contains_key(CONTENT_LENGTH) {
        session.set_keepalive(None);
    }
}

/// Sends bodies as they are: the engine adds `chunked` where a length is missing.
struct Unchunked;

impl HttpModuleBuilder for Unchunked {
    fn init(&self) -> Module {
        Box::new(Self)
    }
}

#[async_trait]
impl HttpModule for Unchunked {
    async fn response_header_filter(&mut self, response: &mut ResponseHeader, _end: bool) -> Result<()> {
        response.remove_header(&TRANSFER_ENCODING);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
