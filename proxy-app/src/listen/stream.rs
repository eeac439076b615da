//! Stream listeners: TLS ends here, and the bytes go on to one server, whatever they mean (LDAPS 8636, XMPP 5222).
//!
//! Nothing is parsed and there is no login. Certificates are those of the other listeners, by server name.

use std::time::Duration;

use mail_proxy::audit::{EndedBy, Event};
use mail_proxy::relay::{Farewell, Relay};
use mail_proxy::{BoxStream, Client, ConnectionFacts};
use route_cache::{HostPort, Server, UpstreamTls};

use crate::app::env::ListenEnv;
use crate::config::StreamConfig;
use crate::upstream::connect::MailTransport;
use crate::upstream::proxy_header;

/// How long a client may take for its handshake, which comes first.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(30);

/// Connects a client whose handshake is done to the first upstream that answers, and relays until one side ends it or
/// nothing moves for too long.
pub(crate) async fn serve(env: &ListenEnv, config: &StreamConfig, client: BoxStream, facts: &ConnectionFacts) {
    let snapshot = env.snapshot.load_full();
    let mut record = facts.record(Event::SessionEnd, snapshot.generation);
    let transport = snapshot.transport.clone();
    // The relay may live for days, and needs nothing of the configuration.
    drop(snapshot);
    match connect(&transport, config, &facts.client).await {
        Ok((server, upstream)) => {
            drop(transport);
            record.route = Some(upstream.to_string());
            let mut relay = Box::new(Relay::new(client, server, config.idle));
            let ended = relay.run(&mut env.drain.clone(), &facts.handle, &Farewell::NONE).await;
            record.bytes_in = Some(ended.bytes_in);
            record.bytes_out = Some(ended.bytes_out);
            record.ended_by = Some(ended.by);
            record.why = ended.why.map(str::to_owned);
        }
        Err(why) => {
            log::warn!("{}: no upstream for {}: {why}", facts.listener, facts.client.addr);
            record.ended_by = Some(EndedBy::Upstream);
            record.phase = Some("connect");
            record.why = Some(why);
        }
    }
    record.duration = Some(facts.handle.age().as_secs_f64());
    env.audit.record(record);
}

/// The first upstream that answers, in their order.
async fn connect<'a>(
    transport: &MailTransport,
    config: &'a StreamConfig,
    client: &Client,
) -> Result<(BoxStream, &'a HostPort), String> {
    let header = match config.send_proxy {
        true => proxy_header::v2(client.addr, client.local, b""),
        false => Vec::new(),
    };
    let mut why = String::from("none is named");
    for upstream in &config.upstreams {
        match transport
            .dial_after(&server(upstream, config.upstream_tls), &header)
            .await
        {
            Ok(stream) => return Ok((stream, upstream)),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

fn server(upstream: &HostPort, tls: bool) -> Server {
    let host = upstream.host.clone();
    Server {
        name: host.clone(),
        tls: match tls {
            true => UpstreamTls::Implicit { name: host.clone() },
            false => UpstreamTls::Clear,
        },
        host,
        port: upstream.port,
    }
}
