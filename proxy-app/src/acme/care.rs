//! When a certificate is due, and what is remembered of failures: names fail alone, and each waits longer with each
//! failure.
//!
//! Pure: times are seconds since 1970 that the caller brings, and nothing is asked or stored here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;

use crate::acme::renewal_info::{RenewalAdvice, UNSAID};

/// The first pause after a refused name, and the longest one. Let's Encrypt allows five failures of a name in an hour.
const NAME_PAUSE: [i64; 2] = [15 * 60, 24 * 60 * 60];
/// The same where the failure is one of our own: of a name server that does not answer, for example.
const OWN_PAUSE: [i64; 2] = [60, 30 * 60];
/// The same of an order that failed for another reason.
const ORDER_PAUSE: [i64; 2] = [5 * 60, 12 * 60 * 60];
/// The same of an authority that does not work.
const AUTHORITY_PAUSE: [i64; 2] = [5, 60 * 60];
/// Renewal begins when this part of a certificate's life is left.
const RENEWED: i64 = 3;
/// Until this part of its life is left, the authority may put a renewal off. Then there is time for some tries with all
/// of its names.
const PUT_OFF: i64 = 4;
/// Until this part of its life is left, a renewal does not leave out a name that the certificate has.
const NAMES_KEPT: i64 = 6;
/// A certificate is renewed because the authority wants it once a day at most, and not on its first day: the authority may
/// want it of each.
const ADVISED_PAUSE: i64 = 24 * 60 * 60;

/// How long a node may take to see what another one has stored, in seconds: some of its looks at the directory.
const UNSEEN: i64 = 120;

/// When the authority is asked about a certificate about which it was never asked: before all others.
const NEVER: i64 = i64::MIN;

/// What failed, and when it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setback {
    /// How often in a row.
    pub count: u32,
    /// When it is tried again.
    pub until: i64,
    /// Why it failed.
    pub why: String,
    /// Of what it is a fault.
    pub fault: Fault,
}

/// What is remembered of a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DomainCare {
    /// Its last order has failed.
    pub order: Option<Setback>,
    /// Its names that were refused.
    pub names: BTreeMap<String, Setback>,
    /// Its names that are not asked for, each with the reason.
    pub barred: BTreeMap<String, String>,
    /// When its certificate is renewed.
    pub renews: Option<i64>,
    /// What the authority has said about its certificate.
    advice: Option<KnownAdvice>,
    /// Whether the order that is due is one that the authority wants.
    is_advised: bool,
    /// When a certificate was last got because the authority wanted it.
    followed: Option<i64>,
    /// When a certificate was last got.
    got: Option<i64>,
    /// An administrator wants an order, and it has not ended.
    urge: Option<OrderUrge>,
}

/// What an administrator wants at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderUrge {
    /// What is due, without a pause.
    Request,
    /// A new certificate, although the one in use is good.
    Renew,
}

/// What an authority has said about a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownAdvice {
    /// Of the certificate.
    id: String,
    /// When it wants it renewed, if it says so.
    window: Option<[i64; 2]>,
    /// When it is asked again.
    ask_at: i64,
}

/// A certificate in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CurrentCertificate {
    /// Whether this client has got it.
    pub is_ours: bool,
    /// When it expires.
    pub expires: i64,
    /// How long it is good for in all, in seconds.
    pub lifetime: i64,
    /// Those of the wanted names that it is good for.
    pub covers: HashSet<String>,
    /// By what the authority knows it (RFC 9773 §4.1).
    pub id: Option<String>,
    /// Any number that stays with it: nodes and restarts agree when it is renewed, and not all are at once.
    pub spread: u8,
}

/// A domain that is to have certificates of this client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WantedDomain {
    /// Its name.
    pub name: String,
    /// The names to ask for.
    pub hosts: Vec<String>,
    /// Those that cannot be asked for, each with the reason.
    pub barred: BTreeMap<String, String>,
    /// The certificate that it has.
    pub current: Option<CurrentCertificate>,
}

/// An order to make now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DueOrder {
    /// The domain.
    pub domain: String,
    /// The names to ask for.
    pub names: Vec<String>,
    /// Names that must be in it: the certificate in use is good for them, and for long enough.
    pub kept: HashSet<String>,
    /// Names that the certificate in use is good for.
    pub covered: HashSet<String>,
    /// Whether the certificate in use must be renewed, or there is none.
    pub is_renewal: bool,
    /// The certificate in use, if the authority knows it (RFC 9773 §5).
    pub replaces: Option<String>,
}

/// Of what a failure is a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Of a name, or of those who serve it.
    OfName,
    /// Something that all names need does not work here.
    Ours,
}

/// A name for which there is no certificate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RefusedName {
    /// In lower case.
    pub name: String,
    /// The reason.
    pub why: String,
    /// The pause that the authority asks for.
    pub wait: Option<Duration>,
    /// Of what that is a fault.
    pub fault: Fault,
}

