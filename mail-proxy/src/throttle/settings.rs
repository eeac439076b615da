//! What the throttle is told: its rules with their limits and modes, and who is let through.

use std::time::Duration;

use ipnet::IpNet;

/// A rule: which failures are counted together, and what too many of them do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// One client network, one account.
    Pair,
    /// One IPv4 address or IPv6 network of 64 bits, all accounts.
    Address,
    /// One IPv6 network of 48 bits, all accounts.
    Network,
    /// One account, all networks from which it is not known.
    Account,
    /// Different accounts that fail from one address.
    Spray,
    /// All addresses together that no account has logged in from: many addresses with few tries each.
    Many,
    /// The word of another service. It has no limits here, and is not one of [`Rule::ALL`].
    Policy,
}

impl Rule {
    /// All that count failures, in the order in which they are declared.
    pub const ALL: [Self; 6] = [
        Self::Pair,
        Self::Address,
        Self::Network,
        Self::Account,
        Self::Spray,
        Self::Many,
    ];

    /// The word for it in the node file, the audit log and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Address => "address",
            Self::Network => "network",
            Self::Account => "account",
            Self::Spray => "spray",
            Self::Many => "many",
            Self::Policy => "policy",
        }
    }

    /// Whether it is about the account, not about where a client is.
    pub fn is_of_account(self) -> bool {
        matches!(self, Self::Pair | Self::Account)
    }
}

/// Whether a rule acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// It is not looked at.
    Off,
    /// What it would do is recorded.
    DryRun,
    /// It delays and refuses.
    On,
}

impl Mode {
    /// The word for it in the node file and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::DryRun => "dry_run",
            Self::On => "on",
        }
    }
}

/// The limits of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleSettings {
    /// Whether it acts.
    pub mode: Mode,
    /// Failures from which attempts are delayed; 0: never.
    pub delay_from: u32,
    /// Failures from which attempts are refused; 0: never.
    pub refuse_from: u32,
    /// The time after which a failure counts half.
    pub window: Duration,
}

impl RuleSettings {
    const fn on(delay_from: u32, refuse_from: u32) -> Self {
        Self {
            mode: Mode::On,
            delay_from,
            refuse_from,
            window: Duration::from_secs(30 * 60),
        }
    }
}

/// How the throttle judges; replaced as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThrottleSettings {
    /// One for each rule, in the order of [`Rule::ALL`].
    pub rules: [RuleSettings; Rule::ALL.len()],
    /// How long an account is known at a network after its last login there.
    pub known_for: Duration,
    /// The longest delay of an attempt, also for its turn behind others.
    pub max_delay: Duration,
    /// Attempts that may be delayed at one time; what is beyond is refused.
    pub max_waiting: usize,
    /// Networks whose attempts are neither counted nor judged.
    pub allow: Vec<IpNet>,
    /// What clients are told by rules about addresses (`zimbraReverseProxyIpThrottleMsg`).
    pub address_message: String,
    /// What clients are told by rules about accounts (`zimbraReverseProxyUserThrottleMsg`).
    pub account_message: String,
}

/// What clients are told where the directory has no words for it.
const MESSAGE: &str = "Too many failed logins, please try again later";

/// A person who has forgotten a password tries three to six ones. Phones repeat one, which counts once.
/// A guesser gets the second number at once, and from then on two thirds of it in each window.
impl Default for ThrottleSettings {
    fn default() -> Self {
        Self {
            rules: [
                RuleSettings::on(4, 12),
                RuleSettings::on(10, 30),
                RuleSettings::on(50, 150),
                RuleSettings::on(20, 60),
                RuleSettings::on(8, 20),
                RuleSettings::on(0, 1_000),
            ],
            known_for: Duration::from_secs(30 * 24 * 60 * 60),
            max_delay: Duration::from_secs(8),
            max_waiting: 1_000,
            allow: Vec::new(),
            address_message: MESSAGE.to_owned(),
            account_message: MESSAGE.to_owned(),
        }
    }
}

impl ThrottleSettings {
    /// The limits of a rule.
    pub fn rule(&self, rule: Rule) -> &RuleSettings {
        &self.rules[rule as usize]
    }

    /// The same, to be changed.
    pub fn rule_mut(&mut self, rule: Rule) -> &mut RuleSettings {
        &mut self.rules[rule as usize]
    }

    /// What clients are told by a rule.
    pub fn message(&self, rule: Rule) -> &str {
        match rule.is_of_account() {
            true => &self.account_message,
            false => &self.address_message,
        }
    }
}
