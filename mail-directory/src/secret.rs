//! A value that is never shown: no `Debug` of its content, no `Display`, wiped when dropped.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

/// A secret, such as a password. It can be read only through [`Secret::expose`], which is easy to find.
#[derive(Clone, Default)]
pub struct Secret<T: Zeroize>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Wraps `value`.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The secret itself. Only an encoder that writes it to the mailbox server has a reason to call this.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
