//! The verbs that only read.

use std::collections::BTreeSet;

use mail_directory::edit::EntryKind;
use mail_directory::{Entry, System, attributes as a, names};

use route_cache::HostPort;

use crate::cli::prov::{Flags, Prov, dump};
use crate::provision::{CommandOutput, ProvisionError};

/// Port and path of the lookup service of a mailbox server (MAIL §1.1).
const EXTENSION_PORT: u16 = 7072;
const LOOKUP_PATH: &str = "/service/extension/nginx-lookup";
/// The public attributes of a domain.
const PUBLIC: [&str; 7] = [
    "zimbraDomainName",
    "zimbraDomainType",
    "zimbraId",
    "zimbraVirtualHostname",
    "zimbraPublicServiceHostname",
    "zimbraPublicServiceProtocol",
    "zimbraPublicServicePort",
];

impl Prov {
    pub(super) async fn get(
        &mut self,
        kind: EntryKind,
        words: &[String],
        flags: Flags,
    ) -> Result<CommandOutput, ProvisionError> {
        let mut entry = self.editor.existing(kind, &words[0]).await?;
        if !flags.own {
            entry = as_it_counts(&self.editor.system().await?, kind, entry);
        }
        let mut output = CommandOutput::default();
        dump::entry(&entry, &words[1..], flags, &mut output);
        Ok(output)
    }

    pub(super) async fn get_all(
        &mut self,
        kind: EntryKind,
        words: &[String],
        flags: Flags,
    ) -> Result<CommandOutput, ProvisionError> {
        let system = self.editor.system().await?;
        let entries = self.editor.entries(kind).await?;
        let mut output = CommandOutput::default();
        let wanted: &[String] = if kind == EntryKind::Domains { words } else { &[] };
        for entry in entries
            .into_iter()
            .filter(|entry| is_chosen(&system, kind, entry, words))
        {
            let verbose = flags.verbose || !wanted.is_empty();
            let shown = match flags.own || !verbose {
                true => entry,
                false => as_it_counts(&system, kind, entry),
            };
            match verbose {
                true => dump::entry(&shown, wanted, flags, &mut output),
                false => output.line(shown.name()),
            }
        }
        Ok(output)
    }

    pub(super) async fn get_config(
        &mut self,
        wanted: &[String],
        flags: Flags,
    ) -> Result<CommandOutput, ProvisionError> {
        let own = self.editor.entries(EntryKind::Config).await?.pop().unwrap_or_default();
        let mut output = CommandOutput::default();
        let shown = match flags.own {
            true => own,
            false => System::new(own, [], [], []).global().as_it_counts(),
        };
        dump::attributes(&shown, wanted, flags, &mut output);
        Ok(output)
    }

    pub(super) async fn get_domain_info(&mut self, words: &[String]) -> Result<CommandOutput, ProvisionError> {
        let (by, value) = (words[0].to_ascii_lowercase(), words[1].as_str());
        let system = self.editor.system().await?;
        let found = match by.as_str() {
            "name" => system.domain(value),
            "id" => system.domain_by_id(value),
            "virtualhostname" => system.domain_by_host(value),
            _ => {
                return Err(ProvisionError::request(format!(
                    "{} is not name, id or virtualHostname",
                    words[0]
                )));
            }
        };
        let domain = found.ok_or_else(|| ProvisionError::no_such(EntryKind::Domains, value))?;
        let mut public = domain.as_it_counts();
        let names: Vec<String> = public.iter().map(|(name, _)| name.to_owned()).collect();
        for name in names.iter().filter(|name| !PUBLIC.contains(&name.as_str())) {
            public.set(name, None::<String>);
        }
        let mut output = CommandOutput::default();
        dump::entry(&public, &words[2..], Flags::default(), &mut output);
        Ok(output)
    }

    pub(super) async fn proxy_urls(&mut self) -> Result<CommandOutput, ProvisionError> {
        let system = self.editor.system().await?;
        let urls = system.web_servers().map(|server| {
            let host = server.text(&a::SERVICE_HOSTNAME).unwrap_or(server.name());
            let port = server.port_named("zimbraExtensionBindPort").unwrap_or(EXTENSION_PORT);
            format!("{}{LOOKUP_PATH} ", HostPort::new(host, port))
        });
        let mut output = CommandOutput::default();
        output.line(urls.collect::<String>());
        Ok(output)
    }

    pub(super) async fn proxy_backends(&mut self) -> Result<CommandOutput, ProvisionError> {
        let system = self.editor.system().await?;
        let mut output = CommandOutput::default();
        for server in system.web_servers() {
            let host = server.text(&a::SERVICE_HOSTNAME).unwrap_or(server.name());
            let port = match server.flag(&a::REVERSE_PROXY_SSL_TO_UPSTREAM_ENABLED) {
                true => &a::MAIL_SSL_PORT,
                false => &a::MAIL_PORT,
            };
            let address = HostPort::new(host, server.port(port).unwrap_or_default());
            output.line(format!("    server {address};"));
        }
        if output.out.is_empty() {
            output.line("    server localhost:8080;");
        }
        Ok(output)
    }

    pub(super) async fn proxy_domains(&mut self) -> Result<CommandOutput, ProvisionError> {
        let system = self.editor.system().await?;
        let mut output = CommandOutput::default();
        for domain in system.domains() {
            let names = domain.list(&a::VIRTUAL_HOSTNAME);
            let has_pair = [&a::SSL_CERTIFICATE, &a::SSL_PRIVATE_KEY]
                .iter()
                .all(|part| domain.text(part).is_some());
            if has_pair && !names.is_empty() {
                output.line(format!("{} {} ", domain.name(), names.join(" ")));
            }
        }
        Ok(output)
    }
}

/// The entry with inherited values and defaults.
fn as_it_counts(system: &System, kind: EntryKind, entry: Entry) -> Entry {
    let view = match kind {
        EntryKind::Servers => system.server(entry.name()),
        EntryKind::Domains => system.domain(entry.name()),
        EntryKind::Accounts => Some(system.account(&entry)),
        EntryKind::Config => Some(system.global()),
        EntryKind::Cos => None,
    };
    match view {
        Some(view) => view.as_it_counts(),
        None => entry,
    }
}

/// Servers are chosen by service, accounts by domain.
fn is_chosen(system: &System, kind: EntryKind, entry: &Entry, words: &[String]) -> bool {
    let Some(word) = words.first() else { return true };
    match kind {
        EntryKind::Servers => {
            let own = system.server(entry.name());
            let services: BTreeSet<String> = own
                .iter()
                .flat_map(|server| server.list(&a::SERVICE_ENABLED))
                .map(str::to_ascii_lowercase)
                .collect();
            services.contains(&word.to_ascii_lowercase())
        }
        EntryKind::Accounts => {
            let name = entry.first(a::MAIL_DELIVERY_ADDRESS.name).unwrap_or(entry.name());
            name.rsplit_once('@')
                .is_some_and(|(_, domain)| names::host(domain) == names::host(word))
        }
        _ => true,
    }
}
