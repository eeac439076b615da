//! Where a request goes: the server of its account, or one of a group.

use std::net::SocketAddr;

use mail_directory::attributes as a;
use route_cache::{Route, RouteError, Server, UpstreamTls};

use crate::app::env::WebEnv;
use crate::app::snapshot::Snapshot;
use crate::locations::Mailbox;
use crate::upstream::groups::{EXTENSION_PORTS, Member};
use crate::web::decision::ProxyRequest;

/// Where a request goes.
#[derive(Clone)]
pub(crate) struct UpstreamTarget {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    /// Whether the server must prove who it is.
    pub(crate) verify: bool,
    /// The account's own server; nobody else will do.
    pub(crate) own: bool,
    /// Counts the server as busy while it lives.
    pub(crate) _member: Option<Member>,
}

/// Where the account of a request lives, if it has one that is known: the server, and how it was found.
pub(crate) enum AccountServer {
    /// Its own server.
    Known(Box<Route>, Server),
    /// Anybody may answer.
    Any,
    /// Its domain does not admit this client.
    NotAllowed,
}

/// Asks where the account of a request lives.
pub(crate) async fn account_server(env: &WebEnv, snapshot: &Snapshot, proxied: &ProxyRequest) -> AccountServer {
    let (Some(lookup), Some(mailbox)) = (&proxied.lookup, proxied.mailbox()) else {
        return AccountServer::Any;
    };
    match env.routes.route(lookup).await {
        Ok(route) => match own_server(env, snapshot, mailbox, &route) {
            Some(server) => AccountServer::Known(Box::new(route), server),
            None => AccountServer::Any,
        },
        Err(RouteError::NotAllowed { .. }) => AccountServer::NotAllowed,
        // Any server can answer for anybody; what it says of an unknown user is for it to say.
        Err(error) => {
            log::debug!("no route for a web request: {error}");
            AccountServer::Any
        }
    }
}

/// The account's server with the service that is asked for. A web server for Exchange is only one that is named so.
fn own_server(env: &WebEnv, snapshot: &Snapshot, mailbox: Mailbox, route: &Route) -> Option<Server> {
    let mut server = Server::of(route);
    match mailbox {
        Mailbox::Web | Mailbox::Admin => {}
        Mailbox::Zx => {
            server.port = match server.tls {
                UpstreamTls::Clear => EXTENSION_PORTS.0,
                UpstreamTls::Implicit { .. } => EXTENSION_PORTS.1,
            }
        }
        Mailbox::Ews => {
            let node = snapshot.system.node(&env.config.load().node);
            let named = node.list(&a::REVERSE_PROXY_UPSTREAM_EWS_SERVERS);
            let mut entries = named.into_iter().filter_map(|name| snapshot.system.server(name));
            entries.find(|entry| entry.name() == &*server.name)?;
        }
    }
    Some(server)
}
