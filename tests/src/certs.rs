//! A certificate authority for development and tests: makes valid, wrong and expired certificates.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    AlpnError, SslAcceptor, SslAcceptorBuilder, SslConnector, SslConnectorBuilder, SslMethod, select_next_proto,
};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, CrlNumber, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
    SubjectKeyIdentifier,
};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Builder, X509CrlBuilder, X509Name, X509RevokedBuilder};

const DAY: i64 = 24 * 60 * 60;

/// Signs certificates. Its own certificate stands in a file that clients can be pointed to.
pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
    dir: PathBuf,
}

/// A certificate and its key in PEM, as files and as text.
#[derive(Debug, Clone)]
pub struct Pair {
    /// File with the certificate, then its issuer.
    pub certificate_file: PathBuf,
    /// File with the key.
    pub key_file: PathBuf,
    /// The certificate, then its issuer.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// Makes an authority that keeps its files in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        Self::called("Portico development CA", dir)
    }

    /// The same, with a name of its own.
    pub fn called(name: &str, dir: &Path) -> Result<Self> {
        let key = p256()?;
        let name = common_name(name)?;
        let mut cert = builder(&name, &key, 3650)?;
        cert.set_issuer_name(&name)?;
        cert.append_extension(BasicConstraints::new().critical().ca().build()?)?;
        cert.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
        let id = SubjectKeyIdentifier::new().build(&cert.x509v3_context(None, None))?;
        cert.append_extension(id)?;
        cert.sign(&key, MessageDigest::sha256())?;
        let authority = Self {
            certificate: cert.build(),
            key,
            dir: dir.to_owned(),
        };
        fs::write(authority.file(), authority.certificate.to_pem()?)?;
        Ok(authority)
    }

    /// An authority that this one vouches for. What it issues comes with its own certificate.
    pub fn intermediate(&self, name: &str, dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        let key = p256()?;
        let mut cert = builder(&common_name(name)?, &key, 3650)?;
        cert.set_issuer_name(self.certificate.subject_name())?;
        cert.append_extension(BasicConstraints::new().critical().ca().build()?)?;
        cert.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
        let id = SubjectKeyIdentifier::new().build(&cert.x509v3_context(Some(&self.certificate), None))?;
        cert.append_extension(id)?;
        cert.sign(&self.key, MessageDigest::sha256())?;
        Ok(Self {
            certificate: cert.build(),
            key,
            dir: dir.to_owned(),
        })
    }

    /// PEM file with the authority's certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A server certificate for these names; a name that is an IP address becomes an address in it.
    /// The first one is the common name, and the name of the files.
    pub fn server(&self, names: &[&str]) -> Result<Pair> {
        self.issue(names, 365, ExtendedKeyUsage::new().server_auth())
    }

    /// A server certificate with the kind of key that TLS 1.1 can do without an ephemeral one.
    pub fn rsa_server(&self, names: &[&str]) -> Result<Pair> {
        let key = PKey::from_rsa(openssl::rsa::Rsa::generate(2048)?)?;
        self.issue_for(names, &key, 365, ExtendedKeyUsage::new().server_auth())
    }

    /// A server certificate that began 30 days ago and ends in 10.
    pub fn ending(&self, names: &[&str]) -> Result<Pair> {
        self.issue(names, 10, ExtendedKeyUsage::new().server_auth())
    }

    /// A certificate that a client can present.
    pub fn client(&self, name: &str) -> Result<Pair> {
        self.issue(&[name], 365, ExtendedKeyUsage::new().client_auth())
    }

    /// The same of a person with a mail address.
    pub fn client_of(&self, name: &str, address: &str) -> Result<Pair> {
        self.issue_of(name, address, 365)
    }

    /// The same, but its time was over yesterday.
    pub fn expired_client_of(&self, name: &str, address: &str) -> Result<Pair> {
        self.issue_of(name, address, -1)
    }

    fn issue_of(&self, name: &str, address: &str, days: i64) -> Result<Pair> {
        let mut alternative = SubjectAlternativeName::new();
        alternative.email(address);
        let stem = format!("{name}{days}");
        self.issue_named(
            &stem,
            name,
            &alternative,
            &p256()?,
            days,
            ExtendedKeyUsage::new().client_auth(),
        )
    }

    /// The same, but its time was over yesterday.
    pub fn expired_client(&self, name: &str) -> Result<Pair> {
        self.issue(&[name], -1, ExtendedKeyUsage::new().client_auth())
    }

    /// The same, but its time was over yesterday.
    pub fn expired(&self, names: &[&str]) -> Result<Pair> {
        self.issue(names, -1, ExtendedKeyUsage::new().server_auth())
    }

    /// A client's side of TLS that trusts this authority alone, and shows a certificate.
    pub fn connector_showing(&self, shown: &Pair) -> Result<SslConnector> {
        let mut tls = self.connector_builder()?;
        tls.set_certificate_chain_file(&shown.certificate_file)?;
        tls.set_private_key_file(&shown.key_file, openssl::ssl::SslFiletype::PEM)?;
        Ok(tls.build())
    }

    /// Writes a list of the certificates that this authority has taken back (RFC 5280 section 5), good for so many days
    /// from today.
    pub fn revoking(&self, gone: &[&Pair], days: i64) -> Result<String> {
        let now = seconds_since_1970()?;
        let yesterday = Asn1Time::from_unix(now - DAY)?;
        let mut list = X509CrlBuilder::new()?;
        list.set_issuer_name(self.certificate.subject_name())?;
        list.set_last_update(&*Asn1Time::from_unix(now - 2 * DAY)?)?;
        list.set_next_update(&*Asn1Time::from_unix(now + days * DAY)?)?;
        for pair in gone {
            let mut entry = X509RevokedBuilder::new()?;
            entry.set_serial_number(X509::from_pem(pair.certificate.as_bytes())?.serial_number())?;
            entry.set_revocation_date(&yesterday)?;
            list.add_revoked(entry.build())?;
        }
        let any = X509::builder()?;
        let issuer = AuthorityKeyIdentifier::new()
            .keyid(true)
            .build(&any.x509v3_context(Some(&self.certificate), None))?;
        list.append_extension(issuer)?;
        list.append_extension(CrlNumber::new(BigNum::from_u32(1)?)?.build()?)?;
        list.sign(&self.key, MessageDigest::sha256())?;
        Ok(String::from_utf8(list.build()?.to_pem()?)?)
    }

    fn connector_builder(&self) -> Result<SslConnectorBuilder> {
        let mut tls = SslConnector::builder(SslMethod::tls_client())?;
        let mut store = X509StoreBuilder::new()?;
        store.add_cert(self.certificate.clone())?;
        tls.set_cert_store(store.build());
        Ok(tls)
    }

    /// A client's side of TLS that trusts this authority alone, and offers these protocols.
    pub fn connector(&self, alpn: &[&str]) -> Result<SslConnector> {
        let mut tls = self.connector_builder()?;
        if !alpn.is_empty() {
            let list: Vec<u8> = alpn
                .iter()
                .flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat())
                .collect();
            tls.set_alpn_protos(&list)?;
        }
        Ok(tls.build())
    }

    fn issue(&self, names: &[&str], days: i64, usage: &ExtendedKeyUsage) -> Result<Pair> {
        self.issue_for(names, &p256()?, days, usage)
    }

    fn issue_for(&self, names: &[&str], key: &PKey<Private>, days: i64, usage: &ExtendedKeyUsage) -> Result<Pair> {
        let first = names.first().context("a certificate needs a name")?;
        let mut alternative = SubjectAlternativeName::new();
        for name in names {
            match name.parse::<std::net::IpAddr>() {
                Ok(_) => alternative.ip(name),
                Err(_) => alternative.dns(name),
            };
        }
        self.issue_named(&first.replace('*', "_"), first, &alternative, key, days, usage)
    }

    fn issue_named(
        &self,
        stem: &str,
        name: &str,
        alternative: &SubjectAlternativeName,
        key: &PKey<Private>,
        days: i64,
        usage: &ExtendedKeyUsage,
    ) -> Result<Pair> {
        let mut cert = builder(&common_name(name)?, key, days)?;
        cert.set_issuer_name(self.certificate.subject_name())?;
        let context = cert.x509v3_context(Some(&self.certificate), None);
        let alternative = alternative.build(&context)?;
        let issuer = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
        cert.append_extension(alternative)?;
        cert.append_extension(issuer)?;
        cert.append_extension(BasicConstraints::new().critical().build()?)?;
        cert.append_extension(usage.build()?)?;
        cert.sign(&self.key, MessageDigest::sha256())?;
        self.write(stem, &cert.build(), key)
    }

    fn write(&self, stem: &str, cert: &X509, key: &PKey<Private>) -> Result<Pair> {
        let certificate = [cert.to_pem()?, self.certificate.to_pem()?].concat();
        let key = key.private_key_to_pem_pkcs8()?;
        let certificate_file = self.dir.join(format!("{stem}.crt"));
        let key_file = self.dir.join(format!("{stem}.key"));
        fs::write(&certificate_file, &certificate)?;
        let mut secret = fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&key_file)?;
        std::io::Write::write_all(&mut secret, &key)?;
        Ok(Pair {
            certificate_file,
            key_file,
            certificate: String::from_utf8(certificate)?,
            key: String::from_utf8(key)?,
        })
    }
}

