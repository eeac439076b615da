//! TLS on both sides: one store of certificates for HTTPS, IMAPS, POP3S and STARTTLS, and the verification of
//! mailbox servers.
//!
//! Certificates are chosen while a handshake runs, from the store of that moment: a changed certificate is served
//! with the next handshake, and no listener and no session is touched.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use mail_directory::names;
use mail_proxy::{BoxStream, Protocol, Stream, TlsFacts};
use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    AlpnError, NameType, SniError, Ssl, SslAcceptor, SslAlert, SslConnector, SslMethod, SslMode, SslOptions, SslRef,
    SslSessionCacheMode, SslVerifyMode, SslVersion, select_next_proto,
};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509VerifyResult};
use pingora::protocols::Digest;
use tokio_openssl::SslStream;

use crate::tls::client_certs::{CertMode, ClientCertificate, ClientCerts, PolicyId, Shown};
use crate::tls::vhosts::Sites;

pub mod client_certs;
pub mod vhosts;

/// Most certificates that are put in order. Chains have two to five.
const MAX_SORTED: usize = 16;

/// A certificate, its chain and its key, checked to belong together.
pub struct CertKey {
    leaf: X509,
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// Why a certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The certificate text does not parse.
    #[error("the certificate does not parse: {0}")]
    Certificate(ErrorStack),
    /// There is no certificate in it.
    #[error("there is no certificate in it")]
    Empty,
    /// The key text does not parse.
    #[error("the private key does not parse (it must be PEM and not encrypted): {0}")]
    Key(ErrorStack),
    /// The key is another certificate's.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
}

impl CertKey {
    /// Reads PEM texts: leaf first, then its chain; and the key.
    ///
    /// # Errors
    /// They do not parse, or do not belong together.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<CertKey, CertError> {
        let mut chain = certificates(certificate)?;
        let leaf = chain.remove(0);
        let key = private_key(key)?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(CertError::Mismatch);
        }
        Ok(CertKey { leaf, chain, key })
    }

    /// These certificates with each one's issuer behind it, the leaf first, as clients want them. `None` if they stand
    /// so already, or it cannot be told how they should.
    pub fn in_order(certificates: &str) -> Option<String> {
        let all = X509::stack_from_pem(certificates.as_bytes()).ok()?;
        if all.len() > MAX_SORTED {
            return None;
        }
        let issued = |one: usize, other: usize| all[one].issued(&all[other]) == X509VerifyResult::OK;
        let indices = || 0..all.len();
        let is_leaf = |&one: &usize| indices().all(|other| other == one || !issued(one, other));
        let mut leaves = indices().filter(is_leaf);
        let (leaf, None) = (leaves.next()?, leaves.next()) else {
            return None;
        };
        let mut order = vec![leaf];
        while let Some(next) = indices().find(|one| !order.contains(one) && issued(*one, order[order.len() - 1])) {
            order.push(next);
        }
        if order.len() < all.len() || order.is_sorted() {
            return None;
        }
        let pem: Vec<Vec<u8>> = order
            .iter()
            .map(|at| all[*at].to_pem())
            .collect::<Result<_, _>>()
            .ok()?;
        String::from_utf8(pem.concat()).ok()
    }

    /// Looks at a certificate whose key is not at hand.
    ///
    /// # Errors
    /// It does not parse.
    pub fn check_certificate(certificate: &[u8]) -> Result<(), CertError> {
        certificates(certificate).map(drop)
    }

    /// Looks at a key whose certificate is not at hand.
    ///
    /// # Errors
    /// It does not parse.
    pub fn check_key(key: &[u8]) -> Result<(), CertError> {
        private_key(key).map(drop)
    }

    /// When its time was over, if it is.
    pub fn expired(&self) -> Option<String> {
        let now = Asn1Time::days_from_now(0).ok()?;
        (self.leaf.not_after() < now).then(|| self.leaf.not_after().to_string())
    }

    /// When its time begins, if that has not come yet.
    pub fn not_yet(&self) -> Option<String> {
        let now = Asn1Time::days_from_now(0).ok()?;
        (self.leaf.not_before() > now).then(|| self.leaf.not_before().to_string())
    }

    /// Those of these names that none of the certificate's own covers.
    pub fn uncovered<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
        let own: Vec<String> = self
            .leaf
            .subject_alt_names()
            .into_iter()
            .flatten()
            .filter_map(|name| name.dnsname().map(str::to_ascii_lowercase))
            .collect();
        names
            .into_iter()
            .filter(|name| !own.iter().any(|pattern| covers(pattern, name)))
            .collect()
    }

    /// SHA-256 of the certificate: two are the same if this is.
    pub fn fingerprint(&self) -> Vec<u8> {
        let digest = self.leaf.digest(openssl::hash::MessageDigest::sha256());
        digest.map(|digest| digest.to_vec()).unwrap_or_default()
    }

    /// Seconds until its time is over; negative if it is.
    pub fn seconds_left(&self) -> i64 {
        let now = Asn1Time::days_from_now(0);
        let left = now.and_then(|now| now.diff(self.leaf.not_after()));
        left.map_or(0, |left| i64::from(left.days) * 86_400 + i64::from(left.secs))
    }

    /// The certificate itself.
    pub fn leaf(&self) -> &X509 {
        &self.leaf
    }

    /// Costs at most a hundredth of a millisecond, of the third of one that a handshake takes; a context for each
    /// certificate would save that, and cost some 20 KiB for each domain and protocol.
    fn install(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        ssl.set_certificate(&self.leaf)?;
        ssl.set_private_key(&self.key)?;
        for certificate in &self.chain {
            ssl.add_chain_cert(certificate.clone())?;
        }
        Ok(())
    }
}

