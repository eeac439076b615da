//! `mail`: how long mail sessions may be silent, and how often they may fail.

use std::sync::Arc;
use std::time::Duration;

use mail_directory::yaml::{Mapping, Node};
use mail_proxy::{Master, Mechanism, Mechanisms, ProofKind, ServerRule, Tell};

use super::LiveKey;
use super::read::ConfigReader;
use crate::node::returns::ReturnPace;
use crate::tls::client_certs::{ClientCerts, NameSource};

pub(super) const LIVE: [LiveKey; 1] = [("mail", |now, new| now.mail.clone_from(&new.mail))];

/// `mail`
#[derive(Debug, Clone)]
pub(crate) struct MailConfig {
    /// Time from accept to credentials.
    pub login_deadline: Duration,
    /// Silence of a logged-in IMAP session.
    pub imap_idle: Duration,
    /// Silence of a logged-in POP3 session.
    pub pop3_idle: Duration,
    /// How long a mailbox server may take for a login, where the directory does not give it less.
    pub server_login_timeout: Duration,
    /// How long a login waits for the end of a hold.
    pub hold_wait: Duration,
    /// What its client is told after that.
    pub hold_text: String,
    /// Over how long sessions are ended whose accounts have gone to another server; `None`: they go on.
    pub end_moved: Option<Duration>,
    /// How the clients of a mailbox server that was down get in again.
    pub return_pace: ReturnPace,
    /// Failed logins in one connection.
    pub max_logins: u32,
    /// Bad commands in one connection before login.
    pub max_bad_commands: u32,
    /// SASL mechanisms that are offered beside PLAIN and LOGIN, which attributes of the directory switch.
    pub mechanisms: Mechanisms,
    /// Whose certificates stand for logins, and what in them names the account; `None`: nobody's.
    pub external: Option<Arc<ClientCerts>>,
    /// As whom a client with a certificate is logged in at the mailbox servers.
    pub master: Option<Arc<Master>>,
    /// What mailbox servers are told of clients, by their names; the first rule that fits counts.
    pub servers: Vec<ServerRule>,
}

/// Rules for servers, at most: each login looks through them.
const MAX_RULES: usize = 256;

/// The mechanisms that every mailbox server must have for them to be offered, so only the administrator knows.
fn mechanisms_of_servers() -> Vec<(&'static str, Mechanism)> {
    let is_theirs = |mechanism: &Mechanism| matches!(mechanism.proof(), ProofKind::Token | ProofKind::Exchange);
    let of_servers = Mechanism::of_all_sasl().filter(is_theirs);
    of_servers.map(|mechanism| (mechanism.name(), mechanism)).collect()
}

/// Where a key is not written, the values of a Carbonio proxy's local configuration (MAIL §6.1), with POP3's idle limit
/// at the 10 minutes that RFC 1939 §3 asks for.
impl Default for MailConfig {
    fn default() -> Self {
        Self {
            login_deadline: Duration::from_secs(60),
            imap_idle: Duration::from_secs(2100),
            pop3_idle: Duration::from_secs(600),
            server_login_timeout: Duration::from_secs(20),
            hold_wait: Duration::from_secs(10),
            hold_text: "your mailbox is being worked on, please try again later".to_owned(),
            end_moved: Some(Duration::from_secs(30)),
            return_pace: ReturnPace::default(),
            max_logins: 3,
            max_bad_commands: 5,
            mechanisms: Mechanisms::default(),
            external: None,
            master: None,
            servers: Vec::new(),
        }
    }
}

