//! What the authority knows: nonces, accounts, orders, authorizations; what it answers to a request that is signed well.
//!
//! A resource is named by its place in its list. Nothing here touches the network.

use std::collections::{BTreeSet, HashSet};

use anyhow::Result;
use openssl::x509::X509;
use serde_json::{Value, json};

use super::answer::{Answer, Refusal};
use super::behaviour::{Behaviour, Lie, Resource};
use super::issuing::{self, Issuer};
use super::jws::{PublicKey, SignedRequest, check_binding, decoded, encoded};
use super::validation::ChallengeKind;

/// What clients have to agree to.
const TERMS: &str = "https://authority.test/terms";
/// How long an order of [`Lie::Undecided`] takes, in seconds.
const UNDECIDED: u64 = 3600;
/// How soon it may be asked again when to renew, in seconds.
const RENEWAL_PACE: u64 = 21_600;
/// How often an order is seen in the state "processing" before there is a certificate.
const LOOKS: usize = 1;

/// All that the authority knows.
pub(super) struct Ledger {
    pub(super) behaviour: Behaviour,
    /// Of its URLs.
    pub(super) base: String,
    issuer: Issuer,
    nonces: HashSet<String>,
    nonces_taken: usize,
    accounts: Vec<PublicKey>,
    orders: Vec<Order>,
    authorizations: Vec<Authorization>,
    pub(super) certificates: Vec<Issued>,
    /// Challenges to look at.
    due: Vec<DueValidation>,
}

/// A certificate with the names of its order.
pub(super) struct Issued {
    pub(super) names: BTreeSet<String>,
    certificate: X509,
    account: usize,
    /// By what clients name it (RFC 9773 §4.1).
    id: String,
    /// What kind of them it is.
    pub(super) profile: Option<String>,
    /// Another one has taken its place.
    pub(super) is_replaced: bool,
}

/// A challenge to look at.
pub(super) struct DueValidation {
    authorization: usize,
    pub(super) kind: ChallengeKind,
    pub(super) name: String,
    pub(super) token: String,
    pub(super) answer: String,
    /// Whether the name cannot be found.
    pub(super) is_unknown: bool,
}

struct Order {
    account: usize,
    names: BTreeSet<String>,
    authorizations: Vec<usize>,
    status: &'static str,
    certificate: Option<usize>,
    /// The certificate in whose place there is to be one.
    replaces: Option<usize>,
    /// The kind of its certificate.
    profile: Option<String>,
    looks: usize,
}

struct Authorization {
    account: usize,
    name: String,
    token: String,
    status: &'static str,
    /// The challenge that the client has chosen.
    chosen: Option<ChallengeKind>,
    offers: Vec<ChallengeKind>,
    error: Option<Refusal>,
}

impl Ledger {
    /// One that knows nobody, with URLs that begin like this.
    pub(super) fn new(base: String) -> Result<Self> {
        Ok(Self {
            behaviour: Behaviour::default(),
            base,
            issuer: Issuer::new()?,
            nonces: HashSet::new(),
            nonces_taken: 0,
            accounts: Vec::new(),
            orders: Vec::new(),
            authorizations: Vec::new(),
            certificates: Vec::new(),
            due: Vec::new(),
        })
    }

    /// The directory.
    pub(super) fn directory(&self) -> Value {
        let url = |path: &str| format!("{}/{path}", self.base);
        let mut directory = json!({"newNonce": url("new-nonce"), "newAccount": url("new-account"), "newOrder": url("new-order"),
               "revokeCert": url("revoke"), "keyChange": url("key-change"), "meta": {"termsOfService": TERMS}});
        if self.behaviour.renewal.is_some() {
            directory["renewalInfo"] = url("renewal-info").into();
        }
        if !self.behaviour.caa_identities.is_empty() {
            directory["meta"]["caaIdentities"] = self.behaviour.caa_identities.clone().into();
        }
        if !self.behaviour.profiles.is_empty() {
            let pages = self.behaviour.profiles.iter();
            let pages = pages.map(|name| (name.clone(), format!("https://authority.test/{name}").into()));
            directory["meta"]["profiles"] = Value::Object(pages.collect());
        }
        if !self.behaviour.own_accounts.is_empty() {
            directory["meta"]["externalAccountRequired"] = true.into();
        }
        directory
    }

