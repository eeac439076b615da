//! The TLS contexts of one certificate: one for each profile and set of rules for client certificates, made when first
//! asked for.
//!
//! Certificate, chain, key and authorities are put into a context once and not into each handshake. What is in a context
//! is not known here.

use std::collections::HashSet;
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::ssl::SslContext;
use parking_lot::Mutex;

use crate::tls::client_certs::PolicyId;
use crate::tls::profile::Profile;

/// Most contexts of one certificate. A domain needs one or two; the default certificate needs one for each set of rules
/// among the domains without a certificate. The oldest makes room: it can be made again in some 20 microseconds.
const CONTEXTS_MAX: usize = 64;

/// The contexts of a certificate. They live as long as it.
#[derive(Default)]
pub(crate) struct Contexts(Mutex<Vec<CertContext>>);

struct CertContext {
    profile: Arc<Profile>,
    rules: PolicyId,
    context: SslContext,
}

impl Contexts {
    /// The context for this profile and these rules. Others that ask at the same time wait until `make` has made it.
    ///
    /// # Errors
    /// Those of `make`; the next call tries again.
    pub(crate) fn get(
        &self,
        profile: &Arc<Profile>,
        rules: PolicyId,
        make: impl FnOnce() -> Result<SslContext, ErrorStack>,
    ) -> Result<SslContext, ErrorStack> {
        let mut all = self.0.lock();
        if let Some(kept) = all.iter().find(|kept| kept.rules == rules && kept.profile == *profile) {
            return Ok(kept.context.clone());
        }
        let context = make()?;
        if all.len() >= CONTEXTS_MAX {
            all.remove(0);
        }
        all.push(CertContext {
            profile: profile.clone(),
            rules,
            context: context.clone(),
        });
        Ok(context)
    }

    /// Throws those away whose rules are not in force any more: with them go lists of revoked certificates, which are large.
    pub(super) fn keep(&self, rules: &HashSet<PolicyId>) {
        self.0.lock().retain(|kept| rules.contains(&kept.rules));
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }
}
