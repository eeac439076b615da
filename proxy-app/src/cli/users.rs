//! `portico users`: whose new logins wait.

use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;

use crate::admin::holds::{HoldList, HoldName, HoldOrder, OneHold};
use crate::cli::admin_client::AdminClient;
use crate::cli::asking::{lasting, path_with};
use crate::cli::moves::MoveArgs;
use crate::cli::nodes::{Everywhere, ScopeArgs};

/// What can be done about users.
#[derive(Debug, Subcommand)]
pub(crate) enum UsersVerb {
    /// Let new logins wait: they go on when the hold is released, or are told to try again later.
    Hold {
        #[command(flatten)]
        #[allow(missing_docs)]
        whose: Whose,
        /// When the hold ends by itself, such as 90s, 10m or 2h; at most a day.
        #[arg(long = "for", value_name = "TIME", value_parser = lasting)]
        lasts: Duration,
        /// Why; for administrators.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
    },
    /// End a hold.
    Release {
        #[command(flatten)]
        #[allow(missing_docs)]
        whose: Whose,
        #[command(flatten)]
        #[allow(missing_docs)]
        scope: ScopeArgs,
    },
    /// List the holds.
    Holds,
    /// Move accounts to another mailbox server: their logins wait, their sessions end, the directory is changed.
    Move {
        /// Accounts: names, aliases or zimbraIds.
        #[arg(required = true, value_name = "ACCOUNT")]
        accounts: Vec<String>,
        #[command(flatten)]
        #[allow(missing_docs)]
        how: MoveArgs,
    },
}

/// Whose logins.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Whose {
    /// An account: its name, an alias or its zimbraId.
    account: Option<String>,
    /// All accounts of this domain.
    #[arg(long)]
    domain: Option<String>,
    /// All accounts on this mailbox server.
    #[arg(long)]
    server: Option<String>,
}

impl Whose {
    fn name(self) -> HoldName {
        HoldName {
            account: self.account,
            domain: self.domain,
            server: self.server,
            exact: false,
            ..HoldName::default()
        }
    }
}

/// What the node said.
pub(crate) enum UsersAnswer {
    /// A hold that was begun.
    Held(Everywhere<OneHold>),
    /// A hold that was ended.
    Released(Everywhere<OneHold>),
    /// All.
    Holds(HoldList),
}

impl UsersVerb {
    /// Asks the node.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub(crate) async fn ask(self, client: &AdminClient) -> anyhow::Result<UsersAnswer> {
        match self {
            Self::Hold {
                whose,
                lasts,
                reason,
                scope,
            } => {
                let order = HoldOrder {
                    held: whose.name(),
                    seconds: lasts.as_secs(),
                    reason,
                };
                let path = path_with("/v1/holds", scope.fields());
                Ok(UsersAnswer::Held(client.send(Method::POST, &path, &order).await?))
            }
            Self::Release { whose, scope } => {
                let name = whose.name();
                let path = path_with("/v1/holds/release", scope.fields());
                let released = client.send(Method::POST, &path, &name).await?;
                Ok(UsersAnswer::Released(released))
            }
            Self::Holds => Ok(UsersAnswer::Holds(client.get("/v1/holds").await?)),
            Self::Move { .. } => anyhow::bail!("a move is watched"),
        }
    }
}