    /// A nonce that is good for one request.
    pub(super) fn new_nonce(&mut self) -> String {
        let mut bytes = [0; 16];
        openssl::rand::rand_bytes(&mut bytes).expect("there is always randomness");
        let nonce = encoded(&bytes);
        self.nonces.insert(nonce.clone());
        nonce
    }

    /// Uses a nonce up.
    pub(super) fn take_nonce(&mut self, nonce: &str) -> Result<(), Refusal> {
        decoded(nonce)?;
        if !self.nonces.remove(nonce) {
            return Err(Refusal::violation(400, "badNonce", "it was used, or never given"));
        }
        self.nonces_taken += 1;
        let every = self.behaviour.refused_nonces;
        match every > 0 && self.nonces_taken.is_multiple_of(every) {
            true => Err(Refusal::new(400, "badNonce", "it is too old")),
            false => Ok(()),
        }
    }

    /// The account with this URL.
    pub(super) fn account(&self, url: &str) -> Result<(usize, PublicKey), Refusal> {
        let at = url
            .strip_prefix(&self.base)
            .and_then(|path| path.strip_prefix("/account/"));
        let at: Option<usize> = at.and_then(|at| at.parse().ok());
        let known = at.and_then(|at| Some((at, self.accounts.get(at)?.clone())));
        let known = known.ok_or_else(|| Refusal::violation(400, "accountDoesNotExist", url));
        match self.behaviour.closes_accounts {
            true => Err(Refusal::new(401, "unauthorized", "the account is deactivated")),
            false => known,
        }
    }

    /// The account of this key, opened if it is not there (RFC 8555 §7.3).
    pub(super) fn new_account(&mut self, key: &PublicKey, payload: &Value) -> Result<Answer, Refusal> {
        if self.behaviour.closes_accounts {
            return Err(Refusal::new(401, "unauthorized", "the account is deactivated"));
        }
        let contacts = payload["contact"].as_array().into_iter().flatten();
        for contact in contacts {
            let address = contact.as_str().and_then(|contact| contact.strip_prefix("mailto:"));
            address.ok_or_else(|| Refusal::violation(400, "unsupportedContact", contact.to_string()))?;
        }
        let (at, status) = match self.accounts.iter().position(|known| known == key) {
            Some(at) => (at, 200),
            None if payload["onlyReturnExisting"] == true => {
                return Err(Refusal::new(400, "accountDoesNotExist", "no account has this key"));
            }
            None if payload["termsOfServiceAgreed"] != true => {
                return Err(Refusal::violation(
                    403,
                    "userActionRequired",
                    "the terms are not agreed to",
                ));
            }
            None => {
                self.check_binding(key, payload)?;
                self.accounts.push(key.clone());
                (self.accounts.len() - 1, 201)
            }
        };
        let account = json!({"status": "valid", "contact": payload["contact"]});
        Ok(Answer::json(status, &account).with("Location", format!("{}/account/{at}", self.base)))
    }

    /// That an account of its own stands for this key, if it has such accounts (§7.3.4).
    fn check_binding(&self, key: &PublicKey, payload: &Value) -> Result<(), Refusal> {
        let known = &self.behaviour.own_accounts;
        match &payload["externalAccountBinding"] {
            Value::Null if known.is_empty() => Ok(()),
            Value::Null => Err(Refusal::new(
                403,
                "externalAccountRequired",
                "it is bound to none of ours",
            )),
            binding => check_binding(binding, key, &format!("{}/new-account", self.base), known),
        }
    }

    /// What an account asks for at a place.
    pub(super) fn done(
        &mut self,
        resource: Resource,
        at: &str,
        account: usize,
        request: &SignedRequest,
    ) -> Result<Answer, Refusal> {
        match resource {
            Resource::NewOrder => self.new_order(account, payload(request)?),
            Resource::Order => self.order(account, at, request),
            Resource::Authorization => self.authorization(account, at, request),
            Resource::Challenge => self.challenge(account, at, payload(request)?),
            Resource::Finalize => self.finalize(account, at, payload(request)?),
            Resource::Certificate => self.certificate(account, at, request),
            Resource::Directory
            | Resource::NewNonce
            | Resource::NewAccount
            | Resource::RenewalInfo
            | Resource::Elsewhere => Err(Refusal::violation(404, "malformed", "there is no such thing")),
        }
    }

