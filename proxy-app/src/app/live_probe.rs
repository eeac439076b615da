//! What a client sees of the names of a domain, now: what the DNS says of each, and which certificate each TLS listener
//! of this node shows for it.
//!
//! Listeners are looked at as clients do it, over TCP and TLS from this machine. Nobody logs in, and what is seen changes
//! nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::iter;
use mail_directory::{attributes as a, names};
use mail_proxy::StartTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::acme::dns::client::{DnsClient, HostRecords};
use crate::acme::dns::name::DnsName;
use crate::app::App;
use crate::config::{Listener, ListenerTls, Serve};
use crate::tls::asn1_time::seconds_until;
use crate::tls::certificate::{covers, fingerprint_text, names_in};
use crate::tls::certificate_store::CertStore;
use crate::tls::probe_client::{PeerCertificate, ProbeClient};
use crate::upstream::proxy_header;

/// Most names of a domain that are looked at.
const NAMES_MAX: usize = 50;
/// Handshakes at one time, and names that the DNS is asked about: fewer than the connections that one address may have,
/// so that clients do not feel it.
const AT_ONCE: usize = 16;
/// How long the DNS may take for a name: longer than a resolver that is down, whose place another one takes.
const NAME_WAIT: Duration = Duration::from_secs(5);
/// How long a listener may take for a name.
const LOOK_WAIT: Duration = Duration::from_secs(3);
/// How long a look at all of them may take.
pub(crate) const WHOLE_WAIT: Duration = Duration::from_secs(20);
/// How long one waits for those that came before it: so long that administrators of two nodes, who ask at the same
/// time, do not refuse each other.
pub(crate) const TURN_WAIT: Duration = WHOLE_WAIT.saturating_add(Duration::from_secs(1));
/// Requests that this node's own callers may have under way: each has all nodes look.
const ASKED_HERE: usize = 1;
/// The same of all other nodes together.
const ASKED_ELSEWHERE: usize = 4;
/// Longest line of a mail server before TLS, and most of them before its answer.
const LINE_MAX: usize = 1024;
const LINES_MAX: usize = 8;
/// Most letters of a line that are quoted.
const QUOTED_MAX: usize = 100;
/// What stands for the `*` of a pattern.
const ANY_LABEL: &str = "portico-probe";

/// What is looked at, in the order in which people read it.
pub(crate) const SERVICES: [&str; 5] = ["HTTPS", "IMAPS", "POP3S", "IMAP STARTTLS", "POP3 STLS"];

/// What there was no time for.
const NO_TIME: &str = "there was no time left to look";

/// A domain whose names are looked at.
pub(crate) struct ProbePlan {
    /// The domain.
    pub domain: String,
    /// Its virtual host names, at most [`NAMES_MAX`].
    pub names: Vec<String>,
    /// How many more it has.
    pub more: usize,
}

/// Why nothing is looked at.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProbeRefusal {
    /// Nothing has this name.
    #[error("no domain and no virtual host name is {0}")]
    NoSuchName(String),
    /// The domain has no virtual host names.
    #[error("the domain {0} has no virtual host name")]
    NoNames(String),
    /// Others have asked already.
    #[error("others are being looked at: ask again in half a minute")]
    Busy,
    /// The TLS library does not work.
    #[error("{0}")]
    Broken(String),
}

/// Who asks for a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeAsker {
    /// A caller of this node, which asks the others.
    Here,
    /// Another node.
    OtherNode,
}

/// Who may look, and when. Each look is a great many handshakes.
pub(crate) struct ProbeTurns {
    asked_here: Arc<Semaphore>,
    asked_elsewhere: Arc<Semaphore>,
    /// One at a time.
    looks: Semaphore,
}

impl Default for ProbeTurns {
    fn default() -> Self {
        Self {
            asked_here: Arc::new(Semaphore::new(ASKED_HERE)),
            asked_elsewhere: Arc::new(Semaphore::new(ASKED_ELSEWHERE)),
            looks: Semaphore::new(1),
        }
    }
}

impl ProbeTurns {
    /// A place for a request, without a wait.
    fn admit(&self, asker: ProbeAsker) -> Result<OwnedSemaphorePermit, ProbeRefusal> {
        let places = match asker {
            ProbeAsker::Here => &self.asked_here,
            ProbeAsker::OtherNode => &self.asked_elsewhere,
        };
        places.clone().try_acquire_owned().map_err(|_| ProbeRefusal::Busy)
    }

