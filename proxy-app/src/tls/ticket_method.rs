//! Makes the TLS library ask us to seal and to open session tickets.
//!
//! The crate `openssl` has no function for it, so this file calls AWS-LC's own, which needs `unsafe`
//! (docs/adr/0029-ticket-keys.md). It holds nothing else: what is sealed how, and by which keys, is decided in safe code.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use foreign_types::ForeignTypeRef;
use openssl::ssl::{SslContextBuilder, SslRef};
use openssl_sys::{
    SSL, SSL_CTX_set_ticket_aead_method, SSL_TICKET_AEAD_METHOD, ssl_ticket_aead_result_t,
    ssl_ticket_aead_result_t_ssl_ticket_aead_ignore_ticket as IGNORED,
    ssl_ticket_aead_result_t_ssl_ticket_aead_success as OPENED,
};

use super::profile::{HANDSHAKE_INFO, HandshakeInfo};
use super::tickets::OVERHEAD;

static METHOD: SSL_TICKET_AEAD_METHOD = SSL_TICKET_AEAD_METHOD {
    max_overhead: Some(max_overhead),
    seal: Some(seal),
    open: Some(open),
};

/// Handshakes that begin in this context have their tickets sealed and opened by what their [`HandshakeInfo`] says.
pub(super) fn install(context: &mut SslContextBuilder) {
    // SAFETY: the builder owns its context, and METHOD lives as long as the process.
    unsafe { SSL_CTX_set_ticket_aead_method(context.as_ptr(), &raw const METHOD) }
}

unsafe extern "C" fn max_overhead(_: *mut SSL) -> usize {
    OVERHEAD
}

/// Returns 1, or 0 if the handshake must fail.
unsafe extern "C" fn seal(
    ssl: *mut SSL,
    out: *mut u8,
    out_len: *mut usize,
    max_out_len: usize,
    session: *const u8,
    len: usize,
) -> c_int {
    // SAFETY: AWS-LC passes the handshake that it is in, and `len` octets at `session`.
    let sealed = unsafe { with(ssl, session, len, |info, session| info.seal(session)) };
    // SAFETY: AWS-LC passes room for `max_out_len` octets at `out`; the octets at `session` are not looked at any more.
    c_int::from(unsafe { put(sealed.as_deref(), out, out_len, max_out_len) })
}

/// A ticket that cannot be opened is no error: a full handshake follows.
unsafe extern "C" fn open(
    ssl: *mut SSL,
    out: *mut u8,
    out_len: *mut usize,
    max_out_len: usize,
    ticket: *const u8,
    len: usize,
) -> ssl_ticket_aead_result_t {
    // SAFETY: as in `seal`.
    let opened = unsafe { with(ssl, ticket, len, |info, ticket| info.open(ticket)) };
    let session = opened.as_ref().map(|session| session.expose().as_slice());
    // SAFETY: as in `seal`.
    match unsafe { put(session, out, out_len, max_out_len) } {
        true => OPENED,
        false => IGNORED,
    }
}

/// Does something with the octets of a handshake. No panic gets into AWS-LC.
///
/// # Safety
/// `ssl` is a handshake that lives, and `octets` are `len` readable ones.
unsafe fn with<T>(
    ssl: *mut SSL,
    octets: *const u8,
    len: usize,
    act: impl FnOnce(&HandshakeInfo, &[u8]) -> Option<T>,
) -> Option<T> {
    // SAFETY: by the caller's word; both are borrowed until this function returns.
    let (ssl, octets) = unsafe { (SslRef::from_ptr(ssl), slice(octets, len)) };
    let act = || act(ssl.ex_data(*HANDSHAKE_INFO)?, octets);
    catch_unwind(AssertUnwindSafe(act)).ok().flatten()
}

/// # Safety
/// There are `len` octets at `octets`. Without any, C may point nowhere.
unsafe fn slice<'a>(octets: *const u8, len: usize) -> &'a [u8] {
    match len {
        0 => &[],
        // SAFETY: by the caller's word.
        _ => unsafe { std::slice::from_raw_parts(octets, len) },
    }
}

/// Whether there is something, and it has found room.
///
/// # Safety
/// There is room for `most` octets at `out`, none of which is in `octets`, and for one number at `out_len`.
unsafe fn put(octets: Option<&[u8]>, out: *mut u8, out_len: *mut usize, most: usize) -> bool {
    let Some(octets) = octets.filter(|octets| octets.len() <= most) else {
        return false;
    };
    // SAFETY: by the caller's word.
    unsafe {
        std::ptr::copy_nonoverlapping(octets.as_ptr(), out, octets.len());
        *out_len = octets.len();
    }
    true
}
