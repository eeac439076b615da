//! An account at an authority, and a certificate by an order from its begin to its end (RFC 8555 §7).
//!
//! Who controls a name is shown by HTTP-01, TLS-ALPN-01 or DNS-01. When to order, and again after a failure, is the matter of `care.rs`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use http::{Method, header};
use jiff::Timestamp;
use mail_directory::Secret;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::acme::account_key::{AccountKey, SignedBy, encode};
use crate::acme::care::{CurrentCertificate, Fault, RefusedName};
use crate::acme::challenge_certificate::challenge_context;
use crate::acme::challenges::{Challenges, OpenChallenge};
use crate::acme::dns::client::DnsClient;
use crate::acme::dns::proof::{DnsProof, DnsProver, ProofFailure, SPREAD_WAIT};
use crate::acme::exchange::{AuthorityAnswer, AuthorityWeb};
use crate::acme::messages::{AcmeAuthorization, AcmeDirectory, AcmeOrder, AcmeProblem, AcmeState, plain};
use crate::acme::name_check::NameCheck;
use crate::acme::renewal_info::certificate_id;
use crate::acme::request::CertificateRequest;
use crate::acme::self_request::SelfRequests;
use crate::config::{AcmeConfig, CertificateKeyKind, ChallengeKind, SelfRequestPorts};
use crate::http::answers;
use crate::tls::certificate::CertKey;

/// How often a request is sent whose nonce is refused.
const NONCE_TRIES: usize = 8;
/// Most nonces that are kept for further requests.
const NONCES_MAX: usize = 16;
/// Most certificates of a chain, the first one included.
const CERTIFICATES_MAX: usize = 10;
/// How long an authority may take to look at all names of an order, or to issue.
const DECISION_WAIT: Duration = Duration::from_secs(120);
/// Why there is no certificate when that has passed.
const UNDECIDED: &str = "the authority has not decided in time";
/// Why there is none when it asks for anything else.
const NOT_ASKED_FOR: &str = "the authority wants a proof for a name that was not asked for";
/// Why there is none when it offers no challenge that is answered.
const NOT_OFFERED: &str = "the authority offers none of acme.challenges for it";
/// How long the requests to ourselves for an order may take; names that are left are not judged.
const SELF_REQUESTS_WAIT: Duration = Duration::from_secs(60);
/// Names of an order that are shown at one time: records in the DNS take a while to be seen.
const PROOFS_AT_ONCE: usize = 8;
/// The first pause between two looks, and the longest one, unless the authority says otherwise.
const LOOK_FIRST: Duration = Duration::from_millis(250);
const LOOK_LAST: Duration = Duration::from_secs(10);

/// An account at an authority.
pub(crate) struct AcmeClient {
    web: AuthorityWeb,
    key: AccountKey,
    directory: AcmeDirectory,
    /// Its URL.
    account: String,
    nonces: Mutex<Vec<String>>,
    challenges: Arc<Challenges>,
    prover: Option<Arc<DnsProver>>,
    /// Who is asked about names.
    resolvers: DnsClient,
    /// Whether names are looked at in the DNS before they are ordered.
    checks_names: bool,
    /// At which ports names are asked for before, if they are.
    self_request: Option<SelfRequestPorts>,
    /// The kinds that are answered, the preferred one first.
    kinds: Vec<ChallengeKind>,
    /// The kind of certificates that is ordered, one of the authority's.
    profile: Option<String>,
}

/// A challenge that is answered until this is dropped.
struct OpenProof {
    /// Where the authority is told.
    url: String,
    held: HeldProof,
}

/// What answers a challenge.
enum HeldProof {
    /// The web listeners.
    #[expect(dead_code, reason = "it is held for what happens when it is dropped")]
    Answer(OpenChallenge),
    /// A record in the DNS.
    Record(DnsProof),
}

/// A certificate that was issued, checked to be what was asked for.
pub(crate) struct IssuedCertificate {
    /// The certificate and its chain, as PEM.
    pub certificate: String,
    /// Its private key, as PEM.
    pub key: Secret<String>,
    /// SHA-256, in hexadecimal.
    pub fingerprint: String,
    /// How long it is good, and for which of the names that were asked for: all.
    pub life: CurrentCertificate,
}

