//! Logins by certificate are asked of the source of routes. Nothing is kept of them.

use super::RouteCache;
use crate::lookup::certauth::{CertLogin, CertLoginError, NodeLogin, Token};
use crate::source::Source;

impl RouteCache {
    /// Asks a lookup service which account this certificate belongs to. Nothing is kept of the answer.
    ///
    /// # Errors
    /// The certificate belongs to no account, or it cannot be known.
    pub async fn cert_login(&self, question: &CertLogin<'_>, asks: &NodeLogin) -> Result<Token, CertLoginError> {
        match &self.source {
            Source::Services(services) => services.cert_login(question, asks).await,
            Source::Directory(_) => Err(CertLoginError::NoService),
        }
    }
}