/// At least one.
fn certificates(pem: &[u8]) -> Result<Vec<X509>, CertError> {
    let chain = X509::stack_from_pem(pem).map_err(CertError::Certificate)?;
    match chain.is_empty() {
        true => Err(CertError::Empty),
        false => Ok(chain),
    }
}

fn private_key(pem: &[u8]) -> Result<PKey<Private>, CertError> {
    PKey::private_key_from_pem_callback(pem, |_| Ok(0)).map_err(CertError::Key)
}

/// RFC 6125 §6.4.3: `*` stands for the whole left-most label and nothing else.
fn covers(pattern: &str, name: &str) -> bool {
    let name = names::host(name);
    match pattern.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest == parent),
        None => pattern == name,
    }
}

/// Names and the certificates to show for them.
#[derive(Default)]
pub struct CertStore {
    /// Shown where no name matches, and to clients that ask for none.
    pub default: Option<Arc<CertKey>>,
    /// What the names mean on web listeners; absent only before the first configuration.
    pub sites: Option<Arc<Sites>>,
    exact: HashMap<String, Claim>,
    wildcard: HashMap<String, Claim>,
    by_address: HashMap<IpAddr, Claim>,
    domains: HashMap<String, Arc<CertKey>>,
    faults: HashMap<String, String>,
}

/// What a domain shows for something that is its own; without a certificate, the default.
type Claim = Option<Arc<CertKey>>;

impl CertStore {
    /// A store with a default and nothing else.
    pub fn new(default: Option<Arc<CertKey>>) -> CertStore {
        CertStore {
            default,
            ..CertStore::default()
        }
    }

    /// Shows `certificate` to clients that ask for `name`, which may be `*.something`; `None`: the default. Where two
    /// domains claim a name, the first one has it, as in the rest of the directory.
    pub fn add(&mut self, name: &str, certificate: Option<Arc<CertKey>>) {
        let name = names::host(name);
        match name.strip_prefix("*.") {
            Some(parent) => self.wildcard.entry(parent.to_owned()).or_insert(certificate),
            None => self.exact.entry(name).or_insert(certificate),
        };
    }

    /// Every certificate, with whose it is: `default`, or a domain.
    pub fn all(&self) -> Vec<(String, &Arc<CertKey>)> {
        let default = self.default.iter().map(|pair| ("default".to_owned(), pair));
        let domains = self.domains.iter().map(|(name, pair)| (format!("domain {name}"), pair));
        default.chain(domains).collect()
    }

