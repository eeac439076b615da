//! What a login needs leave for: the throttle before a server is asked, a place among the sessions behind it.

use std::net::IpAddr;
use std::time::Duration;

use route_cache::{Lookup, Subject};
use tokio::time::timeout;

use super::{Taken, Tries};
use crate::credentials::{Credentials, without_suffix};
use crate::environment::NewSession;
use crate::login_failure::LoginFailure;
use crate::machine::IdFields;
use crate::throttle::{Claim, LoginChannel, PasswordMark, Ticket};

/// How long the account of the name that authenticates may be looked for. While the directory is down, spellings count
/// apart.
const NAME: Duration = Duration::from_millis(500);

impl Tries {
    /// Waits until the throttle lets the attempt through. A name without account is treated like any other.
    pub(super) async fn admitted(
        &mut self,
        credentials: &Credentials,
        lookup: &Lookup,
        id: &IdFields,
    ) -> Result<Ticket, LoginFailure> {
        let throttle = self.env.throttle.clone();
        let guessed = match (&credentials.authenticating_as, &self.record.account) {
            // It is this one's password, however the name is written.
            (Some(authcid), _) => {
                let subject = Subject::Login(without_suffix(authcid).to_owned());
                let lookup = Lookup {
                    subject,
                    ..lookup.clone()
                };
                self.account_of(&lookup).await
            }
            (None, Some(account)) => account.clone(),
            (None, None) => self.env.routes.key_name(lookup),
        };
        let claim = Claim {
            account: &guessed,
            client: self.facts.connection.client.addr.ip(),
            password: credentials.proof.secret().map(PasswordMark::of),
            channel: LoginChannel {
                protocol: self.facts.protocol.proto().name(),
                tls: self.facts.connection.tls.is_some(),
                device: &device(id),
                token: credentials.mechanism.is_token(),
            },
        };
        match throttle.admit(&claim).await {
            Ok(admitted) => {
                self.course.send_modify(|course| course.held = admitted.held);
                self.record.note_admitted(&admitted);
                Ok(admitted.ticket)
            }
            Err(throttled) => {
                self.record.note(&throttled.finding, Duration::ZERO);
                Err(LoginFailure::Throttled(throttled))
            }
        }
    }

    /// The account of a name, or the name that no account has.
    async fn account_of(&mut self, lookup: &Lookup) -> String {
        match timeout(NAME, self.env.routes.route(lookup)).await {
            Ok(Ok(route)) => route.account.to_string(),
            Ok(Err(_)) | Err(_) => self.env.routes.key_name(lookup),
        }
    }

    /// Takes a place among the sessions that there may be. Only a client with the right password learns that there is
    /// none.
    pub(super) fn enter(&mut self, login: Taken) -> Result<Taken, LoginFailure> {
        let (account, route) = (self.record.account.as_deref(), self.record.route.as_deref());
        let session = NewSession {
            account: account.unwrap_or_default(),
            client: unmapped(self.facts.connection.client.addr.ip()),
            server: route
                .and_then(|route| Some(route.rsplit_once(':')?.0))
                .unwrap_or_default(),
            protocol: self.facts.protocol,
            max: self
                .env
                .routes
                .max_sessions(account.unwrap_or_default(), self.max_sessions, &self.server),
        };
        let place = self.env.limits.enter(&session);
        self.place = Some(place.map_err(LoginFailure::TooManySessions)?);
        Ok(login)
    }
}

/// An IPv4 client on a dual-stack listener is an IPv4 client.
fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// What the client has said that it is.
fn device(id: &IdFields) -> String {
    let said = [&id.name, &id.version].into_iter().flatten();
    said.map(String::as_str).collect::<Vec<_>>().join("/")
}
