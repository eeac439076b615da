//! The verbs of the command line that ask the running process, and how they print its answers.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use http_body_util::BodyExt;
use hyper::Method;
use route_cache::HostPort;

use crate::admin::act::ReloadResult;
use crate::admin::health::{self, Certificates, UpstreamOrder};
use crate::admin::holds::OneHold;
use crate::admin::nodes::{ForgetNode, NodesLeft};
use crate::admin::route::{Explained, Forgotten, LoginProtocol, Purge, TierAnswer};
use crate::admin::sessions::{
    DirectoryWay, DrainOrder, Drained, Generations, Kick, OneSession, SessionList, Status, TicketKeyState,
};
use crate::cli::asking::{ApiArgs, Lines, encoded, path_with, print, printable, table};
use crate::cli::certificate::CertificateVerb;
use crate::cli::moves::ServerVerb;
use crate::cli::nodes::{self, Everywhere, NodesVerb, Output, ScopeArgs};
use crate::cli::users::{UsersAnswer, UsersVerb};

/// Longest line of a login; names in it are bounded.
const MAX_LINE: usize = 64 * 1024;

/// What the running process can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Explain or purge routes: which server a login goes to.
    Route {
        /// What to do.
        #[command(subcommand)]
        verb: RouteVerb,
    },
    /// Reload the node file, the directory and the certificates, and print what changed.
    Reload {
        /// Accept a directory that has no server or no domain any more.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Show the state of the node.
    Status {
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Show which configurations were in force, since when, and what changed.
    Generations {
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// List mail sessions and web connections.
    Sessions {
        /// Only those of this user: the login as typed, or any name of the account.
        #[arg(long)]
        user: Option<String>,
        /// Only those of this client address.
        #[arg(long)]
        ip: Option<IpAddr>,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// End sessions and web connections now.
    #[command(group = clap::ArgGroup::new("whose").required(true).multiple(true).args(["user", "ip", "session"]))]
    Kick {
        /// Only those of this user: the login as typed, or any name of the account.
        #[arg(long)]
        user: Option<String>,
        /// Only those of this client address.
        #[arg(long)]
        ip: Option<IpAddr>,
        /// The session with this id, as `portico sessions` shows it.
        #[arg(long)]
        session: Option<String>,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Let new logins of an account, a domain or a server wait.
    Users {
        /// What to do.
        #[command(subcommand)]
        verb: UsersVerb,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Empty a mailbox server.
    Server {
        /// What to do.
        #[command(subcommand)]
        verb: ServerVerb,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// The nodes that act together.
    Nodes {
        /// What to do.
        #[command(subcommand)]
        verb: NodesVerb,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Take the node out of service: /readyz tells balancers that it is not ready; it still serves clients that
    /// connect.
    Drain {
        /// Also end the sessions, spread over this many seconds.
        #[arg(long, value_name = "SECONDS")]
        end_sessions_over: Option<u64>,
        /// Put the node back in service.
        #[arg(long, conflicts_with = "end_sessions_over")]
        undo: bool,
        /// Another node, by its name.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// List the servers of all groups with their health, or change one: maintenance, weight.
    Upstreams(UpstreamsArgs),
    /// List the certificates in use on the listeners.
    Certificates {
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Order certificates of the ACME authority without waiting until they are due; look at those that clients see.
    Certificate {
        /// What to do.
        #[command(subcommand)]
        verb: CertificateVerb,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Show the latest login attempts, mail and web, and with --follow new ones as they happen.
    Logins(LoginsArgs),
}

/// `portico upstreams`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").multiple(true).args(["maintenance", "weight"]))]
pub(crate) struct UpstreamsArgs {
    /// The server to change, with its group.
    #[arg(num_args = 2, value_names = ["GROUP", "SERVER"], requires = "change")]
    pub which: Vec<String>,
    /// Start or end maintenance, in which the server gets no unauthenticated requests.
    #[arg(long, value_name = "on|off", value_parser = ["on", "off"], requires = "which")]
    pub maintenance: Option<String>,
    /// Set the weight of the server; 0: the configured one.
    #[arg(long, requires = "which")]
    pub weight: Option<u32>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub api: ApiArgs,
}

/// `portico logins`
#[derive(Debug, Args)]
pub(crate) struct LoginsArgs {
    /// Print new ones as they happen, until interrupted.
    #[arg(long)]
    pub follow: bool,
    /// Only failed ones.
    #[arg(long)]
    pub failed: bool,
    /// Only those of this user: the login as typed, or the account's name.
    #[arg(long)]
    pub user: Option<String>,
    /// Only those of this client address.
    #[arg(long)]
    pub ip: Option<IpAddr>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub api: ApiArgs,
}

/// What can be done about routes.
#[derive(Debug, Subcommand)]
pub(crate) enum RouteVerb {
    /// Show how this login would be routed now, and why, without side effects.
    Explain(ExplainArgs),
    /// Remove routes from memory and from memcached.
    Purge {
        /// Names, aliases or zimbraIds of accounts.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        logins: Vec<String>,
        /// Remove all.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
}

/// `portico route explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The login as typed, or a zimbraId.
    pub login: String,
    /// The protocol.
    #[arg(long, value_enum, default_value = "imap")]
    pub protocol: LoginProtocol,
    /// Address of the client [default: one that every domain allows].
    #[arg(long)]
    pub ip: Option<IpAddr>,
    /// Host name that the client asks for, as SNI or Host.
    #[arg(long)]
    pub host: Option<String>,
    /// Local address that the client connects to.
    #[arg(long)]
    pub local: Option<IpAddr>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub api: ApiArgs,
}

/// Asks, and prints the answer.
///
/// # Errors
/// No process answers, or it refuses the request.
pub(crate) fn run(verb: NodeVerb, conf: &Path) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match verb {
            NodeVerb::Logins(logins) => logins.run(conf).await,
            NodeVerb::Certificate { verb, api } => verb.run(&api, conf).await.map(drop),
            NodeVerb::Users {
                verb: UsersVerb::Move { accounts, how },
                api,
            } => how.run(accounts, None, &api.client(conf)?, api.json, print).await,
            NodeVerb::Server {
                verb: ServerVerb::Evacuate { server, how },
                api,
            } => {
                how.run(Vec::new(), Some(server), &api.client(conf)?, api.json, print)
                    .await
            }
            verb => {
                let output = ask(verb, conf).await?;
                print(&output.text)?;
                output.complete()
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(verb: NodeVerb, conf: &Path) -> anyhow::Result<Output> {
    let text = match verb {
        NodeVerb::Route {
            verb: RouteVerb::Explain(explain),
        } => {
            let answer: Explained = explain.api.client(conf)?.get(&explain.path()).await?;
            explain.api.show(&answer, explained)
        }
        NodeVerb::Route {
            verb:
                RouteVerb::Purge {
                    logins,
                    all,
                    scope,
                    api,
                },
        } => {
            let body = Purge { logins, all };
            let path = path_with("/v1/routes/purge", scope.fields());
            let answer: Everywhere<Forgotten> = api.client(conf)?.send(Method::POST, &path, &body).await?;
            return answer.show(&api, forgotten);
        }
        NodeVerb::Reload { force, api } => {
            let path = if force { "/v1/reload?force=true" } else { "/v1/reload" };
            let answer: ReloadResult = api.client(conf)?.send(Method::POST, path, &()).await?;
            api.show(&answer, reloaded)
        }
        NodeVerb::Status { api } => {
            let answer: Status = api.client(conf)?.get("/v1/status").await?;
            api.show(&answer, status)
        }
        NodeVerb::Generations { api } => {
            let answer: Generations = api.client(conf)?.get("/v1/generations").await?;
            api.show(&answer, generations)
        }
        NodeVerb::Sessions { user, ip, scope, api } => {
            let [local, node] = scope.fields();
            let fields = [("user", user), ("ip", ip.map(|ip| ip.to_string())), local, node];
            let path = path_with("/v1/sessions", fields);
            let answer: Everywhere<SessionList> = api.client(conf)?.get(&path).await?;
            return answer.show_all(&api, all_sessions);
        }
        NodeVerb::Kick {
            user,
            ip,
            session,
            scope,
            api,
        } => {
            let body = Kick { user, ip, session };
            let path = path_with("/v1/sessions/kick", scope.fields());
            let answer: Everywhere<SessionList> = api.client(conf)?.send(Method::POST, &path, &body).await?;
            return answer.show_all(&api, kicked);
        }
        NodeVerb::Users { verb, api } => match verb.ask(&api.client(conf)?).await? {
            UsersAnswer::Held(hold) => {
                return hold.show(&api, |hold| format!("new logins wait: {}", one_hold(hold)));
            }
            UsersAnswer::Released(hold) => return hold.show(&api, |hold| format!("released: {}", one_hold(hold))),
            UsersAnswer::Holds(list) => api.show(&list, |list| list.holds.iter().map(one_hold).collect()),
        },
        NodeVerb::Nodes {
            verb: NodesVerb::Forget { node },
            api,
        } => {
            let body = ForgetNode { node };
            let left: NodesLeft = api.client(conf)?.send(Method::POST, "/v1/nodes/forget", &body).await?;
            api.show(&left, nodes::left)
        }
        NodeVerb::Drain {
            end_sessions_over,
            undo,
            node,
            api,
        } => {
            let method = if undo { Method::DELETE } else { Method::POST };
            let body = DrainOrder { end_sessions_over };
            let answer: Drained = api
                .client(conf)?
                .send(method, &path_with("/v1/drain", [("node", node)]), &body)
                .await?;
            api.show(&answer, drained)
        }
        NodeVerb::Upstreams(order) => {
            let client = order.api.client(conf)?;
            let answer: health::Upstreams = match order.which.as_slice() {
                [group, server] => {
                    let path = format!("/v1/upstreams/{}/{}", encoded(group), encoded(server));
                    let body = UpstreamOrder {
                        maintenance: order.maintenance.as_ref().map(|word| word == "on"),
                        weight: order.weight,
                    };
                    client.send(Method::PUT, &path, &body).await?
                }
                _ => client.get("/v1/upstreams").await?,
            };
            order.api.show(&answer, upstreams)
        }
        NodeVerb::Certificates { api } => {
            let answer: Certificates = api.client(conf)?.get("/v1/certificates").await?;
            api.show(&answer, certificates)
        }
        // It prints as it goes.
        NodeVerb::Logins(_) | NodeVerb::Server { .. } | NodeVerb::Certificate { .. } => Ok(String::new()),
    };
    text.map(Output::from)
}

impl LoginsArgs {
    async fn run(self, conf: &Path) -> anyhow::Result<()> {
        let flag = |set: bool| set.then(|| "true".to_owned());
        let fields = [
            ("user", self.user.clone()),
            ("ip", self.ip.map(|ip| ip.to_string())),
            ("failed", flag(self.failed)),
            ("follow", flag(self.follow)),
        ];
        let path = path_with("/v1/logins", fields);
        let mut body = self.api.client(conf)?.open(Method::GET, &path, &()).await?;
        let mut held = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            held.extend_from_slice(&data);
            while let Some(end) = held.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = held.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                print(&if self.api.json {
                    line.into_owned()
                } else {
                    attempt(&line)
                })?;
            }
            anyhow::ensure!(held.len() <= MAX_LINE, "the answer is not what it should be");
        }
        Ok(())
    }
}

impl ExplainArgs {
    fn path(&self) -> String {
        let protocol = clap::ValueEnum::to_possible_value(&self.protocol);
        let protocol = protocol.map(|value| value.get_name().to_owned());
        let fields = [
            ("login", Some(self.login.clone())),
            ("protocol", protocol),
            ("ip", self.ip.map(|ip| ip.to_string())),
            ("host", self.host.clone()),
            ("local", self.local.map(|ip| ip.to_string())),
        ];
        path_with("/v1/routes/explain", fields)
    }
}

fn explained(answer: &Explained) -> String {
    let mut lines = Lines::default();
    let suffix = answer.suffix.as_ref().map(|suffix| format!(", typed with {suffix}"));
    lines.line("login", format!("{}{}", answer.login, suffix.unwrap_or_default()));
    if let Some(domain) = &answer.domain {
        let mut text = format!("{}: {}", domain.name, domain.because);
        if let Some(target) = &domain.target {
            let _fits = write!(text, "; it stands for {target}");
        }
        if !domain.known && domain.found_by != "service" {
            text.push_str("; the directory does not have it");
        }
        lines.line("domain", text.trim_start_matches(": "));
    }
    if let Some(name) = &answer.name {
        lines.line("asked as", name);
    }
    match (&answer.account, &answer.no_account) {
        (Some(account), _) => {
            let alias = if account.alias {
                ", of which the login is an alias"
            } else {
                ""
            };
            lines.line("account", format!("{}{alias}", account.name));
            lines.line("id", account.id.as_deref().unwrap_or("it has no zimbraId"));
            lines.line("status", &account.status);
            let server = account.server.as_deref();
            lines.line(
                "mailbox",
                server.map_or("its entry names no server".to_owned(), |server| format!("on {server}")),
            );
        }
        (None, why) => lines.line("account", why.as_deref().unwrap_or_default()),
    }
    answer
        .tiers
        .iter()
        .for_each(|tier| lines.line(&tier.tier, describe_tier(tier)));
    match (&answer.route, &answer.no_route) {
        (Some(route), _) => {
            let tls = route
                .tls
                .as_ref()
                .map_or("in clear text".to_owned(), |name| format!("in TLS as {name}"));
            let address = HostPort::new(route.host.as_str(), route.port);
            lines.line(
                "goes to",
                format!("{address} {tls}, from {}{}", route.tier, old(route.age)),
            );
            let external = if route.external {
                ", which is not in the directory"
            } else {
                ""
            };
            lines.line("server", format!("{}{external}", route.server));
            lines.line("logs in as", &route.login);
        }
        (None, why) => lines.line("goes to", format!("nowhere: {}", why.as_deref().unwrap_or_default())),
    }
    for sentence in &answer.in_the_way {
        lines.line("in the way", sentence);
    }
    if answer.in_the_way.is_empty() && answer.route.is_some() {
        lines.line("in the way", "nothing");
    }
    lines.line("generation", answer.generation.to_string());
    lines.into_text()
}

fn describe_tier(tier: &TierAnswer) -> String {
    let account = tier.account.as_deref().unwrap_or_default();
    match (tier.says.as_str(), &tier.server) {
        ("account", Some(server)) => format!("{account} is on {server}{}", old(tier.age)),
        ("account", None) => format!("{account} is on an external server, or on none{}", old(tier.age)),
        ("nobody", _) => "there is no such account".to_owned(),
        ("failed", _) => format!("could not be asked: {}", tier.why.as_deref().unwrap_or_default()),
        _ => "knows nothing".to_owned(),
    }
}

fn old(age: Option<u64>) -> String {
    match age {
        Some(0) | None => String::new(),
        Some(seconds) => format!(", {seconds} s old"),
    }
}

fn forgotten(answer: &Forgotten) -> String {
    let mut out = String::new();
    if let Some(all) = answer.all {
        let _fits = writeln!(out, "forgotten: all {all} answers in memory");
    }
    for account in &answer.accounts {
        for name in &account.names {
            let place = if name.in_memory {
                "it was in memory"
            } else {
                "memory had nothing"
            };
            let _fits = writeln!(out, "forgotten: {} ({place})", printable(&name.name));
        }
    }
    out
}

fn reloaded(answer: &ReloadResult) -> String {
    let mut out = String::new();
    for change in &answer.changes {
        let _fits = writeln!(out, "{}", printable(change));
    }
    if answer.changes.is_empty() {
        out.push_str("nothing has changed\n");
    }
    if !answer.needs_upgrade.is_empty() {
        let _fits = writeln!(out, "needs an upgrade: {}", printable(&answer.needs_upgrade.join(", ")));
    }
    for warning in &answer.warnings {
        let _fits = writeln!(out, "{}", printable(warning));
    }
    let _fits = writeln!(out, "configuration {} is in force", answer.generation);
    out
}

fn status(answer: &Status) -> String {
    let mut lines = Lines::default();
    lines.line(
        "node",
        format!("{}, Portico {}, process {}", answer.node, answer.version, answer.pid),
    );
    lines.line("up", format!("{} s", answer.uptime));
    match answer.not_ready.as_slice() {
        [] => lines.line("ready", "yes"),
        reasons => lines.line("ready", format!("no: {}", reasons.join("; "))),
    }
    if let Some(reason) = &answer.directory_refused {
        lines.line("directory", format!("not in force: {reason}"));
    }
    if let Some(way) = &answer.directory {
        lines.line("changes", changes_by(way));
    }
    lines.line("generation", answer.generation.to_string());
    lines.line("connections", answer.connections.to_string());
    for count in &answer.sessions {
        lines.line(
            &count.proto,
            format!("{} logged in, {} others", count.logged_in, count.others),
        );
    }
    lines.line("routes", format!("{} in memory", answer.routes));
    if let Some(keys) = &answer.ticket_keys {
        lines.line("ticket keys", ticket_keys(keys));
    }
    if let Some(failing) = answer.certificate_orders_failing.filter(|count| *count > 0) {
        let text = format!("certificates of {failing} domains fail: portico certificates says why");
        lines.line("renewal", text);
    }
    if let Some(shared) = &answer.shared_state {
        nodes::shared_state(&mut lines, shared);
    }
    lines.into_text()
}

/// By which way changes of the directory come, and how old the view of it is.
fn changes_by(way: &DirectoryWay) -> String {
    let age = way
        .age
        .map_or("not read yet".to_owned(), |age| format!("{age:.1} s old"));
    let by = match (&way.server, &way.why_poll) {
        (Some(server), _) => format!("told by {server} for {} s", way.since),
        (None, Some(why)) => format!("looked for: {why}"),
        (None, None) => "looked for".to_owned(),
    };
    format!("{by}; the view is {age}")
}

/// Where the keys of session tickets come from, and how old they are.
fn ticket_keys(keys: &TicketKeyState) -> String {
    let fault = keys.fault.as_ref().map(|why| format!("; not in force: {why}"));
    let fault = fault.unwrap_or_default();
    format!("{}, {} s old, {} are taken{fault}", keys.source, keys.age, keys.taken)
}

fn generations(answer: &Generations) -> String {
    let mut out = String::new();
    for one in &answer.generations {
        let line = format!("{} since {}: {}", one.generation, one.since, one.why);
        let _fits = writeln!(out, "{}", printable(&line));
        for change in &one.changes {
            let _fits = writeln!(out, "    {}", printable(change));
        }
    }
    out
}

/// The sessions of all nodes that have answered.
fn all_sessions(answer: &Everywhere<SessionList>) -> String {
    let answers = answer.answers();
    let list: Vec<(&str, &OneSession)> = answers
        .iter()
        .flat_map(|(node, list)| list.sessions.iter().map(move |session| (*node, session)))
        .collect();
    let mut out = sessions(&list);
    for (node, more) in answers
        .iter()
        .map(|(node, list)| (node, list.more))
        .filter(|(_, more)| *more > 0)
    {
        let _fits = writeln!(out, "{}: {more} older ones are not shown", printable(node));
    }
    out
}

fn sessions(list: &[(&str, &OneSession)]) -> String {
    let node = if list.iter().any(|(node, _)| !node.is_empty()) {
        "NODE"
    } else {
        ""
    };
    let mut rows = vec![
        [
            "SESSION", "PROTO", "AGE", "IDLE", "IN", "OUT", "CLIENT", "ACCOUNT", "SERVER", node,
        ]
        .map(str::to_owned),
    ];
    for (node, session) in list {
        let each = |part: fn(&crate::admin::sessions::OneLogin) -> &str| {
            let parts: Vec<&str> = session.logins.iter().map(part).collect();
            if parts.is_empty() {
                "-".to_owned()
            } else {
                parts.join(",")
            }
        };
        rows.push([
            session.session.clone(),
            session.proto.clone(),
            session.age.to_string(),
            session.idle.to_string(),
            session.bytes_in.to_string(),
            session.bytes_out.to_string(),
            session.client.clone(),
            each(|login| &login.account),
            each(|login| &login.route),
            (*node).to_owned(),
        ]);
    }
    table(&rows)
}

fn kicked(answer: &Everywhere<SessionList>) -> String {
    let answers = answer.answers();
    match answers.iter().map(|(_, list)| list.sessions.len()).sum() {
        0_usize => "there is no such session\n".to_owned(),
        1 => format!("one session ends:\n{}", all_sessions(answer)),
        count => format!("{count} sessions end:\n{}", all_sessions(answer)),
    }
}

fn one_hold(hold: &OneHold) -> String {
    let line = format!(
        "{} {} from {} until {}: {}",
        hold.kind, hold.name, hold.since, hold.until, hold.reason
    );
    printable(&line) + "\n"
}

fn upstreams(answer: &health::Upstreams) -> String {
    let mut rows = vec![["GROUP", "SERVER", "ADDRESS", "STATE", "WEIGHT", "BUSY", "REQUESTS"].map(str::to_owned)];
    for server in &answer.upstreams {
        let why = server.why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        let state = match (server.maintenance, server.ejected) {
            (true, _) => "maintenance".to_owned(),
            (false, Some(left)) => format!("ejected for {left} s"),
            (false, None) => format!("{}{why}", server.health),
        };
        rows.push([
            server.group.clone(),
            server.server.clone(),
            server.address.clone(),
            state,
            server.weight.to_string(),
            server.busy.to_string(),
            server.requests.to_string(),
        ]);
    }
    table(&rows)
}

fn certificates(answer: &Certificates) -> String {
    let heads = [
        "USED FOR",
        "DAYS LEFT",
        "NOT AFTER",
        "SOURCE",
        "RENEWS",
        "SUBJECT",
        "NAMES",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    for one in &answer.certificates {
        let orders = answer
            .orders
            .iter()
            .find(|orders| one.used_for.strip_prefix("domain ") == Some(&orders.domain));
        let renews = orders.and_then(|orders| orders.renews.clone());
        rows.push([
            one.used_for.clone(),
            one.days_left.to_string(),
            one.not_after.clone(),
            one.source.clone(),
            renews.unwrap_or_else(|| "-".to_owned()),
            one.subject.clone(),
            one.names.join(","),
        ]);
    }
    let mut out = table(&rows);
    let mut line = |what: &str, why: &str, again: Option<&str>| {
        let again = again.map_or(String::new(), |again| format!("; again at {again}"));
        let _fits = writeln!(out, "{}", printable(&format!("{what}: {why}{again}")));
    };
    if let Some(node) = &answer.ordered_by {
        line("ordered by", node, None);
    }
    if let Some(failed) = &answer.authority {
        line("ACME authority", &failed.why, Some(&failed.again));
    }
    for orders in &answer.orders {
        let domain = &orders.domain;
        if let Some(failed) = &orders.failed {
            line(&format!("domain {domain}"), &failed.why, Some(&failed.again));
        }
        for name in &orders.names {
            line(
                &format!("domain {domain}, {}", name.name),
                &name.why,
                name.again.as_deref(),
            );
        }
    }
    out
}

fn drained(answer: &Drained) -> String {
    let ready = if answer.ready { "in service" } else { "out of service" };
    format!("the node is {ready}; {} sessions live\n", answer.sessions)
}

/// A line of the stream, for people.
fn attempt(line: &str) -> String {
    let Ok(record) = serde_json::from_str::<serde_json::Value>(line) else {
        return printable(line) + "\n";
    };
    if let Some(lost) = record["lost"].as_u64() {
        return format!("({lost} logins were not shown: this terminal is too slow)\n");
    }
    let text = |field: &str| record[field].as_str().unwrap_or("-");
    let mut out = format!(
        "{} {:4} {:15} {} from {}",
        text("time"),
        text("proto"),
        text("outcome"),
        text("user"),
        text("client")
    );
    for (word, field) in [("to", "route"), ("because", "why")] {
        if let Some(value) = record[field].as_str() {
            let _fits = write!(out, " {word} {value}");
        }
    }
    printable(&out) + "\n"
}