    /// Shows `certificate` to clients that come to this local address and ask for no name that is known; `None`: the
    /// default.
    pub fn add_address(&mut self, local: IpAddr, certificate: Option<Arc<CertKey>>) {
        self.by_address.entry(local).or_insert(certificate);
    }

    /// Notes which certificate a domain has.
    pub fn keep(&mut self, domain: &str, certificate: Arc<CertKey>) {
        self.domains.insert(domain.to_owned(), certificate);
    }

    /// The certificate that was noted for a domain.
    pub fn of_domain(&self, domain: &str) -> Option<Arc<CertKey>> {
        self.domains.get(domain).cloned()
    }

    /// Notes why the certificate that a domain should have is not shown.
    pub fn note_fault(&mut self, domain: &str, why: String) {
        self.faults.insert(domain.to_owned(), why);
    }

    /// Why the certificate that a domain should have is not shown; `None` if nothing is wrong.
    pub fn fault_of(&self, domain: &str) -> Option<&str> {
        self.faults.get(domain).map(String::as_str)
    }

    /// The certificate that is shown to clients which ask for this name; for a pattern `*.name`, for what is below.
    pub fn of_name(&self, name: &str) -> Option<&Arc<CertKey>> {
        self.find(Some(&names::host(name)), None)
    }

    /// The certificate for a requested name (in lower case): that of the domain which has the name or the longest
    /// pattern; where nobody has it, that of the local address; else the default. A name that is somebody's is never
    /// shown another one's, whether or not its owner has a certificate.
    fn find(&self, name: Option<&str>, local: Option<IpAddr>) -> Option<&Arc<CertKey>> {
        let claim = match name.and_then(|name| self.claim(name)) {
            Some(claim) => claim.as_ref(),
            None => local.and_then(|local| self.by_address.get(&local)?.as_ref()),
        };
        claim.or(self.default.as_ref())
    }

    /// What the owner of a name shows for it, if it has one. No client takes the certificate of a pattern for what is
    /// more than one level below.
    fn claim(&self, name: &str) -> Option<&Claim> {
        if let Some(claim) = self.exact.get(name) {
            return Some(claim);
        }
        let mut parents = name.match_indices('.').map(|(at, _)| &name[at + 1..]);
        let nearest = parents.next()?;
        let of_nearest = self.wildcard.get(nearest);
        of_nearest.or_else(|| {
            parents
                .any(|parent| self.wildcard.contains_key(parent))
                .then_some(&None)
        })
    }
}

/// The store that all listeners share.
pub type Certificates = Arc<ArcSwap<CertStore>>;

/// What a TLS listener speaks inside; its ALPN names (RFC 7301; IANA registry for `imap` and `pop3`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// `h2`, `http/1.1`, and `http/1.0` for clients that know nothing else.
    Web,
    /// `imap`
    Imap,
    /// `pop3`
    Pop3,
    /// `http/1.1`
    Lookup,
    /// Nobody knows, so nothing is agreed.
    Stream,
}

impl Inside {
    /// In wire format, by preference.
    fn alpn(self) -> &'static [u8] {
        match self {
            Inside::Web => b"\x02h2\x08http/1.1\x08http/1.0",
            Inside::Imap => b"\x04imap",
            Inside::Pop3 => b"\x04pop3",
            Inside::Lookup => b"\x08http/1.1",
            Inside::Stream => b"",
        }
    }

    /// Whether clients may resume a session. In TLS 1.2 OpenSSL resumes one at any name, which RFC 6066 section 3 forbids,
    /// and tells the name that it was begun with instead of the one that is asked for. A web request says its host
    /// again; elsewhere a login without a domain would go to the other name's domain.
    fn resumes(self) -> bool {
        self == Inside::Web
    }

    /// The answer to an offer. A client that asks for another protocol has been lured to the wrong port (ALPACA); one
    /// that asks for nothing is welcome.
    fn agree(self, offered: &[u8]) -> Result<&[u8], AlpnError> {
        match self {
            // We do not know what is right here, but browsers are never.
            Inside::Stream => match select_next_proto(Inside::Web.alpn(), offered) {
                Some(_) => Err(AlpnError::ALERT_FATAL),
                None => Err(AlpnError::NOACK),
            },
            known => select_next_proto(known.alpn(), offered).ok_or(AlpnError::ALERT_FATAL),
        }
    }
}

