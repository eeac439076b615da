//! `portico throttle`: whom the throttle holds off and why; failures forgotten, networks let through.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use hyper::Method;

use crate::admin::throttle::{Allow, Clear, ClearedFailures, Disallow, ThrottleExplained, ThrottleState};
use crate::cli::asking::{ApiArgs, Lines, lasting, path_with, print, printable, table};
use crate::cli::nodes::{Everywhere, Output, ScopeArgs};

/// What can be done about the throttle.
#[derive(Debug, Subcommand)]
pub(crate) enum ThrottleVerb {
    /// Show the rules, whom they have delayed or refused lately, and which networks are let through for some time.
    List {
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Show what would become of this login now, and why, without side effects.
    Explain {
        /// The login as typed, or a zimbraId.
        login: String,
        /// Address of the client.
        #[arg(long)]
        ip: IpAddr,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Forget failures of an account, of an address, of both together, or all. Where an account is known stays known.
    #[command(group = clap::ArgGroup::new("whose").required(true).multiple(true).args(["login", "ip", "all"]))]
    Clear {
        /// The login as typed, or a zimbraId.
        #[arg(conflicts_with = "all")]
        login: Option<String>,
        /// Address of the client.
        #[arg(long, conflicts_with = "all")]
        ip: Option<IpAddr>,
        /// Forget all.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// Let an address or a network through for some time: its failures are neither counted nor refused.
    Allow {
        /// An address, or a network such as 192.0.2.0/24.
        network: String,
        /// For how long: 30m, 1h, 2d; at most 90d.
        #[arg(long = "for", value_name = "TIME", value_parser = lasting)]
        time: Duration,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
    /// End the time for which a network is let through.
    Disallow {
        /// The network, as it was allowed.
        network: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
        #[command(flatten)]
        #[allow(missing_docs)]
        api: ApiArgs,
    },
}

/// Asks the running process, and prints the answer.
///
/// # Errors
/// No process answers, or it refuses the request.
pub(crate) fn run(verb: ThrottleVerb, conf: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = runtime.block_on(ask(verb, conf))?;
    print(&output.text)?;
    output.complete()
}

async fn ask(verb: ThrottleVerb, conf: &Path) -> anyhow::Result<Output> {
    match verb {
        ThrottleVerb::List { api } => {
            let answer: ThrottleState = api.client(conf)?.get("/v1/throttle").await?;
            Ok(api.show(&answer, state)?.into())
        }
        ThrottleVerb::Explain { login, ip, api } => {
            let fields = [("login", Some(login)), ("ip", Some(ip.to_string()))];
            let path = path_with("/v1/throttle/explain", fields);
            let answer: ThrottleExplained = api.client(conf)?.get(&path).await?;
            Ok(api.show(&answer, explained)?.into())
        }
        ThrottleVerb::Clear {
            login,
            ip,
            all,
            scope,
            api,
        } => {
            let body = Clear { login, ip, all };
            let client = api.client(conf)?;
            let path = path_with("/v1/throttle/clear", scope.fields());
            let answer: Everywhere<ClearedFailures> = client.send(Method::POST, &path, &body).await?;
            answer.show(&api, cleared)
        }
        ThrottleVerb::Allow {
            network,
            time,
            reason,
            scope,
            api,
        } => {
            let body = Allow {
                network,
                seconds: time.as_secs(),
                reason,
            };
            let client = api.client(conf)?;
            let path = path_with("/v1/throttle/allow", scope.fields());
            let answer: Everywhere<ThrottleState> = client.send(Method::POST, &path, &body).await?;
            answer.show(&api, allowed)
        }
        ThrottleVerb::Disallow { network, scope, api } => {
            let body = Disallow { network };
            let client = api.client(conf)?;
            let path = path_with("/v1/throttle/allow", scope.fields());
            let answer: Everywhere<ThrottleState> = client.send(Method::DELETE, &path, &body).await?;
            answer.show(&api, allowed)
        }
    }
}

fn state(answer: &ThrottleState) -> String {
    let mut rows = vec![
        [
            "RULE", "MODE", "DELAY", "REFUSE", "SECONDS", "DELAYED", "REFUSED", "WOULD",
        ]
        .map(str::to_owned),
    ];
    for rule in &answer.rules {
        rows.push([
            rule.rule.clone(),
            rule.mode.clone(),
            rule.delay_from.to_string(),
            rule.refuse_from.to_string(),
            rule.window.to_string(),
            rule.delayed.to_string(),
            rule.refused.to_string(),
            rule.would.to_string(),
        ]);
    }
    let mut out = table(&rows);
    let _fits = writeln!(out, "\n{} attempts wait now", answer.waiting);
    if !answer.held_off.is_empty() {
        out.push('\n');
        out.push_str(&held_off(answer));
    }
    if !answer.allowed.is_empty() {
        out.push('\n');
        out.push_str(&allowed(answer));
    }
    out
}

fn held_off(answer: &ThrottleState) -> String {
    let mut rows = vec![
        [
            "RULE", "MODE", "CLIENT", "ACCOUNT", "FAILURES", "DELAYED", "REFUSED", "LAST", "UNTIL",
        ]
        .map(str::to_owned),
    ];
    for held in &answer.held_off {
        rows.push([
            held.rule.clone(),
            held.mode.clone(),
            held.client.clone(),
            held.account.clone(),
            held.count.to_string(),
            held.delayed.to_string(),
            held.refused.to_string(),
            held.last.clone(),
            held.until.clone(),
        ]);
    }
    table(&rows)
}

fn allowed(answer: &ThrottleState) -> String {
    if answer.allowed.is_empty() {
        return "no network is let through for some time\n".to_owned();
    }
    let mut rows = vec![["NETWORK", "UNTIL", "REASON"].map(str::to_owned)];
    for allowed in &answer.allowed {
        rows.push([allowed.network.clone(), allowed.until.clone(), allowed.reason.clone()]);
    }
    table(&rows)
}

fn explained(answer: &ThrottleExplained) -> String {
    let mut lines = Lines::default();
    lines.line("account", &answer.account);
    lines.line("client", &answer.client);
    lines.line(
        "known",
        match answer.known {
            Some(seconds) => format!("yes: it logged in from there {seconds} s ago"),
            None => "no: it has not logged in from there lately".to_owned(),
        },
    );
    if let Some(why) = &answer.allowed {
        lines.line("allowed", why);
    }
    let (accounts, tolerated) = (answer.accounts, answer.tolerated);
    lines.line(
        "address",
        format!("{accounts} accounts have logged in from there, for which {tolerated} failures are tolerated"),
    );
    for rule in &answer.rules {
        let limits = format!("delays from {}, refuses from {}", rule.delay_from, rule.refuse_from);
        lines.line(
            &rule.rule,
            format!("{} failures; {limits} ({}): {}", rule.failures, rule.mode, rule.action),
        );
    }
    lines.line("verdict", format!("the throttle {}", answer.verdict));
    lines.into_text()
}

fn cleared(answer: &ClearedFailures) -> String {
    match answer.forgotten {
        Some(0) => "there was nothing to forget\n".to_owned(),
        Some(count) => printable(&format!("{count} counts of failures are forgotten")) + "\n",
        None => "all failures are forgotten\n".to_owned(),
    }
}
