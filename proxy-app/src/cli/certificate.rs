//! `portico certificate`: orders certificates of the ACME authority, and looks at those that clients are shown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use hyper::Method;

use crate::admin::certificate_orders::{CertificateOrdered, CertificateRequestOrder};
use crate::admin::live_probes::LiveProbe;
use crate::cli::asking::{ApiArgs, path_with, print, printable};
use crate::cli::live_probe::{HERE, Seen};
use crate::cli::nodes::{Everywhere, ScopeArgs};

/// What can be done about a certificate.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateVerb {
    /// Order the certificate of a domain now, though a pause after failures has not passed.
    Request {
        /// The domain, or one of its virtual host names.
        name: String,
        /// Only say what would be ordered; the authority gets no order.
        #[arg(long)]
        dry_run: bool,
    },
    /// Order a new certificate for a domain, though the one in use is good.
    Renew {
        /// The domain, or one of its virtual host names.
        name: String,
        /// Only say what would be ordered; the authority gets no order.
        #[arg(long)]
        dry_run: bool,
    },
    /// Look at the names of a domain as clients do: the DNS, and the certificate that each TLS listener of each node
    /// shows. Exits with 1 if one is shown no certificate that is good for it.
    Probe {
        /// The domain, or one of its virtual host names.
        name: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
    },
}

impl CertificateVerb {
    /// Orders or looks, and prints what has become of it.
    ///
    /// # Errors
    /// No process answers, it refuses the request, or there is no certificate.
    pub(super) async fn run(self, api: &ApiArgs, conf: &Path) -> anyhow::Result<ExitCode> {
        let (name, renew, dry_run) = match self {
            Self::Request { name, dry_run } => (name, false, dry_run),
            Self::Renew { name, dry_run } => (name, true, dry_run),
            Self::Probe { name, scope } => return probe(name, &scope, api, conf).await,
        };
        let body = CertificateRequestOrder { name, renew, dry_run };
        let client = api.client(conf)?;
        let answer: CertificateOrdered = client.send(Method::POST, "/v1/certificates/order", &body).await?;
        print(&api.show(&answer, ordered)?)?;
        anyhow::ensure!(answer.why.is_none(), "{}", printable(&answer.why.unwrap_or_default()));
        Ok(ExitCode::SUCCESS)
    }
}

async fn probe(name: String, scope: &ScopeArgs, api: &ApiArgs, conf: &Path) -> anyhow::Result<ExitCode> {
    let [local, node] = scope.fields();
    let here = node.1.clone().unwrap_or_else(|| HERE.to_owned());
    let path = path_with("/v1/certificates/probe", [("name", Some(name)), local, node]);
    let answer: Everywhere<LiveProbe> = api.client(conf)?.get(&path).await?;
    let output = answer.show_all(api, |all| Seen::new(all, &here).text())?;
    print(&output.text)?;
    output.complete()?;
    Seen::new(&answer, &here).complete()?;
    Ok(ExitCode::SUCCESS)
}

fn ordered(answer: &CertificateOrdered) -> String {
    let CertificateOrdered { domain, authority, .. } = answer;
    let first = match answer.state.as_str() {
        "issued" => format!("domain {domain}: a new certificate is in force"),
        "failed" => format!("domain {domain}: no new certificate"),
        "under way" => format!("domain {domain}: the order is under way, portico certificates says what comes of it"),
        _ => format!("domain {domain}: nothing was ordered; it would be at {authority}"),
    };
    let at = answer.node.as_ref().map(|node| format!(" (ordered by {node})"));
    let mut out = printable(&(first + &at.unwrap_or_default())) + "\n";
    let mut line = |text: String| {
        let _fits = writeln!(out, "  {}", printable(&text));
    };
    let is_dry = answer.state == "dry run";
    for name in &answer.names {
        let mut said = format!("for {}", name.name);
        if is_dry && !name.addresses.is_empty() {
            let _fits = write!(said, ", at {}", name.addresses.join(" "));
        }
        match &name.why {
            Some(why) if is_dry => drop(write!(said, ": {why}")),
            _ if name.leads_here == Some(true) => said.push_str(", which leads here"),
            _ => {}
        }
        line(said);
    }
    for name in &answer.left_out {
        line(format!("not for {}: {}", name.name, name.why));
    }
    for challenge in answer.challenges.iter().filter(|_| is_dry) {
        match &challenge.why {
            Some(why) => line(format!("by {}: {why}", challenge.kind)),
            None if challenge.answered_at.is_empty() => line(format!("by {}, in the DNS", challenge.kind)),
            None => line(format!(
                "by {}, answered at {}",
                challenge.kind,
                challenge.answered_at.join(" ")
            )),
        }
    }
    out
}
