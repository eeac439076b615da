//! What a move asks of the nodes: that nobody gets in, that nobody is in any more, that the new route is known. It is
//! asked of this node; others can be asked here, too.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mail_directory::Touched;
use mail_proxy::CloseReason;
use route_cache::{Held, Hold, Lookup, Service, Subject, Tier};

use crate::app::App;

/// The nodes.
pub(super) struct MoveReach {
    app: Arc<App>,
}

impl MoveReach {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }

    /// New logins of the account wait.
    pub(super) fn hold(&self, account: &str, reason: &str, lasts: Duration) -> Result<(), String> {
        let since = SystemTime::now();
        let hold = Hold {
            held: Held::Account(account.to_owned()),
            reason: reason.to_owned(),
            since,
            until: since + lasts,
        };
        self.app.routes.holds().begin(hold).map_err(|error| error.to_string())
    }

    /// Whether they still do.
    pub(super) fn is_held(&self, account: &str) -> bool {
        let holds = self.app.routes.holds().all();
        holds.iter().any(|hold| hold.held == Held::Account(account.to_owned()))
    }

    /// They go on.
    pub(super) fn release(&self, account: &str) {
        self.app.routes.holds().release(&Held::Account(account.to_owned()));
    }

    /// Has the sessions of an account end, and returns how many there are; logins that are past the hold count, and
    /// end as sessions do. `now`: without waiting for their last commands.
    pub(super) fn kick(&self, account: &str, now: bool) -> usize {
        let [sessions, logins] = self.app.sessions.of_account(account);
        for session in &sessions {
            session
                .facts
                .handle
                .end(if now { CloseReason::Kick } else { CloseReason::Moved });
        }
        if now {
            logins
                .iter()
                .for_each(|login| login.facts.handle.end(CloseReason::Kick));
        }
        sessions.len() + logins.len()
    }

    /// Has the node look at the directory, and says whether it sends the account to this server now.
    pub(super) async fn goes_to(&self, account: &str, server: &str) -> Result<(), String> {
        let looked = self.app.look_at_directory().await;
        let touched = Touched {
            names: vec![account.to_owned()],
            ids: Vec::new(),
        };
        self.app.routes.forget_accounts(&[touched]);
        let route = match self.app.routes.ask_again(&imap_of(account), Duration::ZERO).await {
            Some(route) => route,
            None => self.app.routes.route(&imap_of(account)).await,
        };
        match (route, looked) {
            (Ok(route), _) if route.tier == Tier::Directory && route.server.eq_ignore_ascii_case(server) => Ok(()),
            (_, Err(problems)) => Err(problems.first_error()),
            (Ok(route), Ok(())) => Err(format!("the directory still says {}", route.server)),
            (Err(error), Ok(())) => Err(error.to_string()),
        }
    }
}

/// The account, as nobody in particular asks for it.
pub(super) fn imap_of(account: &str) -> Lookup {
    let nobody = Ipv4Addr::UNSPECIFIED.into();
    Lookup {
        subject: Subject::Login(account.to_owned()),
        service: Service::Imap,
        client: nobody,
        local: nobody,
        host: None,
    }
}