/// Why there is no certificate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AcmeFailure {
    /// The authority cannot be used; `wait` is what it asks for.
    Authority { why: String, wait: Option<Duration> },
    /// This order cannot be completed.
    Order { why: String, wait: Option<Duration> },
    /// These names are refused; the others could have been served.
    Names(Vec<RefusedName>),
}

impl AcmeFailure {
    /// The reason, in words.
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Authority { why, .. } | Self::Order { why, .. } => why.clone(),
            Self::Names(refused) => {
                let each = refused
                    .iter()
                    .map(|RefusedName { name, why, .. }| format!("{name}: {why}"));
                each.collect::<Vec<_>>().join("; ")
            }
        }
    }

    fn authority(why: impl Into<String>) -> Self {
        Self::Authority {
            why: plain(&why.into()),
            wait: None,
        }
    }

    fn order(why: impl Into<String>) -> Self {
        Self::Order {
            why: plain(&why.into()),
            wait: None,
        }
    }
}

/// A request that was not done.
enum RequestFailure {
    /// The authority does not work.
    Away { why: String, wait: Option<Duration> },
    /// It refuses.
    Problem {
        problem: AcmeProblem,
        wait: Option<Duration>,
    },
}

impl RequestFailure {
    fn away(why: impl Into<String>) -> Self {
        Self::Away {
            why: plain(&why.into()),
            wait: None,
        }
    }

    fn of_account(self) -> AcmeFailure {
        let (why, wait) = match self {
            Self::Away { why, wait } => (why, wait),
            Self::Problem { problem, wait } => (problem.reason(), wait),
        };
        AcmeFailure::Authority { why, wait }
    }

    fn of_order(self) -> AcmeFailure {
        match self {
            Self::Away { why, wait } => AcmeFailure::Authority { why, wait },
            Self::Problem { problem, wait } => match problem.names() {
                names if names.is_empty() => AcmeFailure::Order {
                    why: problem.reason(),
                    wait,
                },
                names => {
                    let names = names.into_iter().map(|(name, why)| RefusedName {
                        name,
                        why,
                        wait,
                        fault: Fault::OfName,
                    });
                    AcmeFailure::Names(names.collect())
                }
            },
        }
    }
}

impl AcmeClient {
    /// Finds the account of this key at the authority of the node file, or opens it.
    ///
    /// # Errors
    /// The authority cannot be used, or does not want this client.
    pub(crate) async fn open(
        config: &AcmeConfig,
        key: AccountKey,
        web: AuthorityWeb,
        challenges: Arc<Challenges>,
    ) -> Result<Self, AcmeFailure> {
        let directory = directory_of(config, &web).await?;
        let resolvers = DnsClient::of_resolvers(&config.resolvers).await;
        let prover = config.dns.clone().map(|dns| {
            let prover = DnsProver::new(dns, web.dns.clone(), resolvers.clone());
            Arc::new(prover)
        });
        let mut client = Self {
            web,
            key,
            directory,
            account: String::new(),
            nonces: Mutex::default(),
            challenges,
            prover,
            resolvers,
            checks_names: config.checks_names,
            self_request: config.self_request,
            kinds: config.challenges.clone(),
            profile: config.profile.clone(),
        };
        let mut new = json!({"termsOfServiceAgreed": config.accepts_terms, "contact": config.contact});
        let url = client.directory.new_account.clone();
        let binds = client.directory.meta.external_account_required || config.eab.is_some();
        if binds && let Some(known) = client.known_account(&url).await? {
            client.account = known;
            return Ok(client);
        }
        if client.directory.meta.external_account_required && config.eab.is_none() {
            let why = "the authority wants an account that is bound to one of its own: set acme.eab";
            return Err(AcmeFailure::authority(why));
        }
        if let Some(account) = &config.eab {
            let bound = client.key.bound_to(account, &url);
            new["externalAccountBinding"] = bound.map_err(|error| AcmeFailure::authority(error.to_string()))?;
        }
        let answer = client
            .post(SignedBy::Key, &url, Some(&new))
            .await
            .map_err(RequestFailure::of_account)?;
        client.account = location(&answer).map_err(AcmeFailure::authority)?;
        Ok(client)
    }