/// What is remembered of all domains.
#[derive(Default)]
pub(crate) struct CertificateCare(Mutex<CareState>);

#[derive(Default)]
struct CareState {
    authority: Option<Setback>,
    domains: HashMap<String, DomainCare>,
}

impl CurrentCertificate {
    /// A third of its life before the end, and up to a fifteenth of its life later or earlier.
    pub(crate) fn renews(&self) -> i64 {
        let jitter = self.lifetime * (i64::from(self.spread) - 128) / (128 * 15);
        self.expires - self.lifetime / RENEWED + jitter
    }

    /// A moment of this window that stays with it, but not one near its end.
    fn renews_within(&self, [start, end]: [i64; 2]) -> i64 {
        let at = start + (end - start) / i64::from(u8::MAX) * i64::from(self.spread);
        at.min(self.latest())
    }

    /// When a renewal must not be put off any longer.
    fn latest(&self) -> i64 {
        self.expires - self.lifetime / PUT_OFF
    }

    /// Whether it is worth being stored in place of the one in use. One that is due at once, and good for no longer, would
    /// be followed by the next.
    pub(crate) fn gains_on(&self, in_use: Option<&Self>, now: i64) -> bool {
        self.renews() > now || in_use.is_none_or(|in_use| in_use.expires < self.expires)
    }

    /// Names that a renewal at this time may not leave out.
    fn kept(&self, now: i64) -> HashSet<String> {
        match now < self.expires - self.lifetime / NAMES_KEPT {
            true => self.covers.clone(),
            false => HashSet::new(),
        }
    }
}

impl DueOrder {
    /// Whether a certificate for these of its names is worth an order: one for names that have a good certificate would
    /// be a new one at each try of a bad name.
    pub(crate) fn is_due_for(&self, names: &[String]) -> bool {
        let has_kept = self.kept.iter().all(|name| names.contains(name));
        let is_new = self.is_renewal || names.iter().any(|name| !self.covered.contains(name));
        !names.is_empty() && has_kept && is_new
    }
}

impl Setback {
    /// One failure more, with the pause that the authority asks for, or else one of its own: twice as long each time, up
    /// to the longest, and by up to a quarter shorter or longer.
    fn after(previous: Option<&Self>, pause: [i64; 2], asked: Option<Duration>, now: i64, why: String) -> Self {
        let count = previous.map_or(0, |previous| previous.count).saturating_add(1);
        let [first, longest] = pause;
        let own = first.saturating_mul(1 << count.saturating_sub(1).min(20)).min(longest);
        let own = (own as f64 * (0.75 + rand::random::<f64>() / 2.0)).ceil() as i64;
        let asked = asked.map_or(0, |asked| i64::try_from(asked.as_secs()).unwrap_or(i64::MAX));
        Self {
            count,
            until: now.saturating_add(own.max(asked)),
            why,
            fault: Fault::OfName,
        }
    }
}

impl DomainCare {
    /// The order that is due for this domain now, if one is; else when there will be one.
    fn due(&mut self, domain: &WantedDomain, now: i64) -> Result<DueOrder, i64> {
        let current = domain
            .current
            .as_ref()
            .filter(|current| current.is_ours || current.expires > now);
        let renews = match current {
            // It is good, and was put there by someone else.
            Some(current) if !current.is_ours => return Err(current.expires),
            Some(_) if self.urge == Some(OrderUrge::Renew) => now,
            Some(current) => self.renews_at(current),
            None => now,
        };
        self.is_advised = current.is_some_and(|current| renews <= now && now < current.renews());
        let is_open = |name: &&String| self.names.get(*name).is_none_or(|setback| setback.until <= now);
        let names: Vec<String> = domain.hosts.iter().filter(is_open).cloned().collect();
        let order = DueOrder {
            domain: domain.name.clone(),
            kept: current.map(|current| self.kept(current, now)).unwrap_or_default(),
            covered: current.map(|current| current.covers.clone()).unwrap_or_default(),
            is_renewal: renews <= now,
            replaces: current.and_then(|current| self.known_to_authority(current)),
            names,
        };
        let is_due = order.is_due_for(&order.names);
        match self.order.as_ref().filter(|setback| setback.until > now) {
            Some(setback) if is_due => return Err(setback.until),
            None if is_due => return Ok(order),
            _ => {}
        }
        let waits = self.names.values().map(|setback| setback.until);
        let order = self.order.iter().map(|setback| setback.until);
        let later = waits
            .chain(order)
            .chain(Some(renews))
            .filter(|later| *later > now)
            .min();
        Err(later.unwrap_or(i64::MAX))
    }
}

impl DomainCare {
    /// When this certificate of the domain is renewed: as the authority says, or else by its life.
    fn renews_at(&self, current: &CurrentCertificate) -> i64 {
        let Some(window) = self.advice_on(current).and_then(|advice| advice.window) else {
            return current.renews();
        };
        // What was done before the process began is not known, but that a certificate is new.
        let begins = current.expires - current.lifetime;
        let rest = self.followed.map_or(begins, |at| at.max(begins)) + ADVISED_PAUSE;
        current.renews_within(window).max(rest).min(current.latest())
    }

