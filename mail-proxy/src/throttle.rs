//! Guessing of passwords: what failed logins count, who is delayed or refused for them, and who never is.
//!
//! The model is on one page in docs/throttle.md. It counts failures only, asks nobody, takes the time from its caller,
//! and has the same size whatever comes: what was learnt of addresses that matter little is forgotten first, and what
//! was learnt by successful logins only for newer ones. Waiting is in `admission`; nothing else here waits.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

mod admission;
mod allowance;
mod elsewhere;
mod held;
mod keep;
mod later;
mod origin;
mod policy;
mod settings;
mod table;

pub use admission::{Admitted, Throttled};
pub use allowance::Allowance;
pub use elsewhere::{CountListener, CountedLogin};
pub use held::HeldOff;
use held::{HeldList, Subject};
pub use keep::NotKept;
use origin::{ClientNetworks, HashKey, Kind};
pub use origin::{PasswordMark, PasswordMarker, share_marks};
pub use policy::{LoginChannel, LoginPolicy, PolicyAnswer, PolicyEnd, PolicyLogin};
pub use settings::{Mode, Rule, RuleSettings, ThrottleSettings};
use table::{Table, Words};

/// Slots of the tables: 61 MiB in all once they are full. Two million pairs of account and network that are known
/// are those of half a million users.
const LANES: usize = 1 << 21;
const ADDRESSES: usize = 1 << 19;
const TALLIES: usize = 1 << 20;
const TRIED: usize = 1 << 20;

/// The time after which an attempt without an answer counts half: it stands for a failure until then, so that many
/// attempts at once are not more than one after the other. Longer than clients wait to hear of a failure, which counts
/// from then on.
const PENDING: Duration = Duration::from_secs(20);
/// How much an attempt without an answer counts for its address, at least. Of honest ones most succeed, and an office
/// starts its day with all of them at once.
const PENDING_SHARE: f32 = 0.25;
/// How long an attempt waits for its turn before it asks again.
const TURN: Duration = Duration::from_millis(100);
/// The first delay of a rule; each further failure doubles it.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// An account is not guessed at less by delays of those who never failed: the first honest login from a new place
/// waits no longer than this.
const STRANGER_DELAY: Duration = Duration::from_secs(1);
/// How many times the limits of a pair hold where the account is known.
const KNOWN_FACTOR: u32 = 3;
/// Failures are remembered up to this many times the number from which attempts are refused: two more windows.
const REMEMBERED: f32 = 4.0;
/// Accounts that must have logged in from an address before it may ask for one that is under attack.
const GOOD_STANDING: f32 = 3.0;
/// How long a password that was tried is remembered: a phone asks again within an hour.
const TRIED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// The pause that a newcomer has after its first failure while many addresses guess; each further one doubles it.
const NEWCOMER_PAUSE: Duration = Duration::from_secs(60);

/// A moment, as the time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub Duration);

/// Seconds between 1970 and the zero of the ticks, 2025.
const TICKS_BEGIN: u64 = 1_735_689_600;
/// A tick is a quarter of a second, so that 32 bits last until 2059.
const TICKS: f64 = 4.0;

impl Moment {
    fn tick(self) -> u32 {
        let since = self.0.saturating_sub(Duration::from_secs(TICKS_BEGIN));
        (since.as_secs_f64() * TICKS) as u32
    }

    /// This much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// One login attempt, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Canonical name of the account, or the name that no account has.
    pub account: &'a str,
    /// Address of the client.
    pub client: IpAddr,
    /// What tells its password from others.
    pub password: Option<PasswordMark>,
    /// How it came in.
    pub channel: LoginChannel<'a>,
}

/// What is to become of an attempt.
#[derive(Debug)]
pub enum Judgement {
    /// It may ask the server. The finding is that of a rule in dry run.
    Pass(Ticket, Option<Finding>),
    /// It is to ask again when so much time has passed.
    Wait(Duration, Finding),
    /// It is refused.
    Refuse(Finding),
}

/// Why an attempt is delayed or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// What it does.
    pub action: Action,
    /// The failures that count now.
    pub count: u32,
    /// How long it goes on, without further failures.
    pub lasts: Duration,
}

impl Finding {
    /// Seconds after which another attempt makes sense.
    pub fn retry_after(&self) -> u64 {
        self.lasts.as_secs() + 1
    }
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Nothing.
    Pass,
    /// It delays.
    Delay(Duration),
    /// It lets others go first.
    Turn,
    /// It refuses.
    Refuse,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// The password was right.
    Right,
    /// It was accepted by a server that may accept other ones, too.
    Accepted,
    /// Name or password was wrong.
    Wrong,
    /// It says nothing of the password: a failure of ours, of the server, or of the network.
    Unknown,
}

