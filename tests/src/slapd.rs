//! A real slapd with a directory as Carbonio would hold it, in clear text on a loopback port.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::Stage;
use crate::certs::Pair;
use crate::child::Child;
use crate::config::Directory;

/// The name and password that may do everything.
pub const ADMIN: (&str, &str) = ("uid=zimbra,cn=admins,cn=zimbra", "admin-s3cret");
/// The same for a user that may only read.
pub const READER: (&str, &str) = ("uid=zmnginx,cn=appaccts,cn=zimbra", "reader-s3cret");

/// How long it may take to end.
const END: Duration = Duration::from_secs(20);

/// A running server. It is killed when dropped.
pub struct Slapd {
    dir: PathBuf,
    address: SocketAddrV4,
    /// Where it speaks TLS from the first byte.
    tls: Option<SocketAddrV4>,
    child: Child,
}

/// What a server is like, beside its content.
#[derive(Default)]
pub struct Kind<'a> {
    /// Without the overlay that provides `contextCSN`.
    pub without_context_csn: bool,
    /// It speaks TLS too with this certificate: after StartTLS, and on a port of its own from the first byte.
    pub tls: Option<&'a Pair>,
    /// It knows from a log of all changes what a consumer that comes back has missed.
    pub accesslog: bool,
    /// More lines of its configuration.
    pub more: String,
}

impl Slapd {
    /// Starts one with this content; `name` is that of its folder.
    pub fn start(stage: &Stage, name: &str, directory: &Directory) -> Result<Self> {
        Self::start_as(stage, name, Some(&directory.ldif()), &Kind::default())
    }

    /// Starts a copy that follows this one and takes no changes itself.
    pub fn replica(&self, stage: &Stage, name: &str) -> Result<Self> {
        self.copy(stage, name, "type=refreshAndPersist")
    }

    /// Starts a copy as this one is now, which looks again in an hour.
    pub fn late_replica(&self, stage: &Stage, name: &str) -> Result<Self> {
        self.copy(stage, name, "type=refreshOnly interval=00:01:00:00")
    }

    fn copy(&self, stage: &Stage, name: &str, how: &str) -> Result<Self> {
        let (url, (dn, password)) = (self.url(), ADMIN);
        let more = format!(
            "syncrepl rid=1 provider={url} {how} retry=\"1 +\" searchbase=\"\" bindmethod=simple \
             binddn=\"{dn}\" credentials=\"{password}\"\nupdateref {url}\n"
        );
        let kind = Kind {
            more,
            ..Kind::default()
        };
        Self::start_as(stage, name, None, &kind)
    }

    /// Starts one of this kind; `ldif` is its content.
    pub fn start_as(stage: &Stage, name: &str, ldif: Option<&str>, kind: &Kind) -> Result<Self> {
        let dir = stage.dir(name)?;
        fs::create_dir_all(dir.join("db"))?;
        if kind.accesslog {
            fs::create_dir_all(dir.join("log"))?;
        }
        let conf = dir.join("slapd.conf");
        fs::write(&conf, config(&dir, kind))?;
        if let Some(content) = ldif {
            fill(&dir, content)?;
        }
        let free = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
        let (address, tls) = (free()?, kind.tls.map(|_| free()).transpose()?);
        let child = spawn(&dir, address, tls)?;
        for (name, (_, password)) in [("admin.password", ADMIN), ("reader.password", READER)] {
            fs::write(dir.join(name), password)?;
        }
        Ok(Self {
            dir,
            address,
            tls,
            child,
        })
    }

    /// A connection that may change everything.
    pub async fn administrator(&self) -> Result<ldap3::Ldap> {
        let (driver, mut ldap) = ldap3::LdapConnAsync::new(&self.url()).await?;
        tokio::spawn(driver.drive());
        ldap.simple_bind(ADMIN.0, ADMIN.1).await?.success()?;
        Ok(ldap)
    }

    /// `ldap://…`
    pub fn url(&self) -> String {
        format!("ldap://{}", self.address)
    }

    /// A file with the password of [`ADMIN`] or of [`READER`].
    pub fn password_file(&self, (dn, _): (&str, &str)) -> PathBuf {
        let name = if dn == ADMIN.0 {
            "admin.password"
        } else {
            "reader.password"
        };
        self.dir.join(name)
    }