    /// Names that a renewal at this time may not leave out. Once the authority's time is over, it may take the certificate
    /// back: one name that has gone must not keep all others from a new one.
    fn kept(&self, current: &CurrentCertificate, now: i64) -> HashSet<String> {
        let window = self.advice_on(current).and_then(|advice| advice.window);
        match window.is_some_and(|[_, end]| end <= now) {
            true => HashSet::new(),
            false => current.kept(now),
        }
    }

    fn advice_on(&self, current: &CurrentCertificate) -> Option<&KnownAdvice> {
        let advice = self.advice.as_ref();
        advice.filter(|advice| current.id.as_ref() == Some(&advice.id))
    }

    /// When the authority is asked about this certificate.
    fn ask_at(&self, current: &CurrentCertificate) -> i64 {
        self.advice_on(current).map_or(NEVER, |advice| advice.ask_at)
    }

    fn known_to_authority(&self, current: &CurrentCertificate) -> Option<String> {
        let advice = self.advice_on(current).filter(|advice| advice.window.is_some());
        advice.map(|advice| advice.id.clone())
    }
}

impl CertificateCare {
    /// The certificates about which the authority is to be asked now, those first that have waited longest, and at most so
    /// many: their domains and ids.
    pub(crate) fn unadvised(&self, wanted: &[WantedDomain], most: usize, now: i64) -> Vec<(String, String)> {
        let state = self.0.lock();
        let unadvised = wanted.iter().filter_map(|domain| {
            let current = domain.current.as_ref().filter(|current| current.is_ours)?;
            let ask_at = state
                .domains
                .get(&domain.name)
                .map_or(NEVER, |care| care.ask_at(current));
            (ask_at <= now).then_some((ask_at, (domain.name.clone(), current.id.clone()?)))
        });
        let mut unadvised: Vec<_> = unadvised.collect();
        // Of those that have waited as long, in the order of their names.
        unadvised.sort_by_key(|(ask_at, _)| *ask_at);
        unadvised.into_iter().map(|(_, about)| about).take(most).collect()
    }

    /// Remembers what the authority has said about the certificate with this id; `None`: nothing, and what it said before
    /// holds. Returns whether people should know: it has said something else before, or wants it renewed now.
    pub(crate) fn advised(&self, domain: &str, id: &str, advice: Option<&RenewalAdvice>, now: i64) -> bool {
        let mut state = self.0.lock();
        let known = &mut state.domains.entry(domain.to_owned()).or_default().advice;
        let before = known
            .take()
            .filter(|known| known.id == id)
            .and_then(|known| known.window);
        let window = advice.map(|advice| advice.window).or(before);
        let pause = advice.map_or(UNSAID, |advice| advice.pause).as_secs();
        *known = Some(KnownAdvice {
            id: id.to_owned(),
            window,
            ask_at: now.saturating_add(i64::try_from(pause).unwrap_or(i64::MAX)),
        });
        window != before && (before.is_some() || window.is_some_and(|[start, _]| start <= now))
    }

    /// The orders to make now, and when to look again.
    pub(crate) fn due(&self, wanted: &[WantedDomain], now: i64) -> (Vec<DueOrder>, i64) {
        let mut state = self.0.lock();
        let mut previous = std::mem::take(&mut state.domains);
        let (mut orders, mut next) = (Vec::new(), i64::MAX);
        for domain in wanted {
            let mut care = previous.remove(&domain.name).unwrap_or_default();
            care.names.retain(|name, _| domain.hosts.contains(name));
            care.barred.clone_from(&domain.barred);
            let ours = domain.current.as_ref().filter(|current| current.is_ours);
            care.renews = ours.map(|ours| care.renews_at(ours));
            if let Some(ours) = ours.filter(|ours| ours.id.is_some()) {
                next = next.min(care.ask_at(ours));
            }
            match care.due(domain, now) {
                Ok(order) if care.urge.is_some() => orders.insert(0, order),
                Ok(order) => orders.push(order),
                Err(later) => {
                    care.urge = None;
                    next = next.min(later);
                    // What it was for has come about otherwise, or is no longer wanted.
                    care.order = care.order.filter(|setback| setback.until > now);
                }
            }
            state.domains.insert(domain.name.clone(), care);
        }
        match state.authority.as_ref().filter(|setback| setback.until > now) {
            Some(setback) => {
                let until = setback.until;
                state.domains.values_mut().for_each(|care| care.urge = None);
                (Vec::new(), until)
            }
            None => (orders, next),
        }
    }