impl Pair {
    /// The words of `portico prov` that give a domain this certificate and its key.
    pub fn words_of_domain(&self, domain: &str) -> [String; 6] {
        let [certificate, key] =
            [&self.certificate_file, &self.key_file].map(|file| format!("file:{}", file.display()));
        let words = [
            "md",
            domain,
            "zimbraSSLCertificate",
            &certificate,
            "zimbraSSLPrivateKey",
            &key,
        ];
        words.map(str::to_owned)
    }

    /// A server's side of TLS with this certificate.
    pub fn acceptor(&self) -> Result<SslAcceptor> {
        Ok(self.acceptor_builder()?.build())
    }

    /// The same, for a server that speaks HTTP/2.
    pub fn http2_acceptor(&self) -> Result<SslAcceptor> {
        let mut tls = self.acceptor_builder()?;
        tls.set_alpn_select_callback(|_, offered| select_next_proto(b"\x02h2", offered).ok_or(AlpnError::NOACK));
        Ok(tls.build())
    }

    fn acceptor_builder(&self) -> Result<SslAcceptorBuilder> {
        let mut tls = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
        tls.set_certificate_chain_file(&self.certificate_file)?;
        tls.set_private_key_file(&self.key_file, openssl::ssl::SslFiletype::PEM)?;
        tls.check_private_key()?;
        Ok(tls)
    }

