//! A service with or without TLS: its name in Zimbra's protocols, and how a server is reached in it (MAIL §1.7 step 6).

use std::sync::Arc;

use mail_directory::attributes::{self, Attribute};
use mail_directory::{System, View, names};

use crate::route::{Server, Service, UpstreamTls, certified_name};

/// A service together with whether it is spoken in TLS: what Zimbra calls the protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protocol {
    service: Service,
    /// As in the error texts and the lookup protocol of Zimbra.
    name: &'static str,
    /// The attribute that names the attribute with the port (step 6).
    port: &'static Attribute,
    /// Place in [`EXTERNAL`]; mail only.
    external: Option<usize>,
    tls: bool,
}

impl Protocol {
    /// What a node speaks to mailbox servers.
    pub(crate) fn of(service: Service, node: View<'_>) -> Self {
        match service == Service::Admin || node.flag(&attributes::REVERSE_PROXY_SSL_TO_UPSTREAM_ENABLED) {
            true => Self::tls(service),
            false => Self::clear(service),
        }
    }

    /// The protocol of this name; administration is told from the web by another header.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let services = [Service::Imap, Service::Pop3, Service::Web];
        let mut all = services.into_iter().flat_map(Self::both);
        all.find(|protocol| protocol.name == name)
    }

    pub(crate) fn tls(service: Service) -> Self {
        let (name, port, external) = match service {
            Service::Imap => ("imapssl", &attributes::REVERSE_PROXY_IMAP_SSL_PORT_ATTRIBUTE, Some(1)),
            Service::Pop3 => ("pop3ssl", &attributes::REVERSE_PROXY_POP3_SSL_PORT_ATTRIBUTE, Some(3)),
            Service::Web => ("httpssl", &attributes::REVERSE_PROXY_HTTP_SSL_PORT_ATTRIBUTE, None),
            Service::Admin => ("httpssl", &attributes::REVERSE_PROXY_ADMIN_PORT_ATTRIBUTE, None),
        };
        Self {
            service,
            name,
            port,
            external,
            tls: true,
        }
    }

    /// A service without and with TLS.
    pub(crate) fn both(service: Service) -> [Self; 2] {
        [Self::clear(service), Self::tls(service)]
    }

    fn clear(service: Service) -> Self {
        let (name, port, external) = match service {
            Service::Imap => ("imap", &attributes::REVERSE_PROXY_IMAP_PORT_ATTRIBUTE, Some(0)),
            Service::Pop3 => ("pop3", &attributes::REVERSE_PROXY_POP3_PORT_ATTRIBUTE, Some(2)),
            Service::Web => ("http", &attributes::REVERSE_PROXY_HTTP_PORT_ATTRIBUTE, None),
            Service::Admin => return Self::tls(Service::Admin),
        };
        Self {
            service,
            name,
            port,
            external,
            tls: false,
        }
    }

    /// Place in [`EXTERNAL`]; mail only.
    pub(crate) fn external(self) -> Option<usize> {
        self.external
    }

    /// The service that is spoken.
    pub(crate) fn service(self) -> Service {
        self.service
    }

    /// Zimbra's word for it.
    pub(crate) fn name(self) -> &'static str {
        self.name
    }

    /// Whether it is for mail programs, whose names are written with `%XX`.
    pub(crate) fn is_mail(self) -> bool {
        self.external.is_some()
    }

    /// Step 6: how a server is reached. The error says what is missing.
    pub(crate) fn at(self, server: View<'_>, system: &System) -> Result<Server, String> {
        // Such a server is spoken to at its clear-text port, and in TLS all the same.
        let starttls = self.is_mail() && server.flag(&attributes::PORTICO_SERVER_START_TLS);
        let by = if starttls { Self::clear(self.service) } else { self };
        let port = system.global().text(by.port).and_then(|name| server.port_named(name));
        let Some(port) = port else {
            return Err(format!(
                "missing port for protocol {} on server {}",
                by.name,
                server.name()
            ));
        };
        let host = server.text(&attributes::SERVICE_HOSTNAME).unwrap_or(server.name());
        let host = &*names::reachable(host);
        Ok(Server {
            name: Arc::from(server.name()),
            host: Arc::from(host),
            port,
            tls: match certified_name(host, &names::reachable(server.name())) {
                name if starttls => UpstreamTls::StartTls { name: name.into() },
                name => self.upstream_tls(name),
            },
        })
    }

    /// How TLS is spoken to a server that shows a certificate of this name.
    pub(crate) fn upstream_tls(self, name: &str) -> UpstreamTls {
        match self.tls {
            true => UpstreamTls::Implicit { name: Arc::from(name) },
            false => UpstreamTls::Clear,
        }
    }
}

/// Attributes of external servers.
pub(crate) const EXTERNAL: [(&Attribute, &Attribute); 4] = [
    (&attributes::EXTERNAL_IMAP_HOSTNAME, &attributes::EXTERNAL_IMAP_PORT),
    (
        &attributes::EXTERNAL_IMAP_SSL_HOSTNAME,
        &attributes::EXTERNAL_IMAP_SSL_PORT,
    ),
    (&attributes::EXTERNAL_POP3_HOSTNAME, &attributes::EXTERNAL_POP3_PORT),
    (
        &attributes::EXTERNAL_POP3_SSL_HOSTNAME,
        &attributes::EXTERNAL_POP3_SSL_PORT,
    ),
];
