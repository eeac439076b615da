//! A real Dovecot as mailbox server. Runs as root in a container and as an ordinary user alike.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::User;

use crate::certs::Pair;
use crate::child::Child;
use crate::tokens::TokenService;
use crate::{Stage, until};

/// A mailbox server with a few users.
pub struct Dovecot {
    /// Its address.
    pub ip: Ipv4Addr,
    /// IMAP in clear text, and with STARTTLS.
    pub imap: u16,
    /// IMAP with TLS from the first byte.
    pub imaps: u16,
    /// POP3 in clear text, and with STLS.
    pub pop3: u16,
    /// POP3 with TLS from the first byte.
    pub pop3s: u16,
    dir: PathBuf,
    owner: (u32, u32),
    child: Option<Child>,
    delivered: AtomicU64,
}

/// A mailbox user: name and password.
#[derive(Debug, Clone)]
pub struct Login<'a> {
    /// Login name.
    pub name: &'a str,
    /// Password, any bytes.
    pub password: &'a [u8],
}

impl Dovecot {
    /// Starts one on `ip` with these users.
    pub fn start(stage: &Stage, name: &str, ip: Ipv4Addr, pair: &Pair, users: &[Login]) -> Result<Self> {
        let ports = (stage.port()?, stage.port()?, stage.port()?, stage.port()?);
        let (imap, imaps, pop3, pop3s) = ports;
        let dir = stage.dir(name)?;
        let owner = mail_owner()?;
        let mut dovecot = Self {
            ip,
            imap,
            imaps,
            pop3,
            pop3s,
            dir,
            owner,
            child: None,
            delivered: AtomicU64::new(0),
        };
        dovecot.write_files(pair, users)?;
        dovecot.start_again()?;
        Ok(dovecot)
    }

