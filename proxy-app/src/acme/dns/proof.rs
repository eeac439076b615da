//! Records that show who controls a name (DNS-01, RFC 8555 §8.4): put where they belong, seen by all name servers of the
//! zone before the authority is told, and taken away again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use openssl::sha::sha256;
use route_cache::HostPort;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::acme::account_key::encode;
use crate::acme::care::Fault;
use crate::acme::dns::client::{DNS_PORT, DnsClient, DnsFailure, answer_to, by_stream, code_word};
use crate::acme::dns::message::{RecordContent, RecordType, TextChange, update};
use crate::acme::dns::name::DnsName;
use crate::acme::dns::signature::MessageKey;
use crate::config::{AcmeDns, DnsUpdateServer, DnsWay};
use crate::node::program;
use crate::upstream::dns::{DnsCache, IpMode};

/// In front of a name stands the record that shows who controls it.
const LABEL: &str = "_acme-challenge";
/// How long the servers of a zone may take to have a record: some send each other changes once a minute.
pub(crate) const SPREAD_WAIT: Duration = Duration::from_secs(120);
/// The first pause between two looks at them, and the longest one.
const LOOK_FIRST: Duration = Duration::from_millis(250);
const LOOK_LAST: Duration = Duration::from_secs(5);
/// Looks at one time, for all orders: servers drop questions of those who ask too many.
const LOOKS_AT_ONCE: usize = 32;
/// How long the administrator's program may take.
const PROGRAM_WAIT: Duration = Duration::from_secs(60);
/// How often it is tried to take a record away, and the first pause in between, which is doubled.
const REMOVALS: usize = 4;
const REMOVAL_PAUSE: Duration = Duration::from_secs(2);

/// Puts records into the DNS.
pub(crate) struct DnsProver {
    config: AcmeDns,
    dns: Arc<DnsCache>,
    resolvers: DnsClient,
    /// Looks at name servers that may be under way.
    looks: Semaphore,
}

/// Why a name is not shown to be controlled.
#[derive(Debug)]
pub(crate) struct ProofFailure {
    /// The reason.
    pub why: String,
    /// The pause that the authority asks for.
    pub wait: Option<Duration>,
    /// Of what that is a fault.
    pub fault: Fault,
}

impl ProofFailure {
    /// A fault of the name, or of those who serve it.
    pub(crate) fn of_name(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            wait: None,
            fault: Fault::OfName,
        }
    }

    /// Something here does not work: it may work for all names soon.
    pub(crate) fn ours(why: impl Into<String>) -> Self {
        Self {
            fault: Fault::Ours,
            ..Self::of_name(why)
        }
    }
}

impl From<DnsFailure> for ProofFailure {
    fn from(DnsFailure { why, is_silence }: DnsFailure) -> Self {
        match is_silence {
            true => Self::ours(why),
            false => Self::of_name(why),
        }
    }
}

/// A record, until this is dropped.
pub(crate) struct DnsProof {
    prover: Arc<DnsProver>,
    place: DnsName,
    value: String,
}

impl DnsProver {
    /// By the means of the node file; servers of updates are found as other servers are.
    pub(crate) fn new(config: AcmeDns, dns: Arc<DnsCache>, resolvers: DnsClient) -> Self {
        let looks = Semaphore::new(LOOKS_AT_ONCE);
        Self {
            config,
            dns,
            resolvers,
            looks,
        }
    }

    /// Puts the record for a challenge where the authority looks for it. Whatever comes of it, the record is taken away in
    /// the end, and no other one.
    ///
    /// # Errors
    /// Why it is not there.
    pub(crate) async fn put(self: &Arc<Self>, name: &str, key_authorization: &str) -> Result<DnsProof, ProofFailure> {
        let name = name.strip_prefix("*.").unwrap_or(name);
        let name = DnsName::parse(&format!("{LABEL}.{name}"));
        let name = name.ok_or_else(|| ProofFailure::of_name("the name is too long for a record in front of it"))?;
        let place = self.resolvers.followed(&name).await?;
        if !is_plain(&place) {
            let why = format!("a CNAME record leads to {place}, where no record is put");
            return Err(ProofFailure::of_name(why));
        }
        // From here on something may be there, even if this ends early.
        let proof = DnsProof {
            prover: self.clone(),
            place,
            value: encode(&sha256(key_authorization.as_bytes())),
        };
        self.change(&proof.place, &proof.value, TextChange::Add).await?;
        Ok(proof)
    }