    /// The same, for a server that knows nothing newer than TLS 1.1.
    pub fn old_acceptor(&self) -> Result<SslAcceptor> {
        let mut tls = SslAcceptor::mozilla_intermediate(SslMethod::tls_server())?;
        tls.set_certificate_chain_file(&self.certificate_file)?;
        tls.set_private_key_file(&self.key_file, openssl::ssl::SslFiletype::PEM)?;
        tls.set_cipher_list("AES128-SHA")?;
        tls.clear_options(openssl::ssl::SslOptions::NO_TLSV1_1 | openssl::ssl::SslOptions::NO_TLSV1);
        tls.set_min_proto_version(Some(openssl::ssl::SslVersion::TLS1))?;
        tls.set_max_proto_version(Some(openssl::ssl::SslVersion::TLS1_1))?;
        Ok(tls.build())
    }
}

fn seconds_since_1970() -> Result<i64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(i64::try_from(now.as_secs())?)
}

fn p256() -> Result<PKey<Private>> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    Ok(PKey::from_ec_key(EcKey::generate(&group)?)?)
}

fn common_name(name: &str) -> Result<X509Name> {
    let mut subject = X509Name::builder()?;
    subject.append_entry_by_nid(Nid::COMMONNAME, name)?;
    Ok(subject.build())
}

fn builder(subject: &X509Name, key: &PKey<Private>, days: i64) -> Result<X509Builder> {
    let now = seconds_since_1970()?;
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let mut cert = X509::builder()?;
    cert.set_version(2)?;
    cert.set_serial_number(&*serial.to_asn1_integer()?)?;
    cert.set_subject_name(subject)?;
    cert.set_pubkey(key)?;
    cert.set_not_before(&*Asn1Time::from_unix(now - 30 * DAY)?)?;
    cert.set_not_after(&*Asn1Time::from_unix(now + days * DAY)?)?;
    Ok(cert)
}