    /// Starts it again after [`Dovecot::stop`], as it was.
    pub fn start_again(&mut self) -> Result<()> {
        let config = self.dir.join("dovecot.conf");
        let args = ["-F", "-c", config.to_str().context("path")?];
        let mut child = Child::spawn("dovecot", "dovecot", &args, &[], &self.dir.join("output.log"))?;
        let ports = [self.imap, self.imaps, self.pop3, self.pop3s];
        child
            .wait_listening(&ports.map(|p| SocketAddrV4::new(self.ip, p)))
            .with_context(|| self.log())?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts it again with other lines in its configuration: each is replaced by what stands beside it.
    pub fn set(&mut self, changes: &[(&str, &str)]) -> Result<()> {
        let config = self.dir.join("dovecot.conf");
        let mut text = std::fs::read_to_string(&config)?;
        for (from, to) in changes {
            ensure!(text.contains(from), "{from:?} is not in dovecot.conf");
            text = text.replace(from, to);
        }
        std::fs::write(&config, text)?;
        self.stop()?;
        self.start_again()
    }

    /// Starts it again as Dovecot is shipped: it delays failed logins, by 2 seconds each time and up to 15 more for an
    /// address that goes on.
    pub fn delay_guesses(&mut self) -> Result<()> {
        self.set(&[
            ("auth_failure_delay = 0\n", ""),
            ("  unix_listener anvil-auth-penalty {\n    mode = 0\n  }\n", ""),
        ])
    }

    /// Gives a user extra fields, such as `nologin host=192.0.2.1`; Dovecot reads them at the next login.
    pub fn add_to_user(&self, name: &str, fields: &str) -> Result<()> {
        let path = self.dir.join("users");
        let text = std::fs::read_to_string(&path)?;
        let start = format!("{name}:");
        let line = |line: &str| match line.strip_prefix(&start) {
            Some(rest) => {
                let password = rest.split(':').next().unwrap_or_default();
                format!("{start}{password}::::::{fields}\n")
            }
            None => format!("{line}\n"),
        };
        std::fs::write(&path, text.lines().map(line).collect::<String>())?;
        Ok(())
    }

    /// Starts it again so that it takes tokens, which it asks this service about.
    pub fn take_tokens(&mut self, service: &TokenService) -> Result<()> {
        let settings = self.dir.join("oauth2.conf");
        let url = format!("http://{}/tokeninfo?access_token=", service.address());
        std::fs::write(
            &settings,
            format!("tokeninfo_url = {url}\nusername_attribute = email\nuse_grant_password = no\n"),
        )?;
        let passdb = format!(
            "passdb {{\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n  args = {}\n}}\npassdb {{\n  driver = passwd-file\n",
            settings.display()
        );
        self.set(&[
            (
                "auth_mechanisms = plain login\n",
                "auth_mechanisms = plain login xoauth2 oauthbearer\n",
            ),
            ("passdb {\n  driver = passwd-file\n", &passdb),
        ])
    }

    /// Starts it again so that it lets a master user into every mailbox whose user may log in.
    pub fn take_master(&mut self, master: &Login) -> Result<()> {
        self.change_master(master)?;
        let passdb = format!(
            "passdb {{\n  driver = passwd-file\n  master = yes\n  pass = yes\n  args = {}\n}}\npassdb {{\n  driver = passwd-file\n",
            self.dir.join("masters").display()
        );
        self.set(&[("passdb {\n  driver = passwd-file\n", &passdb)])
    }

    /// Gives the master user another name or password; Dovecot reads them at the next login.
    pub fn change_master(&self, master: &Login) -> Result<()> {
        let password = hex(&openssl::sha::sha256(master.password));
        let line = format!("{}:{{SHA256.HEX}}{password}\n", master.name);
        Ok(std::fs::write(self.dir.join("masters"), line)?)
    }

    /// Starts it again so that it takes SCRAM from these users: it keeps their passwords as they are.
    pub fn take_scram(&mut self, users: &[Login]) -> Result<()> {
        let path = self.dir.join("users");
        let kept = std::fs::read_to_string(&path)?;
        let line = |line: &str| {
            let user = users.iter().find(|user| line.starts_with(&format!("{}:", user.name)));
            match user {
                Some(user) => format!("{}:{{PLAIN}}{}\n", user.name, String::from_utf8_lossy(user.password)),
                None => format!("{line}\n"),
            }
        };
        std::fs::write(&path, kept.lines().map(line).collect::<String>())?;
        self.set(&[(
            "auth_mechanisms = plain login\n",
            "auth_mechanisms = plain login scram-sha-1 scram-sha-256\n",
        )])
    }

    /// Starts it again with another certificate.
    pub fn show_certificate(&mut self, pair: &Pair) -> Result<()> {
        let config = std::fs::read_to_string(self.dir.join("dovecot.conf"))?;
        let line = |start: &str| {
            let found = config.lines().find(|line| line.starts_with(start));
            found.map(str::to_owned).context("a line of its certificate")
        };
        let (certificate, key) = (line("ssl_cert = ")?, line("ssl_key = ")?);
        self.set(&[
            (
                &certificate,
                &format!("ssl_cert = <{}", pair.certificate_file.display()),
            ),
            (&key, &format!("ssl_key = <{}", pair.key_file.display())),
        ])
    }

    /// Stops it with all its sessions.
    pub fn stop(&mut self) -> Result<()> {
        match self.child.take() {
            Some(mut child) => child.stop(Duration::from_secs(5)),
            None => Ok(()),
        }
    }

    /// Ends all of it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill();
        }
    }

    /// Waits until its log contains this.
    pub fn wait_log(&self, text: &str) -> Result<()> {
        let said = until(
            &format!("the mailbox server to log {text:?}"),
            Duration::from_secs(5),
            || Ok(self.log().contains(text).then_some(())),
        );
        said.with_context(|| self.log())
    }

    /// Its log: every login with the client's address (`rip=`).
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("dovecot.log")).unwrap_or_default()
    }

    /// The folder with a Maildir for each user.
    pub fn mail_dir(&self) -> PathBuf {
        self.dir.join("mail")
    }

    /// Puts a message into a user's inbox, as a delivery does.
    pub fn deliver(&self, user: &str, message: &str) -> Result<()> {
        let maildir = self.mail_dir().join(user);
        for part in ["", "tmp", "new", "cur"] {
            let part = maildir.join(part);
            std::fs::create_dir_all(&part)?;
            self.give_away(&part)?;
        }
        let name = format!(
            "{}.{}.stage",
            self.delivered.fetch_add(1, Ordering::Relaxed) + 1_700_000_000,
            self.imap
        );
        let tmp = maildir.join("tmp").join(&name);
        std::fs::write(&tmp, message)?;
        self.give_away(&tmp)?;
        std::fs::rename(&tmp, maildir.join("new").join(&name)).context("delivering")
    }

    fn write_files(&self, pair: &Pair, users: &[Login]) -> Result<()> {
        let mut passwd = String::new();
        for user in users {
            writeln!(
                passwd,
                "{}:{{SHA256.HEX}}{}",
                user.name,
                hex(&openssl::sha::sha256(user.password))
            )?;
        }
        std::fs::write(self.dir.join("users"), passwd)?;
        let mail = self.dir.join("mail");
        std::fs::create_dir_all(&mail)?;
        self.give_away(&mail)?;
        std::fs::write(self.dir.join("dovecot.conf"), self.config(pair)?)?;
        Ok(())
    }

    fn give_away(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.owner.0), Some(self.owner.1)).with_context(|| format!("chown {}", path.display()))
    }

    fn config(&self, pair: &Pair) -> Result<String> {
        let dir = self.dir.display();
        let (uid, gid) = self.owner;
        let mut out = format!(
            "base_dir = {dir}/run
state_dir = {dir}/run
log_path = {dir}/dovecot.log
auth_verbose = yes
protocols = imap pop3
listen = {ip}
ssl = yes
ssl_cert = <{cert}
ssl_key = <{key}
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
login_trusted_networks = 127.0.0.0/8
first_valid_uid = 1
mail_location = maildir:{dir}/mail/%u
mail_max_userip_connections = 10000
mailbox_idle_check_interval = 1 secs
passdb {{
  driver = passwd-file
  args = username_format=%u {dir}/users
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={dir}/mail/%u
}}
service imap {{
  process_limit = 4096
}}
service auth {{
  client_limit = 8192
}}
service anvil {{
  client_limit = 8192
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
  client_limit = 8192
}}
",
            ip = self.ip,
            cert = pair.certificate_file.display(),
            key = pair.key_file.display(),
        );
        for (proto, clear, tls) in [("imap", self.imap, self.imaps), ("pop3", self.pop3, self.pop3s)] {
            write!(
                out,
                "service {proto}-login {{
  chroot =
  service_count = 0
  client_limit = 4096
  process_limit = 2
  inet_listener {proto} {{
    port = {clear}
  }}
  inet_listener {proto}s {{
    port = {tls}
  }}
}}
"
            )?;
        }
        out.push_str(&run_as()?);
        Ok(out)
    }
}

