//! Messages of an LDAP server, of which some tell changes (RFC 4533). It may be anybody, where TLS is off.

use mail_directory::ldap::{good_messages, said};

/// Most characters that a byte of a message becomes, escaped, with what stands around it.
const FOR_A_BYTE: usize = 32;
/// What stands around all of them.
const AROUND: usize = 1024;

/// A message is what it is, however often it is read, and nothing in it grows; one that is cut off anywhere does no harm.
pub(crate) fn check(bytes: &[u8]) {
    let found = said(bytes);
    assert_eq!(found, said(bytes));
    if let Some(text) = &found {
        assert!(
            text.len() <= bytes.len() * FOR_A_BYTE + AROUND,
            "{} of {}",
            text.len(),
            bytes.len()
        );
    }
    for cut in crate::cuts(bytes.len()) {
        let _what_is_left_may_say_less = said(&bytes[..cut]);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    passes_whole(bytes);
    passes_whole(&[&[0x30, 0x84], &length[..], bytes].concat());
}

/// What may go to the LDAP library ends where a message ends, and is judged alike without what stands behind it.
fn passes_whole(bytes: &[u8]) {
    if let Some(whole) = good_messages(bytes) {
        assert!(whole <= bytes.len(), "{whole} of {}", bytes.len());
        assert_eq!(good_messages(&bytes[..whole]), Some(whole));
    }
}