    /// The account that the key has already (RFC 8555 §7.3.1). What binds a new one may be good once only.
    async fn known_account(&self, url: &str) -> Result<Option<String>, AcmeFailure> {
        let asked = json!({"onlyReturnExisting": true});
        match self.post(SignedBy::Key, url, Some(&asked)).await {
            Ok(answer) => location(&answer).map(Some).map_err(AcmeFailure::authority),
            Err(RequestFailure::Problem { problem, .. }) if problem.is("accountDoesNotExist") => Ok(None),
            Err(error) => Err(RequestFailure::of_account(error)),
        }
    }

    /// Those of these names for which the authority need not be asked, each with the reason.
    pub(crate) async fn unobtainable(&self, names: &[String]) -> Vec<RefusedName> {
        // A name that a pattern is good for is not asked for, and needs nothing.
        let mut asked = without_covered(names);
        let mut refused = Vec::new();
        if self.checks_names {
            let check = NameCheck {
                resolvers: &self.resolvers,
                authority: &self.directory.meta.caa_identities,
                kinds: &self.kinds,
            };
            let unobtainable = check.refused(&asked).await.into_iter();
            refused.extend(unobtainable.map(|(name, why)| unproved(name, &ProofFailure::of_name(why))));
        }
        if let Some(ports) = self.self_request {
            asked.retain(|name| refused.iter().all(|refused: &RefusedName| refused.name != *name));
            let requests = SelfRequests {
                challenges: &self.challenges,
                resolvers: &self.resolvers,
                kinds: &self.kinds,
                ports,
            };
            let answer = |token: &str| self.key.key_authorization(token).map_err(|error| error.to_string());
            let said = requests.ask(&asked, SELF_REQUESTS_WAIT, answer).await.into_iter();
            refused.extend(said.filter_map(|(name, said)| Some(unproved(name, &said.err()?))));
        }
        refused
    }

    /// Orders a certificate for these names, in place of the one that the authority knows by the id `replaces`.
    ///
    /// # Errors
    /// There is none; [`AcmeFailure`] says of what that is a fault.
    pub(crate) async fn obtain(
        &self,
        names: &[String],
        kind: CertificateKeyKind,
        replaces: Option<&str>,
    ) -> Result<IssuedCertificate, AcmeFailure> {
        let asked = without_covered(names);
        let answer = match self.begin_order(&asked, replaces).await {
            // An order in place of a certificate is a favour, which must not keep the order itself.
            Err(RequestFailure::Problem { problem, .. }) if replaces.is_some() && problem.is_of_request() => {
                self.begin_order(&asked, None).await
            }
            answer => answer,
        };
        let answer = answer.map_err(RequestFailure::of_order)?;
        let url = location(&answer).map_err(AcmeFailure::order)?;
        let order: AcmeOrder = read(&answer).map_err(AcmeFailure::order)?;
        if order.authorizations.len() > asked.len() {
            return Err(AcmeFailure::order(
                "the authority wants more proofs than there are names",
            ));
        }
        self.authorize(&order.authorizations, &asked).await?;
        let is_ready = |order: &AcmeOrder| order.status != AcmeState::Pending;
        let end = Instant::now() + DECISION_WAIT;
        let order = self.settled(&url, end, is_ready).await?;
        let order = order.ok_or_else(|| AcmeFailure::order(UNDECIDED))?;
        // An RSA key takes a good part of a second.
        let request = tokio::task::spawn_blocking(move || CertificateRequest::new(&asked, kind));
        let request = request.await.map_err(|error| AcmeFailure::order(error.to_string()))?;
        let request = request.map_err(|error| AcmeFailure::order(error.to_string()))?;
        let order = match order.status {
            AcmeState::Ready => {
                let finalize = json!({"csr": encode(&request.der)});
                self.send(&order.finalize, Some(&finalize)).await?;
                let is_decided = |order: &AcmeOrder| matches!(order.status, AcmeState::Valid | AcmeState::Invalid);
                let end = Instant::now() + DECISION_WAIT;
                let order = self.settled(&url, end, is_decided).await?;
                order.ok_or_else(|| AcmeFailure::order(UNDECIDED))?
            }
            _ => order,
        };
        let (AcmeState::Valid, Some(certificate)) = (order.status, &order.certificate) else {
            let why = order.error.unwrap_or_default();
            return Err(AcmeFailure::order(format!("the order has failed: {}", why.reason())));
        };
        let answer = self.send(certificate, None).await?;
        issued(names, &answer.body, request.key).map_err(AcmeFailure::order)
    }

