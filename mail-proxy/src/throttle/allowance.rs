//! Networks that an administrator lets through for some time.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use ipnet::IpNet;

use super::Moment;

/// Allowances at one time: they are made by hand.
const MOST: usize = 1_000;

/// A network that is let through for some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    /// The network.
    pub network: IpNet,
    /// Until when.
    pub until: Moment,
    /// Why, in the words of the administrator.
    pub reason: String,
}

/// Those in force.
#[derive(Default)]
pub(super) struct Allowances(RwLock<Vec<Allowance>>);

impl Allowances {
    fn write(&self) -> RwLockWriteGuard<'_, Vec<Allowance>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, in the place of that of the same network.
    pub(super) fn add(&self, allowance: Allowance, now: Moment) -> Result<(), &'static str> {
        let mut all = self.write();
        all.retain(|known| known.until > now && known.network != allowance.network);
        if all.len() >= MOST {
            return Err("there are too many allowances already");
        }
        all.push(allowance);
        Ok(())
    }

    /// Ends all.
    pub(super) fn clear(&self) {
        self.write().clear();
    }

    /// Those that have not ended.
    pub(super) fn list(&self, now: Moment) -> Vec<Allowance> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|allowance| allowance.until > now).cloned().collect()
    }

    /// Ends that of a network.
    pub(super) fn remove(&self, network: IpNet) -> bool {
        let mut all = self.write();
        let before = all.len();
        all.retain(|allowance| allowance.network != network);
        all.len() < before
    }

    /// Why a client is let through, if it is.
    pub(super) fn reason(&self, client: IpAddr, now: Moment) -> Option<String> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = all.iter().filter(|allowance| allowance.network.contains(&client));
        let allowance = found.find(|allowance| allowance.until > now)?;
        Some(format!(
            "{} is allowed for some time: {}",
            allowance.network, allowance.reason
        ))
    }
}
