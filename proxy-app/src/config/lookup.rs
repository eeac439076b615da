//! `directory.lookup`: services to ask for routes instead of reading accounts.

use std::path::PathBuf;
use std::time::Duration;

use mail_directory::yaml::{Mapping, Node};
use route_cache::lookup::certauth::NodeLogin;
use route_cache::lookup::{Dialect, HandlerUrl};

use super::read::ConfigReader;

/// Most lookup services: each may make a login wait.
pub(crate) const MAX_HANDLERS: usize = 16;

/// The account that Zimbra's proxy asks for tokens with.
const ADMIN_USER: &str = "zmnginx";

/// `directory.lookup`
#[derive(Debug, Clone)]
pub(crate) struct LookupConfig {
    /// The protocol of the services.
    pub protocol: Dialect,
    /// Where they are; empty: where the directory says.
    pub handlers: Vec<HandlerUrl>,
    /// The longest time of one lookup.
    pub timeout: Duration,
    /// Authorities that sign their certificates; `None`: those of mailbox servers.
    pub ca_file: Option<PathBuf>,
    /// The account that they are asked for tokens with; `None`: they are not asked.
    pub admin: Option<NodeLogin>,
}

impl ConfigReader {
    pub(super) fn lookup(&mut self, directory: &mut Mapping<'_>) -> Option<LookupConfig> {
        let mut section = self.section(directory, "lookup")?;
        let words = [("zimbra", Dialect::Zimbra), ("nginx", Dialect::Nginx)];
        let protocol = section.require("protocol", &mut self.problems);
        let protocol = protocol.and_then(|node| node.choice(&words, &mut self.problems));
        let handlers = match protocol {
            // Where they are absent, the directory names them.
            Some(Dialect::Zimbra) => section.take("handlers"),
            _ => section.require("handlers", &mut self.problems),
        };
        let handlers = handlers.map(|node| self.some_items(node, MAX_HANDLERS));
        let ca_file = section
            .take("ca_file")
            .and_then(|node| node.path_buf(&mut self.problems));
        let mut timeout = Duration::from_secs(5);
        self.duration(&mut section, "timeout", &mut timeout);
        let admin = self.node_login(&mut section, protocol);
        let protocol = protocol?;
        let handlers: Vec<HandlerUrl> = handlers
            .unwrap_or_default()
            .into_iter()
            .filter_map(|node| self.handler(node, protocol))
            .collect();
        if admin.is_some() && handlers.iter().any(|url| !url.tls) {
            section.node().warning(
                "the password goes over the network in clear text: use https",
                &mut self.problems,
            );
        }
        section.finish(&mut self.problems);
        Some(LookupConfig {
            protocol,
            handlers,
            timeout,
            ca_file,
            admin,
        })
    }

    /// The account that services are asked for tokens with; nginx's protocol has none.
    fn node_login(&mut self, lookup: &mut Mapping<'_>, protocol: Option<Dialect>) -> Option<NodeLogin> {
        let user = self.text(lookup, "admin_user");
        let file = lookup.take("admin_password_file");
        let node = lookup.node();
        if file.is_none() && user.is_some() {
            node.error("admin_user needs admin_password_file", &mut self.problems);
        }
        let file = file?;
        if protocol == Some(Dialect::Nginx) {
            file.error("goes with protocol: zimbra only", &mut self.problems);
        }
        let password = self.password(file)?;
        let login = NodeLogin::new(user.unwrap_or_else(|| ADMIN_USER.to_owned()), password);
        login.map_err(|why| node.error(why.to_owned(), &mut self.problems)).ok()
    }

    fn handler(&mut self, node: Node<'_>, protocol: Dialect) -> Option<HandlerUrl> {
        let url = HandlerUrl::parse(&node.text(&mut self.problems)?, protocol);
        url.map_err(|why| node.error(why, &mut self.problems)).ok()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::load;

    #[test]
    fn single_sign_on_needs_tls_and_a_password() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (good, bad) = (file("good", "s3cr3t\n"), file("bad", "two\nlines\n"));
        let lookup = |more: &str| load(&format!("directory: {{lookup: {{protocol: zimbra, {more}}}}}\n"));
        let (config, _) = lookup(&format!("admin_password_file: {good}")).unwrap();
        assert!(config.lookup.unwrap().admin.is_some());
        let (_, warnings) = lookup(&format!("admin_password_file: {good}, handlers: ['http://a.test/']")).unwrap();
        assert!(
            warnings
                .iter()
                .any(|warning| warning.to_string().contains("in clear text"))
        );
        for wrong in ["admin_user: x".to_owned(), format!("admin_password_file: {bad}")] {
            assert!(lookup(&wrong).is_err(), "{wrong}");
        }
        let nginx = format!("{{protocol: nginx, handlers: ['https://a.test/'], admin_password_file: {good}}}");
        assert!(load(&format!("directory: {{lookup: {nginx}}}\n")).is_err());
        for (tls, is_good) in [("implicit", true), ("off", false), ("starttls", false)] {
            let listener = format!("listeners: [{{address: '127.0.0.1:3443', serve: sso, tls: {tls}}}]\n");
            assert_eq!(load(&listener).is_ok(), is_good, "{tls}");
        }
    }
}