    async fn begin_order(&self, names: &[String], replaces: Option<&str>) -> Result<AuthorityAnswer, RequestFailure> {
        let identifiers: Vec<Value> = names.iter().map(|name| json!({"type": "dns", "value": name})).collect();
        let mut wanted = json!({"identifiers": identifiers});
        if let Some(id) = replaces {
            wanted["replaces"] = id.into();
        }
        if let Some(profile) = &self.profile {
            wanted["profile"] = profile.as_str().into();
        }
        let by = SignedBy::Account(&self.account);
        self.post(by, &self.directory.new_order, Some(&wanted)).await
    }

    /// Shows that all names are controlled from here. All of them are tried, so that the reasons come together.
    async fn authorize(&self, authorizations: &[String], names: &[String]) -> Result<(), AcmeFailure> {
        let mut pending = Vec::new();
        for url in authorizations {
            let answer = self.send(url, None).await?;
            let authorization: AcmeAuthorization = read(&answer).map_err(AcmeFailure::order)?;
            if !names.contains(&name_of(&authorization)) {
                return Err(AcmeFailure::order(NOT_ASKED_FOR));
            }
            if authorization.status == AcmeState::Valid {
                continue;
            }
            pending.push((url, authorization));
        }
        let each: Vec<_> = pending.iter().map(|(_, one)| self.opened(one)).collect();
        let each = futures_util::stream::iter(each).buffered(PROOFS_AT_ONCE);
        let opened: Vec<_> = each.collect().await;
        let (mut open, mut refused) = (Vec::new(), Vec::new());
        for ((url, authorization), opened) in pending.iter().zip(opened) {
            let name = name_of(authorization);
            match opened {
                Ok(proof) => open.push((*url, name, proof)),
                Err(failure) => refused.push(unproved(name, &failure)),
            }
        }
        // All records together: a zone with slow servers is waited for once, however many names it has.
        let end = Instant::now() + SPREAD_WAIT;
        let seen = join_all(open.iter().map(|(_, _, proof)| self.seen(proof, end))).await;
        let mut asked = Vec::new();
        for ((url, name, proof), seen) in open.into_iter().zip(seen) {
            match seen {
                Ok(()) => asked.push((url, name, proof)),
                Err(failure) => refused.push(unproved(name, &failure)),
            }
        }
        let each: Vec<_> = asked.iter().map(|(_, _, proof)| self.told(proof)).collect();
        let told: Vec<_> = futures_util::stream::iter(each)
            .buffered(PROOFS_AT_ONCE)
            .collect()
            .await;
        let end = Instant::now() + DECISION_WAIT;
        for ((url, name, _open), told) in asked.iter().zip(told) {
            match told {
                Ok(()) => {}
                Err(AcmeFailure::Order { why, wait }) => {
                    let failure = ProofFailure {
                        wait,
                        ..ProofFailure::of_name(why)
                    };
                    refused.push(unproved(name.clone(), &failure));
                    continue;
                }
                Err(failure) => return Err(failure),
            }
            let is_decided = |one: &AcmeAuthorization| one.status != AcmeState::Pending;
            let authorization = self.settled(url, end, is_decided).await?;
            refused.extend(refusal(name, authorization.as_ref()));
        }
        match refused.is_empty() {
            true => Ok(()),
            false => Err(AcmeFailure::Names(refused)),
        }
    }

    /// Answers the challenge of a name from now on.
    async fn opened(&self, authorization: &AcmeAuthorization) -> Result<OpenProof, ProofFailure> {
        let name = name_of(authorization);
        let offered = |kind: &ChallengeKind| authorization.challenges.iter().find(|one| one.kind == kind.word());
        let mut kinds = self.kinds.iter().filter(|kind| kind.can_show(&name));
        let chosen = kinds.find_map(|kind| Some((*kind, offered(kind)?)));
        let (kind, challenge) = chosen.ok_or_else(|| ProofFailure::of_name(NOT_OFFERED))?;
        let token = &challenge.token;
        if !answers::is_token(token) {
            return Err(ProofFailure::of_name("the authority's token is not one"));
        }
        let answer = self.key.key_authorization(token);
        let answer = answer.map_err(|error| ProofFailure::ours(error.to_string()))?;
        let held = match kind {
            ChallengeKind::Http01 | ChallengeKind::TlsAlpn01 => {
                let open = match kind {
                    ChallengeKind::TlsAlpn01 => {
                        let context = challenge_context(&name, &answer);
                        let context = context.map_err(|error| ProofFailure::ours(error.to_string()))?;
                        self.challenges.open_handshakes(&name, context)
                    }
                    _ => self.challenges.open(token, answer.clone()),
                };
                HeldProof::Answer(open.everywhere(token, kind.word(), &name, &answer).await)
            }
            ChallengeKind::Dns01 => {
                let prover = self.prover.as_ref();
                let prover = prover.ok_or_else(|| ProofFailure::of_name(NOT_OFFERED))?;
                HeldProof::Record(prover.put(&name, &answer).await?)
            }
        };
        let url = challenge.url.clone();
        Ok(OpenProof { url, held })
    }

