//! Has a handshake offer a session of an earlier one.
//!
//! The crate `openssl` leaves it to its caller that both belong to one context, so its function is `unsafe`
//! (docs/adr/0033-sessions-with-servers.md). This file holds nothing else.
#![allow(unsafe_code)]

use foreign_types::ForeignTypeRef;
use openssl::error::ErrorStack;
use openssl::ssl::{SslRef, SslSession};

/// A session, and the context in which it began.
#[derive(Clone)]
pub(super) struct OwnSession {
    session: SslSession,
    context: usize,
}

impl OwnSession {
    /// One that this handshake has brought.
    pub(super) fn of(ssl: &SslRef, session: SslSession) -> Self {
        let context = context(ssl);
        Self { session, context }
    }
}

/// Which context a handshake is of.
fn context(ssl: &SslRef) -> usize {
    ssl.ssl_context().as_ptr() as usize
}

/// Offers a session, where it began in the context of this handshake; else nothing happens. The handshake must not have
/// begun.
///
/// # Errors
/// The TLS library does not take it.
pub(super) fn offer(ssl: &mut SslRef, own: &OwnSession) -> Result<(), ErrorStack> {
    if context(ssl) != own.context {
        return Ok(());
    }
    // SAFETY: both are of one context, by the comparison. A session holds nothing of a context that is gone.
    unsafe { ssl.set_session(&own.session) }
}
