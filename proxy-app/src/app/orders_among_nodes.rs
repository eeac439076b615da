//! Orders of certificates where nodes know of each other: one of them orders, and all answer what the authority asks.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::acme::account_key::AccountKey;
use crate::acme::care::{Fault, Setback};
use crate::acme::challenge_certificate::challenge_context;
use crate::acme::challenges::{Challenges, OtherAnswerers, OthersAnswer, OthersChallenge};
use crate::app::App;
use crate::app::acme_orders::now;
use crate::config::{AcmeConfig, ChallengeKind};
use crate::nodes::{AUTHORITY, ChallengeTaker, Nodes, OrderingNode, SharedChallenge, SharedPause};
use crate::provision::values;

/// Why a challenge of another node is not answered.
const OTHER_ACCOUNT: &str = "its account key is another one: copy acme.account_key_file of the node that orders to it";
const NO_ACME: &str = "it has no acme in its node file";

impl App {
    /// From now on challenges go to other nodes, and come from them.
    pub(super) fn share_challenges(self: &Arc<Self>) {
        if let Some(nodes) = &self.nodes {
            self.challenges.tell(Arc::new(ToldOthers {
                nodes: nodes.clone(),
                unable: Mutex::default(),
            }));
            nodes.answer_challenges(Arc::new(AnsweredHere(Arc::downgrade(self))));
        }
    }

    /// Whether this node orders certificates, and not another one.
    pub(super) fn orders_certificates(&self) -> bool {
        let nodes = self.nodes.as_ref();
        nodes.is_none_or(|nodes| nodes.ordering_node() == OrderingNode::This)
    }

    /// Takes over what has failed at the node that ordered before.
    pub(super) async fn take_pauses(&self) {
        let Some(nodes) = &self.nodes else { return };
        let taken = nodes.pauses(now()).await;
        log::info!("this node orders certificates for all nodes from now on");
        for SharedPause { of, count, until, why } in taken {
            let domain = (of != AUTHORITY).then_some(of.as_str());
            let is_known = |name: &str| self.snapshot.load().system.domain(name).is_some();
            if domain.is_none_or(is_known) {
                self.care.take_pause(
                    domain,
                    Setback {
                        count,
                        until,
                        why,
                        fault: Fault::OfName,
                    },
                );
            }
        }
    }

    /// Leaves what has failed to the node that orders next.
    pub(super) async fn keep_pauses(&self) {
        self.keep_pauses_after(Duration::ZERO).await;
    }

    /// This process orders no more, and another one goes on where it has come to.
    pub(crate) async fn order_no_more(&self) {
        let Some(nodes) = &self.nodes else { return };
        if self.orders_certificates() {
            self.keep_pauses().await;
        }
        nodes.order_no_more().await;
    }

    /// The same, unless it was done less than `rest` ago.
    pub(super) async fn keep_pauses_after(&self, rest: Duration) {
        let Some(nodes) = &self.nodes else { return };
        let now = now();
        let authority = self.care.all().0.filter(|setback| setback.until > now);
        let authority = authority.map(|setback| (AUTHORITY.to_owned(), setback));
        let all = authority.into_iter().chain(self.care.pauses(now));
        let shared = all.map(|(of, Setback { count, until, why, .. })| SharedPause { of, count, until, why });
        nodes.keep_pauses(shared.collect(), rest).await;
    }
}

/// Tells the other nodes of challenges.
struct ToldOthers {
    nodes: Arc<Nodes>,
    /// Those that could not answer the last one, and why.
    unable: Mutex<Vec<(String, String)>>,
}

#[async_trait]
impl OtherAnswerers for ToldOthers {
    async fn open(&self, token: &str, kind: &'static str, name: &str, answer: &str) {
        let account = answer.rsplit('.').next().unwrap_or_default();
        let challenge = SharedChallenge {
            token: token.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            account: account.to_owned(),
            left: Duration::ZERO,
        };
        let unable = self.nodes.share_challenge(&challenge).await;
        let before = std::mem::replace(&mut *self.unable.lock(), unable.clone());
        for (node, why) in unable.iter().filter(|one| !before.contains(one)) {
            log::warn!("challenges of the ACME authority are not answered by {node}: {why}");
        }
    }

    fn close(&self, token: &str) {
        let (nodes, token) = (self.nodes.clone(), token.to_owned());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { nodes.end_challenge(&token).await });
        }
    }
}

/// Answers the challenges of other nodes.
struct AnsweredHere(Weak<App>);

