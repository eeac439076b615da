//! A real slapd with a Carbonio-like tree, started for one test and ended with it.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ldap3::{Ldap, LdapConnAsync, Mod};

/// How long slapd may take to open its sockets on a busy machine.
const START: Duration = Duration::from_secs(20);
/// The name and password that may do everything.
pub(crate) const ADMIN: (&str, &str) = ("uid=zimbra,cn=admins,cn=zimbra", "admin secret");

/// One server and its files.
pub(crate) struct Slapd {
    dir: tempfile::TempDir,
    process: Option<Child>,
    port: u16,
    tls_port: u16,
}

/// What a server is to be like.
#[derive(Default)]
pub(crate) struct Kind {
    /// Without the overlay that tells how far the server has come.
    pub(crate) without_context_csn: bool,
}

impl Slapd {
    /// Starts a server with the tree of [`tree`] and some more.
    pub(crate) fn start(more: &str) -> Slapd {
        Slapd::start_as(Kind::default(), more)
    }

    /// The same, with its peculiarities.
    pub(crate) fn start_as(kind: Kind, more: &str) -> Slapd {
        let dir = tempfile::tempdir().unwrap();
        let (port, tls_port) = (free_port(), free_port());
        let mut slapd = Slapd {
            dir,
            process: None,
            port,
            tls_port,
        };
        fs::create_dir(slapd.path("db")).unwrap();
        certificates(slapd.dir.path());
        fs::write(slapd.path("slapd.conf"), slapd.config(&kind)).unwrap();
        fs::write(slapd.path("tree.ldif"), tree() + more).unwrap();
        let (conf, ldif) = (slapd.path("slapd.conf"), slapd.path("tree.ldif"));
        let arguments = [
            "-q".as_ref(),
            "-w".as_ref(),
            "-f".as_ref(),
            conf.as_os_str(),
            "-l".as_ref(),
            ldif.as_os_str(),
        ];
        run(Command::new("/usr/sbin/slapadd").args(arguments));
        slapd.resume();
        slapd
    }

    fn config(&self, kind: &Kind) -> String {
        let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/ldap/zimbra.schema");
        let dir = self.dir.path().display();
        let (dn, password) = ADMIN;
        let overlay = if kind.without_context_csn {
            ""
        } else {
            "overlay syncprov\n"
        };
        format!(
            "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/inetorgperson.schema\ninclude {schema}\n\
             modulepath /usr/lib/ldap\nmoduleload back_mdb\nmoduleload syncprov\n\
             TLSCACertificateFile {dir}/ca.crt\nTLSCertificateFile {dir}/server.crt\nTLSCertificateKeyFile {dir}/server.key\n\
             database mdb\nmaxsize 268435456\nsuffix \"\"\ndirectory {dir}/db\ndbnosync\nrootdn \"{dn}\"\nrootpw \"{password}\"\n\
             index objectClass,entryCSN,zimbraId,zimbraMailDeliveryAddress,zimbraMailAlias,zimbraDomainName eq\n\
             access to * by anonymous auth by * none\n{overlay}",
            schema = schema.display(),
        )
    }