impl ConfigReader {
    fn external(&mut self, section: &mut Mapping<'_>) -> Option<ClientCerts> {
        let mut section = self.section(section, "external")?;
        let file = section.require("authorities", &mut self.problems);
        let names = match section.take("account") {
            None => vec![NameSource::Email],
            Some(node) => {
                let choices = [("email", NameSource::Email), ("cn", NameSource::CommonName)];
                let items = self.some_items(node, choices.len());
                let named = items.into_iter().map(|item| item.choice(&choices, &mut self.problems));
                named.flatten().collect()
            }
        };
        section.finish(&mut self.problems);
        let file = file?;
        let path = file.path_buf(&mut self.problems)?;
        let why = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let read = std::fs::read_to_string(&path).map_err(|error| why(&error));
        let rules = read.and_then(|text| ClientCerts::of_mail(&text, names).map_err(|error| why(&error)));
        rules.map_err(|message| file.error(message, &mut self.problems)).ok()
    }

    fn master(&mut self, section: &mut Mapping<'_>) -> Option<Master> {
        let mut section = self.section(section, "master")?;
        let user = section.require("user", &mut self.problems);
        let password = section.require("password_file", &mut self.problems);
        section.finish(&mut self.problems);
        let user = user?;
        let name = user.text(&mut self.problems)?.into_owned();
        if name.is_empty() || name.chars().any(char::is_control) {
            user.error("expected a name", &mut self.problems);
            return None;
        }
        let node = password?;
        let password = self.password(node)?;
        if password.expose().contains('\0') {
            node.error("has a NUL, which no login can carry", &mut self.problems);
            return None;
        }
        Some(Master { user: name, password })
    }

    pub(super) fn mail(&mut self, root: &mut Mapping<'_>) -> MailConfig {
        let mut config = MailConfig::default();
        let Some(mut section) = self.section(root, "mail") else {
            return config;
        };
        self.duration(&mut section, "login_deadline", &mut config.login_deadline);
        self.duration(&mut section, "imap_idle", &mut config.imap_idle);
        self.duration(&mut section, "pop3_idle", &mut config.pop3_idle);
        self.duration(&mut section, "server_login_timeout", &mut config.server_login_timeout);
        self.duration(&mut section, "hold_wait", &mut config.hold_wait);
        if let Some(text) = self.text(&mut section, "hold_text") {
            config.hold_text = text;
        }
        if let Some(node) = section.take("end_moved") {
            config.end_moved = match node.str(&mut self.problems) {
                Some("off") => None,
                _ => node.duration(&mut self.problems),
            };
        }
        if let Some(n) = section
            .take("return_rate")
            .and_then(|node| node.u32(&mut self.problems))
        {
            config.return_pace.rate = n;
        }
        self.duration(&mut section, "return_time", &mut config.return_pace.lasts);
        self.duration(&mut section, "return_wait", &mut config.return_pace.wait);
        if let Some(n) = section.take("max_logins").and_then(|node| node.u32(&mut self.problems)) {
            config.max_logins = n;
        }
        if let Some(n) = section
            .take("max_bad_commands")
            .and_then(|node| node.u32(&mut self.problems))
        {
            config.max_bad_commands = n;
        }
        if let Some(node) = section.take("mechanisms") {
            let choices = mechanisms_of_servers();
            let named = node.each(&mut self.problems, |item, problems| item.choice(&choices, problems));
            config.mechanisms = named.into_iter().flatten().collect();
        }
        config.external = self.external(&mut section).map(Arc::new);
        config.master = self.master(&mut section).map(Arc::new);
        match (&config.external, &config.master) {
            (Some(_), None) => section
                .node()
                .warning("external has no effect without master", &mut self.problems),
            (None, Some(_)) => section
                .node()
                .warning("master has no effect without external", &mut self.problems),
            _ => {}
        }
        if let Some(node) = section.take("servers") {
            let items = self.some_items(node, MAX_RULES);
            config.servers = items.into_iter().filter_map(|item| self.server_rule(item)).collect();
        }
        section.finish(&mut self.problems);
        config
    }