/// The user that owns the mails. Dovecot refuses to read mail as root.
fn mail_owner() -> Result<(u32, u32)> {
    let me = nix::unistd::getuid();
    if !me.is_root() {
        return Ok((me.as_raw(), nix::unistd::getgid().as_raw()));
    }
    let nobody = User::from_name("nobody")?.context("there is no user nobody")?;
    Ok((nobody.uid.as_raw(), nobody.gid.as_raw()))
}

/// Without root Dovecot cannot change users: everything runs as our user.
fn run_as() -> Result<String> {
    let me = nix::unistd::getuid();
    if me.is_root() {
        return Ok(String::new());
    }
    let user = User::from_uid(me)?.context("we have no name")?;
    let group = nix::unistd::Group::from_gid(nix::unistd::getgid())?.context("our group has no name")?;
    Ok(format!(
        "default_internal_user = {0}\ndefault_internal_group = {1}\ndefault_login_user = {0}\n",
        user.name, group.name
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::Authority;
    use crate::wire::Wire;

    const ODD: &str = "q\"uo\\te \u{e9}\u{4e2d} c4n4ry";

    fn dovecot(stage: &Stage) -> Result<(Authority, Dovecot)> {
        let ca = Authority::new(&stage.dir("ca")?)?;
        let pair = ca.server(&["store1.example.test", "127.0.0.2"])?;
        let users = [
            Login {
                name: "alice@a.example",
                password: b"simple",
            },
            Login {
                name: "odd@a.example",
                password: ODD.as_bytes(),
            },
        ];
        let dovecot = Dovecot::start(stage, "store1", Ipv4Addr::new(127, 0, 0, 2), &pair, &users)?;
        Ok((ca, dovecot))
    }

    #[test]
    fn takes_logins_and_shows_mail() -> Result<()> {
        Stage::run(|stage| {
            let (ca, dovecot) = dovecot(stage)?;
            dovecot.deliver("alice@a.example", "Subject: one\r\n\r\nhello\r\n")?;
            let at = SocketAddrV4::new(dovecot.ip, dovecot.imaps);
            let mut wire = Wire::tls(at, &ca.connector(&[])?, "store1.example.test")?;
            wire.line()?;
            wire.imap_ok("a1 LOGIN alice@a.example simple")?;
            let selected = wire.imap_ok("a2 SELECT INBOX")?;
            assert!(selected.contains(&"* 1 EXISTS".to_owned()), "{selected:?}");
            Ok(())
        })
    }

    #[test]
    fn knows_odd_passwords_and_the_forwarded_address() -> Result<()> {
        Stage::run(|stage| {
            let (_ca, mut dovecot) = dovecot(stage)?;
            let mut wire = Wire::clear(SocketAddrV4::new(dovecot.ip, dovecot.imap))?;
            wire.line()?;
            wire.imap_ok("a0 ID (\"X-ORIGINATING-IP\" \"192.0.2.77\")")?;
            wire.say(&format!("a1 LOGIN odd@a.example {{{}+}}\r\n{ODD}", ODD.len()))?;
            let answer = wire.imap_answer("a1")?;
            assert!(answer.last().is_some_and(|l| l.starts_with("a1 OK")), "{answer:?}");
            dovecot.wait_log("rip=192.0.2.77")?;
            dovecot.stop()?;
            assert!(Wire::clear(SocketAddrV4::new(dovecot.ip, dovecot.imap)).is_err());
            dovecot.start_again()?;
            let mut wire = Wire::clear(SocketAddrV4::new(dovecot.ip, dovecot.pop3))?;
            wire.line()?;
            wire.pop_ok("USER odd@a.example")?;
            wire.pop_ok(&format!("PASS {ODD}"))?;
            Ok(())
        })
    }
}