    async fn change(&self, place: &DnsName, value: &str, change: TextChange) -> Result<(), ProofFailure> {
        match &self.config.way {
            DnsWay::Update(server) => self.update(server, place, value, change).await,
            DnsWay::Command(words) => {
                let act = match change {
                    TextChange::Add => "present",
                    TextChange::Delete => "cleanup",
                };
                let place = place.to_string();
                let more = [act.to_owned(), place.clone(), value.to_owned()];
                let words: Vec<String> = words.iter().cloned().chain(more).collect();
                let variables = [
                    ("PORTICO_ACME_ACTION", act),
                    ("PORTICO_ACME_NAME", &place),
                    ("PORTICO_ACME_VALUE", value),
                ];
                // It may be the name that its provider does not know.
                let run = program::run(&words, &variables, PROGRAM_WAIT).await;
                run.map_err(ProofFailure::of_name)
            }
        }
    }

    /// RFC 2136, signed (RFC 8945), over TCP: a change that is lost or repeated would not be known. At the first of the
    /// server's addresses that can be used.
    async fn update(
        &self,
        server: &DnsUpdateServer,
        place: &DnsName,
        value: &str,
        change: TextChange,
    ) -> Result<(), ProofFailure> {
        let mut failure = None;
        for address in self.addresses(&server.server).await.map_err(ProofFailure::ours)? {
            match self.update_at(address, server, place, value, change).await {
                Err(failed) if failed.fault == Fault::Ours => failure = failure.or(Some(failed)),
                decided => return decided,
            }
        }
        Err(failure.unwrap_or_else(|| ProofFailure::ours(format!("{}: it has no address", server.server))))
    }

    async fn update_at(
        &self,
        address: SocketAddr,
        server: &DnsUpdateServer,
        place: &DnsName,
        value: &str,
        change: TextChange,
    ) -> Result<(), ProofFailure> {
        let zone = match &server.zone {
            Some(zone) => DnsName::parse(zone),
            None => Some(DnsClient::of_servers(vec![address]).zone_of(place).await?),
        };
        let zone = zone.ok_or_else(|| ProofFailure::ours("acme.dns.update.zone is no name"))?;
        if !place.is_within(&zone) {
            let why = format!("{place} is not in the zone {zone} of acme.dns.update");
            return Err(ProofFailure::of_name(why));
        }
        let key = MessageKey::new(&server.tsig);
        let key = key.ok_or_else(|| ProofFailure::ours("acme.dns.update.tsig.name is no name"))?;
        let message = update(rand::random(), &zone, place, value, change);
        let signed = key.sign(&message, now());
        let (signed, code) = signed.map_err(|error| ProofFailure::ours(error.to_string()))?;
        let failed = |why: String| format!("the name server {address} does not change the zone {zone}: {why}");
        let ours = |why: String| ProofFailure::ours(failed(why));
        let answer = by_stream(address, &signed).await.map_err(ours)?;
        if let Err(why) = key.check(&answer, &code, now()) {
            let said = answer_to(&message, &answer).map(|answer| answer.code).unwrap_or(0);
            let said = (said != 0).then(|| format!(" (it answers {})", code_word(said)));
            return Err(ours(format!("{why}{}", said.unwrap_or_default())));
        }
        match answer_to(&message, &answer).map_err(ours)?.code {
            0 => Ok(()),
            code => Err(ProofFailure::of_name(failed(format!("it answers {}", code_word(code))))),
        }
    }