/// As what an attempt has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// As no failure.
    Not,
    /// As a failure of a pair that is known.
    Known,
    /// As a failure of one that is not.
    Stranger,
}

/// An attempt that asks a server, until its answer is told.
#[derive(Debug, Clone)]
pub struct Ticket {
    lane: u64,
    pair: u64,
    account: u64,
    address: u64,
    network: Option<u64>,
    password: Option<PasswordMark>,
    begun: u32,
    known: bool,
    allowed: bool,
    /// It is by a token: it counts for its address only.
    token: bool,
    /// Its end has been taken already.
    ended: bool,
    /// How much it counts for its address until it is answered.
    share: f32,
    /// Account and client, if other nodes are to hear of it.
    whose: Option<Box<(String, IpAddr)>>,
    /// What another service has been asked, and is to hear the end of.
    policy: Option<Box<PolicyLogin>>,
}

/// What is judged of an attempt by one rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// The rule.
    pub rule: Rule,
    /// Its mode.
    pub mode: Mode,
    /// Failures that count now.
    pub failures: f32,
    /// Attempts without an answer, by their weight.
    pub pending: f32,
    /// From how many failures it delays; 0: never.
    pub delay_from: f32,
    /// From how many failures it refuses; 0: never.
    pub refuse_from: f32,
    /// What it does now.
    pub action: Action,
    /// How long that lasts.
    pub lasts: Duration,
}

/// What is known of a login, for administrators.
#[derive(Debug, Clone)]
pub struct ThrottleReport {
    /// How long ago the account logged in from there, if that is known.
    pub known: Option<Duration>,
    /// The client is on an allow list, and why.
    pub allowed: Option<String>,
    /// Different accounts that have logged in from the address lately.
    pub accounts: u32,
    /// Failures that the address may have for their sake.
    pub tolerated: u32,
    /// Every rule that is looked at.
    pub levels: Vec<Level>,
    /// What would become of the login now.
    pub finding: Option<Finding>,
}

/// The failures of a pair or of an account.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    failures: f32,
    pending: f32,
}

impl Tally {
    fn read(words: Words<4>, now: u32, window: Duration) -> Self {
        let [_, at, failures, pending] = words;
        Self {
            failures: faded(failures, at, now, window),
            pending: faded(pending, at, now, PENDING),
        }
    }

    /// One more failure, or what is left of it, which is no attempt without an answer any more.
    fn fail(&mut self, (by, left): (f32, f32), most: f32) {
        self.pending = (self.pending - left).max(0.0);
        self.failures = (self.failures + by).min(most);
    }

    fn write(self, words: &mut Words<4>, now: u32) {
        words[1] = now;
        words[2] = self.failures.to_bits();
        words[3] = self.pending.to_bits();
    }
}

/// What is known of an address or of a large network.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    failures: f32,
    pending: f32,
    /// Different accounts that have failed.
    spread: f32,
    /// Different accounts that have ever logged in.
    good: f32,
    /// Those of them that have lately.
    lately: f32,
    /// The tick of the last failure.
    failed_at: u32,
}

impl Standing {
    fn read(words: Words<8>, now: u32, settings: &ThrottleSettings, rule: Rule) -> Self {
        let [_, at, failures, pending, spread, good, lately, failed_at] = words;
        let window = settings.rule(rule).window;
        Self {
            failures: faded(failures, at, now, window),
            pending: faded(pending, at, now, PENDING),
            spread: faded(spread, at, now, settings.rule(Rule::Spray).window),
            good: faded(good, at, now, settings.known_for),
            lately: faded(lately, at, now, window),
            failed_at,
        }
    }

    fn write(self, words: &mut Words<8>, now: u32) {
        let values = [self.failures, self.pending, self.spread, self.good, self.lately];
        words[1] = now;
        words[2..7].copy_from_slice(&values.map(f32::to_bits));
        words[7] = self.failed_at;
    }

    /// Failures that are tolerated: a share of the accounts that log in from there, from 10 % for one account to 50 %
    /// for a thousand and more.
    fn tolerated(self) -> f32 {
        let share = 0.1 + 0.4 * (self.good.max(1.0).log10() / 3.0).min(1.0);
        // Of all attempts, those that fail included.
        (self.lately * share / (1.0 - share)).round()
    }

    fn is_newcomer(self) -> bool {
        self.good < 0.5
    }
}

/// What is left of a value after some time, of which each `half` halves it.
fn faded(bits: u32, at: u32, now: u32, half: Duration) -> f32 {
    let value = f32::from_bits(bits);
    if value == 0.0 {
        return 0.0;
    }
    let ticks = f64::from(now.saturating_sub(at));
    let half = (half.as_secs_f64() * TICKS).max(1.0);
    value * (-(ticks / half) as f32).exp2()
}

