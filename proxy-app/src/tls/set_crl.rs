//! Gives a store of authorities a list of what they have taken back.
//!
//! The crate `openssl` has no function for it with AWS-LC, so this file calls that one's own, which needs `unsafe`
//! (docs/adr/0034-revocation-lists.md). It holds nothing else.
#![allow(unsafe_code)]

use foreign_types::ForeignTypeRef;
use openssl::error::ErrorStack;
use openssl::x509::X509CrlRef;
use openssl::x509::store::X509StoreBuilderRef;
use openssl_sys::X509_STORE_add_crl;

/// Has a store look into this list, too, which it keeps as long as it lives itself.
///
/// # Errors
/// The TLS library has no memory.
pub(super) fn add(store: &mut X509StoreBuilderRef, list: &X509CrlRef) -> Result<(), ErrorStack> {
    // SAFETY: both live through the call. The store takes a count of its own on the list, which nothing changes.
    match unsafe { X509_STORE_add_crl(store.as_ptr(), list.as_ptr()) } {
        1 => Ok(()),
        _ => Err(ErrorStack::get()),
    }
}