    /// Does this when it is its turn.
    async fn look<T>(&self, look: impl Future<Output = T>) -> Result<T, ProbeRefusal> {
        match timeout(TURN_WAIT, self.looks.acquire()).await {
            Ok(Ok(_turn)) => Ok(look.await),
            _ => Err(ProbeRefusal::Busy),
        }
    }
}

/// What is seen of a name.
pub(crate) struct SeenName {
    /// The name, or a pattern.
    pub name: String,
    /// The name that was asked for: that, or one of the pattern.
    pub asked: String,
    /// What the DNS says of it.
    pub records: Result<HostRecords, String>,
    /// What each TLS listener shows.
    pub listeners: Vec<SeenListener>,
}

/// What a listener shows for a name.
pub(crate) struct SeenListener {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it serves: one of [`SERVICES`].
    pub service: &'static str,
    /// The certificate, or why none was seen.
    pub certificate: Result<SeenCertificate, String>,
}

/// A certificate that was shown for a name.
pub(crate) struct SeenCertificate {
    /// As it was shown.
    pub shown: PeerCertificate,
    /// Whether it is good for the name.
    pub is_good_for_name: bool,
    /// Whether it is the one that this node has in force for the name.
    pub is_in_force: bool,
}

/// How a client begins TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TlsBegin {
    AtOnce,
    StartTls,
    Stls,
}

/// A listener as it is looked at.
#[derive(Debug, Clone)]
struct ProbeTarget {
    address: SocketAddr,
    /// Whose connections it expects to begin with a PROXY header.
    trusted: Vec<ipnet::IpNet>,
    service: &'static str,
    begin: TlsBegin,
}

impl SeenCertificate {
    /// What is wrong with it, if something is.
    pub(crate) fn problem(&self, asked: &str) -> Option<String> {
        let leaf = &self.shown.leaf;
        if let Some(why) = &self.shown.failure {
            return Some(format!("the handshake fails behind the certificate: {why}"));
        }
        if !self.is_good_for_name {
            return Some(format!("the certificate is not good for {asked}"));
        }
        if seconds_until(leaf.not_after()).is_none_or(|left| left < 0) {
            return Some(format!("the certificate has expired on {}", leaf.not_after()));
        }
        if seconds_until(leaf.not_before()).is_none_or(|left| left > 0) {
            return Some(format!("the certificate is not valid before {}", leaf.not_before()));
        }
        let is_foreign = !self.is_in_force;
        is_foreign.then(|| "another certificate is in force on this node: another program answers there".to_owned())
    }
}

impl App {
    /// Which names are looked at for a domain, which is known by its name or by one of its virtual host names.
    ///
    /// # Errors
    /// Nothing has this name, or the domain has none.
    pub(crate) fn plan_probe(&self, name: &str) -> Result<ProbePlan, ProbeRefusal> {
        let system = self.snapshot.load().system.clone();
        let domain = system.domain(name).or_else(|| system.domain_by_host(name));
        let domain = domain.ok_or_else(|| ProbeRefusal::NoSuchName(name.to_owned()))?;
        let list = domain.list(&a::VIRTUAL_HOSTNAME).into_iter();
        let all: Vec<String> = list.map(str::to_owned).collect();
        if all.is_empty() {
            return Err(ProbeRefusal::NoNames(domain.name().to_owned()));
        }
        let more = all.len().saturating_sub(NAMES_MAX);
        Ok(ProbePlan {
            domain: domain.name().to_owned(),
            names: first_names(all, name),
            more,
        })
    }

    /// A place for a request, which it keeps until it has its answer.
    ///
    /// # Errors
    /// Others have them all.
    pub(crate) fn admit_probe(&self, asker: ProbeAsker) -> Result<OwnedSemaphorePermit, ProbeRefusal> {
        self.probes.admit(asker)
    }

    /// Looks at names, as clients of this node and of the DNS, when it is its turn.
    ///
    /// # Errors
    /// It is not its turn in time, or the TLS library does not work.
    pub(crate) async fn probe(&self, plan: &ProbePlan) -> Result<Vec<SeenName>, ProbeRefusal> {
        let client = ProbeClient::new().map_err(|error| ProbeRefusal::Broken(error.to_string()))?;
        self.probes.look(Box::pin(self.look_at_all(plan, &client))).await
    }