    /// The lines of the section `directory` of a node that reads here, looks for changes every `poll`, and may be
    /// changed by `portico prov`.
    pub fn source(&self, poll: &str) -> Vec<String> {
        self.source_of(&[&self.url()], poll)
    }

    /// The same with these servers.
    pub fn source_of(&self, urls: &[&str], poll: &str) -> Vec<String> {
        let bind = |key: &str, who: (&str, &str)| {
            let file = self.password_file(who);
            format!(
                "  {key}bind_dn: \"{}\"\n    {key}bind_password_file: \"{}\"",
                who.0,
                file.display()
            )
        };
        vec![
            "source: ldap".to_owned(),
            format!("snapshot: \"{}\"", self.dir.join("snapshot").display()),
            "ldap:".to_owned(),
            format!("  urls: {urls:?}"),
            "  starttls: false".to_owned(),
            format!("  poll: {poll}"),
            bind("", READER),
            bind("admin_", ADMIN),
        ]
    }

    /// What a search from the root finds, as `ldapsearch` prints it without wrapping.
    pub fn search(&self, filter: &str, attributes: &[&str]) -> Result<String> {
        let (url, (dn, password)) = (self.url(), ADMIN);
        let options = [
            "-x",
            "-LLL",
            "-o",
            "ldif-wrap=no",
            "-H",
            &url,
            "-D",
            dn,
            "-w",
            password,
            "-b",
            "",
            filter,
        ];
        run(Command::new("ldapsearch").args(options).args(attributes))
    }

    /// Makes the changes of an LDIF text.
    pub fn change(&self, ldif: &str) -> Result<()> {
        let path = self.dir.join("change.ldif");
        fs::write(&path, ldif)?;
        let (url, (dn, password)) = (self.url(), ADMIN);
        run(Command::new("ldapmodify")
            .args(["-x", "-H", &url, "-D", dn, "-w", password, "-f"])
            .arg(&path))
        .map(drop)
    }

    /// Changes an attribute of an account.
    pub fn set_account(&self, name: &str, attribute: &str, value: &str) -> Result<()> {
        let dn = account_dn(name)?;
        self.change(&format!(
            "dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n"
        ))
    }

    /// Takes an account away.
    pub fn delete_account(&self, name: &str) -> Result<()> {
        self.change(&format!("dn: {}\nchangetype: delete\n", account_dn(name)?))
    }

    /// The filters of all searches for accounts so far.
    pub fn questions(&self) -> Result<Vec<String>> {
        let log = String::from_utf8_lossy(&fs::read(self.dir.join("slapd.log"))?).into_owned();
        let filters = log
            .lines()
            .filter_map(|line| line.split_once(" filter=").map(|(_, filter)| filter));
        Ok(filters
            .filter(|filter| filter.contains("zimbraMailDeliveryAddress=") || filter.contains("(zimbraId="))
            .map(str::to_owned)
            .collect())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Where it speaks TLS from the first byte, if it does.
    pub fn tls_address(&self) -> Option<SocketAddrV4> {
        self.tls
    }

    /// Ends it as an administrator does.
    pub fn stop(&mut self) -> Result<()> {
        self.child.stop(END)
    }

    /// Starts it again with what it holds, after it has ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.dir, self.address, self.tls)?;
        Ok(())
    }

    /// Puts another content in the place of its own, after it has ended, and starts it again: another server under the
    /// same name.
    pub fn start_anew(&mut self, ldif: &str) -> Result<()> {
        fs::remove_dir_all(self.dir.join("db"))?;
        fs::create_dir_all(self.dir.join("db"))?;
        fill(&self.dir, ldif)?;
        self.start_again()
    }

    /// Loses its log of changes, after it has ended.
    pub fn lose_accesslog(&self) -> Result<()> {
        let log = self.dir.join("log");
        fs::remove_dir_all(&log)?;
        Ok(fs::create_dir_all(&log)?)
    }

    /// Kills it, as a power cut does.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Stops it in the middle of whatever it does.
    pub fn freeze(&self) -> Result<()> {
        self.child.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.child.signal(Signal::SIGCONT)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.is_running()
    }
}