/// Protocol versions and ciphers towards clients (`zimbraReverseProxySSLProtocols`, `…SSLCiphers`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPolicy {
    /// Lowest version.
    pub min: SslVersion,
    /// Highest version.
    pub max: SslVersion,
    /// OpenSSL cipher list for TLS 1.2; `None` for the library's intermediate profile.
    pub ciphers: Option<String>,
    /// Which names have which client certificate rules: a session from before such a rule must not be resumed.
    pub rules: BTreeMap<String, PolicyId>,
}

/// The server's side of TLS, for each kind of content.
pub struct Acceptors {
    policy: TlsPolicy,
    web: SslAcceptor,
    imap: SslAcceptor,
    pop3: SslAcceptor,
    lookup: SslAcceptor,
    stream: SslAcceptor,
}

impl Acceptors {
    /// Acceptors that look into `certificates` at each handshake.
    ///
    /// # Errors
    /// OpenSSL does not take the policy.
    pub fn new(certificates: &Certificates, policy: TlsPolicy) -> Result<Acceptors, ErrorStack> {
        Ok(Acceptors {
            web: acceptor(certificates, &policy, Inside::Web)?,
            imap: acceptor(certificates, &policy, Inside::Imap)?,
            pop3: acceptor(certificates, &policy, Inside::Pop3)?,
            lookup: acceptor(certificates, &policy, Inside::Lookup)?,
            stream: acceptor(certificates, &policy, Inside::Stream)?,
            policy,
        })
    }

    /// Whether these are what this policy asks for. Acceptors that stay let clients resume their sessions.
    pub fn are_for(&self, policy: &TlsPolicy) -> bool {
        self.policy == *policy
    }

    /// Does the server's side of a handshake with a client that came to this local address. The caller sets the time
    /// limit.
    ///
    /// # Errors
    /// The handshake failed; the text says why.
    pub async fn accept<S: Stream>(&self, inside: Inside, local: IpAddr, stream: S) -> io::Result<SslStream<S>> {
        let acceptor = match inside {
            Inside::Web => &self.web,
            Inside::Imap => &self.imap,
            Inside::Pop3 => &self.pop3,
            Inside::Lookup => &self.lookup,
            Inside::Stream => &self.stream,
        };
        let mut ssl = Ssl::new(acceptor.context())?;
        let local = local.to_canonical();
        let asked = Asked { local, rules: None };
        ssl.set_ex_data(*ASKED, asked);
        let mut stream = SslStream::new(ssl, stream)?;
        match Pin::new(&mut stream).accept().await {
            Ok(()) => certified(stream.ssl()).map(|()| stream),
            Err(error) => Err(explained(stream.ssl(), error)),
        }
    }
}

/// What a handshake knows of its client beside its first message.
struct Asked {
    /// Where it came to.
    local: IpAddr,
    /// What is asked of it, once its first message has been read.
    rules: Option<Arc<ClientCerts>>,
}

static ASKED: LazyLock<Index<Ssl, Asked>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("OpenSSL has thousands of them, and this is the only one"));

/// What went wrong, with the reason that a client's certificate was not good.
fn explained(ssl: &SslRef, error: openssl::ssl::Error) -> io::Error {
    match ssl.verify_result() {
        X509VerifyResult::OK => io::Error::other(error),
        verified => io::Error::other(format!("its certificate is not good: {verified}")),
    }
}

/// OpenSSL has checked this already; but a session that is resumed has been checked elsewhere, and where a
/// certificate is required nothing less than one may do.
fn certified(ssl: &SslRef) -> io::Result<()> {
    let required = rules_of(ssl).mode() == CertMode::On;
    let good = ssl.peer_certificate().is_some() && ssl.verify_result() == X509VerifyResult::OK;
    match required && !good {
        true => Err(io::Error::other("no client certificate")),
        false => Ok(()),
    }
}