/// How much a pair or an account matters; the newer of two equal ones matters more.
fn tally_weight(now: u32, window: Duration) -> impl Fn(&Words<4>) -> f32 {
    move |words| {
        let tally = Tally::read(*words, now, window);
        tally.failures + tally.pending
    }
}

/// How much an address matters. One from which accounts log in is not pushed out by those that only fail.
fn standing_weight(now: u32, settings: &ThrottleSettings) -> impl Fn(&Words<8>) -> f32 + use<'_> {
    move |words| {
        let standing = Standing::read(*words, now, settings, Rule::Address);
        standing.failures + standing.pending + standing.spread + 8.0 * standing.good
    }
}

/// Those that were used longest ago matter least.
fn age_weight(words: &Words<2>) -> f32 {
    words[1] as f32
}

/// The numbers of a rule for one attempt.
struct Limits {
    delay_from: f32,
    refuse_from: f32,
    longest: Duration,
}

/// The memory of failed logins, and its judgement. One per process.
pub struct Throttle {
    key: RwLock<HashKey>,
    settings: RwLock<Arc<ThrottleSettings>>,
    /// Pairs that are known.
    lanes: Table<2>,
    addresses: Table<8>,
    /// Pairs and accounts.
    tallies: Table<4>,
    /// Passwords that were tried.
    tried: Table<2>,
    /// Failures of newcomers, everywhere.
    newcomers: Mutex<Words<4>>,
    held: HeldList,
    allowances: allowance::Allowances,
    waiting: admission::WaitingRoom,
    /// Failures whose clients have not heard of them yet.
    later: later::Later,
    counts: [[[AtomicU64; 2]; 2]; Rule::ALL.len()],
    begun: (Duration, Instant),
    /// Who hears what counts.
    listener: OnceLock<Arc<dyn CountListener>>,
    /// Another service that has a word on logins.
    policy: RwLock<Option<Arc<dyn LoginPolicy>>>,
}