    async fn look_at_all(&self, plan: &ProbePlan, client: &ProbeClient) -> Vec<SeenName> {
        let targets = {
            let snapshot = self.snapshot.load();
            let of_directory = |serve| match serve {
                Serve::Pop3 => snapshot.pop3_starttls,
                _ => snapshot.imap_starttls,
            };
            targets(&self.listeners.current().listeners, of_directory)
        };
        let resolvers = match &self.config.load().acme {
            Some(acme) => acme.resolvers.clone(),
            None => Vec::new(),
        };
        let dns = DnsClient::of_resolvers(&resolvers).await;
        let asked: Vec<String> = plan.names.iter().map(|name| one_of(name)).collect();
        let pairs = asked
            .iter()
            .flat_map(|name| targets.iter().map(move |target| (name, target)));
        let looks: Vec<_> = pairs.map(|(name, target)| self.look(client, name, target)).collect();
        let questions: Vec<_> = asked.iter().map(|name| records(&dns, name)).collect();
        let (looks, records) = tokio::join!(each_in_time(looks), each_in_time(questions));
        let mut looks = looks.into_iter();
        let seen = plan
            .names
            .iter()
            .zip(asked)
            .zip(records)
            .map(|((name, asked), records)| SeenName {
                name: name.clone(),
                asked,
                records: records.unwrap_or_else(|| Err(NO_TIME.to_owned())),
                listeners: targets
                    .iter()
                    .zip(looks.by_ref())
                    .map(|(target, look)| SeenListener {
                        address: target.address,
                        service: target.service,
                        certificate: look.unwrap_or_else(|| Err(NO_TIME.to_owned())),
                    })
                    .collect(),
            });
        seen.collect()
    }

    async fn look(&self, client: &ProbeClient, name: &str, target: &ProbeTarget) -> Result<SeenCertificate, String> {
        is_host_name(name)?;
        let look = async {
            let tcp = target.connect().await?;
            let local = tcp.peer_addr()?.ip().to_canonical();
            Ok::<_, io::Error>((client.look(name, tcp).await?, local))
        };
        let ((shown, parting), local) = match timeout(LOOK_WAIT, Box::pin(look)).await {
            Ok(looked) => looked.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("no certificate within {} s", LOOK_WAIT.as_secs())),
        };
        if let Some(parting) = parting {
            parting.leave().await;
        }
        Ok(SeenCertificate::new(shown, name, local, &self.certificates.load()))
    }
}

impl SeenCertificate {
    fn new(shown: PeerCertificate, name: &str, local: IpAddr, store: &CertStore) -> Self {
        let fingerprint = fingerprint_text(&shown.leaf);
        let in_force = store.find(Some(name), Some(local));
        Self {
            is_good_for_name: names_in(&shown.leaf).iter().any(|pattern| covers(pattern, name)),
            is_in_force: in_force.is_some_and(|pair| pair.fingerprint_text() == fingerprint),
            shown,
        }
    }
}

/// Those that are looked at, in alphabetical order: of very many the same ones on every node, and among them the one
/// that was named, or the pattern that it is one of.
fn first_names(mut all: Vec<String>, named: &str) -> Vec<String> {
    let named = names::host(named);
    all.sort_by_cached_key(|one| {
        let pattern = names::host(one);
        let is_meant = pattern == named || covers(&pattern, &named);
        (!is_meant, one.clone())
    });
    all.truncate(NAMES_MAX);
    all.sort_unstable();
    all
}