    /// The authority has failed. Returns when it is asked again, unless that was known: orders are under way beside each
    /// other, and fail together.
    pub(crate) fn authority_failed(&self, why: &str, asked: Option<Duration>, now: i64) -> Option<i64> {
        let mut state = self.0.lock();
        if state.authority.as_ref().is_some_and(|setback| setback.until > now) {
            return None;
        }
        let setback = Setback::after(state.authority.as_ref(), AUTHORITY_PAUSE, asked, now, why.to_owned());
        Some(state.authority.insert(setback).until)
    }

    /// Whether the authority is not asked now.
    pub(crate) fn authority_rests(&self, now: i64) -> bool {
        let state = self.0.lock();
        state.authority.as_ref().is_some_and(|setback| setback.until > now)
    }

    /// The authority answers.
    pub(crate) fn authority_answers(&self) {
        self.0.lock().authority = None;
    }

    /// A name was refused. Returns when it is tried again.
    pub(crate) fn name_failed(&self, domain: &str, refused: &RefusedName, now: i64) -> i64 {
        let RefusedName { name, why, wait, fault } = refused;
        let mut state = self.0.lock();
        let names = &mut state.domains.entry(domain.to_owned()).or_default().names;
        let fault = *fault;
        let pause = match fault {
            Fault::OfName => NAME_PAUSE,
            Fault::Ours => OWN_PAUSE,
        };
        // Of what was another's fault nothing is counted.
        let previous = names.get(name).filter(|previous| previous.fault == fault);
        let setback = Setback {
            fault,
            ..Setback::after(previous, pause, *wait, now, why.clone())
        };
        let until = setback.until;
        names.insert(name.clone(), setback);
        until
    }

    /// The order of a domain has failed. Returns when there is another one.
    pub(crate) fn order_failed(&self, domain: &str, why: &str, asked: Option<Duration>, now: i64) -> i64 {
        let mut state = self.0.lock();
        let order = &mut state.domains.entry(domain.to_owned()).or_default().order;
        let setback = Setback::after(order.as_ref(), ORDER_PAUSE, asked, now, why.to_owned());
        order.insert(setback).until
    }

    /// A domain has got a certificate for these names.
    pub(crate) fn succeeded(&self, domain: &str, names: &[String], now: i64) {
        if let Some(care) = self.0.lock().domains.get_mut(domain) {
            care.order = None;
            care.got = Some(now);
            if std::mem::take(&mut care.is_advised) {
                care.followed = Some(now);
            }
            care.names.retain(|name, _| !names.contains(name));
        }
    }

    /// An administrator wants an order for this domain: no pause holds it up any more. How often it has failed is kept for
    /// the next pause.
    pub(crate) fn urge(&self, domain: &str, urge: OrderUrge, now: i64) {
        let mut state = self.0.lock();
        let care = state.domains.entry(domain.to_owned()).or_default();
        care.urge = Some(urge);
        let pauses = care.names.values_mut().chain(&mut care.order);
        pauses.for_each(|setback| setback.until = setback.until.min(now));
        if let Some(setback) = &mut state.authority {
            setback.until = setback.until.min(now);
        }
    }

    /// The order of a domain has ended, in one way or another. Returns whether an administrator waits for that.
    pub(crate) fn urge_ended(&self, domain: &str) -> bool {
        let mut state = self.0.lock();
        let care = state.domains.get_mut(domain);
        care.is_some_and(|care| care.urge.take().is_some())
    }

    /// Whether an order that an administrator wants has not ended.
    pub(crate) fn is_urged(&self, domain: &str) -> bool {
        let state = self.0.lock();
        state.domains.get(domain).is_some_and(|care| care.urge.is_some())
    }

    /// The domains for which there is no order until some time, each with when and why, for a node that orders after this
    /// one. It tries all names of a domain again when the first of them is due. One that has just got its certificate is
    /// among them: that node may not see it yet.
    pub(crate) fn pauses(&self, now: i64) -> Vec<(String, Setback)> {
        let state = self.0.lock();
        let mut pauses: Vec<(String, Setback)> = Vec::new();
        for (domain, care) in &state.domains {
            let failed = care.names.values().chain(&care.order);
            let failed = failed.filter(|setback| setback.until > now);
            let first = failed
                .min_by_key(|setback| setback.until)
                .cloned()
                .map(|setback| match setback.fault {
                    Fault::OfName => setback,
                    // The next node counts its own.
                    Fault::Ours => Setback { count: 0, ..setback },
                });
            let got = care.got.map(|got| Setback {
                count: 0,
                until: got.saturating_add(UNSEEN),
                why: "it has just got a certificate".to_owned(),
                fault: Fault::Ours,
            });
            let got = got.filter(|got| got.until > now);
            pauses.extend(first.or(got).map(|setback| (domain.clone(), setback)));
        }
        pauses.sort_by(|(one, _), (other, _)| one.cmp(other));
        pauses
    }

