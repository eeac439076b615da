//! Holds and allowances as standing orders: what this node has is told to those that join, and theirs is done here.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mail_proxy::throttle::{Allowance, Moment};
use route_cache::{Held, Hold, LONGEST_HOLD};

use crate::app::env::AdminEnv;
use crate::nodes::{Kind, StandingOrder};

/// A hold has begun here, or was changed.
pub(super) fn note_hold(env: &AdminEnv, hold: &Hold) {
    note(env, || StandingOrder::of_hold(hold), false);
}

/// A hold was released here.
pub(super) fn note_release(env: &AdminEnv, hold: &Hold) {
    note(env, || StandingOrder::of_hold(hold), true);
}

/// A network is let through from now on.
pub(super) fn note_allowance(env: &AdminEnv, allowance: &Allowance) {
    note(env, || of_allowance(allowance, env.throttle.now()), false);
}

/// A network is not let through any more.
pub(super) fn note_disallowed(env: &AdminEnv, allowance: &Allowance) {
    note(env, || of_allowance(allowance, env.throttle.now()), true);
}

fn note(env: &AdminEnv, order: impl FnOnce() -> StandingOrder, over: bool) {
    if let Some(nodes) = &env.nodes {
        let mut order = order();
        order.over = over;
        nodes.note(order);
    }
}

/// What this node has.
pub(super) fn all(env: &AdminEnv) -> Vec<StandingOrder> {
    let holds = env.routes.holds().all();
    let now = env.throttle.now();
    let allowances = env.throttle.allowances();
    let allowances = allowances.iter().map(|allowance| of_allowance(allowance, now));
    holds.iter().map(StandingOrder::of_hold).chain(allowances).collect()
}

/// Does what others have ordered while this node was not there.
pub(super) async fn adopt(env: &Arc<AdminEnv>, orders: Vec<StandingOrder>) {
    for order in orders {
        let what = if order.over { "ended" } else { "set" };
        log::info!(
            "by shared_state: {} {} {what}: {}",
            order.kind.name(),
            order.name,
            order.reason
        );
        match order.kind {
            Kind::Allow => adopt_allowance(env, order),
            kind => adopt_hold(env, kind, order),
        }
    }
    env.app.keep_state().await;
}

fn adopt_hold(env: &AdminEnv, kind: Kind, order: StandingOrder) {
    let held = match kind {
        Kind::Domain => Held::Domain(order.name),
        Kind::Server => Held::Server(order.name),
        Kind::Account | Kind::Allow => Held::Account(order.name),
    };
    if order.over {
        // It may have moved while this node was not there.
        if let Held::Account(account) = &held {
            env.app.forget_account(account);
        }
        env.routes.holds().release(&held);
        return;
    }
    let hold = Hold {
        held,
        reason: order.reason,
        since: UNIX_EPOCH + Duration::from_millis(order.since),
        // Whatever it says: none is for ever.
        until: (UNIX_EPOCH + Duration::from_millis(order.until)).min(SystemTime::now() + LONGEST_HOLD),
    };
    if let Err(error) = env.routes.holds().begin(hold) {
        log::warn!("a hold of shared_state is left out: {error}");
    }
}

fn adopt_allowance(env: &AdminEnv, order: StandingOrder) {
    let Ok(network) = order.name.parse() else { return };
    if order.over {
        env.throttle.disallow(network);
        return;
    }
    let allowance = Allowance {
        network,
        until: Moment(Duration::from_millis(order.until)),
        reason: order.reason,
    };
    if let Err(error) = env.throttle.allow(allowance) {
        log::warn!("an allowance of shared_state is left out: {error}");
    }
}

fn of_allowance(allowance: &Allowance, now: Moment) -> StandingOrder {
    let millis = |moment: Moment| u64::try_from(moment.0.as_millis()).unwrap_or(u64::MAX);
    let network = allowance.network.to_string();
    StandingOrder::new(
        Kind::Allow,
        &network,
        &allowance.reason,
        millis(now),
        millis(allowance.until),
    )
}