    /// Waits until a record is seen where the authority looks for it.
    async fn seen(&self, proof: &OpenProof, end: Instant) -> Result<(), ProofFailure> {
        match (&proof.held, &self.prover) {
            (HeldProof::Record(record), Some(prover)) => prover.seen(record, end).await,
            _ => Ok(()),
        }
    }

    /// Tells the authority that it may look.
    async fn told(&self, proof: &OpenProof) -> Result<(), AcmeFailure> {
        self.send(&proof.url, Some(&json!({}))).await.map(drop)
    }

    /// Looks at something until the authority has decided. `None`: it has not until then.
    async fn settled<T: DeserializeOwned>(
        &self,
        url: &str,
        end: Instant,
        is_settled: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, AcmeFailure> {
        let mut pause = LOOK_FIRST;
        loop {
            let answer = self.send(url, None).await?;
            let state: T = read(&answer).map_err(AcmeFailure::order)?;
            if is_settled(&state) {
                return Ok(Some(state));
            }
            // It says when to look again, and not when to order again.
            let wait = answer.retry_after().unwrap_or_default().max(pause);
            if Instant::now() + wait > end {
                return Ok(None);
            }
            sleep(wait).await;
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    async fn send(&self, url: &str, payload: Option<&Value>) -> Result<AuthorityAnswer, AcmeFailure> {
        let by = SignedBy::Account(&self.account);
        self.post(by, url, payload).await.map_err(RequestFailure::of_order)
    }

    /// Sends a signed request, again where the authority no longer knows the nonce (RFC 8555 §6.5).
    async fn post(
        &self,
        by: SignedBy<'_>,
        url: &str,
        payload: Option<&Value>,
    ) -> Result<AuthorityAnswer, RequestFailure> {
        for _ in 0..NONCE_TRIES {
            let nonce = self.nonce().await?;
            let body = self.key.sign(by, &nonce, url, payload);
            let body = body.map_err(|error| RequestFailure::away(error.to_string()))?;
            let answer = self
                .web
                .ask(Method::POST, url, body)
                .await
                .map_err(RequestFailure::away)?;
            self.keep_nonce(&answer);
            match done(answer) {
                Err(RequestFailure::Problem { problem, .. }) if problem.is("badNonce") => {}
                other => return other,
            }
        }
        Err(RequestFailure::away("the authority refuses all of its nonces"))
    }

    async fn nonce(&self) -> Result<String, RequestFailure> {
        if let Some(nonce) = self.nonces.lock().pop() {
            return Ok(nonce);
        }
        let answer = self.web.ask(Method::HEAD, &self.directory.new_nonce, Vec::new()).await;
        let answer = done(answer.map_err(RequestFailure::away)?)?;
        answer
            .nonce()
            .ok_or_else(|| RequestFailure::away("the authority gives no nonce"))
    }

    fn keep_nonce(&self, answer: &AuthorityAnswer) {
        let mut nonces = self.nonces.lock();
        if let Some(nonce) = answer.nonce().filter(|_| nonces.len() < NONCES_MAX) {
            nonces.push(nonce);
        }
    }
}

/// What the authority says of itself, if it can be used as the node file says; without an account and an order.
///
/// # Errors
/// It cannot be used.
pub(crate) async fn directory_of(config: &AcmeConfig, web: &AuthorityWeb) -> Result<AcmeDirectory, AcmeFailure> {
    let answer = web.ask(Method::GET, &config.directory_url, Vec::new()).await;
    let answer = done(answer.map_err(AcmeFailure::authority)?).map_err(RequestFailure::of_account)?;
    let directory: AcmeDirectory = read(&answer).map_err(AcmeFailure::authority)?;
    let terms = directory.meta.terms_of_service.as_ref();
    if let Some(terms) = terms.filter(|_| !config.accepts_terms) {
        let why = format!("acme.accept_terms_of_service is not true; the authority's terms are {terms:?}");
        return Err(AcmeFailure::authority(why));
    }
    if let Some(profile) = &config.profile
        && !directory.meta.profiles.contains_key(profile)
    {
        let known: Vec<&str> = directory.meta.profiles.keys().map(String::as_str).collect();
        let known = known.join(", ");
        let why = format!("the authority has no acme.profile {profile:?}, but these: {known}");
        return Err(AcmeFailure::authority(why));
    }
    Ok(directory)
}

/// The answer to a request that was done.
fn done(answer: AuthorityAnswer) -> Result<AuthorityAnswer, RequestFailure> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let wait = answer.retry_after();
    let problem: Option<AcmeProblem> = serde_json::from_slice(&answer.body).ok();
    match problem {
        Some(problem) if answer.status.is_client_error() => Err(RequestFailure::Problem { problem, wait }),
        problem => {
            let reason = problem.map(|problem| problem.reason()).unwrap_or_default();
            let why = format!("the authority answered {} {reason}", answer.status.as_u16());
            let why = why.trim_end().to_owned();
            Err(RequestFailure::Away { why, wait })
        }
    }
}

fn read<T: DeserializeOwned>(answer: &AuthorityAnswer) -> Result<T, String> {
    let read = serde_json::from_slice(&answer.body);
    read.map_err(|error| format!("the authority's answer is not what it should be: {error}"))
}

fn location(answer: &AuthorityAnswer) -> Result<String, String> {
    let location = answer.field(header::LOCATION).map(str::to_owned);
    location.ok_or_else(|| "the authority's answer has no Location".to_owned())
}

/// The name that was asked for: that of a pattern stands in an authorization without its beginning.
fn name_of(authorization: &AcmeAuthorization) -> String {
    let name = authorization.identifier.value.to_ascii_lowercase();
    match authorization.wildcard {
        true => format!("*.{name}"),
        false => name,
    }
}

/// These names without those for which a pattern among them is good: authorities refuse an order with both.
fn without_covered(names: &[String]) -> Vec<String> {
    let is_covered = |name: &str| {
        let above = name.split_once('.').map(|(_, above)| format!("*.{above}"));
        above.is_some_and(|pattern| pattern != name && names.contains(&pattern))
    };
    names.iter().filter(|name| !is_covered(name)).cloned().collect()
}

/// A name that was not shown to be controlled.
fn unproved(name: String, failure: &ProofFailure) -> RefusedName {
    RefusedName {
        name,
        why: plain(&failure.why),
        wait: failure.wait,
        fault: failure.fault,
    }
}

/// Whether a name is refused: one that is not decided must not take the others with it.
fn refusal(name: &str, authorization: Option<&AcmeAuthorization>) -> Option<RefusedName> {
    let why = match authorization {
        Some(authorization) if authorization.status == AcmeState::Valid => return None,
        Some(authorization) => why_not(authorization),
        None => UNDECIDED.to_owned(),
    };
    Some(RefusedName {
        name: name.to_owned(),
        why,
        wait: None,
        fault: Fault::OfName,
    })
}

fn why_not(authorization: &AcmeAuthorization) -> String {
    let mut errors = authorization.challenges.iter().filter_map(|one| one.error.as_ref());
    let reason = errors.next().map(AcmeProblem::reason);
    reason.unwrap_or_else(|| "the authority does not say why".to_owned())
}

/// A certificate that is not for these names and this key would take the place of one that is.
fn issued(names: &[String], body: &[u8], key: Secret<String>) -> Result<IssuedCertificate, String> {
    let wrong = |why: String| format!("the authority has issued something else: {why}");
    let pair = CertKey::from_pem(body, key.expose().as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let uncovered = pair.uncovered(names.iter().map(String::as_str));
    if !uncovered.is_empty() {
        return Err(wrong(format!("it is not good for {}", uncovered.join(", "))));
    }
    if let Some(when) = pair.expired() {
        return Err(wrong(format!("it expired on {when}")));
    }
    if pair.chain.len() >= CERTIFICATES_MAX {
        return Err(wrong(format!("more than {CERTIFICATES_MAX} certificates")));
    }
    // Written anew: what else the authority may have sent is not stored.
    let all = std::iter::once(&pair.leaf).chain(&pair.chain).map(|one| one.to_pem());
    let pem: Vec<Vec<u8>> = all
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    let certificate = String::from_utf8(pem.concat()).map_err(|error| wrong(error.to_string()))?;
    Ok(IssuedCertificate {
        certificate,
        fingerprint: pair.fingerprint_text(),
        life: life_of(&pair, true, names.iter().cloned().collect()),
        key,
    })
}

/// How long a certificate is good, by the clock of this machine, and for which of the wanted names.
pub(crate) fn life_of(pair: &CertKey, is_ours: bool, covers: HashSet<String>) -> CurrentCertificate {
    CurrentCertificate {
        is_ours,
        expires: Timestamp::now().as_second().saturating_add(pair.seconds_left()),
        lifetime: pair.lifetime(),
        covers,
        id: certificate_id(pair.leaf()),
        spread: pair.fingerprint().first().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::certificate::samples::pair;

    #[test]
    fn of_what_is_issued_only_certificates_are_stored() {
        let [certificate, key] = pair(5_000, "a.test");
        let issued = |body: String, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            issued(&names, body.as_bytes(), Secret::new(key.clone()))
        };
        let with_more = issued(format!("# ours\n{certificate}\n# the end\n"), &["a.test"]).unwrap();
        assert_eq!(with_more.certificate, certificate);
        let longest = certificate.repeat(CERTIFICATES_MAX);
        assert_eq!(issued(longest.clone(), &["a.test"]).unwrap().certificate, longest);
        for (body, names, why) in [
            (longest + &certificate, &["a.test"][..], "more than 10 certificates"),
            (certificate.clone(), &["a.test", "b.test"], "it is not good for b.test"),
            (pair(5_000, "a.test")[0].clone(), &["a.test"], "does not belong"),
            ("text".to_owned(), &["a.test"], "there is no certificate"),
        ] {
            let told = issued(body, names).err().unwrap();
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn a_pattern_stands_for_the_names_that_it_is_good_for() {
        let names = ["*.a.test", "a.test", "mail.a.test", "x.mail.a.test", "mail.b.test"].map(str::to_owned);
        assert_eq!(
            without_covered(&names),
            ["*.a.test", "a.test", "x.mail.a.test", "mail.b.test"]
        );
        assert_eq!(without_covered(&names[2..]), &names[2..]);
    }

    #[test]
    fn a_name_that_is_not_decided_is_refused_alone() {
        let authorization = |status: &str| -> AcmeAuthorization {
            serde_json::from_value(json!({"identifier": {"value": "a.test"}, "status": status})).unwrap()
        };
        for (authorization, why) in [
            (Some(authorization("valid")), None),
            (Some(authorization("invalid")), Some("the authority does not say why")),
            (None, Some(UNDECIDED)),
        ] {
            let refused = refusal("a.test", authorization.as_ref());
            assert_eq!(refused.map(|refused| refused.why).as_deref(), why);
        }
    }

    #[test]
    fn the_pause_that_an_authority_asks_for_is_kept_for_its_names() {
        let problem = json!({"type": "urn:ietf:params:acme:error:rateLimited", "subproblems": [
            {"type": "urn:ietf:params:acme:error:rateLimited", "identifier": {"value": "a.test"}}]});
        let (problem, wait) = (serde_json::from_value(problem).unwrap(), Some(Duration::from_secs(9)));
        let AcmeFailure::Names(refused) = (RequestFailure::Problem { problem, wait }).of_order() else {
            panic!("it names a name");
        };
        assert_eq!((refused[0].name.as_str(), refused[0].wait), ("a.test", wait));
    }

    #[test]
    fn reasons_are_bounded_whatever_they_quote() {
        let long = "a\n".repeat(100_000);
        let bounded = |why: String| why.chars().count() <= 400 && !why.contains('\n');
        let (AcmeFailure::Authority { why, .. }, AcmeFailure::Order { why: other, .. }) =
            (AcmeFailure::authority(long.as_str()), AcmeFailure::order(long.as_str()))
        else {
            panic!("they are what they are called");
        };
        assert!(bounded(why) && bounded(other));
        let AcmeFailure::Authority { why, .. } = RequestFailure::away(long).of_order() else {
            panic!("the authority is away");
        };
        assert!(bounded(why));
    }
}