    /// Starts the stopped server again, on the same ports and with the same content.
    pub(crate) fn resume(&mut self) {
        let urls = format!("ldap://127.0.0.1:{} ldaps://127.0.0.1:{}", self.port, self.tls_port);
        let log = fs::File::create(self.path("log")).unwrap();
        let process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "/usr/sbin/slapd",
                "-d",
                "0",
                "-h",
                &urls,
                "-f",
            ])
            .arg(self.path("slapd.conf"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("slapd and setpriv are needed: scripts/install");
        self.process = Some(process);
        let end = Instant::now() + START;
        while [self.port, self.tls_port]
            .iter()
            .any(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_err())
        {
            assert!(
                Instant::now() < end,
                "slapd does not listen: {:?}",
                fs::read_to_string(self.path("log"))
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the server as an operator does.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            run(Command::new("kill").arg(process.id().to_string()));
            process.wait().unwrap();
        }
    }

    /// Stops it in the middle of whatever it does, or lets it go on: `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.as_ref().unwrap().id().to_string();
        run(Command::new("kill").args(["-s", name, &id]));
    }

    /// `ldap://…`
    pub(crate) fn url(&self) -> String {
        format!("ldap://localhost:{}", self.port)
    }

    /// `ldaps://…`
    pub(crate) fn tls_url(&self) -> String {
        format!("ldaps://localhost:{}", self.tls_port)
    }

    /// The authority that signed the server's certificate, as PEM.
    pub(crate) fn ca(&self) -> Vec<u8> {
        fs::read(self.path("ca.crt")).unwrap()
    }

    /// A file in the server's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A connection that may change everything.
    pub(crate) async fn admin(&self) -> Ldap {
        let (driver, mut ldap) = LdapConnAsync::new(&self.url()).await.unwrap();
        tokio::spawn(driver.drive());
        ldap.simple_bind(ADMIN.0, ADMIN.1).await.unwrap().success().unwrap();
        ldap
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Puts these values in place of the old ones; none takes the attribute away.
pub(crate) async fn set(ldap: &mut Ldap, dn: &str, attribute: &str, values: &[&str]) {
    let values: HashSet<&str> = values.iter().copied().collect();
    ldap.modify(dn, vec![Mod::Replace(attribute, values)])
        .await
        .unwrap()
        .success()
        .unwrap();
}

/// Place of an account in the tree.
pub(crate) fn account_dn(address: &str) -> String {
    let (user, domain) = address.split_once('@').unwrap();
    format!("uid={user},ou=people,{}", domain_dn(domain))
}

/// Place of a domain in the tree.
pub(crate) fn domain_dn(domain: &str) -> String {
    format!("dc={}", domain.replace('.', ",dc="))
}

/// A domain `NAME.test` with some attributes (`attribute: value` lines).
pub(crate) fn domain(name: &str, attributes: &str) -> String {
    let dn = domain_dn(name);
    let label = name.split('.').next().unwrap();
    format!(
        "dn: {dn}\nobjectClass: dcObject\nobjectClass: organization\nobjectClass: zimbraDomain\ndc: {label}\no: {name}\n\
         zimbraDomainName: {name}\nzimbraId: domain-{name}\n{attributes}\n\
         dn: ou=people,{dn}\nobjectClass: organizationalUnit\nou: people\n\n"
    )
}

/// An account with some attributes.
pub(crate) fn account(address: &str, attributes: &str) -> String {
    let dn = account_dn(address);
    let user = address.split('@').next().unwrap();
    format!(
        "dn: {dn}\nobjectClass: inetOrgPerson\nobjectClass: zimbraAccount\nuid: {user}\ncn: {user}\nsn: {user}\n\
         zimbraId: ID-{address}\nzimbraMailDeliveryAddress: {address}\n{attributes}\n"
    )
}

/// The tree that every Carbonio has, with two mailbox servers and a few people.
fn tree() -> String {
    let mut ldif = String::from(
        "dn: cn=zimbra\nobjectClass: organizationalRole\ncn: zimbra\n\n\
         dn: cn=config,cn=zimbra\nobjectClass: zimbraGlobalConfig\ncn: config\n\
         zimbraReverseProxyMailMode: https\nzimbraDefaultDomainName: a.test\nzimbraReverseProxyConnectTimeout: 30s\n\n\
         dn: cn=servers,cn=zimbra\nobjectClass: organizationalRole\ncn: servers\n\n\
         dn: cn=cos,cn=zimbra\nobjectClass: organizationalRole\ncn: cos\n\n\
         dn: cn=default,cn=cos,cn=zimbra\nobjectClass: zimbraCOS\ncn: default\nzimbraId: cos-default\n\n\
         dn: cn=away,cn=cos,cn=zimbra\nobjectClass: zimbraCOS\ncn: away\nzimbraId: cos-away\n\
         zimbraReverseProxyUseExternalRoute: TRUE\n\n\
         dn: dc=test\nobjectClass: dcObject\nobjectClass: organization\ndc: test\no: test\n\n",
    );
    for (i, server) in ["store1.test", "store2.test"].iter().enumerate() {
        let _ = write!(
            ldif,
            "dn: cn={server},cn=servers,cn=zimbra\nobjectClass: zimbraServer\ncn: {server}\nzimbraId: server-{i}\n\
             zimbraServiceHostname: {server}\nzimbraServiceEnabled: mailbox\nzimbraImapSSLBindPort: 799{i}\n\n"
        );
    }
    ldif += &domain(
        "a.test",
        "zimbraVirtualHostname: mail.a.test\nzimbraVirtualIPAddress: 192.0.2.7\n",
    );
    ldif += &domain(
        "alias.test",
        "zimbraDomainType: alias\nzimbraDomainAliasTargetId: domain-a.test\n",
    );
    ldif += &account(
        "alice@a.test",
        "zimbraMailHost: store1.test\nzimbraMailAlias: al@a.test\nzimbraMailAlias: o'hara+x@a.test\n",
    );
    ldif += &account("bob@a.test", "zimbraMailHost: store2.test\n");
    ldif += "dn: uid=list,ou=people,dc=a,dc=test\nobjectClass: zimbraDistributionList\nuid: list\nzimbraId: list-1\n\
             zimbraMailDeliveryAddress: list@a.test\nzimbraMailHost: store1.test\n\n";
    ldif
}

/// An authority, and a certificate of it for `localhost`.
fn certificates(dir: &Path) {
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ];
    run(Command::new("openssl")
        .current_dir(dir)
        .args(["req", "-x509", "-subj", "/CN=Test CA"])
        .args(key)
        .args(["-keyout", "ca.key", "-out", "ca.crt"]));
    run(Command::new("openssl")
        .current_dir(dir)
        .args([
            "req",
            "-x509",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-subj",
            "/CN=localhost",
        ])
        .args([
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ])
        .args(key)
        .args(["-keyout", "server.key", "-out", "server.crt"]));
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; try scripts/install"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A port that was free a moment ago. Below the range from which the kernel takes those of clients, so that nobody
/// gets it by chance.
fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 1000) as u16 * 10;
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