    /// §7.4
    fn new_order(&mut self, account: usize, payload: &Value) -> Result<Answer, Refusal> {
        let listed = payload["identifiers"].as_array().cloned().unwrap_or_default();
        let names: BTreeSet<String> = listed.iter().filter_map(name_of).collect();
        if names.is_empty() || names.len() != listed.len() {
            return Err(Refusal::malformed("not a list of different DNS names in lower case"));
        }
        let refused: Vec<_> = names.intersection(&self.behaviour.refused).cloned().collect();
        if !refused.is_empty() {
            let mut refusal = Refusal::new(403, "rejectedIdentifier", "some names are refused");
            refusal.names = refused.into_iter().map(|name| (name, "rejectedIdentifier")).collect();
            return Err(refusal);
        }
        let replaces = self.replaced(account, &names, &payload["replaces"])?;
        let profile = match &payload["profile"] {
            Value::Null => None,
            Value::String(name) if self.behaviour.profiles.contains(name) => Some(name.clone()),
            other => return Err(Refusal::violation(400, "invalidProfile", other.to_string())),
        };
        let first = self.authorizations.len();
        for name in &names {
            let token = self.new_nonce();
            // It is no nonce.
            self.nonces.remove(&token);
            self.authorizations.push(Authorization {
                account,
                name: name.clone(),
                token,
                status: "pending",
                chosen: None,
                offers: self.behaviour.offers.clone(),
                error: None,
            });
        }
        self.orders.push(Order {
            account,
            names,
            authorizations: (first..self.authorizations.len()).collect(),
            status: "pending",
            certificate: None,
            replaces,
            profile,
            looks: LOOKS,
        });
        let at = self.orders.len() - 1;
        let answer = Answer::json(201, &self.shown_order(at));
        Ok(match self.behaviour.lie {
            Some(Lie::Location(None)) => answer,
            Some(Lie::Location(Some(elsewhere))) => answer.with("Location", elsewhere),
            _ => answer.with("Location", format!("{}/order/{at}", self.base)),
        })
    }

    /// The certificate of this account in whose place an order is to be (RFC 9773 §5).
    fn replaced(&self, account: usize, names: &BTreeSet<String>, id: &Value) -> Result<Option<usize>, Refusal> {
        if id.is_null() {
            return Ok(None);
        }
        if self.behaviour.renewal.is_none() {
            return Err(Refusal::malformed(
                "there is no renewalInfo, and an order replaces something",
            ));
        }
        let at = self.certificates.iter().position(|issued| *id == issued.id);
        let at = at.ok_or_else(|| Refusal::malformed(format!("no certificate is {id}")))?;
        let issued = &self.certificates[at];
        match (issued.account == account, issued.names.is_disjoint(names)) {
            (true, false) if issued.is_replaced => {
                Err(Refusal::new(409, "alreadyReplaced", "another order has replaced it"))
            }
            (true, false) => Ok(Some(at)),
            _ => Err(Refusal::malformed(
                "it replaces a certificate of others, or for other names",
            )),
        }
    }

    /// When the certificate with this id is to be renewed (RFC 9773 §4.2).
    pub(super) fn renewal_info(&self, id: &str) -> Result<Answer, Refusal> {
        let window = self
            .behaviour
            .renewal
            .filter(|_| self.certificates.iter().any(|issued| issued.id == id));
        let [start, end] = window.ok_or_else(|| Refusal::violation(404, "malformed", "there is no such thing"))?;
        let time = |seconds: i64| issuing::time_text(seconds).map(Value::from).unwrap_or_default();
        let info = json!({"suggestedWindow": {"start": time(start), "end": time(end)},
                          "explanationURL": "https://authority.test/renewals"});
        Ok(Answer::json(200, &info).with("Retry-After", RENEWAL_PACE))
    }

    fn order(&mut self, account: usize, at: &str, request: &SignedRequest) -> Result<Answer, Refusal> {
        let at = found(&self.orders, at, |order| order.account == account)?;
        only_reads(request)?;
        let is_undecided = self.behaviour.lie == Some(Lie::Undecided);
        let order = &mut self.orders[at];
        if order.status == "processing" && !is_undecided {
            match order.looks {
                0 => order.status = "valid",
                _ => order.looks -= 1,
            }
        }
        let answer = Answer::json(200, &self.shown_order(at));
        Ok(match self.orders[at].status {
            "processing" if is_undecided => answer.with("Retry-After", UNDECIDED),
            _ => answer,
        })
    }

