//! What is kept in memory under a key, and how old it is.

use std::sync::Arc;
use std::time::Duration;

use crate::key::Key;
use crate::placement::Placement;
use crate::route::Tier;

/// Milliseconds since long before the cache was made, so that an answer may be older than the cache; half the
/// size of an `Instant`, and follows tokio's paused clock.
pub(super) type Millis = u64;

/// When the cache was made: a hundred years after zero, longer than any life of an answer.
pub(super) const BEFORE_BIRTH: Millis = 100 * 365 * 86_400_000;

/// What a previous process has kept, and no source confirms: it may only serve while the source does not answer.
pub(super) const UNSURE: u32 = 0;
/// What a previous process has kept; it is believed once the directory has said what changed since.
pub(super) const RESTORED: u32 = 1;
/// The first epoch of this process.
pub(super) const FIRST_EPOCH: u32 = 2;

/// What is kept under a key.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) at: Millis,
    pub(super) epoch: u32,
    pub(super) what: KeptValue,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeptValue {
    /// The key is the account's canonical name.
    Here(Placement),
    /// The key is an alias or an id; the account has this name.
    See(Arc<str>),
}

/// What was kept of an account, and since when.
pub(super) struct KeptPlacement {
    pub(super) at: Millis,
    pub(super) epoch: u32,
    pub(super) placement: Placement,
}

impl KeptPlacement {
    /// Whether a previous process has asked for it, or for a part of it.
    pub(super) fn is_restored(&self) -> bool {
        self.epoch < FIRST_EPOCH
    }

    /// The tier that it is an answer of, where one of this process is an answer of `own`.
    pub(super) fn tier(&self, own: Tier) -> Tier {
        match own {
            _ if self.is_restored() => Tier::KeptFile,
            Tier::Memory if self.placement.is_by_referral() => Tier::Referral,
            own => own,
        }
    }

    /// What is kept under a name and of its account, which may be the same: as old as the older of them.
    pub(super) fn find(name: &Key, look: impl Fn(&Key) -> Option<Kept>) -> Option<Self> {
        let Kept { at, epoch, what } = look(name)?;
        let account = match what {
            KeptValue::Here(placement) => return Some(Self { at, epoch, placement }),
            KeptValue::See(account) => look(&Key::Name(account))?,
        };
        match account.what {
            KeptValue::Here(placement) => Some(Self {
                at: at.min(account.at),
                epoch: epoch.min(account.epoch),
                placement,
            }),
            KeptValue::See(_) => None,
        }
    }
}

pub(super) fn millis(duration: Duration) -> Millis {
    // Half of the range, so that sums of three cannot overflow.
    Millis::try_from(duration.as_millis())
        .unwrap_or(Millis::MAX)
        .min(Millis::MAX / 4)
}