/// The listeners at which clients with names see certificates. Whether one offers STARTTLS is its own choice, or the
/// directory's.
fn targets(listeners: &[Listener], of_directory: impl Fn(Serve) -> StartTls) -> Vec<ProbeTarget> {
    let [https, imaps, pop3s, imap, pop3] = SERVICES;
    let each = listeners.iter().filter_map(|listener| {
        let starttls = listener.starttls.unwrap_or_else(|| of_directory(listener.serve));
        let offers_tls = starttls != StartTls::Off;
        let (service, begin) = match (listener.serve, listener.tls) {
            (Serve::Web, ListenerTls::Implicit) => (https, TlsBegin::AtOnce),
            (Serve::Imap, ListenerTls::Implicit) => (imaps, TlsBegin::AtOnce),
            (Serve::Pop3, ListenerTls::Implicit) => (pop3s, TlsBegin::AtOnce),
            (Serve::Imap, ListenerTls::StartTls) if offers_tls => (imap, TlsBegin::StartTls),
            (Serve::Pop3, ListenerTls::StartTls) if offers_tls => (pop3, TlsBegin::Stls),
            _ => return None,
        };
        Some(ProbeTarget {
            address: listener.address,
            trusted: listener.proxy_trusted.clone().unwrap_or_default(),
            service,
            begin,
        })
    });
    each.collect()
}

/// Does all of these, some at one time. What has not ended in time is `None`.
async fn each_in_time<F: Future>(work: Vec<F>) -> Vec<Option<F::Output>> {
    let mut done: Vec<Option<F::Output>> = work.iter().map(|_| None).collect();
    let numbered: Vec<_> = work
        .into_iter()
        .enumerate()
        .map(|(at, work)| async move { (at, work.await) })
        .collect();
    let ended = iter(numbered).buffer_unordered(AT_ONCE);
    let mut ended = pin!(ended.take_until(Box::pin(sleep(WHOLE_WAIT))));
    while let Some((at, output)) = ended.next().await {
        done[at] = Some(output);
    }
    done
}

/// The name that a client asks for: one of those that a pattern is good for.
fn one_of(name: &str) -> String {
    let name = names::host(name);
    match name.strip_prefix("*.") {
        Some(parent) => format!("{ANY_LABEL}.{parent}"),
        None => name,
    }
}

/// Clients send no address as a name (RFC 6066 §3).
fn is_host_name(name: &str) -> Result<(), String> {
    match name.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(_) => Err("an address is no virtual host name".to_owned()),
        Err(_) => Ok(()),
    }
}

async fn records(dns: &DnsClient, name: &str) -> Result<HostRecords, String> {
    is_host_name(name)?;
    let host = DnsName::parse(name).ok_or_else(|| "the DNS has no such names".to_owned())?;
    match timeout(NAME_WAIT, dns.host(&host)).await {
        Ok(found) => found.map_err(Into::into),
        Err(_) => Err("the DNS does not answer".to_owned()),
    }
}

/// Where a client of this machine finds a listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

impl ProbeTarget {
    /// A connection on which TLS begins.
    async fn connect(&self) -> io::Result<TcpStream> {
        let mut tcp = TcpStream::connect(reachable(self.address)).await?;
        let own = tcp.local_addr()?.ip().to_canonical();
        if self.trusted.iter().any(|network| network.contains(&own)) {
            // For nobody else: we are the client.
            tcp.write_all(&proxy_header::local()).await?;
        }
        match self.begin {
            TlsBegin::AtOnce => {}
            TlsBegin::StartTls => ask_for_tls(&mut tcp, "* OK", "p STARTTLS", "p ").await?,
            TlsBegin::Stls => ask_for_tls(&mut tcp, "+OK", "STLS", "").await?,
        }
        Ok(tcp)
    }
}

/// Asks a mail server for TLS. Its answer is the line that begins with `tag`.
async fn ask_for_tls(tcp: &mut TcpStream, greeting: &str, command: &str, tag: &str) -> io::Result<()> {
    let greeted = line(tcp).await?;
    if !greeted.starts_with(greeting) {
        return Err(io::Error::other(format!("its greeting is {:?}", quoted(&greeted))));
    }
    tcp.write_all(format!("{command}\r\n").as_bytes()).await?;
    for _ in 0..LINES_MAX {
        let said = line(tcp).await?;
        let Some(answer) = said.strip_prefix(tag) else { continue };
        return match answer.starts_with("OK") || answer.starts_with("+OK") {
            true => Ok(()),
            false => {
                let why = format!("it answers {:?} to {command}", quoted(&said));
                Err(io::Error::other(why))
            }
        };
    }
    Err(io::Error::other(format!("it does not answer {command}")))
}