    /// Takes over a pause of a node that ordered before, for a domain, or `None`: for the authority.
    pub(crate) fn take_pause(&self, domain: Option<&str>, pause: Setback) {
        let mut state = self.0.lock();
        let own = match domain {
            Some(domain) => &mut state.domains.entry(domain.to_owned()).or_default().order,
            None => &mut state.authority,
        };
        if own.as_ref().is_none_or(|own| own.until < pause.until) {
            *own = Some(pause);
        }
    }

    /// What is remembered of a domain.
    pub(crate) fn of(&self, domain: &str) -> DomainCare {
        self.0.lock().domains.get(domain).cloned().unwrap_or_default()
    }

    /// Everything may be tried at once: an administrator has changed something.
    pub(crate) fn forget_failures(&self) {
        let mut state = self.0.lock();
        state.authority = None;
        for care in state.domains.values_mut() {
            care.order = None;
            care.names.clear();
            if let Some(advice) = &mut care.advice {
                advice.ask_at = NEVER;
            }
        }
    }

    /// Why the authority cannot be used; all domains that are looked after.
    pub(crate) fn all(&self) -> (Option<Setback>, Vec<(String, DomainCare)>) {
        let state = self.0.lock();
        let domains = state.domains.iter().map(|(name, care)| (name.clone(), care.clone()));
        let mut domains: Vec<(String, DomainCare)> = domains.collect();
        domains.sort_by(|(one, _), (other, _)| one.cmp(other));
        (state.authority.clone(), domains)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000;
    const DAY: i64 = 24 * 60 * 60;

    fn domain(hosts: &[&str], current: Option<CurrentCertificate>) -> WantedDomain {
        WantedDomain {
            name: "a.test".to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            barred: BTreeMap::new(),
            current,
        }
    }

    /// A certificate of 90 days that has so many left.
    fn current(is_ours: bool, left: i64, covers: &[&str]) -> CurrentCertificate {
        CurrentCertificate {
            is_ours,
            expires: NOW + left * DAY,
            lifetime: 90 * DAY,
            covers: covers.iter().map(|host| (*host).to_owned()).collect(),
            id: None,
            spread: 128,
        }
    }

    /// One of ours about which the authority may be asked.
    fn known(left: i64, covers: &[&str]) -> CurrentCertificate {
        CurrentCertificate {
            id: Some("issuer.number".to_owned()),
            ..current(true, left, covers)
        }
    }

    fn names(care: &CertificateCare, domain: &WantedDomain, now: i64) -> Vec<String> {
        let (orders, _) = care.due(std::slice::from_ref(domain), now);
        orders.into_iter().flat_map(|order| order.names).collect()
    }

    fn failed(name: &str, why: &str, wait: Option<Duration>) -> RefusedName {
        RefusedName {
            name: name.to_owned(),
            why: why.to_owned(),
            wait,
            fault: Fault::OfName,
        }
    }

    #[test]
    fn a_failure_of_our_own_keeps_no_name_waiting_for_a_day() {
        let care = CertificateCare::default();
        let ours = RefusedName {
            fault: Fault::Ours,
            ..failed("mail.a.test", "the name server does not answer", None)
        };
        let pauses: Vec<i64> = (0..20).map(|_| care.name_failed("a.test", &ours, NOW) - NOW).collect();
        assert!((45..=75).contains(&pauses[0]), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= 40 * 60), "{pauses:?}");
        let of_name = care.name_failed("a.test", &failed("mail.a.test", "no address", None), NOW) - NOW;
        assert!((675..=1125).contains(&of_name), "the first of its own: {of_name}");
    }

    #[test]
    fn what_is_due() {
        let none: [&str; 0] = [];
        for (hosts, current, due) in [
            (&["a", "b"][..], None, &["a", "b"][..]),
            (&[], None, &none),
            (&["a"], Some(current(true, 31, &["a"])), &none),
            (&["a"], Some(current(true, 29, &["a"])), &["a"]),
            (&["a"], Some(current(true, -1, &["a"])), &["a"]),
            // A new name.
            (&["a", "b"], Some(current(true, 80, &["a"])), &["a", "b"]),
            // What others have put there is theirs, as long as it is good.
            (&["a", "b"], Some(current(false, 1, &["a"])), &none),
            (&["a"], Some(current(false, -1, &["a"])), &["a"]),
        ] {
            let domain = domain(hosts, current.clone());
            assert_eq!(
                names(&CertificateCare::default(), &domain, NOW),
                due,
                "{hosts:?} {current:?}"
            );
        }
    }

    #[test]
    fn the_next_look_is_at_the_renewal() {
        let mut certificate = current(true, 90, &["a"]);
        for (spread, days) in [(128, 60), (0, 54), (255, 65)] {
            certificate.spread = spread;
            let (orders, next) = CertificateCare::default().due(&[domain(&["a"], Some(certificate.clone()))], NOW);
            assert_eq!((orders.len(), (next - NOW) / DAY), (0, days), "{spread}");
        }
    }

