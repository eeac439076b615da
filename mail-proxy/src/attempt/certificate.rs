//! Logins by a certificate: whose it is, and as whom a mailbox server is told it.

use route_cache::{Blocker, Route, RouteError};

use super::Tries;
use super::routes::no_route;
use crate::credentials::{Credentials, Proof};
use crate::login_failure::LoginFailure;

/// Why a good certificate is no login.
const NO_ACCOUNT: &str = "no name in the certificate is that of an account";

/// Why a client with a certificate is not logged in at an external server.
const FOREIGN: &str = "an external server has no master user of ours";

impl Tries {
    /// The credentials of a client with a certificate, under the name of the account: the first of the certificate's names
    /// that the directory knows. A name that the client gives must be that of the same account.
    pub(super) async fn named(&mut self, credentials: &Credentials) -> Result<Credentials, LoginFailure> {
        let certificate = self
            .facts
            .connection
            .tls
            .as_ref()
            .and_then(|tls| tls.certificate.clone());
        let certificate = certificate.ok_or(LoginFailure::BadCredentials)?;
        self.record.authcid = Some(certificate.subject.clone());
        let mut own = None;
        for name in &certificate.accounts {
            let named = Credentials::by(credentials.mechanism, name.as_bytes(), Proof::Certificate);
            let Ok(named) = named else { continue };
            match self.env.routes.route(&self.facts.lookup(&named)).await {
                Ok(route) => {
                    own = Some((named, route.account));
                    break;
                }
                Err(RouteError::UnknownUser) => {}
                Err(error) => {
                    self.record.user = Some(named.user);
                    return Err(no_route(error));
                }
            }
        }
        let Some((own, account)) = own else {
            return Err(LoginFailure::NotOfCertificate(NO_ACCOUNT.to_owned()));
        };
        let named = match credentials.user.is_empty() {
            true => own,
            false => match self.env.routes.route(&self.facts.lookup(credentials)).await {
                Ok(route) if route.account == account => credentials.clone(),
                Ok(_) | Err(RouteError::UnknownUser) => return Err(not_of(&account)),
                Err(error) => return Err(no_route(error)),
            },
        };
        self.record.user = Some(named.user.clone());
        self.may_log_in(&account).await?;
        self.certified = Some(account);
        Ok(named)
    }

    /// Whether the directory lets the account log in. A mailbox server need not ask that for a master user; whoever has a
    /// password is asked about by it.
    async fn may_log_in(&mut self, account: &str) -> Result<(), LoginFailure> {
        let blockers = self.env.routes.account_blockers(account, self.facts.protocol.service());
        let text = self.env.settings.hold_text.clone();
        match blockers.await.map_err(no_route)?.into_iter().next() {
            None => Ok(()),
            Some(Blocker::Status(status)) => {
                let why = format!("zimbraAccountStatus is {status}");
                Err(match status == "maintenance" {
                    true => LoginFailure::Held { text, why },
                    false => LoginFailure::NotOfCertificate(why),
                })
            }
            Some(Blocker::ServiceDisabled(flag)) => Err(LoginFailure::NotOfCertificate(format!("{flag} is FALSE"))),
            Some(other) => Err(LoginFailure::NotOfCertificate(other.to_string())),
        }
    }

    /// What a mailbox server is told of a client that has shown a certificate. No server of others learns the master's
    /// password.
    pub(super) fn by_master(&self, route: &Route, credentials: &Credentials) -> Result<Credentials, LoginFailure> {
        let master = self.env.settings.master.as_ref().filter(|_| !route.external);
        let master = master.ok_or_else(|| LoginFailure::NoRoute(FOREIGN.to_owned()))?;
        Ok(credentials.by_master(master))
    }
}

/// Why a client with a certificate is not let into another mailbox.
pub(super) fn not_of(account: &str) -> LoginFailure {
    LoginFailure::NotOfCertificate(format!("the certificate is that of {account}"))
}