    fn shown_order(&self, at: usize) -> Value {
        let (order, base) = (&self.orders[at], &self.base);
        let names: Vec<Value> = order
            .names
            .iter()
            .map(|name| json!({"type": "dns", "value": name}))
            .collect();
        let authorizations = order.authorizations.iter();
        let authorizations: Vec<String> = authorizations.map(|at| format!("{base}/authorization/{at}")).collect();
        let mut shown = json!({"status": order.status, "identifiers": names, "authorizations": authorizations,
                               "finalize": format!("{base}/finalize/{at}")});
        if let Some(certificate) = order.certificate.filter(|_| order.status == "valid") {
            shown["certificate"] = format!("{base}/certificate/{certificate}").into();
        }
        shown
    }

    fn authorization(&mut self, account: usize, at: &str, request: &SignedRequest) -> Result<Answer, Refusal> {
        let at = found(&self.authorizations, at, |one| one.account == account)?;
        only_reads(request)?;
        let one = &self.authorizations[at];
        let challenges: Vec<Value> = one.offers.iter().map(|kind| self.shown_challenge(at, *kind)).collect();
        let name = match self.behaviour.lie {
            Some(Lie::OtherAuthorization) => "other.example",
            _ => &one.name,
        };
        let shown = json!({"status": one.status, "identifier": {"type": "dns", "value": name},
                           "challenges": challenges});
        Ok(Answer::json(200, &shown))
    }

    fn shown_challenge(&self, at: usize, kind: ChallengeKind) -> Value {
        let one = &self.authorizations[at];
        let is_chosen = one.chosen == Some(kind);
        let status = match one.status {
            "pending" if is_chosen => "processing",
            status if is_chosen => status,
            _ => "pending",
        };
        let url = format!("{}/challenge/{at}/{}", self.base, kind.word());
        let mut shown = json!({"type": kind.word(), "url": url, "token": one.token, "status": status});
        if let Some(error) = one.error.as_ref().filter(|_| is_chosen) {
            shown["error"] = error.problem();
        }
        shown
    }

    /// §7.5.1
    fn challenge(&mut self, account: usize, at: &str, payload: &Value) -> Result<Answer, Refusal> {
        let (at, word) = at
            .split_once('/')
            .ok_or_else(|| Refusal::malformed("no such challenge"))?;
        let at = found(&self.authorizations, at, |one| one.account == account)?;
        if *payload != json!({}) {
            return Err(Refusal::malformed("an answer to a challenge is an empty object"));
        }
        let one = &mut self.authorizations[at];
        let kind = one.offers.iter().find(|kind| kind.word() == word).copied();
        let kind = kind.ok_or_else(|| Refusal::malformed("a challenge that was not offered"))?;
        if one.chosen.is_some_and(|chosen| chosen != kind) {
            return Err(Refusal::malformed("two challenges of one authorization"));
        }
        if one.chosen.replace(kind).is_none() {
            self.due.push(DueValidation {
                authorization: at,
                kind,
                name: one.name.clone(),
                token: one.token.clone(),
                answer: self.accounts[account].key_authorization(&one.token),
                is_unknown: self.behaviour.unknown.contains(&one.name),
            });
        }
        let up = format!("<{}/authorization/{at}>;rel=\"up\"", self.base);
        Ok(Answer::json(200, &self.shown_challenge(at, kind)).with("Link", up))
    }

    /// The challenges to look at now.
    pub(super) fn take_due(&mut self) -> Vec<DueValidation> {
        match self.behaviour.looks_later {
            true => Vec::new(),
            false => std::mem::take(&mut self.due),
        }
    }

