//! `listeners`: where the node listens, and what it serves there.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use mail_directory::yaml::{Mapping, Node};
use mail_proxy::StartTls;
use route_cache::HostPort;

use super::LiveKey;
use super::read::ConfigReader;

/// Pingora passes at most this many listening sockets to the process that replaces it; with more the new process dies
/// while the old one stops all the same.
const MAX_LISTENERS: usize = 32;

/// The names of those sockets, joined with blanks, must also fit here with some room to spare.
const MAX_LISTENER_NAMES: usize = 1900;

/// Most upstreams of a stream listener: each may make a connection wait.
const MAX_UPSTREAMS: usize = 8;

/// How long a stream may be silent: XMPP clients that save power speak a few times an hour.
const STREAM_IDLE: Duration = Duration::from_secs(3600);

pub(super) const LIVE: [LiveKey; 1] = [("listeners", |now, new| now.listeners.clone_from(&new.listeners))];

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serve {
    /// The web client and every protocol over HTTP.
    Web,
    /// IMAP
    Imap,
    /// POP3
    Pop3,
    /// The administration console.
    AdminConsole,
    /// Logins by certificate, and nothing else.
    Sso,
    /// Zimbra's lookup protocol, for proxies that are not replaced yet.
    Lookup,
    /// Bytes, to the server that the listener names.
    Stream,
}

/// Where a listener with `serve: stream` sends its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamConfig {
    /// Servers, tried in this order.
    pub upstreams: Vec<HostPort>,
    /// Whether TLS is spoken with them.
    pub upstream_tls: bool,
    /// How long both sides may be silent.
    pub idle: Duration,
    /// Whether they learn the client's address by a PROXY header (version 2).
    pub send_proxy: bool,
}

/// TLS on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerTls {
    /// None.
    Off,
    /// From the first byte.
    Implicit,
    /// Offered by STARTTLS or STLS, as the directory's policy says.
    StartTls,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Where to listen.
    pub address: SocketAddr,
    /// The protocol.
    pub serve: Serve,
    /// Whether it is inside TLS.
    pub tls: ListenerTls,
    /// What it offers of STARTTLS, and whether it takes passwords before it; `None`: what the directory says.
    pub starttls: Option<StartTls>,
    /// Time from accept to credentials; `None`: that of all listeners.
    pub login_deadline: Option<Duration>,
    /// Networks whose connections begin with a PROXY header; `None`: no connection does.
    pub proxy_trusted: Option<Vec<IpNet>>,
    /// Networks whose connections are accepted; `None`: all.
    pub allow: Option<Vec<IpNet>>,
    /// Where the bytes go, with [`Serve::Stream`].
    pub stream: Option<StreamConfig>,
}

impl ConfigReader {
    pub(super) fn listeners(&mut self, root: &mut Mapping<'_>) -> Option<Vec<Listener>> {
        let node = root.take("listeners")?;
        let items = node.items(&mut self.problems)?;
        let mut listeners: Vec<Listener> = Vec::new();
        for item in items {
            let Some(listener) = self.listener(item) else { continue };
            if listeners.iter().any(|other| other.address == listener.address) {
                item.error(
                    format!("{} is already listened on", listener.address),
                    &mut self.problems,
                );
            }
            listeners.push(listener);
        }
        let names: usize = listeners
            .iter()
            .map(|listener| listener.address.to_string().len() + 1)
            .sum();
        if listeners.len() > MAX_LISTENERS || names > MAX_LISTENER_NAMES {
            let message = format!(
                "{} listeners are too many: at most {MAX_LISTENERS} can be handed to the next process in an upgrade",
                listeners.len()
            );
            node.error(message, &mut self.problems);
        }
        Some(listeners)
    }

    fn listener(&mut self, item: Node<'_>) -> Option<Listener> {
        let mut entry = item.mapping(&mut self.problems)?;
        let address = entry.require("address", &mut self.problems);
        let address = address.and_then(|node| node.socket_addr(&mut self.problems));
        let serve_table = [
            ("web", Serve::Web),
            ("imap", Serve::Imap),
            ("pop3", Serve::Pop3),
            ("admin-console", Serve::AdminConsole),
            ("sso", Serve::Sso),
            ("lookup", Serve::Lookup),
            ("stream", Serve::Stream),
        ];
        let serve = entry.require("serve", &mut self.problems);
        let serve = serve.and_then(|node| node.choice(&serve_table, &mut self.problems));
        let tls_table = [
            ("off", ListenerTls::Off),
            ("implicit", ListenerTls::Implicit),
            ("starttls", ListenerTls::StartTls),
        ];
        let mut tls = ListenerTls::Off;
        if let Some(node) = entry.take("tls") {
            tls = node.choice(&tls_table, &mut self.problems).unwrap_or(tls);
            if tls == ListenerTls::StartTls && !matches!(serve, None | Some(Serve::Imap | Serve::Pop3)) {
                node.error("only mail listeners have STARTTLS; use implicit", &mut self.problems);
            }
        }
        let (starttls, login_deadline) = self.before_login(&mut entry, serve, tls);
        if serve == Some(Serve::Sso) && tls != ListenerTls::Implicit {
            item.error(
                "serve: sso needs tls: implicit, where certificates are",
                &mut self.problems,
            );
        }
        let allow = self.allow(&mut entry, serve);
        let stream = match serve {
            Some(Serve::Stream) => self.stream(&mut entry),
            _ => None,
        };
        let proxy_trusted = self.section(&mut entry, "proxy_protocol").and_then(|mut section| {
            let trusted = section.require("trusted", &mut self.problems);
            section.finish(&mut self.problems);
            trusted.and_then(|node| node.networks(&mut self.problems))
        });
        entry.finish(&mut self.problems);
        Some(Listener {
            address: address?,
            serve: serve?,
            tls,
            starttls,
            login_deadline,
            proxy_trusted,
            allow,
            stream,
        })
    }