/// As much of a line as people want to read.
fn quoted(line: &str) -> String {
    match line.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// A line, without its end. Nothing behind it is read: there TLS begins.
async fn line(tcp: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    while bytes.len() < LINE_MAX {
        match tcp.read_u8().await? {
            b'\n' => break,
            byte => bytes.push(byte),
        }
    }
    Ok(String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned())
}

#[cfg(test)]
mod tests {
    use openssl::x509::X509;
    use tokio::net::TcpListener;

    use super::*;
    use crate::tls::certificate::CertKey;
    use crate::tls::certificate::samples::pair;

    fn listener(address: &str, serve: Serve, tls: ListenerTls) -> Listener {
        Listener {
            address: address.parse().unwrap(),
            serve,
            tls,
            starttls: None,
            login_deadline: None,
            proxy_trusted: None,
            allow: None,
            stream: None,
        }
    }

    #[test]
    fn listeners_with_tls_and_names_are_looked_at() {
        let mut own = listener("[::]:110", Serve::Pop3, ListenerTls::StartTls);
        own.starttls = Some(StartTls::On);
        let listeners = [
            listener("0.0.0.0:80", Serve::Web, ListenerTls::Off),
            listener("0.0.0.0:443", Serve::Web, ListenerTls::Implicit),
            listener("192.0.2.1:993", Serve::Imap, ListenerTls::Implicit),
            listener("192.0.2.1:143", Serve::Imap, ListenerTls::StartTls),
            listener("192.0.2.1:995", Serve::Pop3, ListenerTls::Implicit),
            own,
            listener("192.0.2.1:6071", Serve::AdminConsole, ListenerTls::Implicit),
            listener("192.0.2.1:9443", Serve::Sso, ListenerTls::Implicit),
            listener("192.0.2.1:636", Serve::Stream, ListenerTls::Implicit),
        ];
        let services = |mode: StartTls| -> Vec<(&str, String)> {
            let targets = targets(&listeners, |_| mode);
            let each = targets.iter();
            each.map(|target| (target.service, reachable(target.address).to_string()))
                .collect()
        };
        let [https, imaps, imap, pop3s, pop3] = [
            ("HTTPS", "127.0.0.1:443"),
            ("IMAPS", "192.0.2.1:993"),
            ("IMAP STARTTLS", "192.0.2.1:143"),
            ("POP3S", "192.0.2.1:995"),
            ("POP3 STLS", "[::1]:110"),
        ]
        .map(|(service, address)| (service, address.to_owned()));
        assert_eq!(
            services(StartTls::Only),
            [https.clone(), imaps.clone(), imap, pop3s.clone(), pop3.clone()]
        );
        assert_eq!(services(StartTls::Off), [https, imaps, pop3s, pop3]);
    }

    #[test]
    fn of_very_many_names_the_first_ones_and_the_one_that_is_meant_are_looked_at() {
        let many = || (0..80).map(|number| format!("n{number:02}.a.test"));
        let with = |one: &str| many().rev().chain([one.to_owned()]).collect::<Vec<_>>();
        for (all, named, last) in [
            (with("z.a.test"), "a.test", "n49.a.test"),
            (with("z.a.test"), "Z.a.test", "z.a.test"),
            (with("n.test"), "n70.a.test", "n70.a.test"),
            (with("*.z.a.test"), "mail.z.a.test", "n48.a.test"),
        ] {
            let first = first_names(all, named);
            assert_eq!(
                (first.len(), first.last().unwrap().as_str()),
                (NAMES_MAX, last),
                "{named}"
            );
            assert!(first.is_sorted());
        }
        assert!(first_names(with("*.z.a.test"), "mail.z.a.test").contains(&"*.z.a.test".to_owned()));
    }

    #[test]
    fn addresses_are_no_names_and_long_lines_are_cut() {
        for (name, is_name) in [
            ("a.test", true),
            ("192.0.2.1", false),
            ("[2001:db8::1]", false),
            ("::1", false),
        ] {
            assert_eq!(is_host_name(name).is_ok(), is_name, "{name}");
        }
        assert_eq!(quoted("short"), "short");
        assert_eq!(quoted(&"ü".repeat(101)), format!("{}…", "ü".repeat(100)));
    }

    #[test]
    fn a_pattern_is_asked_for_by_one_of_its_names() {
        for (name, expected) in [
            ("mail.A.test", "mail.a.test"),
            ("*.a.test", "portico-probe.a.test"),
            ("m\u{fc}ller.test", "xn--mller-kva.test"),
        ] {
            assert_eq!(one_of(name), expected);
        }
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_said() {
        let [good, other, expired] =
            [(5_000, "*.a.test"), (5_000, "b.test"), (-5_000, "*.a.test")].map(|(left, name)| {
                let [certificate, key] = pair(left, name);
                CertKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
            });
        let [good_leaf, other_leaf, expired_leaf]: [X509; 3] =
            [&good, &other, &expired].map(|pair| pair.leaf().clone());
        let in_force = CertStore::new(Some(good.into()));
        let without = CertStore::default();
        for (leaf, store, expected) in [
            (&good_leaf, &in_force, None),
            (&good_leaf, &without, Some("another program")),
            (&other_leaf, &in_force, Some("is not good for mail.a.test")),
            (&expired_leaf, &in_force, Some("has expired on ")),
        ] {
            let shown = PeerCertificate {
                leaf: leaf.clone(),
                version: "TLSv1.3",
                distrust: None,
                failure: None,
            };
            let seen = SeenCertificate::new(shown, "mail.a.test", Ipv4Addr::LOCALHOST.into(), store);
            let problem = seen.problem("mail.a.test");
            match (&problem, expected) {
                (None, None) => {}
                (Some(why), Some(part)) if why.contains(part) => {}
                _ => panic!("{problem:?}, and not {expected:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_looks_beside_another_one_and_two_nodes_do_not_refuse_each_other() {
        let turns = ProbeTurns::default();
        let own = turns.admit(ProbeAsker::Here).unwrap();
        assert_eq!(turns.admit(ProbeAsker::Here).unwrap_err(), ProbeRefusal::Busy);
        // Those of other nodes have places of their own, and not many.
        let others: Vec<_> = std::iter::from_fn(|| turns.admit(ProbeAsker::OtherNode).ok()).collect();
        assert_eq!(others.len(), ASKED_ELSEWHERE);
        drop(own);
        assert!(turns.admit(ProbeAsker::Here).is_ok());
        // A look that takes as long as it may, one behind it, and one that would be the third.
        let look = || turns.look(async { sleep(WHOLE_WAIT).await });
        let begun = tokio::time::Instant::now();
        let looked = tokio::join!(look(), look(), look());
        assert_eq!(looked, (Ok(()), Ok(()), Err(ProbeRefusal::Busy)));
        assert!(begun.elapsed() >= 2 * WHOLE_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_left_out() {
        let work = (0..40_u64).map(|n| async move {
            sleep(if n == 3 { Duration::from_secs(600) } else { LOOK_WAIT }).await;
            n
        });
        let done = each_in_time(work.collect()).await;
        let missing: Vec<usize> = (0..40).filter(|at| done[*at].is_none()).collect();
        assert_eq!((missing, done[39]), (vec![3], Some(39)));
    }

    #[tokio::test]
    async fn mail_servers_are_asked_for_tls() {
        for (said, begin, expected) in [
            ("* OK\r\n* CAPABILITY\r\np OK go\r\n", TlsBegin::StartTls, Ok(())),
            ("* OK\r\np NO no\r\n", TlsBegin::StartTls, Err("to p STARTTLS")),
            ("* BYE\r\n", TlsBegin::StartTls, Err("its greeting is \"* BYE\"")),
            ("+OK\r\n+OK go\r\n", TlsBegin::Stls, Ok(())),
            (
                "+OK\r\n-ERR no\r\n",
                TlsBegin::Stls,
                Err("it answers \"-ERR no\" to STLS"),
            ),
            ("+OK", TlsBegin::Stls, Err("end of file")),
        ] {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = ProbeTarget {
                address: socket.local_addr().unwrap(),
                trusted: Vec::new(),
                service: "",
                begin,
            };
            let serve = async {
                let (mut tcp, _) = socket.accept().await?;
                tcp.write_all(said.as_bytes()).await?;
                tcp.shutdown().await?;
                tcp.read_to_end(&mut Vec::new()).await
            };
            let connect = async { target.connect().await.map(drop) };
            let (connected, _served) = tokio::join!(connect, serve);
            let connected = connected.map_err(|error| error.to_string());
            match (&connected, expected) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(part)) if why.contains(part) => {}
                _ => panic!("{said:?}: {connected:?}"),
            }
        }
    }
}
