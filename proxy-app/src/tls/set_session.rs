//! Has a handshake offer a session of an earlier one.
//!
//! The crate `openssl` leaves it to its caller that both belong to one context, so its function is `unsafe`
//! (docs/adr/0033-sessions-with-servers.md). This file holds nothing else.
#![allow(unsafe_code)]

use foreign_types::ForeignTypeRef;
use openssl::error::ErrorStack;
use openssl::ssl::{SslConnectorBuilder, SslContextRef, SslRef, SslSession};

/// Which context something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionsContext(usize);

impl SessionsContext {
    /// That which is being built.
    pub(super) fn of_builder(builder: &SslConnectorBuilder) -> Self {
        Self(builder.as_ptr() as usize)
    }

    fn of(context: &SslContextRef) -> Self {
        Self(context.as_ptr() as usize)
    }
}

/// Offers a session that began in this context, where the handshake is of it, too; else nothing happens.
///
/// # Errors
/// The TLS library does not take it.
pub(super) fn offer(ssl: &mut SslRef, session: &SslSession, of: SessionsContext) -> Result<(), ErrorStack> {
    if SessionsContext::of(ssl.ssl_context()) != of {
        return Ok(());
    }
    // SAFETY: the session came from a handshake of this context, and so is this one.
    unsafe { ssl.set_session(session) }
}
