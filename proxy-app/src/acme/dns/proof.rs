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
use tokio::time::{Instant, sleep};

use crate::acme::account_key::encode;
use crate::acme::dns::client::{DNS_PORT, DnsClient, answer_to, by_stream, code_word};
use crate::acme::dns::message::{RecordContent, RecordType, TextChange, update};
use crate::acme::dns::name::DnsName;
use crate::acme::dns::signature::MessageKey;
use crate::config::{AcmeDns, DnsUpdateServer, DnsWay};
use crate::node::program;
use crate::upstream::dns::{DnsCache, IpMode};

/// In front of a name stands the record that shows who controls it.
const LABEL: &str = "_acme-challenge";
/// How long the servers of a zone may take to have a record: some send each other changes once a minute.
const SPREAD_WAIT: Duration = Duration::from_secs(120);
/// The first pause between two looks at them, and the longest one.
const LOOK_FIRST: Duration = Duration::from_millis(250);
const LOOK_LAST: Duration = Duration::from_secs(5);
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
        Self { config, dns, resolvers }
    }

    /// Puts the record for a challenge where the authority looks for it, and waits until it is seen there. Whatever comes
    /// of it, the record is taken away in the end, and no other one.
    ///
    /// # Errors
    /// Why it is not there.
    pub(crate) async fn prove(self: &Arc<Self>, name: &str, key_authorization: &str) -> Result<DnsProof, String> {
        let name = name.strip_prefix("*.").unwrap_or(name);
        let name = DnsName::parse(&format!("{LABEL}.{name}"));
        let name = name.ok_or("the name is too long for a record in front of it")?;
        let place = self.resolvers.followed(&name).await?;
        if !is_plain(&place) {
            return Err(format!("a CNAME record leads to {place}, where no record is put"));
        }
        // From here on something may be there, even if this ends early.
        let proof = DnsProof {
            prover: self.clone(),
            place,
            value: encode(&sha256(key_authorization.as_bytes())),
        };
        self.change(&proof.place, &proof.value, TextChange::Add).await?;
        self.seen(&proof).await?;
        Ok(proof)
    }

    async fn change(&self, place: &DnsName, value: &str, change: TextChange) -> Result<(), String> {
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
                program::run(&words, &variables, PROGRAM_WAIT).await
            }
        }
    }

    /// RFC 2136, signed (RFC 8945), over TCP: a change that is lost or repeated would not be known.
    async fn update(
        &self,
        server: &DnsUpdateServer,
        place: &DnsName,
        value: &str,
        change: TextChange,
    ) -> Result<(), String> {
        let address = self.address(&server.server).await?;
        let zone = match &server.zone {
            Some(zone) => DnsName::parse(zone),
            None => Some(DnsClient::of_server(address).zone_of(place).await?),
        };
        let zone = zone.ok_or("acme.dns.update.zone is no name")?;
        if !place.is_within(&zone) {
            return Err(format!("{place} is not in the zone {zone} of acme.dns.update"));
        }
        let key = MessageKey::new(&server.tsig).ok_or("acme.dns.update.tsig.name is no name")?;
        let message = update(rand::random(), &zone, place, value, change);
        let (signed, code) = key.sign(&message, now()).map_err(|error| error.to_string())?;
        let failed = |why: String| format!("the name server {address} does not change the zone {zone}: {why}");
        let answer = by_stream(address, &signed).await.map_err(failed)?;
        key.check(&answer, &code, now()).map_err(failed)?;
        match answer_to(&message, &answer).map_err(failed)?.code {
            0 => Ok(()),
            code => Err(failed(format!("it answers {}", code_word(code)))),
        }
    }

    /// Waits until all name servers of the zone that answer have the record.
    async fn seen(&self, proof: &DnsProof) -> Result<(), String> {
        let servers = self.servers(&proof.place).await?;
        let (end, mut pause) = (Instant::now() + SPREAD_WAIT, LOOK_FIRST);
        loop {
            let looks = join_all(servers.iter().map(|server| has(*server, proof))).await;
            let lacking = looks.iter().zip(&servers).find(|(look, _)| look.as_ref() == Ok(&false));
            let why = match (lacking, looks.contains(&Ok(true))) {
                (None, true) => return Ok(()),
                (Some((_, server)), _) => format!("the name server {server} does not have it in time"),
                (None, false) => match looks.into_iter().find_map(Result::err) {
                    Some(why) => why,
                    None => return Err("there is no name server to look at".to_owned()),
                },
            };
            if Instant::now() + pause > end {
                return Err(format!("the record {} is not seen: {why}", proof.place));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// The name servers that must have a record here: those of the node file, or else those of the zone.
    async fn servers(&self, place: &DnsName) -> Result<Vec<SocketAddr>, String> {
        if !self.config.servers.is_empty() {
            let found = join_all(self.config.servers.iter().map(|server| self.address(server))).await;
            return found.into_iter().collect();
        }
        let zone = self.resolvers.zone_of(place).await?;
        let servers = self.resolvers.servers_of(&zone).await?;
        // The one that is changed may be at another port.
        let changed = match &self.config.way {
            DnsWay::Update(server) => self.address(&server.server).await.ok(),
            DnsWay::Command(_) => None,
        };
        let at_port = |server| match changed {
            Some(changed) if changed.ip() == server => changed,
            _ => SocketAddr::new(server, DNS_PORT),
        };
        Ok(servers.into_iter().map(at_port).collect())
    }

    async fn address(&self, server: &HostPort) -> Result<SocketAddr, String> {
        let found = self.dns.resolve(&server.host, server.port, IpMode::Both).await;
        let first = found.map_err(|error| format!("{server}: {error}"))?.into_iter().next();
        first.ok_or_else(|| format!("{server}: it has no address"))
    }

    async fn remove(&self, place: &DnsName, value: &str) {
        let mut pause = REMOVAL_PAUSE;
        for left in (0..REMOVALS).rev() {
            match self.change(place, value, TextChange::Delete).await {
                Ok(()) => return,
                Err(_) if left > 0 => sleep(pause).await,
                Err(why) => {
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

/// Whether a server has the record.
async fn has(server: SocketAddr, proof: &DnsProof) -> Result<bool, String> {
    let answer = DnsClient::of_server(server).ask(&proof.place, RecordType::Txt).await?;
    if answer.answers.is_empty() && !answer.is_authoritative {
        return Err(format!("the name server {server} does not have the zone"));
    }
    let is_it =
        |content: &RecordContent| matches!(content, RecordContent::Text(text) if *text == proof.value.as_bytes());
    Ok(answer.answers.iter().any(|record| is_it(&record.content)))
}

/// Seconds since 1970.
fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}