impl Throttle {
    /// One that has seen nothing yet.
    pub fn new(settings: ThrottleSettings) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            key: RwLock::new(HashKey::random()),
            settings: RwLock::new(Arc::new(settings)),
            lanes: Table::new(LANES),
            addresses: Table::new(ADDRESSES),
            tallies: Table::new(TALLIES),
            tried: Table::new(TRIED),
            newcomers: Mutex::default(),
            held: HeldList::default(),
            allowances: allowance::Allowances::default(),
            waiting: admission::WaitingRoom::default(),
            later: later::Later::default(),
            counts: Default::default(),
            begun: (now.unwrap_or_default(), Instant::now()),
            listener: OnceLock::new(),
            policy: RwLock::default(),
        }
    }

    /// The moment that it is now: that of the wall when the process began, and the time since then.
    pub fn now(&self) -> Moment {
        Moment(self.begun.0 + self.begun.1.elapsed())
    }

    /// Judges by other settings from now on.
    pub fn change(&self, settings: ThrottleSettings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// The settings that are in force.
    pub fn settings(&self) -> Arc<ThrottleSettings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Judges an attempt that has been held for some time already. One that passes counts until its answer is
    /// [told](Throttle::answered).
    pub fn ask(&self, claim: &Claim<'_>, waited: Duration, now: Moment) -> Judgement {
        let settings = self.settings();
        let mut ticket = self.ticket(claim, now.tick());
        if self.allowed(&settings, claim.client, now).is_some() {
            ticket.allowed = true;
            return Judgement::Pass(ticket, None);
        }
        let view = self.view(&settings, &ticket, now.tick());
        ticket.known = view.known;
        let levels = view.levels(&settings, now.tick());
        let enforced = strictest(&levels, Mode::On);
        let refused = |finding: Finding| self.note(claim, finding, Mode::On, now);
        match enforced {
            Some(finding) if finding.action == Action::Refuse => {
                refused(finding);
                return Judgement::Refuse(finding);
            }
            Some(finding) => {
                if let Some(wait) = wait(finding.action, waited, settings.max_delay) {
                    self.note_first_wait(claim, finding, waited, now);
                    return wait.map_or_else(
                        || {
                            refused(finding);
                            Judgement::Refuse(finding)
                        },
                        |time| Judgement::Wait(time, finding),
                    );
                }
            }
            None => {}
        }
        let would = strictest(&levels, Mode::DryRun);
        if let Some(finding) = would {
            self.note(claim, finding, Mode::DryRun, now);
        }
        ticket.share = view.pending_share();
        self.begin(&settings, &ticket);
        Judgement::Pass(ticket, would)
    }

    /// Takes the answer to an attempt that has passed.
    pub fn answered(&self, mut ticket: Ticket, answer: Answered, now: Moment) -> Counted {
        let settings = self.settings();
        self.report(&ticket, answer);
        match answer {
            Answered::Wrong => return self.overdue(&mut ticket, now),
            Answered::Unknown => self.end(&settings, &mut ticket, now.tick()),
            Answered::Accepted if self.has_failed(&settings, &ticket, now.tick()) => {
                self.end(&settings, &mut ticket, now.tick());
                self.make_known(&settings, &ticket, now.tick());
            }
            Answered::Right | Answered::Accepted => {
                self.end(&settings, &mut ticket, now.tick());
                let is_news = self.is_news(&ticket, now.tick());
                self.succeeded(&settings, &ticket, now.tick());
                if is_news {
                    self.tell(&ticket, true);
                }
            }
        }
        Counted::Not
    }

    /// Counts an attempt as failed whose client has been told so, before the server's answer is there. What comes of it
    /// later is told, too.
    pub fn overdue(&self, ticket: &mut Ticket, now: Moment) -> Counted {
        let (settings, now) = (self.settings(), now.tick());
        let Some(left) = ticket.end(now) else {
            return Counted::Not;
        };
        if self.was_tried(ticket, now) {
            self.add_pending(&settings, ticket, -left, now);
            return Counted::Not;
        }
        self.failed(&settings, ticket, (1.0, left), now);
        self.tell(ticket, false);
        if ticket.known {
            Counted::Known
        } else {
            Counted::Stranger
        }
    }

    /// How often each rule has delayed and refused attempts: `(rule, mode, action, count)`.
    pub fn counts(&self) -> impl Iterator<Item = (Rule, Mode, &'static str, u64)> {
        let count =
            |rule: Rule, mode: usize, action: usize| self.counts[rule as usize][mode][action].load(Ordering::Relaxed);
        let modes = [Mode::On, Mode::DryRun].into_iter().enumerate();
        modes.flat_map(move |(at, mode)| {
            Rule::ALL.into_iter().flat_map(move |rule| {
                [
                    (rule, mode, "delayed", count(rule, at, 0)),
                    (rule, mode, "refused", count(rule, at, 1)),
                ]
            })
        })
    }

    /// How many attempts wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.count()
    }

    /// Who has been delayed or refused lately, the latest first.
    pub fn held_off(&self) -> Vec<HeldOff> {
        self.held.list()
    }

    /// What would become of a login now, and why; without side effects.
    pub fn explain(&self, account: &str, client: IpAddr, now: Moment) -> ThrottleReport {
        let settings = self.settings();
        let claim = Claim {
            account,
            client,
            password: None,
            channel: LoginChannel::default(),
        };
        let ticket = self.ticket(&claim, now.tick());
        let view = self.view(&settings, &ticket, now.tick());
        let levels = view.levels(&settings, now.tick());
        let allowed = self.allowed(&settings, client, now);
        let finding = strictest(&levels, Mode::On).filter(|_| allowed.is_none());
        ThrottleReport {
            known: view.known.then(|| self.lane_age(&ticket, now.tick())),
            allowed,
            accounts: view.address.good.round() as u32,
            tolerated: view.address.tolerated() as u32,
            finding,
            levels,
        }
    }

    /// How many different accounts are known to log in from a client's address.
    pub fn accounts_of(&self, client: IpAddr) -> usize {
        let [address, _] = self.network_hashes(ClientNetworks::of(client));
        let known = address.and_then(|hash| self.addresses.peek(hash));
        let words = known.unwrap_or_default();
        let standing = Standing::read(words, self.now().tick(), &self.settings(), Rule::Address);
        standing.good.round() as usize
    }

    /// Forgets the failures of an account, of an address, or of both together; known pairs stay known. Returns how many
    /// things were forgotten.
    pub fn clear(&self, account: Option<&str>, client: Option<IpAddr>) -> usize {
        let key = self.key();
        let networks = client.map(ClientNetworks::of);
        let subjects = self.held.remove(account, networks.map(ClientNetworks::text).as_deref());
        let mut hashes: Vec<u64> = subjects
            .iter()
            .filter_map(|subject| {
                let address = ClientNetworks::of(subject.client).address;
                let account = subject.account.as_deref()?;
                Some(key.hash(Kind::Pair, account, Some(address)))
            })
            .collect();
        let pair = account.zip(networks);
        hashes.extend(pair.map(|(account, networks)| key.hash(Kind::Pair, account, Some(networks.address))));
        hashes.extend(account.map(|account| key.hash(Kind::Account, account, None)));
        hashes.sort_unstable();
        hashes.dedup();
        let cleared = hashes.into_iter().filter(|hash| self.tallies.remove(*hash)).count();
        cleared + networks.map_or(0, |networks| self.clear_address(networks))
    }

    /// Forgets all failures; known pairs stay known.
    pub fn clear_all(&self) {
        self.held.clear();
        self.tallies.clear();
        self.tried.clear();
        *lock(&self.newcomers) = Words::default();
        let now = self.now().tick();
        let settings = self.settings();
        let mut kept = Vec::new();
        self.addresses.each(|place, words| {
            let standing = Standing::read(*words, now, &settings, Rule::Address);
            kept.push((place, words[0], forgiven(standing)));
        });
        for (place, tag, standing) in kept {
            let mut words = [tag; 8];
            standing.write(&mut words, now);
            self.addresses.restore(place, words);
        }
    }

    /// Lets a network through for some time.
    ///
    /// # Errors
    /// There are too many already.
    pub fn allow(&self, allowance: Allowance) -> Result<(), &'static str> {
        self.allowances.add(allowance, self.now())
    }

    /// The networks that are let through for some time.
    pub fn allowances(&self) -> Vec<Allowance> {
        self.allowances.list(self.now())
    }

    /// Ends the allowance of a network. Returns whether there was one.
    pub fn disallow(&self, network: ipnet::IpNet) -> bool {
        self.allowances.remove(network)
    }

    fn clear_address(&self, networks: ClientNetworks) -> usize {
        let (settings, now) = (self.settings(), self.now().tick());
        let forgive = |words: &mut Words<8>| {
            forgiven(Standing::read(*words, now, &settings, Rule::Address)).write(words, now);
        };
        let hashes = self.network_hashes(networks);
        let cleared = |hash: &u64| self.addresses.change_known(*hash, forgive);
        hashes.into_iter().flatten().filter(cleared).count()
    }

    fn network_hashes(&self, networks: ClientNetworks) -> [Option<u64>; 2] {
        let key = self.key();
        let network = networks
            .network
            .map(|network| key.hash(Kind::Network, "", Some(network)));
        [Some(key.hash(Kind::Address, "", Some(networks.address))), network]
    }

    fn key(&self) -> HashKey {
        *self.key.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ticket(&self, claim: &Claim<'_>, now: u32) -> Ticket {
        let (key, networks) = (self.key(), ClientNetworks::of(claim.client));
        let address = Some(networks.address);
        let [of_address, of_network] = self.network_hashes(networks);
        Ticket {
            lane: key.hash(Kind::Lane, claim.account, address),
            pair: key.hash(Kind::Pair, claim.account, address),
            account: key.hash(Kind::Account, claim.account, None),
            address: of_address.unwrap_or_default(),
            network: of_network,
            password: claim.password,
            begun: now,
            known: false,
            allowed: false,
            token: claim.channel.token,
            ended: false,
            share: 1.0,
            whose: self.whose(claim),
            policy: None,
        }
    }

    /// Why the client is let through, if it is on an allow list.
    fn allowed(&self, settings: &ThrottleSettings, client: IpAddr, now: Moment) -> Option<String> {
        let client = client.to_canonical();
        let fixed = settings.allow.iter().find(|network| network.contains(&client));
        fixed
            .map(|network| format!("{network} is always allowed"))
            .or_else(|| self.allowances.reason(client, now))
    }

    fn lane_age(&self, ticket: &Ticket, now: u32) -> Duration {
        let last = self.lanes.peek(ticket.lane).map_or(now, |words| words[1]);
        Duration::from_secs(u64::from(now.saturating_sub(last)) / TICKS as u64)
    }

    fn view(&self, settings: &ThrottleSettings, ticket: &Ticket, now: u32) -> View {
        let tally = |hash, rule| {
            let words = self.tallies.peek(hash).unwrap_or_default();
            Tally::read(words, now, settings.rule(rule).window)
        };
        let standing = |hash, rule| {
            let words = self.addresses.peek(hash).unwrap_or_default();
            Standing::read(words, now, settings, rule)
        };
        let is_fresh = |words: Words<2>| now.saturating_sub(words[1]) <= ticks(settings.known_for);
        View {
            known: self.lanes.peek(ticket.lane).is_some_and(is_fresh),
            token: ticket.token,
            pair: tally(ticket.pair, Rule::Pair),
            account: tally(ticket.account, Rule::Account),
            address: standing(ticket.address, Rule::Address),
            network: ticket.network.map(|hash| standing(hash, Rule::Network)),
            newcomers: Tally::read(*lock(&self.newcomers), now, settings.rule(Rule::Many).window).failures,
        }
    }

    /// Counts an attempt that asks a server.
    fn begin(&self, settings: &ThrottleSettings, ticket: &Ticket) {
        self.add_pending(settings, ticket, 1.0, ticket.begun);
    }

    /// Counts it no more as one without an answer.
    fn end(&self, settings: &ThrottleSettings, ticket: &mut Ticket, now: u32) {
        if let Some(left) = ticket.end(now) {
            self.add_pending(settings, ticket, -left, now);
        }
    }

    fn add_pending(&self, settings: &ThrottleSettings, ticket: &Ticket, by: f32, now: u32) {
        let add = |tally: &mut Tally| tally.pending = (tally.pending + by).max(0.0);
        if !ticket.token {
            self.change_tally(settings, ticket.pair, Rule::Pair, now, add);
        }
        if ticket.known {
            return;
        }
        if !ticket.token {
            self.change_tally(settings, ticket.account, Rule::Account, now, add);
        }
        for (hash, rule) in ticket.networks() {
            self.change_standing(settings, hash, rule, now, |standing| {
                standing.pending = (standing.pending + by * ticket.share).max(0.0);
            });
        }
    }

    fn change_tally(
        &self,
        settings: &ThrottleSettings,
        hash: u64,
        rule: Rule,
        now: u32,
        change: impl FnOnce(&mut Tally),
    ) {
        let window = settings.rule(rule).window;
        self.tallies.change(hash, tally_weight(now, window), |words| {
            let mut tally = Tally::read(*words, now, window);
            change(&mut tally);
            tally.write(words, now);
        });
    }

    fn change_standing(
        &self,
        settings: &ThrottleSettings,
        hash: u64,
        rule: Rule,
        now: u32,
        change: impl FnOnce(&mut Standing),
    ) {
        self.addresses.change(hash, standing_weight(now, settings), |words| {
            let mut standing = Standing::read(*words, now, settings, rule);
            change(&mut standing);
            standing.write(words, now);
        });
    }

    /// Whether the pair has failures that a login would forgive.
    fn has_failed(&self, settings: &ThrottleSettings, ticket: &Ticket, now: u32) -> bool {
        let words = self.tallies.peek(ticket.pair).unwrap_or_default();
        Tally::read(words, now, settings.rule(Rule::Pair).window).failures >= 0.5
    }

    fn succeeded(&self, settings: &ThrottleSettings, ticket: &Ticket, now: u32) {
        self.make_known(settings, ticket, now);
        // Its own failures are forgiven.
        self.tallies.remove(ticket.pair);
    }

    fn make_known(&self, settings: &ThrottleSettings, ticket: &Ticket, now: u32) {
        let last = self.lanes.peek(ticket.lane).map(|words| words[1]);
        let since = last.map(|last| now.saturating_sub(last));
        self.lanes.change(ticket.lane, age_weight, |words| words[1] = now);
        let is_new = since.is_none_or(|since| since > ticks(settings.known_for));
        for (hash, rule) in ticket.networks() {
            let is_first = since.is_none_or(|since| since > ticks(settings.rule(rule).window));
            if !is_first {
                continue;
            }
            self.change_standing(settings, hash, rule, now, |standing| {
                standing.lately += 1.0;
                standing.good += f32::from(u8::from(is_new));
            });
        }
    }

    /// Counts a failure by so much, in the place of an attempt without an answer, of which so much is left.
    fn failed(&self, settings: &ThrottleSettings, ticket: &Ticket, (by, left): (f32, f32), now: u32) {
        let mut is_first = false;
        let most = |rule| most(settings.rule(rule));
        if !ticket.token {
            self.change_tally(settings, ticket.pair, Rule::Pair, now, |pair| {
                is_first = pair.failures < 0.5;
                pair.fail((by, left), most(Rule::Pair) * KNOWN_FACTOR as f32);
            });
        }
        if ticket.known {
            return;
        }
        if !ticket.token {
            self.change_tally(settings, ticket.account, Rule::Account, now, |account| {
                account.fail((by, left), most(Rule::Account));
            });
        }
        let mut is_newcomer = false;
        for (hash, rule) in ticket.networks() {
            self.change_standing(settings, hash, rule, now, |standing| {
                is_newcomer |= rule == Rule::Address && standing.is_newcomer();
                standing.pending = (standing.pending - left * ticket.share).max(0.0);
                standing.failures = (standing.failures + by).min(most(rule) + REMEMBERED * standing.tolerated());
                standing.spread += by * f32::from(u8::from(is_first));
                standing.failed_at = now;
            });
        }
        if is_newcomer {
            let mut words = lock(&self.newcomers);
            let mut all = Tally::read(*words, now, settings.rule(Rule::Many).window);
            all.fail((by, 0.0), most(Rule::Many));
            all.write(&mut words, now);
        }
    }

    /// Whether this password was tried at this account already: it teaches a guesser nothing, and is what a phone with
    /// an old password does.
    fn was_tried(&self, ticket: &Ticket, now: u32) -> bool {
        let Some(mark) = ticket.password else { return false };
        let mut was_tried = false;
        let hash = self.key().tried(ticket.account, mark);
        self.tried.change(hash, age_weight, |words| {
            was_tried = words[1] != 0 && now.saturating_sub(words[1]) <= ticks(TRIED_FOR);
            words[1] = now.max(1);
        });
        was_tried
    }

    /// Counts a finding, and remembers whom it is about.
    fn note(&self, claim: &Claim<'_>, finding: Finding, mode: Mode, now: Moment) {
        let counts = &self.counts[finding.rule as usize][usize::from(mode == Mode::DryRun)];
        let refused = finding.action == Action::Refuse;
        counts[usize::from(refused)].fetch_add(1, Ordering::Relaxed);
        let subject = Subject {
            rule: finding.rule,
            account: Some(claim.account.to_owned()),
            client: ClientNetworks::of(claim.client).address,
        };
        self.held.note(subject, finding, mode, now);
    }

    fn note_first_wait(&self, claim: &Claim<'_>, finding: Finding, waited: Duration, now: Moment) {
        if waited.is_zero() {
            self.note(claim, finding, Mode::On, now);
        }
    }
}