    /// `starttls` and `login_deadline`
    fn before_login(
        &mut self,
        entry: &mut Mapping<'_>,
        serve: Option<Serve>,
        tls: ListenerTls,
    ) -> (Option<StartTls>, Option<Duration>) {
        let modes = [("off", StartTls::Off), ("on", StartTls::On), ("only", StartTls::Only)];
        let starttls = entry.take("starttls").and_then(|node| {
            if tls != ListenerTls::StartTls {
                node.error("starttls goes with tls: starttls", &mut self.problems);
            }
            node.choice(&modes, &mut self.problems)
        });
        let login_deadline = entry.take("login_deadline").and_then(|node| {
            if !matches!(serve, None | Some(Serve::Imap | Serve::Pop3)) {
                node.error(
                    "login_deadline goes with serve: imap and serve: pop3",
                    &mut self.problems,
                );
            }
            node.duration(&mut self.problems)
        });
        (starttls, login_deadline)
    }

    fn stream(&mut self, entry: &mut Mapping<'_>) -> Option<StreamConfig> {
        let upstream = entry.require("upstream", &mut self.problems);
        let nodes = upstream.and_then(|node| node.one_or_many(&mut self.problems))?;
        let upstreams: Vec<HostPort> = nodes.into_iter().filter_map(|node| self.host_and_port(node)).collect();
        if upstreams.is_empty() || upstreams.len() > MAX_UPSTREAMS {
            entry.node().error(
                format!("upstream names 1 to {MAX_UPSTREAMS} servers"),
                &mut self.problems,
            );
        }
        let upstream_tls = entry
            .take("upstream_tls")
            .and_then(|node| node.bool(&mut self.problems));
        let send_proxy = entry.take("send_proxy");
        let send_proxy = send_proxy.and_then(|node| node.choice(&[("off", false), ("v2", true)], &mut self.problems));
        let mut idle = STREAM_IDLE;
        self.duration(entry, "idle", &mut idle);
        Some(StreamConfig {
            upstreams,
            upstream_tls: upstream_tls.unwrap_or(false),
            idle,
            send_proxy: send_proxy.unwrap_or(false),
        })
    }

    /// A client that may ask where accounts are learns which accounts exist, so a lookup listener must name its
    /// networks; elsewhere the key would look like a protection of mail and web that it is not.
    fn allow(&mut self, entry: &mut Mapping<'_>, serve: Option<Serve>) -> Option<Vec<IpNet>> {
        if serve == Some(Serve::Lookup) {
            let node = entry.require("allow", &mut self.problems)?;
            return node.networks(&mut self.problems);
        }
        let node = entry.take("allow")?;
        node.error("goes with serve: lookup only", &mut self.problems);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load;

    #[test]
    fn streams_name_their_upstreams() {
        let (config, _) = load(concat!(
            "listeners:\n",
            "  - {address: '127.0.0.1:8636', serve: stream, tls: implicit, upstream: 'a.test:636', upstream_tls: true,\n",
            "     idle: 5m, send_proxy: v2}\n",
            "  - {address: '127.0.0.1:5222', serve: stream, tls: implicit, upstream: ['127.0.0.2:1', '[::1]:2']}\n",
        ))
        .unwrap();
        let streams: Vec<StreamConfig> = config.listeners.unwrap().into_iter().filter_map(|l| l.stream).collect();
        assert!(streams[0].upstream_tls && streams[0].send_proxy && !streams[1].upstream_tls);
        assert_eq!(
            (streams[0].idle, streams[1].idle),
            (Duration::from_secs(300), STREAM_IDLE)
        );
        let names: Vec<String> = streams
            .iter()
            .flat_map(|s| &s.upstreams)
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["a.test:636", "127.0.0.2:1", "[::1]:2"]);
        for (listener, expected) in [
            ("serve: stream", "upstream"),
            ("serve: stream, upstream: []", "1 to 8"),
            ("serve: stream, upstream: nowhere", "expected a host name"),
            ("serve: stream, upstream: 'a:1', tls: starttls", "only mail listeners"),
            ("serve: stream, upstream: 'a:1', send_proxy: v1", "send_proxy"),
            ("serve: imap, upstream: 'a:1'", "upstream"),
        ] {
            let problems = load(&format!("listeners: [{{address: '127.0.0.1:1', {listener}}}]")).unwrap_err();
            assert!(
                problems.iter().any(|p| p.contains(expected)),
                "{listener}: {problems:?}"
            );
        }
    }

    #[test]
    fn too_many_listeners_for_an_upgrade() {
        let lines: String = (0..33)
            .map(|i| format!("  - {{address: '127.0.0.1:{}', serve: imap}}\n", 2000 + i))
            .collect();
        let problems = load(&format!("listeners:\n{lines}")).unwrap_err();
        assert!(problems[0].contains("33 listeners are too many"), "{problems:?}");
    }
}