    /// Takes down what a look at a challenge has shown.
    pub(super) fn validated(&mut self, due: &DueValidation, seen: Result<()>) {
        let at = due.authorization;
        let one = &mut self.authorizations[at];
        one.error = match seen {
            Ok(()) => None,
            Err(_) if due.is_unknown => Some(Refusal::new(400, "dns", format!("no address of {}", due.name))),
            Err(error) => Some(Refusal::new(403, "unauthorized", format!("{error:#}"))),
        };
        one.status = if one.error.is_none() { "valid" } else { "invalid" };
        let orders = self.orders.iter_mut();
        for order in orders.filter(|order| order.status == "pending" && order.authorizations.contains(&at)) {
            let mut states = order.authorizations.iter().map(|at| self.authorizations[*at].status);
            if states.clone().any(|status| status == "invalid") {
                order.status = "invalid";
            } else if states.all(|status| status == "valid") {
                order.status = "ready";
            }
        }
    }

    /// §7.4
    fn finalize(&mut self, account: usize, at: &str, payload: &Value) -> Result<Answer, Refusal> {
        let at = found(&self.orders, at, |order| order.account == account)?;
        let order = &self.orders[at];
        if order.status != "ready" {
            return Err(Refusal::violation(403, "orderNotReady", order.status));
        }
        let request = payload["csr"].as_str();
        let request = decoded(request.ok_or_else(|| Refusal::malformed("there is no csr"))?)?;
        let key = issuing::checked(&request, &order.names, &self.accounts[account])?;
        let names = order.names.clone();
        let certificate = self.issue(&names, &key);
        let certificate = certificate.map_err(|error| Refusal::new(500, "serverInternal", error.to_string()))?;
        let id = issuing::certificate_id(&certificate);
        let id = id.map_err(|error| Refusal::new(500, "serverInternal", error.to_string()))?;
        if let Some(replaced) = self.orders[at].replaces {
            self.certificates[replaced].is_replaced = true;
        }
        self.certificates.push(Issued {
            names,
            certificate,
            account,
            id,
            profile: self.orders[at].profile.clone(),
            is_replaced: false,
        });
        self.orders[at].certificate = Some(self.certificates.len() - 1);
        self.orders[at].status = "processing";
        let location = format!("{}/order/{at}", self.base);
        Ok(Answer::json(200, &self.shown_order(at)).with("Location", location))
    }

    fn issue(&self, names: &BTreeSet<String>, key: &openssl::pkey::PKeyRef<openssl::pkey::Public>) -> Result<X509> {
        let life = self.behaviour.life;
        match self.behaviour.lie {
            Some(Lie::OtherKey) => self.issuer.issue(names, &*issuing::other_key()?, life),
            Some(Lie::OtherNames) => self
                .issuer
                .issue(&BTreeSet::from(["other.example".to_owned()]), key, life),
            _ => self.issuer.issue(names, key, life),
        }
    }

    /// §7.4.2
    fn certificate(&mut self, account: usize, at: &str, request: &SignedRequest) -> Result<Answer, Refusal> {
        let at = found(&self.certificates, at, |issued| issued.account == account)?;
        only_reads(request)?;
        let chain = self.issuer.chain(&self.certificates[at].certificate);
        let chain = chain.map_err(|error| Refusal::new(500, "serverInternal", error.to_string()))?;
        Ok(Answer::of(200, "application/pem-certificate-chain", chain))
    }
}

/// A name in an order: in lower case, no pattern, no address.
fn name_of(identifier: &Value) -> Option<String> {
    let name = identifier["value"].as_str().filter(|_| identifier["type"] == "dns")?;
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
    (name.bytes().all(is_name) && name.contains('.')).then(|| name.to_owned())
}

/// One of a list that belongs to this account.
fn found<T>(list: &[T], at: &str, is_own: impl Fn(&T) -> bool) -> Result<usize, Refusal> {
    let at: usize = at.parse().map_err(|_| Refusal::malformed("there is no such place"))?;
    match list.get(at) {
        Some(one) if is_own(one) => Ok(at),
        Some(_) => Err(Refusal::violation(403, "unauthorized", "another account's")),
        None => Err(Refusal::violation(404, "malformed", "there is no such thing")),
    }
}

fn payload(request: &SignedRequest) -> Result<&Value, Refusal> {
    let payload = request.payload.as_ref();
    payload.ok_or_else(|| Refusal::malformed("reading where something is to be done"))
}

/// §6.3
fn only_reads(request: &SignedRequest) -> Result<(), Refusal> {
    match request.payload {
        None => Ok(()),
        Some(_) => Err(Refusal::malformed("a payload where something is read")),
    }
}