impl Ticket {
    /// What is left of its weight as an attempt without an answer; `None` if it has none, or has ended already.
    fn end(&mut self, now: u32) -> Option<f32> {
        let was_ended = std::mem::replace(&mut self.ended, true);
        (!was_ended && !self.allowed).then(|| faded(1.0_f32.to_bits(), self.begun, now, PENDING))
    }

    fn networks(&self) -> impl Iterator<Item = (u64, Rule)> + use<> {
        let network = self.network.map(|hash| (hash, Rule::Network));
        [(self.address, Rule::Address)].into_iter().chain(network)
    }
}

/// What is known of an attempt when it is judged.
struct View {
    known: bool,
    token: bool,
    pair: Tally,
    account: Tally,
    address: Standing,
    network: Option<Standing>,
    newcomers: f32,
}

impl View {
    /// Every rule that is looked at for it. A pair that is known has only its own.
    fn levels(&self, settings: &ThrottleSettings, now: u32) -> Vec<Level> {
        let mut levels = Vec::with_capacity(Rule::ALL.len());
        let mut add = |level: Option<Level>| levels.extend(level.filter(|level| level.mode != Mode::Off));
        let factor = if self.known { KNOWN_FACTOR as f32 } else { 1.0 };
        let of_pair = limits(settings, Rule::Pair, |limit| limit * factor);
        if !self.token {
            add(Some(level(settings, Rule::Pair, self.pair, &of_pair)));
        }
        if self.known {
            return levels;
        }
        for (standing, rule) in self.standings() {
            let of_network = limits(settings, rule, |limit| limit + standing.tolerated());
            let tally = Tally {
                failures: standing.failures,
                pending: standing.pending,
            };
            add(Some(level(settings, rule, tally, &of_network)));
        }
        add(self.account_level(settings).filter(|_| !self.token));
        let of_spray = limits(settings, Rule::Spray, |limit| limit + self.address.tolerated());
        let spread = Tally {
            failures: self.address.spread,
            pending: 0.0,
        };
        add(Some(level(settings, Rule::Spray, spread, &of_spray)));
        add(Some(self.many_level(settings, now)));
        levels
    }