    #[test]
    fn a_bad_name_is_left_out_and_tried_again() {
        let care = CertificateCare::default();
        let new = domain(&["bad", "good"], None);
        assert_eq!(names(&care, &new, NOW), ["bad", "good"]);
        let until = care.name_failed("a.test", &failed("bad", "no address", None), NOW);
        assert_eq!(names(&care, &new, NOW), ["good"]);
        care.succeeded("a.test", &["good".to_owned()], NOW);
        let served = domain(&["bad", "good"], Some(current(true, 80, &["good"])));
        assert_eq!(care.due(std::slice::from_ref(&served), NOW), (Vec::new(), until));
        assert_eq!(names(&care, &served, until), ["bad", "good"]);
        let mut pauses = vec![until - NOW];
        for _ in 0..10 {
            pauses.push(care.name_failed("a.test", &failed("bad", "no address", None), NOW) - NOW);
        }
        assert!(
            (675..=1125).contains(&pauses[0]) && (1350..=2250).contains(&pauses[1]),
            "{pauses:?}"
        );
        assert!(pauses.iter().all(|pause| *pause <= DAY * 5 / 4), "{pauses:?}");
        assert!(pauses[10] >= DAY * 3 / 4, "{pauses:?}");
        let asked = Duration::from_secs(1_000_000);
        let until = care.name_failed("a.test", &failed("bad", "rateLimited", Some(asked)), NOW);
        assert_eq!(until, NOW + 1_000_000);
        // A name that is no longer wanted is forgotten.
        let _ = care.due(&[domain(&["good"], served.current)], NOW);
        assert!(care.all().1[0].1.names.is_empty());
    }

    #[test]
    fn a_bad_name_costs_no_certificate_for_the_good_ones_at_each_try() {
        let good = ["good".to_owned()];
        for (left, covers, due) in [
            (80, &["good"][..], false),
            // A renewal, one that lacks a name, and none at all.
            (14, &["good"], true),
            (80, &[], true),
            (-1, &["good"], true),
        ] {
            let domain = domain(&["bad", "good"], Some(current(true, left, covers)));
            let (orders, _) = CertificateCare::default().due(&[domain], NOW);
            assert_eq!(orders[0].names, ["bad", "good"]);
            assert_eq!(orders[0].is_due_for(&good), due, "{left} {covers:?}");
            assert!(!orders[0].is_due_for(&[]));
        }
    }

    #[test]
    fn a_certificate_that_is_due_at_once_takes_the_place_of_a_shorter_one_only() {
        let in_use = current(true, 20, &["a"]);
        for (left, gains) in [(90, true), (31, true), (25, true), (20, false), (10, false)] {
            let new = current(true, left, &["a"]);
            assert_eq!(new.gains_on(Some(&in_use), NOW), gains, "{left}");
            assert!(new.gains_on(None, NOW));
        }
    }

    #[test]
    fn a_renewal_does_not_take_a_name_away_while_there_is_time() {
        for (left, due) in [(29, &[][..]), (14, &["good"])] {
            let care = CertificateCare::default();
            let domain = domain(&["bad", "good"], Some(current(true, left, &["bad", "good"])));
            let (orders, _) = care.due(std::slice::from_ref(&domain), NOW);
            assert_eq!(orders[0].kept.len(), if left == 29 { 2 } else { 0 });
            care.name_failed("a.test", &failed("bad", "no address", None), NOW);
            assert_eq!(names(&care, &domain, NOW), due, "{left}");
        }
    }

    #[test]
    fn failures_wait_as_long_as_the_authority_says() {
        let care = CertificateCare::default();
        let new = [domain(&["a"], None)];
        let _ = care.due(&new, NOW);
        let until = care.order_failed("a.test", "rateLimited", Some(Duration::from_secs(100_000)), NOW);
        assert_eq!((until, care.due(&new, NOW)), (NOW + 100_000, (Vec::new(), until)));
        care.forget_failures();
        assert_eq!(care.due(&new, NOW).0.len(), 1);
        let until = care.authority_failed("down", None, NOW).unwrap();
        assert_eq!(
            (care.authority_failed("down", None, NOW), care.authority_rests(NOW)),
            (None, true)
        );
        assert!((4..=7).contains(&(until - NOW)), "{until}");
        assert_eq!(care.due(&new, NOW), (Vec::new(), until));
        assert_eq!(care.all().0.map(|setback| setback.why).as_deref(), Some("down"));
        assert_eq!(care.due(&new, until).0.len(), 1);
        care.authority_answers();
        assert_eq!(care.due(&new, NOW).0.len(), 1);
    }