fn rules_of(ssl: &SslRef) -> Arc<ClientCerts> {
    let asked = ssl.ex_data(*ASKED).and_then(|asked| asked.rules.clone());
    asked.unwrap_or_else(ClientCerts::off)
}

/// What the client of a channel has shown of itself.
///
/// # Errors
/// OpenSSL has no memory.
pub fn shown(ssl: &SslRef) -> Result<Shown, ErrorStack> {
    let policy = rules_of(ssl);
    let certificate = match policy.mode() {
        CertMode::Off => None,
        CertMode::Optional | CertMode::On => ssl.peer_certificate(),
    };
    let certificate = certificate.map(|certificate| ClientCertificate::of(&certificate).map(Arc::new));
    Ok(Shown {
        policy,
        certificate: certificate.transpose()?,
    })
}

fn acceptor(certificates: &Certificates, policy: &TlsPolicy, inside: Inside) -> Result<SslAcceptor, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_min_proto_version(Some(policy.min))?;
    builder.set_max_proto_version(Some(policy.max))?;
    if let Some(ciphers) = &policy.ciphers {
        builder.set_cipher_list(ciphers)?;
    }
    builder
        .set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_RENEGOTIATION | SslOptions::NO_COMPRESSION);
    if !inside.resumes() {
        builder.set_options(SslOptions::NO_TICKET);
        builder.set_num_tickets(0)?;
    }
    // Buffers of an idle session go back to the allocator; with tickets, a cache of sessions is only memory.
    builder.set_mode(SslMode::RELEASE_BUFFERS);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_session_id_context(b"portico")?;
    let store = certificates.clone();
    builder.set_servername_callback(move |ssl, alert| {
        let store = store.load();
        let name = requested(ssl);
        let local = ssl.ex_data(*ASKED).map(|asked| asked.local);
        if let (Inside::Web, Some(sites)) = (inside, &store.sites) {
            rule(ssl, alert, sites, name.as_deref(), local)?;
        }
        let Some(certificate) = store.find(name.as_deref(), local) else {
            return Err(SniError::ALERT_FATAL);
        };
        certificate.install(ssl).map_err(|error| {
            log::error!("a certificate cannot be used: {error}");
            SniError::ALERT_FATAL
        })
    });
    builder.set_alpn_select_callback(move |_, offered| inside.agree(offered));
    Ok(builder.build())
}

/// The name that a client asks for, in the form in which names are compared.
fn requested(ssl: &SslRef) -> Option<String> {
    let name = ssl.servername(NameType::HOST_NAME)?;
    Some(name.trim_end_matches('.').to_ascii_lowercase())
}

/// Applies the rules of the site that a web client asks for.
fn rule(
    ssl: &mut SslRef,
    alert: &mut SslAlert,
    sites: &Sites,
    name: Option<&str>,
    local: Option<IpAddr>,
) -> Result<(), SniError> {
    if name.is_some_and(|name| !sites.admits(name)) {
        *alert = SslAlert::UNRECOGNIZED_NAME;
        return Err(SniError::ALERT_FATAL);
    }
    let named = name.and_then(|name| sites.by_name(name));
    let site = match (named, local) {
        (Some(site), _) => site,
        (None, Some(local)) => sites.of(None, local),
        (None, None) => return Err(SniError::ALERT_FATAL),
    };
    let rules = site.client_certs.clone();
    // A session that was begun for another name, and resumed here, would bring along what was shown there, or nothing
    // (as in CVE-2025-23419). TLS 1.2 binds a session to its name, and gives us that name and not the new one; a
    // TLS 1.3 ticket does not say for whom it was made, so these rules give out none, and take none.
    let bound = ssl.version2() == Some(SslVersion::TLS1_2) && named.is_some();
    if rules.mode() != CertMode::Off && ssl.session_reused() && !bound {
        log::info!("a session from elsewhere is not resumed where client certificates are asked for");
        *alert = SslAlert::HANDSHAKE_FAILURE;
        return Err(SniError::ALERT_FATAL);
    }
    let asking = rules.ask(ssl);
    if let Some(asked) = ssl.ex_data_mut(*ASKED) {
        asked.rules = Some(rules);
    }
    asking.map_err(|error| {
        log::error!("client certificates cannot be asked for: {error}");
        SniError::ALERT_FATAL
    })
}

