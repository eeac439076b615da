//! Attempts that wait: for the delay that a rule demands, or for their turn. No server connection is held meanwhile, and
//! there are never more than the settings allow.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::origin::ClientNetworks;
use super::policy::{PolicyAnswer, PolicyEnd, PolicyLogin};
use super::{Action, Answered, Claim, Finding, Judgement, Rule, Throttle, Ticket};

/// One of so many that wait may be of one address.
const SHARE_OF_ADDRESS: usize = 10;

/// An attempt that may ask the server.
#[derive(Debug)]
pub struct Admitted {
    /// What its answer is told with.
    pub ticket: Ticket,
    /// How long it was held.
    pub held: Duration,
    /// Why it was held, or what a rule in dry run would have done.
    pub finding: Option<Finding>,
    /// The finding is that of a rule in dry run.
    pub dry_run: bool,
}

/// An attempt that may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttled {
    /// Why.
    pub finding: Finding,
    /// What its client is told.
    pub message: String,
}

/// How many wait, in all and of each address.
#[derive(Default)]
pub(super) struct WaitingRoom(Mutex<HashMap<IpAddr, usize>>);

impl WaitingRoom {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// A place to wait in, of at most `most`.
    fn enter(&self, address: IpAddr, most: usize) -> Option<Place<'_>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = waiting.values().sum();
        let own = waiting.get(&address).copied().unwrap_or(0);
        if all >= most || own >= most.div_ceil(SHARE_OF_ADDRESS) {
            return None;
        }
        waiting.insert(address, own + 1);
        Some(Place { waiting: self, address })
    }
}

/// Counts until it is dropped.
struct Place<'a> {
    waiting: &'a WaitingRoom,
    address: IpAddr,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.address);
            }
        }
    }
}

impl Throttle {
    /// Lets an attempt through, at once or after it has waited.
    ///
    /// # Errors
    /// A rule refuses it, or too many wait already.
    pub async fn admit(&self, claim: &Claim<'_>) -> Result<Admitted, Throttled> {
        self.admit_told(claim, None).await
    }

    /// The same where another service has been asked about the attempt already.
    ///
    /// # Errors
    /// A rule refuses it, or too many wait already.
    pub async fn admit_told(&self, claim: &Claim<'_>, said: Option<PolicyAnswer>) -> Result<Admitted, Throttled> {
        let begun = Instant::now();
        let (mut place, mut held, mut waited_for) = (None, Duration::ZERO, None);
        loop {
            let (time, finding) = match self.ask(claim, held, self.now()) {
                Judgement::Pass(ticket, would) => {
                    let admitted = Admitted {
                        ticket,
                        held,
                        finding: waited_for.or(would),
                        dry_run: waited_for.is_none() && would.is_some(),
                    };
                    return self.consult(claim, admitted, true, said).await;
                }
                Judgement::Refuse(finding) => return Err(self.throttled(finding)),
                Judgement::Wait(time, finding) => (time, finding),
            };
            if place.is_none() {
                place = self.place_of(claim.client);
            }
            if place.is_none() {
                return Err(self.throttled(finding));
            }
            waited_for = Some(finding);
            tokio::time::sleep(time).await;
            // A clock that has not moved must not make it ask for ever.
            held = begun.elapsed().max(held + Duration::from_millis(1));
        }
    }

    /// The same for an attempt that cannot wait: one that would have to is refused.
    ///
    /// # Errors
    /// A rule delays or refuses it.
    pub async fn admit_now(&self, claim: &Claim<'_>) -> Result<Admitted, Throttled> {
        match self.ask(claim, Duration::ZERO, self.now()) {
            Judgement::Pass(ticket, would) => {
                let admitted = Admitted {
                    ticket,
                    held: Duration::ZERO,
                    finding: would,
                    dry_run: would.is_some(),
                };
                self.consult(claim, admitted, false, None).await
            }
            Judgement::Refuse(finding) | Judgement::Wait(_, finding) => Err(self.throttled(finding)),
        }
    }