/// Puts this content in the empty database of the folder.
fn fill(dir: &Path, content: &str) -> Result<()> {
    let ldif = dir.join("tree.ldif");
    fs::write(&ldif, content.to_owned() + &reader())?;
    let mut command = Command::new("/usr/sbin/slapadd");
    // The log is the first database.
    let database = if dir.join("log").exists() { "2" } else { "1" };
    command
        .args(["-q", "-w", "-n", database, "-f"])
        .arg(dir.join("slapd.conf"));
    run(command.arg("-l").arg(&ldif)).map(drop)
}

fn spawn(dir: &Path, address: SocketAddrV4, tls: Option<SocketAddrV4>) -> Result<Child> {
    let mut urls = format!("ldap://{address}");
    urls.extend(tls.map(|tls| format!(" ldaps://{tls}")));
    let conf = dir.join("slapd.conf");
    // It logs its searches.
    let args = ["-d", "stats", "-h", &urls, "-f", conf.to_str().context("path")?];
    let mut child = Child::spawn("slapd", "/usr/sbin/slapd", &args, &[], &dir.join("slapd.log"))?;
    child.wait_listening(&[Some(address), tls].into_iter().flatten().collect::<Vec<_>>())?;
    Ok(child)
}

/// Place of an account in the tree.
fn account_dn(name: &str) -> Result<String> {
    let (user, domain) = name.split_once('@').with_context(|| format!("{name} has no domain"))?;
    Ok(format!("uid={user},ou=people,dc={}", domain.replace('.', ",dc=")))
}

fn config(dir: &Path, kind: &Kind) -> String {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("ldap/zimbra.schema");
    let own_schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/portico.schema");
    let ((dn, password), dir) = (ADMIN, dir.display());
    let tls = kind.tls.map_or(String::new(), |pair| {
        let (certificate, key) = (pair.certificate_file.display(), pair.key_file.display());
        format!("TLSCertificateFile {certificate}\nTLSCertificateKeyFile {key}\n")
    });
    let overlay = match (kind.without_context_csn, kind.accesslog) {
        (true, _) => "",
        (false, false) => "overlay syncprov\n",
        (false, true) => {
            "overlay syncprov\nsyncprov-sessionlog-source cn=accesslog\n\
             overlay accesslog\nlogdb cn=accesslog\nlogops writes\nlogsuccess TRUE\n"
        }
    };
    let log = match kind.accesslog {
        false => String::new(),
        true => format!(
            "moduleload accesslog\ndatabase mdb\nmaxsize 268435456\nsuffix cn=accesslog\ndirectory {dir}/log\ndbnosync\n\
             rootdn \"{dn}\"\nindex objectClass,entryCSN,reqStart,reqEnd,reqResult,reqDN eq\n\
             overlay syncprov\nsyncprov-nopresent TRUE\nsyncprov-reloadhint TRUE\n"
        ),
    };
    format!(
        "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
         include /etc/ldap/schema/inetorgperson.schema\ninclude {schema}\ninclude {own_schema}\n\
         modulepath /usr/lib/ldap\nmoduleload back_mdb\nmoduleload syncprov\n{tls}{log}\
         database mdb\nmaxsize 268435456\nsuffix \"\"\ndirectory {dir}/db\ndbnosync\nrootdn \"{dn}\"\nrootpw \"{password}\"\n\
         index objectClass,entryCSN,entryUUID,zimbraId,zimbraMailDeliveryAddress,zimbraMailAlias,zimbraDomainName eq\n\
         access to attrs=userPassword by anonymous auth by * none\n\
         access to * by dn.exact=\"{reader}\" read by anonymous auth by * none\n{more}{overlay}",
        schema = schema.display(),
        own_schema = own_schema.display(),
        reader = READER.0,
        more = kind.more,
    )
}

/// The entry of the user that may only read.
fn reader() -> String {
    let (dn, password) = READER;
    format!(
        "dn: cn=appaccts,cn=zimbra\nobjectClass: organizationalRole\ncn: appaccts\n\n\
         dn: {dn}\nobjectClass: inetOrgPerson\nobjectClass: zimbraAccount\nuid: zmnginx\ncn: zmnginx\nsn: zmnginx\n\
         zimbraId: zmnginx\nuserPassword: {password}\n"
    )
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?}: try scripts/install"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