    fn standings(&self) -> impl Iterator<Item = (Standing, Rule)> + use<> {
        let network = self.network.map(|network| (network, Rule::Network));
        [(self.address, Rule::Address)].into_iter().chain(network)
    }

    /// The account as strangers find it. An address from which several accounts log in, and hardly any fails, is none.
    fn account_level(&self, settings: &ThrottleSettings) -> Option<Level> {
        let delay_from = settings.rule(Rule::Address).delay_from as f32 + self.address.tolerated();
        let is_trusted = self.address.good >= GOOD_STANDING - 0.5 && self.address.failures < delay_from;
        let mut of_account = limits(settings, Rule::Account, |limit| limit);
        of_account.longest = of_account.longest.min(STRANGER_DELAY);
        (!is_trusted).then(|| level(settings, Rule::Account, self.account, &of_account))
    }

    /// While many addresses guess, those that no account has logged in from have a pause after each failure.
    fn many_level(&self, settings: &ThrottleSettings, now: u32) -> Level {
        let rule = settings.rule(Rule::Many);
        let failures = self.address.failures.round();
        let doubled = 2_u32.saturating_pow((failures as u32).saturating_sub(1).min(16));
        let pause = NEWCOMER_PAUSE.saturating_mul(doubled).min(rule.window);
        let since = Duration::from_secs_f64(f64::from(now.saturating_sub(self.address.failed_at)) / TICKS);
        let left = pause.saturating_sub(since);
        let is_on = rule.refuse_from != 0 && self.newcomers.round() >= rule.refuse_from as f32;
        let is_suspect = self.address.is_newcomer() && is_on;
        let action = match (failures >= 1.0 && !left.is_zero(), self.address.pending) {
            (true, _) if is_suspect => Action::Refuse,
            (false, 0.2..) if is_suspect => Action::Turn,
            _ => Action::Pass,
        };
        Level {
            rule: Rule::Many,
            mode: rule.mode,
            failures: self.newcomers,
            pending: 0.0,
            delay_from: 0.0,
            refuse_from: rule.refuse_from as f32,
            action,
            lasts: left,
        }
    }