    /// Waits until all name servers of the zone that answer have the record, until `end`.
    ///
    /// # Errors
    /// Which server does not have it.
    pub(crate) async fn seen(&self, proof: &DnsProof, end: Instant) -> Result<(), ProofFailure> {
        let servers = self.servers(&proof.place).await?;
        let mut pause = LOOK_FIRST;
        loop {
            let looks = join_all(servers.iter().map(|server| self.has(server, proof))).await;
            let mut found = looks.iter().filter_map(|look| look.as_ref().ok());
            let lacking = looks.iter().zip(&servers).find(|(look, _)| matches!(look, Ok(false)));
            let (why, is_silence) = match (lacking, found.any(|has| *has)) {
                (None, true) => return Ok(()),
                (Some((_, server)), _) => (format!("the name server {server} does not have it in time"), false),
                (None, false) => match looks.into_iter().find_map(Result::err) {
                    Some(DnsFailure { why, is_silence }) => (why, is_silence),
                    None => return Err(ProofFailure::of_name("there is no name server to look at")),
                },
            };
            if Instant::now() + pause > end {
                let why = format!("the record {} is not seen: {why}", proof.place);
                return Err(match is_silence && !self.config.servers.is_empty() {
                    true => ProofFailure::ours(why),
                    false => ProofFailure::of_name(why),
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// The name servers that must have a record here: those of the node file, each by whichever of its addresses answers,
    /// or else those of the zone.
    async fn servers(&self, place: &DnsName) -> Result<Vec<DnsClient>, ProofFailure> {
        if !self.config.servers.is_empty() {
            let found = join_all(self.config.servers.iter().map(|server| self.addresses(server))).await;
            let found = found.into_iter().map(|addresses| addresses.map(DnsClient::of_servers));
            return found.collect::<Result<_, _>>().map_err(ProofFailure::ours);
        }
        let zone = self.resolvers.zone_of(place).await?;
        let servers = self.resolvers.servers_of(&zone).await?;
        // The one that is changed may be at another port.
        let changed = match &self.config.way {
            DnsWay::Update(server) => self.addresses(&server.server).await.unwrap_or_default(),
            DnsWay::Command(_) => Vec::new(),
        };
        let at_port = |server| {
            let mut changed = changed.iter().filter(|changed| changed.ip() == server);
            let at = changed.next().copied();
            DnsClient::of_servers(vec![at.unwrap_or(SocketAddr::new(server, DNS_PORT))])
        };
        Ok(servers.into_iter().map(at_port).collect())
    }

    /// Whether a server has the record.
    async fn has(&self, server: &DnsClient, proof: &DnsProof) -> Result<bool, DnsFailure> {
        // It is closed by nobody.
        let _turn = self.looks.acquire().await;
        let answer = server.ask(&proof.place, RecordType::Txt).await?;
        if answer.answers.is_empty() && !answer.is_authoritative {
            return Err(format!("the name server {server} does not have the zone").into());
        }
        let is_it =
            |content: &RecordContent| matches!(content, RecordContent::Text(text) if *text == proof.value.as_bytes());
        Ok(answer.answers.iter().any(|record| is_it(&record.content)))
    }

    /// At least one.
    async fn addresses(&self, server: &HostPort) -> Result<Vec<SocketAddr>, String> {
        let found = self.dns.resolve(&server.host, server.port, IpMode::Both).await;
        let found: Vec<SocketAddr> = found
            .map_err(|error| format!("{server}: {error}"))?
            .into_iter()
            .collect();
        match found.is_empty() {
            true => Err(format!("{server}: it has no address")),
            false => Ok(found),
        }
    }

    async fn remove(&self, place: &DnsName, value: &str) {
        let mut pause = REMOVAL_PAUSE;
        for left in (0..REMOVALS).rev() {
            match self.change(place, value, TextChange::Delete).await {
                Ok(()) => return,
                Err(_) if left > 0 => sleep(pause).await,
                Err(ProofFailure { why, .. }) => {
                    log::warn!("the record {place} of a challenge that is over cannot be taken away: {why}");
                }
            }
            pause *= 2;
        }
    }
}

impl Drop for DnsProof {
    fn drop(&mut self) {
        let (prover, place, value) = (self.prover.clone(), self.place.clone(), std::mem::take(&mut self.value));
        // It ends by itself: each step has a deadline. Without a runtime the process ends.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { prover.remove(&place, &value).await });
        }
    }
}

/// Whether a name has nothing in it that a program could take for something else: whoever runs the DNS of a name of
/// ours says where it leads.
fn is_plain(place: &DnsName) -> bool {
    let text = place.to_string();
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.bytes().all(is_good) && !text.starts_with('-')
}

/// Seconds since 1970.
fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}