    fn server_rule(&mut self, item: Node<'_>) -> Option<ServerRule> {
        let mut entry = item.mapping(&mut self.problems)?;
        let name = entry.require("name", &mut self.problems);
        let name = name.and_then(|node| node.text(&mut self.problems));
        let tell = entry.take("tell").and_then(|node| {
            let choices = Tell::WORDS.map(|word| (word, word));
            let nodes = node.one_or_many(&mut self.problems)?;
            let words = nodes
                .iter()
                .filter_map(|word| word.choice(&choices, &mut self.problems));
            let tell = Tell::of_words(words.collect::<Vec<_>>());
            tell.map_err(|why| node.error(why, &mut self.problems)).ok()
        });
        let starttls = entry.take("starttls").and_then(|node| node.bool(&mut self.problems));
        entry.finish(&mut self.problems);
        Some(ServerRule {
            name: name?.to_ascii_lowercase(),
            tell,
            starttls,
        })
    }
}

#[cfg(test)]
mod tests {
    use mail_proxy::{Announcement, ProxyVersion};

    use crate::config::tests::load;
    use crate::tls::client_certs::tests::certificate;

    #[test]
    fn rules_for_servers() {
        let servers = |text: &str| load(&format!("mail: {{servers: [{text}]}}\n"));
        let (config, _) =
            servers("{name: 'Store*.test', tell: [dovecot, proxy_v2]}, {name: '*', tell: none, starttls: true}")
                .unwrap();
        let [first, second] = &config.mail.servers[..] else {
            panic!("{:?}", config.mail.servers)
        };
        let tell = first.tell.unwrap();
        assert_eq!(
            (first.name.as_str(), tell.announcement, tell.header),
            ("store*.test", Announcement::Dovecot, Some(ProxyVersion::V2))
        );
        assert_eq!(second.tell.unwrap().announcement, Announcement::None);
        assert_eq!((first.starttls, second.starttls), (None, Some(true)));
        for (wrong, text) in [
            ("{tell: zimbra}", "name is missing"),
            ("{name: a, tell: nginx}", "mail.servers[0].tell"),
            ("{name: a, tell: [dovecot, zimbra]}", "exclude each other"),
            ("{name: a, tell: [proxy_v1, none]}", "none stands alone"),
            ("{name: a, says: x}", "mail.servers[0].says"),
            ("", "wants 1 to 256 items"),
        ] {
            let problems = servers(wrong).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains(text)),
                "{wrong}: {problems:?}"
            );
        }
    }

    #[test]
    fn logins_by_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let authority = certificate("root", &[]).to_pem().unwrap();
        let (authorities, password) = (file("ca.pem", &authority), file("password", b"secret\n"));
        let (nul, none) = (file("nul", b"a\0b\n"), file("none.pem", b"nothing"));
        let external = format!("external: {{authorities: {authorities}, account: [cn, email]}}");
        let master = format!("master: {{user: m, password_file: {password}}}");
        let mail = |text: &str| load(&format!("mail: {{{text}}}\n"));
        let (config, warnings) = mail(&format!("{external}, {master}")).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert!(config.mail.external.is_some());
        assert_eq!(config.mail.master.unwrap().password.expose(), "secret");
        for (half, text) in [
            (&external, "external has no effect without master"),
            (&master, "master has no effect without external"),
        ] {
            let (_, warnings) = mail(half).unwrap();
            assert!(
                warnings.iter().any(|warning| warning.message.contains(text)),
                "{warnings:?}"
            );
        }
        for (wrong, text) in [
            ("external: {}".to_owned(), "authorities is missing"),
            (format!("external: {{authorities: {none}}}"), "no authority is named"),
            ("external: {authorities: /nowhere}".to_owned(), "No such file"),
            (
                format!("external: {{authorities: {authorities}, account: [upn]}}"),
                "mail.external.account",
            ),
            ("master: {user: m}".to_owned(), "password_file is missing"),
            (
                format!("master: {{user: '', password_file: {password}}}"),
                "expected a name",
            ),
            (
                format!("master: {{user: m, password_file: {nul}}}"),
                "has a NUL, which no login can carry",
            ),
        ] {
            let problems = mail(&wrong).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains(text)),
                "{wrong}: {problems:?}"
            );
        }
    }
}