    /// How much another attempt counts for its address until it is answered: as much as others have failed there.
    fn pending_share(&self) -> f32 {
        let address = self.address;
        let all = address.failures + address.lately;
        let failing = if all > 0.0 { address.failures / all } else { 0.0 };
        failing.clamp(PENDING_SHARE, 1.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ticks(time: Duration) -> u32 {
    (time.as_secs_f64() * TICKS) as u32
}

/// An address without its failures.
fn forgiven(standing: Standing) -> Standing {
    Standing {
        good: standing.good,
        lately: standing.lately,
        ..Standing::default()
    }
}

/// The most failures that are remembered for a rule.
fn most(rule: &RuleSettings) -> f32 {
    REMEMBERED * rule.refuse_from.max(rule.delay_from).max(1) as f32
}

/// The limits of a rule, each changed where it is one.
fn limits(settings: &ThrottleSettings, rule: Rule, change: impl Fn(f32) -> f32) -> Limits {
    let limit = |limit: u32| if limit == 0 { 0.0 } else { change(limit as f32) };
    let rule = settings.rule(rule);
    Limits {
        delay_from: limit(rule.delay_from),
        refuse_from: limit(rule.refuse_from),
        longest: settings.max_delay,
    }
}

fn level(settings: &ThrottleSettings, rule: Rule, tally: Tally, limits: &Limits) -> Level {
    let of_rule = settings.rule(rule);
    let failures = tally.failures.round();
    let reached = |limit: f32, failures: f32| limit != 0.0 && failures >= limit;
    let (action, below) = if reached(limits.refuse_from, failures) {
        (Action::Refuse, limits.refuse_from)
    } else if reached(limits.refuse_from, (tally.failures + tally.pending).round()) {
        (Action::Turn, limits.refuse_from)
    } else if reached(limits.delay_from, failures) {
        let doubled = 2_u32.saturating_pow((failures - limits.delay_from) as u32);
        let delay = FIRST_DELAY.saturating_mul(doubled).min(limits.longest);
        (Action::Delay(delay), limits.delay_from)
    } else {
        (Action::Pass, 0.0)
    };
    Level {
        rule,
        mode: of_rule.mode,
        failures: tally.failures,
        pending: tally.pending,
        delay_from: limits.delay_from,
        refuse_from: limits.refuse_from,
        action,
        lasts: fades_below(tally.failures, below - 0.5, of_rule.window),
    }
}

/// How long failures take to fade below a limit, without further ones.
fn fades_below(failures: f32, limit: f32, window: Duration) -> Duration {
    if limit <= 0.0 || failures <= limit {
        return Duration::ZERO;
    }
    window.mul_f32((failures / limit).log2())
}

/// What the strictest rule of a mode does, if any does something.
fn strictest(levels: &[Level], mode: Mode) -> Option<Finding> {
    let of_mode = levels.iter().filter(|level| level.mode == mode);
    let level = of_mode.max_by_key(|level| (level.action, level.lasts))?;
    (level.action != Action::Pass).then(|| Finding {
        rule: level.rule,
        action: level.action,
        count: level.failures.round() as u32,
        lasts: level.lasts.max(Duration::from_secs(1)),
    })
}

/// How long an attempt still has to wait; `Some(None)`: it has waited in vain. `None`: it may pass.
fn wait(action: Action, waited: Duration, longest: Duration) -> Option<Option<Duration>> {
    match action {
        Action::Delay(delay) if waited < delay => Some(Some(delay - waited)),
        Action::Turn if waited < longest => Some(Some(TURN)),
        Action::Turn => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