#[async_trait]
impl ChallengeTaker for AnsweredHere {
    async fn take(&self, open: Vec<SharedChallenge>) -> Result<(), String> {
        let Some(app) = self.0.upgrade() else {
            return Ok(());
        };
        let acme = app.config.load().acme.clone();
        let taken = app.off_the_runtime(move |app| take(&app.challenges, acme.as_ref(), open));
        taken.await
    }
}

/// Answers those that are about this account, and no others.
fn take(challenges: &Challenges, acme: Option<&AcmeConfig>, open: Vec<SharedChallenge>) -> Result<(), String> {
    if open.is_empty() {
        challenges.answer_for_others(Vec::new());
        return Ok(());
    }
    let key = match acme {
        Some(acme) => AccountKey::load(&acme.account_key_file)?,
        None => return Err(NO_ACME.to_owned()),
    };
    let key = key.ok_or_else(|| OTHER_ACCOUNT.to_owned())?;
    let (known, mut outcome) = (challenges.of_others(), Ok(()));
    let mut answered = Vec::new();
    for challenge in open {
        // A key authorization is made here, of our own key: with what the engine says nobody gets a certificate who does
        // not have that key.
        let answer = key
            .key_authorization(&challenge.token)
            .map_err(|error| error.to_string())?;
        if answer.rsplit('.').next() != Some(challenge.account.as_str()) {
            outcome = Err(OTHER_ACCOUNT.to_owned());
            continue;
        }
        let known = known.iter().find(|one| one.token == challenge.token);
        let answer = match known {
            Some(known) => known.answer.clone(),
            None => match answered_with(&challenge, answer) {
                Ok(answer) => answer,
                Err(why) => {
                    outcome = Err(why);
                    continue;
                }
            },
        };
        answered.push(OthersChallenge {
            token: challenge.token,
            answer,
            until: Instant::now() + challenge.left,
        });
    }
    challenges.answer_for_others(answered);
    outcome
}

fn answered_with(challenge: &SharedChallenge, answer: String) -> Result<OthersAnswer, String> {
    if challenge.kind == ChallengeKind::Http01.word() {
        return Ok(OthersAnswer::Text(answer));
    }
    let name = &challenge.name;
    if challenge.kind != ChallengeKind::TlsAlpn01.word() || !values::is_virtual_host(name) {
        return Err("it does not know such a challenge".to_owned());
    }
    let context = challenge_context(name, &answer).map_err(|error| error.to_string())?;
    Ok(OthersAnswer::Handshake(name.to_ascii_lowercase(), context))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::acme_orders::tests::acme;

    #[test]
    fn only_challenges_of_the_own_account_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("acme.key");
        let challenges = Challenges::default();
        let mut config = acme();
        config.account_key_file = file.clone();
        let of = |token: &str, kind: &str, account: &str| SharedChallenge {
            token: token.to_owned(),
            kind: kind.to_owned(),
            name: "a.test".to_owned(),
            account: account.to_owned(),
            left: Duration::from_secs(60),
        };
        let told = |config: Option<&AcmeConfig>, one: SharedChallenge| take(&challenges, config, vec![one]);
        assert_eq!(told(None, of("t", "http-01", "x")), Err(NO_ACME.to_owned()));
        assert_eq!(
            told(Some(&config), of("t", "http-01", "x")),
            Err(OTHER_ACCOUNT.to_owned())
        );
        let key = AccountKey::load_or_make(&file).unwrap();
        let answer = key.key_authorization("t").unwrap();
        let account = answer.rsplit('.').next().unwrap();
        assert_eq!(
            told(Some(&config), of("t", "http-01", "x")),
            Err(OTHER_ACCOUNT.to_owned())
        );
        assert_eq!(challenges.answer("t"), None);
        assert_eq!(told(Some(&config), of("t", "http-01", account)), Ok(()));
        assert_eq!(challenges.answer("t"), Some(answer.clone()));
        assert_eq!(told(Some(&config), of("t", "tls-alpn-01", account)), Ok(()));
        // The one that was open is not another one because it comes again.
        assert_eq!(challenges.answer("t"), Some(answer.clone()));
        assert_eq!(told(Some(&config), of("u", "tls-alpn-01", account)), Ok(()));
        assert!(challenges.context("a.test").is_some() && challenges.answer("t").is_none());
        assert!(told(Some(&config), of("v", "dance", account)).is_err());
        assert_eq!(take(&challenges, None, Vec::new()), Ok(()));
        assert!(!challenges.have_handshakes());
    }
}