    /// Lets an attempt through that nothing holds up. Any other leaves no trace: it is to be
    /// [admitted](Throttle::admit_told) elsewhere.
    ///
    /// # Errors
    /// Something would hold it up; with what another service has said, if it was asked.
    pub async fn admit_early(&self, claim: &Claim<'_>) -> Result<Admitted, Option<PolicyAnswer>> {
        let now = self.now();
        if self.explain(claim.account, claim.client, now).finding.is_some() {
            return Err(None);
        }
        let Judgement::Pass(ticket, would) = self.ask(claim, Duration::ZERO, now) else {
            return Err(None);
        };
        let mut admitted = Admitted {
            ticket,
            held: Duration::ZERO,
            finding: would,
            dry_run: would.is_some(),
        };
        let Some(policy) = self.policy().filter(|_| !admitted.ticket.allowed) else {
            return Ok(admitted);
        };
        let login = Box::new(PolicyLogin::of(claim));
        let answer = policy.allow(&login).await;
        let finding = answer.finding(self.settings().max_delay);
        if finding.is_some() && !policy.is_dry() {
            self.answered(admitted.ticket, Answered::Unknown, self.now());
            return Err(Some(answer));
        }
        admitted.dry_run |= finding.is_some();
        admitted.finding = admitted.finding.or(finding);
        admitted.ticket.policy = Some(login);
        Ok(admitted)
    }

    /// Takes back that an attempt has passed: no server was asked, and it will be admitted again. Returns what another
    /// service has said of it, if it was asked.
    pub fn withdraw(&self, mut admitted: Admitted) -> Option<PolicyAnswer> {
        let was_asked = admitted.ticket.policy.take().is_some();
        self.answered(admitted.ticket, Answered::Unknown, self.now());
        was_asked.then(
            || match admitted.finding.filter(|finding| finding.rule == Rule::Policy) {
                None => PolicyAnswer::Pass,
                Some(finding) => match finding.action {
                    Action::Delay(time) => PolicyAnswer::Delay(time),
                    _ => PolicyAnswer::Refuse,
                },
            },
        )
    }

    /// Asks another service about an attempt that the rules let through, if there is one. Clients that are always let
    /// through are not asked about.
    async fn consult(
        &self,
        claim: &Claim<'_>,
        mut admitted: Admitted,
        may_wait: bool,
        said: Option<PolicyAnswer>,
    ) -> Result<Admitted, Throttled> {
        let Some(policy) = self.policy().filter(|_| !admitted.ticket.allowed) else {
            return Ok(admitted);
        };
        let login = Box::new(PolicyLogin::of(claim));
        let answer = match said {
            Some(answer) => answer,
            None => policy.allow(&login).await,
        };
        admitted.ticket.policy = Some(login.clone());
        let Some(finding) = answer.finding(self.settings().max_delay) else {
            return Ok(admitted);
        };
        if policy.is_dry() {
            admitted.dry_run |= admitted.finding.is_none();
            admitted.finding = admitted.finding.or(Some(finding));
            return Ok(admitted);
        }
        if let Action::Delay(time) = finding.action
            && may_wait
            && let Some(_place) = self.place_of(claim.client)
        {
            tokio::time::sleep(time).await;
            admitted.held += time;
            (admitted.finding, admitted.dry_run) = (Some(finding), false);
            return Ok(admitted);
        }
        // Nobody is asked, so it says nothing of the password.
        admitted.ticket.policy = None;
        self.answered(admitted.ticket, Answered::Unknown, self.now());
        policy.report(&login, PolicyEnd::Refused);
        Err(self.throttled(finding))
    }

    /// A place to wait in, if there is one left.
    fn place_of(&self, client: IpAddr) -> Option<Place<'_>> {
        let address = ClientNetworks::of(client).address;
        self.waiting.enter(address, self.settings().max_waiting)
    }

    fn throttled(&self, finding: Finding) -> Throttled {
        Throttled {
            finding,
            message: self.settings().message(finding.rule).to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_of_those_that_wait() {
        let waiting = WaitingRoom::default();
        let from = |last| waiting.enter(IpAddr::from([192, 0, 2, last]), 20);
        let of_one: Vec<_> = (0..3).map(|_| from(1)).collect();
        assert!(of_one[1].is_some() && of_one[2].is_none());
        let of_others: Vec<_> = (2..12).map(from).chain((2..12).map(from)).collect();
        assert_eq!(of_others.iter().flatten().count(), 18);
        assert_eq!(waiting.count(), 20);
        drop((of_one, of_others));
        assert_eq!(waiting.count(), 0);
        assert!(waiting.0.lock().unwrap().is_empty());
    }
}
