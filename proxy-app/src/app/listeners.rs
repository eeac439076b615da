//! The listeners of a node whose file names none, from the directory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mail_directory::{System, View, attributes as a};

use crate::app::snapshot::{MailMode, ip_mode, mail_mode};
use crate::config::{Config, Listener, ListenerTls, Serve};
use crate::upstream::dns::IpMode;

/// The listeners of a node whose file names none, from the directory's switches and ports (MAIL §6.1, HTTP §1.1).
pub(crate) fn listeners_of_directory(config: &Config, system: &System) -> Vec<Listener> {
    let node = system.node(&config.node);
    let web = node.flag(&a::REVERSE_PROXY_HTTP_ENABLED);
    let mail = node.flag(&a::REVERSE_PROXY_MAIL_ENABLED);
    let table = [
        (
            web && mail_mode(&node) != MailMode::Https,
            &a::MAIL_PROXY_PORT,
            Serve::Web,
            ListenerTls::Off,
        ),
        (web, &a::MAIL_SSL_PROXY_PORT, Serve::Web, ListenerTls::Implicit),
        (
            mail && node.flag(&a::REVERSE_PROXY_MAIL_IMAP_ENABLED),
            &a::IMAP_PROXY_BIND_PORT,
            Serve::Imap,
            ListenerTls::StartTls,
        ),
        (
            mail && node.flag(&a::REVERSE_PROXY_MAIL_IMAPS_ENABLED),
            &a::IMAP_SSL_PROXY_BIND_PORT,
            Serve::Imap,
            ListenerTls::Implicit,
        ),
        (
            mail && node.flag(&a::REVERSE_PROXY_MAIL_POP3_ENABLED),
            &a::POP3_PROXY_BIND_PORT,
            Serve::Pop3,
            ListenerTls::StartTls,
        ),
        (
            mail && node.flag(&a::REVERSE_PROXY_MAIL_POP3S_ENABLED),
            &a::POP3_SSL_PROXY_BIND_PORT,
            Serve::Pop3,
            ListenerTls::Implicit,
        ),
        (
            web,
            &a::CARBONIO_ADMIN_PROXY_PORT,
            Serve::AdminConsole,
            ListenerTls::Implicit,
        ),
        (
            web && signs_on(config, &node, system),
            &a::MAIL_SSL_PROXY_CLIENT_CERT_PORT,
            Serve::Sso,
            ListenerTls::Implicit,
        ),
    ];
    let addresses: &[IpAddr] = match ip_mode(&node) {
        IpMode::V4 => &[IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
        IpMode::V6 => &[IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
        IpMode::Both => &[IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
    };
    let ports = table
        .iter()
        .filter(|row| row.0)
        .filter_map(|row| Some((node.port(row.1)?, row.2, row.3)));
    ports
        .flat_map(|(port, serve, tls)| {
            addresses.iter().map(move |ip| Listener {
                address: SocketAddr::new(*ip, port),
                serve,
                tls,
                proxy_trusted: None,
                starttls: None,
                login_deadline: None,
                allow: None,
                stream: None,
            })
        })
        .collect()
}

/// Whether certificates are asked for somewhere, and a lookup service can name their accounts (HTTP §5.6).
pub(crate) fn signs_on(config: &Config, node: &View<'_>, system: &System) -> bool {
    let asks = |entry: &View<'_>| entry.choice(&a::REVERSE_PROXY_CLIENT_CERT_MODE) != "off";
    let is_told = config.lookup.as_ref().is_some_and(|lookup| lookup.admin.is_some());
    is_told && (asks(node) || system.domains().any(|domain| asks(&domain)))
}