    #[test]
    fn what_an_administrator_wants_waits_for_nothing() {
        let care = CertificateCare::default();
        let new = [domain(&["bad", "good"], None)];
        let _ = care.due(&new, NOW);
        care.name_failed("a.test", &failed("bad", "no address", None), NOW);
        care.order_failed("a.test", "no", Some(Duration::from_secs(100_000)), NOW);
        care.authority_failed("down", None, NOW);
        assert_eq!(care.due(&new, NOW).0, []);
        care.urge("a.test", OrderUrge::Request, NOW);
        assert_eq!(
            (names(&care, &new[0], NOW), care.is_urged("a.test")),
            (new[0].hosts.clone(), true)
        );
        assert_eq!((care.urge_ended("a.test"), care.urge_ended("a.test")), (true, false));
        // A good one is renewed because of the word for it only, and with all that it has.
        let served = domain(&["bad", "good"], Some(current(true, 80, &["good"])));
        care.succeeded("a.test", &["bad".to_owned(), "good".to_owned()], NOW);
        let served_all = domain(&["good"], Some(current(true, 80, &["good"])));
        for (urge, domain, due) in [
            (OrderUrge::Request, &served_all, &[][..]),
            (OrderUrge::Renew, &served_all, &["good"]),
            (OrderUrge::Renew, &served, &["bad", "good"]),
        ] {
            care.urge("a.test", urge, NOW);
            assert_eq!(names(&care, domain, NOW), due, "{urge:?}");
            let (orders, _) = care.due(std::slice::from_ref(domain), NOW);
            assert!(orders.iter().all(|order| order.is_due_for(&["good".to_owned()])));
            care.urge_ended("a.test");
            assert_eq!(names(&care, &served_all, NOW), [""; 0]);
        }
        // What others have put there is theirs.
        care.urge("a.test", OrderUrge::Renew, NOW);
        assert_eq!(
            names(&care, &domain(&["a"], Some(current(false, 80, &["a"]))), NOW),
            [""; 0]
        );
    }

    #[test]
    fn the_next_node_waits_as_long_as_the_one_before() {
        let (before, after) = (CertificateCare::default(), CertificateCare::default());
        let wanted = ["a.test", "b.test", "c.test"].map(|name| WantedDomain {
            name: name.to_owned(),
            ..domain(&["one", "two"], None)
        });
        let _ = before.due(&wanted, NOW);
        let first = before.name_failed("a.test", &failed("one", "no address", None), NOW);
        before.name_failed(
            "a.test",
            &failed("two", "no address", Some(Duration::from_secs(100_000))),
            NOW,
        );
        before.succeeded("b.test", &["one".to_owned()], NOW);
        let pauses = before.pauses(NOW);
        let ends: Vec<_> = pauses
            .iter()
            .map(|(domain, pause)| (domain.as_str(), pause.until))
            .collect();
        assert_eq!(ends, [("a.test", first), ("b.test", NOW + UNSEEN)]);
        for (domain, pause) in pauses {
            after.take_pause(Some(&domain), pause);
        }
        let domains = |now: i64| -> Vec<String> {
            let (orders, _) = after.due(&wanted, now);
            orders.into_iter().map(|order| order.domain).collect()
        };
        assert_eq!(domains(NOW), ["c.test"]);
        assert_eq!(domains(NOW + UNSEEN), ["b.test", "c.test"]);
        assert_eq!(domains(first), ["a.test", "b.test", "c.test"]);
        assert_eq!(before.pauses(NOW + 200_000), []);
        let authority = Setback::after(
            None,
            AUTHORITY_PAUSE,
            Some(Duration::from_secs(600)),
            NOW,
            "down".to_owned(),
        );
        after.take_pause(None, authority);
        assert_eq!(domains(NOW + 599), [""; 0]);
    }

    #[test]
    fn a_failed_order_is_forgotten_when_nothing_is_due() {
        let care = CertificateCare::default();
        let _ = care.due(&[domain(&["a"], None)], NOW);
        let until = care.order_failed("a.test", "not seen", None, NOW);
        let served = [domain(&["a"], Some(current(true, 80, &["a"])))];
        assert_eq!(
            care.due(&served, NOW),
            (Vec::new(), until),
            "it is shown until its time"
        );
        assert!(care.all().1[0].1.order.is_some());
        let _ = care.due(&served, until);
        assert_eq!(care.all().1[0].1.order, None);
    }

    fn advice(days: [i64; 2]) -> RenewalAdvice {
        RenewalAdvice {
            window: days.map(|days| NOW + days * DAY),
            explanation: None,
            pause: Duration::from_secs(3600),
        }
    }