/// What is known of a channel after its handshake.
pub fn facts(ssl: &SslRef) -> TlsFacts {
    let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
    TlsFacts {
        cipher: format!("{} {cipher}", ssl.version_str()),
        sni: ssl.servername(NameType::HOST_NAME).map(str::to_ascii_lowercase),
    }
}

/// The ALPN names for a mail protocol.
pub fn inside(protocol: Protocol) -> Inside {
    match protocol {
        Protocol::Imap => Inside::Imap,
        Protocol::Pop3 => Inside::Pop3,
    }
}

/// TLS 1.0 and 1.1 must not be used (RFC 8996).
const OLDEST_UPSTREAM: SslVersion = SslVersion::TLS1_2;

/// Refuses a connection to a server that has agreed to an older version: Pingora's own connector takes TLS 1.0.
///
/// # Errors
/// It has.
pub fn refuse_old(agreed: Option<&Digest>) -> pingora::Result<()> {
    let Some(tls) = agreed.and_then(|agreed| agreed.ssl_digest.as_ref()) else {
        return Ok(());
    };
    match &*tls.version {
        "TLSv1.2" | "TLSv1.3" => Ok(()),
        old => {
            let message = format!("the server speaks {old} only, which must not be used (RFC 8996)");
            Err(pingora::Error::explain(pingora::ErrorType::TLSHandshakeFailure, message).into_up())
        }
    }
}

/// The client's side of TLS, towards mailbox servers.
pub struct UpstreamTrust {
    connector: SslConnector,
    verify: bool,
}

