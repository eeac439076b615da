//! Where a request goes: the server of its account, or one of a group.

use std::time::{Duration, Instant};

use mail_directory::attributes as a;
use mail_proxy::Proto;
use mail_proxy::audit::Phase;
use pingora::{Error, ErrorType, Result};
use route_cache::{Route, RouteError, Server, UpstreamTls};

use crate::app::env::WebEnv;
use crate::app::snapshot::Snapshot;
use crate::locations::Mailbox;
use crate::upstream::groups::EXTENSION_PORTS;
use crate::web::client::WebClient;
use crate::web::decision::ProxyRequest;
use crate::web::request_context::{RequestContext, UpstreamTarget};

/// A route that was found this recently is not looked up again when its server does not answer: otherwise a dead server
/// would turn every request of its users into a question to the directory.
pub(crate) const ROUTE_YOUNG: Duration = Duration::from_secs(5);
/// How many servers a request without an account may try.
pub(crate) const TRIES: usize = 3;

/// Chooses the server of a request: that of its account, or else one of the location's group.
///
/// # Errors
/// There is none, or the account's domain does not admit this client; with the status of the answer.
pub(crate) async fn choose(env: &WebEnv, web: &WebClient, context: &mut RequestContext) -> Result<UpstreamTarget> {
    let Some(target) = own_target(env, context).await? else {
        return group_target(env, web, context);
    };
    if let Some(route) = &context.route {
        web.note(route);
    }
    Ok(target)
}

/// Notes that a target took no connection: its route is forgotten unless it is young, and its group skips it. Returns
/// whether another choice may help: once for an account, [`TRIES`] times for a group.
pub(crate) fn unreachable(env: &WebEnv, context: &mut RequestContext, target: &UpstreamTarget) -> bool {
    if let Some(group) = context.group(&env.groups) {
        group.eject(target.address);
    }
    context.tried.push(target.address);
    match context.proxied.as_ref().and_then(|proxied| proxied.lookup.as_ref()) {
        Some(lookup) if target.own => {
            env.routes.forget_older_than(lookup, ROUTE_YOUNG);
            context.tried.len() == 1
        }
        _ => context.tried.len() < TRIES,
    }
}

/// The server of the request's account, if a server of it is known.
async fn own_target(env: &WebEnv, context: &mut RequestContext) -> Result<Option<UpstreamTarget>> {
    let Some(proxied) = context.proxied.as_ref().filter(|proxied| proxied.lookup.is_some()) else {
        return Ok(None);
    };
    let mode = context.snapshot.web.ip_mode;
    for last in [false, true] {
        let begun = Instant::now();
        let found = account_server(env, &context.snapshot, proxied).await;
        env.metrics.phase(Phase::Lookup, Proto::Http, begun.elapsed());
        let (route, server) = match found {
            AccountServer::Known(route, server) => (route, server),
            AccountServer::Any => return Ok(None),
            AccountServer::NotAllowed => {
                return Error::e_explain(
                    ErrorType::HTTPStatus(403),
                    "client address is not allowed on this domain",
                );
            }
            AccountServer::Held(why) => return Error::e_explain(ErrorType::HTTPStatus(503), why),
        };
        let addresses = env.dns.resolve(&server.host, server.port, mode).await;
        let addresses = addresses.map_err(|error| {
            Error::explain(ErrorType::ConnectNoRoute, format!("{}: {error}", server.host)).into_up()
        })?;
        let mut alive = addresses.iter().filter(|address| !env.groups.is_unreachable(**address));
        let first = alive.clone().next();
        let Some(&address) = alive.find(|address| !context.tried.contains(address)).or(first) else {
            // No connection is tried to a server that checks find dead. But the account may have moved.
            if let Some(lookup) = proxied.lookup.as_ref().filter(|_| !last) {
                env.routes.forget_older_than(lookup, ROUTE_YOUNG);
                continue;
            }
            let why = format!("checks find nobody at {}", server.address());
            return Err(Error::explain(ErrorType::ConnectNoRoute, why).into_up());
        };
        context.route = Some(*route);
        return Ok(Some(UpstreamTarget {
            server,
            address,
            verify: context.snapshot.web.upstream_verify,
            own: true,
            member: None,
        }));
    }
    Ok(None)
}

/// A server of the location's group: the one that the client's connection is bound to, or any that is up.
fn group_target(env: &WebEnv, web: &WebClient, context: &RequestContext) -> Result<UpstreamTarget> {
    let name = context.proxied.as_ref().map_or("", |proxied| proxied.group());
    let group = context.group(&env.groups);
    let known = web.owner.server(name);
    let member = group
        .as_ref()
        .filter(|_| context.tried.len() < TRIES)
        .and_then(|group| {
            let same = known.filter(|known| !context.tried.contains(known));
            same.and_then(|known| group.member_at(known))
                .or_else(|| group.pick(&context.tried))
        });
    let Some(member) = member else {
        let has_members = group.is_some_and(|group| group.has_members());
        let status = if has_members { 502 } else { 503 };
        return Error::e_explain(
            ErrorType::HTTPStatus(status),
            format!("no server of group {name} is up"),
        );
    };
    if web.owner.key().is_some() {
        web.owner.settle(name, member.address);
    }
    Ok(UpstreamTarget {
        server: member.server.clone(),
        address: member.address,
        verify: member.verify,
        own: false,
        member: Some(member),
    })
}

/// Where the account of a request lives, if that is known: the server, and how it was found.
enum AccountServer {
    /// Its own server.
    Known(Box<Route>, Server),
    /// Any server may answer.
    Any,
    /// Its domain does not admit this client.
    NotAllowed,
    /// Its requests are held, for this reason.
    Held(String),
}

/// Looks up where the account of a request lives.
async fn account_server(env: &WebEnv, snapshot: &Snapshot, proxied: &ProxyRequest) -> AccountServer {
    let (Some(lookup), Some(mailbox)) = (&proxied.lookup, proxied.mailbox()) else {
        return AccountServer::Any;
    };
    match env.routes.route(lookup).await {
        Ok(route) => match (env.routes.hold_of(&route), own_server(env, snapshot, mailbox, &route)) {
            (Some(why), _) => AccountServer::Held(why),
            (None, Some(server)) => AccountServer::Known(Box::new(route), server),
            (None, None) => AccountServer::Any,
        },
        Err(RouteError::NotAllowed { .. }) => AccountServer::NotAllowed,
        // Any server can answer for any account; how an unknown user is answered is left to it.
        Err(error) => {
            log::debug!("no route for a web request: {error}");
            AccountServer::Any
        }
    }
}

/// The account's server with the requested service. Only a server that is named as one serves Exchange.
fn own_server(env: &WebEnv, snapshot: &Snapshot, mailbox: Mailbox, route: &Route) -> Option<Server> {
    let mut server = Server::of(route);
    match mailbox {
        Mailbox::Web | Mailbox::Admin => {}
        Mailbox::Zx => {
            server.port = match server.tls {
                UpstreamTls::Clear => EXTENSION_PORTS.0,
                UpstreamTls::Implicit { .. } | UpstreamTls::StartTls { .. } => EXTENSION_PORTS.1,
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