    #[test]
    fn a_certificate_is_renewed_when_the_authority_says() {
        let served = [domain(&["a"], Some(known(80, &["a"])))];
        let asked = vec![("a.test".to_owned(), "issuer.number".to_owned())];
        for (days, renews) in [
            // A moment within, by the certificate's own number.
            ([10, 20], Some(15)),
            // Not near its end, whatever the authority says.
            ([79, 80], Some(57)),
            ([-2, -1], None),
        ] {
            let care = CertificateCare::default();
            let _ = care.due(&served, NOW);
            assert_eq!(care.unadvised(&served, 16, NOW), asked);
            let tells = care.advised("a.test", "issuer.number", Some(&advice(days)), NOW);
            assert_eq!(tells, renews.is_none(), "{days:?}");
            assert!(
                !care.advised("a.test", "issuer.number", Some(&advice(days)), NOW),
                "it is known"
            );
            assert_eq!(care.unadvised(&served, 16, NOW), []);
            assert_eq!(care.unadvised(&served, 16, NOW + 3600), asked);
            let (orders, _) = care.due(&served, NOW);
            assert_eq!(orders.len(), usize::from(renews.is_none()), "{days:?}");
            if let Some(renews) = renews {
                assert_eq!((care.all().1[0].1.renews.unwrap() - NOW) / DAY, renews, "{days:?}");
            }
            assert!(
                orders
                    .iter()
                    .all(|order| order.replaces.as_deref() == Some("issuer.number"))
            );
        }
    }

    /// The story that must not be: an authority that wants each certificate renewed at once, and gets an order each minute.
    #[test]
    fn an_authority_that_wants_each_renewed_gets_one_a_day() {
        for (restarts, is_backdated) in [(false, false), (true, false), (false, true)] {
            let mut care = CertificateCare::default();
            let mut served = [domain(&["a"], Some(known(80, &["a"])))];
            let (mut time, mut orders) = (NOW, 0);
            while time < NOW + 3 * DAY {
                care.advised("a.test", "issuer.number", Some(&advice([-2, -1])), time);
                if care.due(&served, time).0.len() == 1 {
                    orders += 1;
                    care.succeeded("a.test", &["a".to_owned()], time);
                    let life = if is_backdated { 80 } else { 90 };
                    let new = known(life, &["a"]);
                    served[0].current = Some(CurrentCertificate {
                        expires: new.expires + (time - NOW),
                        ..new
                    });
                }
                care.forget_failures();
                if restarts {
                    care = CertificateCare::default();
                }
                time += 3600;
            }
            assert_eq!(orders, 3, "restarts: {restarts}, backdated: {is_backdated}");
        }
    }

    /// The story: so many are asked about at one look, and those behind them in the order of names never had their turn.
    #[test]
    fn all_certificates_are_asked_about_in_turn() {
        let care = CertificateCare::default();
        let wanted: Vec<WantedDomain> = (0..100)
            .map(|at| WantedDomain {
                name: format!("d{at:03}.test"),
                ..domain(&["a"], Some(known(80, &["a"])))
            })
            .collect();
        let (mut asked, mut time) = (HashMap::new(), NOW);
        for _ in 0..20 {
            let (_, next) = care.due(&wanted, time);
            time = next.max(time + 1);
            for (name, id) in care.unadvised(&wanted, 16, time) {
                care.advised(&name, &id, Some(&advice([10, 20])), time);
                *asked.entry(name).or_insert(0) += 1;
            }
        }
        assert_eq!(asked.len(), 100);
        assert!(
            time < NOW + 3 * 3600 && asked.values().all(|count| *count >= 2),
            "{asked:?}"
        );
    }

    /// The authority will take the certificate back, and one of its names has gone.
    #[test]
    fn a_name_that_is_gone_does_not_keep_the_others_from_an_urgent_renewal() {
        for (days, due) in [([-2, -1], &["good"][..]), ([-1, 1], &[])] {
            let care = CertificateCare::default();
            let served = domain(&["bad", "good"], Some(known(80, &["bad", "good"])));
            let _ = care.due(std::slice::from_ref(&served), NOW);
            care.advised("a.test", "issuer.number", Some(&advice(days)), NOW);
            care.name_failed("a.test", &failed("bad", "no address", None), NOW);
            assert_eq!(names(&care, &served, NOW), due, "{days:?}");
        }
    }

    #[test]
    fn an_authority_that_says_nothing_leaves_it_as_it_was() {
        let care = CertificateCare::default();
        let served = [domain(&["a"], Some(known(80, &["a"])))];
        let renews = || {
            let _ = care.due(&served, NOW);
            (care.all().1[0].1.renews.unwrap() - NOW) / DAY
        };
        assert!(!care.advised("a.test", "issuer.number", None, NOW));
        assert_eq!(renews(), 50, "by its life");
        care.advised("a.test", "issuer.number", Some(&advice([10, 20])), NOW);
        care.advised("a.test", "issuer.number", None, NOW);
        assert_eq!(renews(), 15, "as it said before");
        care.advised("a.test", "issuer.other", None, NOW);
        assert_eq!(renews(), 50, "that was about another one");
    }

    #[test]
    fn a_domain_that_is_gone_is_forgotten() {
        let care = CertificateCare::default();
        let _ = care.due(&[domain(&["a"], None)], NOW);
        care.order_failed("a.test", "no", None, NOW);
        assert_eq!(care.due(&[], NOW), (Vec::new(), i64::MAX));
        assert_eq!(care.all(), (None, Vec::new()));
    }
}