impl UpstreamTrust {
    /// Trusts the authorities in `ca_file`, or the system's.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(ca_file: Option<&Path>, verify: bool) -> Result<UpstreamTrust, ErrorStack> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_min_proto_version(Some(OLDEST_UPSTREAM))?;
        if let Some(path) = ca_file {
            // These authorities and no others: the builder has loaded the system's already.
            let mut store = X509StoreBuilder::new()?;
            let pem = std::fs::read(path).unwrap_or_default();
            for authority in X509::stack_from_pem(&pem)? {
                store.add_cert(authority)?;
            }
            builder.set_cert_store(store.build());
        }
        builder.set_verify(if verify {
            SslVerifyMode::PEER
        } else {
            SslVerifyMode::NONE
        });
        builder.set_mode(SslMode::RELEASE_BUFFERS);
        Ok(UpstreamTrust {
            connector: builder.build(),
            verify,
        })
    }

    /// Whether servers without a rule of their own must prove who they are.
    pub fn verifies(&self) -> bool {
        self.verify
    }

    /// Does the client's side of a handshake with a server that must prove to be `name`.
    ///
    /// # Errors
    /// The handshake failed; the text says why, and what the verification found.
    pub async fn connect(&self, name: &str, stream: BoxStream) -> io::Result<BoxStream> {
        self.connect_as(name, stream, self.verify).await
    }

    /// The same where the server has a rule of its own: whether it must prove who it is.
    ///
    /// # Errors
    /// As [`UpstreamTrust::connect`].
    pub async fn connect_as(&self, name: &str, stream: BoxStream, verify: bool) -> io::Result<BoxStream> {
        let mut rules = self.connector.configure()?;
        rules.set_verify(match verify {
            true => SslVerifyMode::PEER,
            false => SslVerifyMode::NONE,
        });
        let ssl = rules.verify_hostname(verify).into_ssl(name)?;
        let mut stream = SslStream::new(ssl, stream)?;
        match Pin::new(&mut stream).connect().await {
            Ok(()) => Ok(Box::new(stream)),
            Err(error) => {
                let verified = stream.ssl().verify_result();
                Err(match verified == openssl::x509::X509VerifyResult::OK {
                    true => io::Error::other(error),
                    false => io::Error::other(format!("its certificate is not good for {name}: {verified}")),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use openssl::asn1::Asn1Integer;
    use openssl::bn::BigNum;
    use openssl::hash::MessageDigest;
    use openssl::x509::{X509Builder, X509Name};

    use super::*;

    /// A certificate of `subject` that `issuer` vouches for.
    fn certificate(subject: &str, issuer: &str) -> String {
        let name = |name: &str| {
            let mut builder = X509Name::builder().unwrap();
            builder.append_entry_by_text("CN", name).unwrap();
            builder.build()
        };
        let key = PKey::generate_ed25519().unwrap();
        let mut builder = X509Builder::new().unwrap();
        let serial = Asn1Integer::from_bn(&BigNum::from_u32(1).unwrap()).unwrap();
        builder.set_serial_number(&serial).unwrap();
        builder.set_subject_name(&name(subject)).unwrap();
        builder.set_issuer_name(&name(issuer)).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.sign(&key, MessageDigest::null()).unwrap();
        String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
    }

    fn pair(name: &str) -> Arc<CertKey> {
        let key = PKey::generate_ed25519().unwrap();
        let leaf = X509::from_pem(certificate(name, "root").as_bytes()).unwrap();
        Arc::new(CertKey {
            leaf,
            chain: Vec::new(),
            key,
        })
    }

    /// The story: at the address of domain b, the name of domain a, which has no certificate, was shown b's.
    #[test]
    fn a_name_is_never_shown_another_domains_certificate() {
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let bare: IpAddr = "192.0.2.8".parse().unwrap();
        let mut store = CertStore::new(Some(pair("default")));
        // Domain a has no certificate, b has one, c comes last.
        store.add("mail.a.test", None);
        store.add("*.wild.a.test", None);
        store.add_address(bare, None);
        store.add("mail.b.test", Some(pair("b")));
        store.add("*.b.test", Some(pair("b")));
        store.add_address(address, Some(pair("b")));
        store.add_address(bare, Some(pair("b")));
        for name in ["*.a.test", "mail.a.test"] {
            store.add(name, Some(pair("c")));
        }
        for (name, local, shown) in [
            (Some("mail.a.test"), Some(address), "default"),
            (Some("mail.a.test"), None, "default"),
            (Some("x.wild.a.test"), Some(address), "default"),
            (Some("x.y.wild.a.test"), Some(address), "default"),
            (Some("other.a.test"), Some(address), "c"),
            (Some("deep.other.a.test"), Some(address), "default"),
            (Some("mail.b.test"), Some(bare), "b"),
            (Some("x.b.test"), None, "b"),
            (Some("x.y.b.test"), Some(address), "default"),
            (Some("nobody.test"), Some(address), "b"),
            (None, Some(address), "b"),
            (Some("nobody.test"), Some(bare), "default"),
            (None, None, "default"),
            (Some("localhost"), Some(address), "b"),
        ] {
            let found = store.find(name, local).unwrap();
            let subject = found.leaf.subject_name().entries().next().unwrap();
            assert_eq!(subject.data().as_slice(), shown.as_bytes(), "{name:?} at {local:?}");
        }
    }

    #[test]
    fn chains_are_put_in_order_where_that_can_be_told() {
        let all = [
            certificate("leaf", "one"),
            certificate("one", "two"),
            certificate("two", "root"),
            certificate("root", "root"),
            certificate("stranger", "elsewhere"),
        ];
        let text = |order: &[usize]| order.iter().map(|at| all[*at].as_str()).collect::<String>();
        for (given, expected) in [
            (&[2, 1, 0][..], Some(&[0, 1, 2][..])),
            (&[3, 0, 2, 1], Some(&[0, 1, 2, 3])),
            (&[1, 0], Some(&[0, 1])),
            (&[0, 1, 2, 3], None),
            (&[0], None),
            // Two leaves, and a chain with a hole.
            (&[1, 0, 4], None),
            (&[2, 0], None),
            (&[], None),
        ] {
            let ordered = CertKey::in_order(&text(given));
            assert_eq!(ordered, expected.map(text), "{given:?}");
        }
        assert_eq!(CertKey::in_order("nonsense"), None);
    }
}
