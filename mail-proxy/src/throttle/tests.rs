//! The model under attack, with a clock of the test's own.

use super::*;

const START: Moment = Moment(Duration::from_secs(1_800_000_000));
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A throttle, the time, and what became of the attempts.
struct World {
    throttle: Throttle,
    now: Moment,
    reached: u32,
    held: Duration,
    guesses: u64,
}

impl World {
    fn new() -> Self {
        Self::with(ThrottleSettings::default())
    }

    fn with(settings: ThrottleSettings) -> Self {
        Self {
            throttle: Throttle::new(settings),
            now: START,
            reached: 0,
            held: Duration::ZERO,
            guesses: 0,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    /// One attempt, which waits if it must, on a clock that stands still for all others. `None`: it was refused.
    fn attempt(&mut self, account: &str, client: IpAddr, password: &[u8], answer: Answered) -> Option<Duration> {
        let claim = Claim {
            account,
            client,
            password: Some(PasswordMark::of(password)),
            channel: LoginChannel::default(),
        };
        let mut waited = Duration::ZERO;
        loop {
            match self.throttle.ask(&claim, waited, self.now) {
                Judgement::Refuse(_) => return None,
                Judgement::Wait(time, _) => waited += time,
                Judgement::Pass(ticket, _) => {
                    self.throttle.answered(ticket, answer, self.now);
                    self.reached += 1;
                    self.held += waited;
                    return Some(waited);
                }
            }
        }
    }

    /// A password that was never tried.
    fn guess(&mut self, account: &str, client: IpAddr) -> Option<Duration> {
        self.guesses += 1;
        let password = self.guesses.to_be_bytes();
        self.attempt(account, client, &password, Answered::Wrong)
    }

    fn login(&mut self, account: &str, client: IpAddr) -> Option<Duration> {
        self.attempt(account, client, b"right", Answered::Right)
    }
}

fn ip(number: u32) -> IpAddr {
    IpAddr::from((0x0b00_0000 + number).to_be_bytes())
}

fn user(number: usize) -> String {
    format!("user{number}@a.test")
}

#[test]
fn one_address_guesses_at_one_account() {
    let mut world = World::new();
    for _ in 0..10_000 {
        world.guess("alice@a.test", ip(1));
    }
    assert_eq!(world.reached, 12, "the first ones");
    // All day long.
    for _ in 0..24 * 60 {
        world.pass(MINUTE);
        world.guess("alice@a.test", ip(1));
    }
    assert!(world.reached < 450, "{}", world.reached);
}

#[test]
fn delays_grow_before_refusals_come() {
    let mut world = World::new();
    let delays: Vec<_> = (0..13).map(|_| world.guess("alice@a.test", ip(1))).collect();
    let seconds = |delay: &Option<Duration>| delay.map(|delay| delay.as_secs());
    let expected = [0, 0, 0, 0, 1, 2, 4, 8, 8, 8, 8, 8].map(Some).into_iter().chain([None]);
    assert!(delays.iter().map(seconds).eq(expected), "{delays:?}");
}

/// Fifty connections made a hundred guesses in a quarter of a minute, and none was refused.
#[test]
fn many_attempts_at_once_are_no_more_than_one_after_the_other() {
    let world = World::new();
    let mut tickets = Vec::new();
    let (mut waits, mut refused) = (0, 0);
    for _ in 0..50 {
        let claim = Claim {
            account: "alice@a.test",
            client: ip(1),
            password: None,
            channel: LoginChannel::default(),
        };
        match world.throttle.ask(&claim, Duration::ZERO, world.now) {
            Judgement::Pass(ticket, _) => tickets.push(ticket),
            Judgement::Wait(..) => waits += 1,
            Judgement::Refuse(_) => refused += 1,
        }
    }
    assert_eq!((tickets.len(), waits, refused), (12, 38, 0));
    for ticket in tickets {
        world.throttle.answered(ticket, Answered::Wrong, world.now);
    }
    let claim = Claim {
        account: "alice@a.test",
        client: ip(1),
        password: None,
        channel: LoginChannel::default(),
    };
    let late = world.throttle.ask(&claim, Duration::from_secs(1), world.now);
    assert!(matches!(late, Judgement::Refuse(_)), "{late:?}");
}

#[test]
fn one_address_sprays_many_accounts() {
    let mut world = World::new();
    for n in 0..100_000 {
        world.guess(&user(n), ip(1));
    }
    assert_eq!(world.reached, 20, "spray: one password each");
    let mut world = World::new();
    // Some accounts, many passwords.
    for n in 0..100_000 {
        world.guess(&user(n % 6), ip(1));
    }
    assert_eq!(world.reached, 30, "address");
}

#[test]
fn many_addresses_guess_at_one_account_and_its_owner_gets_in() {
    let mut world = World::new();
    let home = ip(1);
    assert_eq!(world.login("alice@a.test", home), Some(Duration::ZERO));
    let before = world.reached;
    for n in 0..100_000 {
        world.guess("alice@a.test", ip(1_000 + n));
        if n % 1_000 == 0 {
            assert_eq!(world.login("alice@a.test", home), Some(Duration::ZERO), "{n}");
            world.reached -= 1;
        }
    }
    assert_eq!(world.reached - before, 60);
    // For a month.
    for n in 0..30 * 24 {
        world.pass(HOUR);
        world.guess("alice@a.test", ip(n));
        if n % 24 == 0 {
            assert_eq!(world.login("alice@a.test", home), Some(Duration::ZERO));
        }
    }
    // She also gets in from an office where others do, and where she never was.
    for n in 0..10 {
        world.login(&user(n), ip(2));
    }
    for n in 0..1_000 {
        world.guess("alice@a.test", ip(1_000 + n));
    }
    assert_eq!(
        world.login("alice@a.test", ip(3)),
        None,
        "a stranger at an account under attack"
    );
    assert_eq!(world.login("alice@a.test", ip(2)), Some(Duration::ZERO));
}

#[test]
fn many_addresses_try_three_times_each() {
    for addresses in [10_000, 100_000] {
        let mut world = World::new();
        for round in 0..3 {
            for n in 0..addresses {
                world.guess(&user(round * addresses + n), ip(n as u32));
                if n % 100 == 0 {
                    world.pass(Duration::from_millis(10));
                }
            }
        }
        // Once it is known that many guess, an address has one try a minute, then one in two minutes.
        let most = addresses as u32 + 2_000;
        assert!(world.reached < most, "{} of {addresses} addresses", world.reached);
        // Meanwhile an honest stranger's first login is not delayed at all.
        let stranger = world.login("bob@a.test", ip(0x10_0000));
        assert_eq!(stranger, Some(Duration::ZERO));
        // One who has mistyped may try again after a minute.
        let mistyped = ip(0x10_0001);
        world.guess("carol@a.test", mistyped);
        assert_eq!(world.login("carol@a.test", mistyped), None);
        world.pass(MINUTE);
        assert!(world.login("carol@a.test", mistyped).is_some());
    }
}

/// What reaches a mailbox server of attacks by so many addresses in their first minute and in all, with the defaults and
/// a clock of the test's own: printed for docs/throttle.md.
#[test]
fn guesses_a_minute_that_reach_a_server() {
    struct Attack {
        name: &'static str,
        addresses: usize,
        accounts: usize,
        a_second: usize,
        guesses: usize,
        most_at_first: u32,
        most: u32,
    }
    let one_hour = Attack {
        name: "one address, one account, for an hour",
        addresses: 1,
        accounts: 1,
        a_second: 10,
        guesses: 36_000,
        most_at_first: 13,
        most: 12 + 17,
    };
    let attacks = [
        Attack {
            name: "one address, 100 accounts, for an hour",
            accounts: 100,
            most_at_first: 20,
            most: 72,
            ..one_hour
        },
        Attack {
            name: "1,000 addresses, one account, for an hour",
            addresses: 1_000,
            most_at_first: 61,
            most: 60 + 84,
            ..one_hour
        },
        Attack {
            name: "10,000 addresses, three tries each in a minute",
            addresses: 10_000,
            accounts: 30_000,
            a_second: 500,
            guesses: 30_000,
            most_at_first: 10_000 + 1_000,
            most: 10_000 + 1_000,
        },
        one_hour,
    ];
    println!(
        "{:48} {:>8} {:>12} {:>8}",
        "attack", "guesses", "first minute", "in all"
    );
    for attack in attacks {
        let (mut world, mut at_first) = (World::new(), 0);
        world.login("alice@a.test", ip(0x20_0000));
        world.reached = 0;
        for n in 0..attack.guesses {
            world.guess(&user(n % attack.accounts), ip((n % attack.addresses) as u32));
            if n % attack.a_second == attack.a_second - 1 {
                world.pass(Duration::from_secs(1));
            }
            if n + 1 == 60 * attack.a_second {
                at_first = world.reached;
            }
        }
        let (name, reached) = (attack.name, world.reached);
        println!("{name:48} {:>8} {at_first:>12} {reached:>8}", attack.guesses);
        assert!(
            at_first <= attack.most_at_first && reached <= attack.most,
            "{name}: {at_first}, {reached}"
        );
        // Whoever is known, and whoever comes for the first time and is not attacked, waits for nothing.
        for (account, from) in [("alice@a.test", ip(0x20_0000)), ("bob@a.test", ip(0x20_0001))] {
            assert_eq!(world.login(account, from), Some(Duration::ZERO), "{name}: {account}");
        }
    }
}

/// Monday morning in an office of 200 behind one address, with three phones that have old passwords, and no one known
/// yet.
#[test]
fn an_office_is_not_delayed() {
    let mut world = World::new();
    let office = ip(1);
    for round in 0..20 {
        for n in 0..200 {
            assert_eq!(world.login(&user(n), office), Some(Duration::ZERO), "{round} {n}");
            if n < 3 {
                let phone = world.attempt(&user(n), office, b"last year's", Answered::Wrong);
                assert_eq!(phone, Some(Duration::ZERO));
            }
        }
        // Some mistype.
        for n in 0..10 {
            assert_eq!(world.guess(&user(round * 10 + n), office), Some(Duration::ZERO));
        }
        world.pass(5 * MINUTE);
    }
    assert_eq!(world.held, Duration::ZERO);
}

#[test]
fn tolerance_grows_with_the_logarithm_of_the_accounts() {
    for (accounts, tolerated) in [(0, 0), (1, 0), (10, 3), (100, 58), (1_000, 1_000), (3_000, 3_000)] {
        let mut world = World::new();
        for n in 0..accounts {
            world.login(&user(n), ip(1));
            // One account that logs in often is still one.
            world.login(&user(0), ip(1));
        }
        let report = world.throttle.explain("stranger@a.test", ip(1), world.now);
        let (found, wanted) = (report.tolerated, tolerated);
        assert!(found.abs_diff(wanted) <= wanted / 20, "{accounts}: {found}");
    }
}

/// One who has one good password cannot earn the right to guess at others by using it.
#[test]
fn one_good_account_buys_no_guesses() {
    let mut world = World::new();
    for _ in 0..1_000 {
        world.login("eve@a.test", ip(1));
    }
    world.reached = 0;
    for n in 0..10_000 {
        world.guess(&user(n), ip(1));
        world.login("eve@a.test", ip(1));
        world.reached -= 1;
    }
    assert_eq!(world.reached, 20);
}

#[test]
fn the_same_wrong_password_counts_once() {
    let mut world = World::new();
    for n in 0..10_000 {
        let old = world.attempt("alice@a.test", ip(n % 50), b"old", Answered::Wrong);
        assert_eq!(old, Some(Duration::ZERO));
    }
    let report = world.throttle.explain("alice@a.test", ip(0), world.now);
    assert!(report.levels.iter().all(|level| level.failures <= 1.0), "{report:?}");
    // At another account it is another guess.
    for n in 0..100 {
        world.attempt(&user(n), ip(1), b"old", Answered::Wrong);
    }
    assert_eq!(world.attempt("bob@a.test", ip(1), b"old", Answered::Wrong), None);
}

#[test]
fn a_known_account_has_its_own_lane() {
    let mut world = World::new();
    let shared = ip(1);
    world.login("alice@a.test", shared);
    for n in 0..1_000 {
        world.guess(&user(n), shared);
    }
    assert_eq!(world.login("bob@a.test", shared), None, "a stranger from a bad address");
    assert_eq!(world.login("alice@a.test", shared), Some(Duration::ZERO));
    // Her own few failures are forgiven, but she is not guessed at from there without end.
    for _ in 0..11 {
        assert_eq!(world.guess("alice@a.test", shared), Some(Duration::ZERO));
    }
    world.login("alice@a.test", shared);
    let before = world.reached;
    for _ in 0..1_000 {
        world.guess("alice@a.test", shared);
    }
    assert_eq!(world.reached - before, 36);
    // After a month without a login she is a stranger again.
    world.pass(31 * DAY);
    assert!(
        world
            .throttle
            .explain("alice@a.test", shared, world.now)
            .known
            .is_none()
    );
}

#[test]
fn a_network_of_48_bits_has_its_own_limit() {
    let mut world = World::new();
    for n in 0..10_000_u128 {
        let client = IpAddr::from((0x2001_0db8_0001_u128 << 80 | n << 64).to_be_bytes());
        world.guess(&user(n as usize), client);
    }
    assert_eq!(world.reached, 150);
}

#[test]
fn failures_of_the_system_count_nothing() {
    let mut world = World::new();
    for n in 0..10_000 {
        let password = [n as u8, (n >> 8) as u8];
        let attempt = world.attempt("alice@a.test", ip(1), &password, Answered::Unknown);
        assert_eq!(attempt, Some(Duration::ZERO), "{n}");
    }
}

#[test]
fn rules_can_be_off_or_only_recorded() {
    let of_mode = |mode: Mode| {
        let mut settings = ThrottleSettings::default();
        settings.rules.iter_mut().for_each(|rule| rule.mode = mode);
        let mut world = World::with(settings);
        for _ in 0..100 {
            world.guess("alice@a.test", ip(1));
        }
        let counted: u64 = world.throttle.counts().map(|(.., count)| count).sum();
        (world.reached, counted, world.throttle.held_off().len())
    };
    assert_eq!(of_mode(Mode::Off), (100, 0, 0));
    let (reached, counted, held) = of_mode(Mode::DryRun);
    assert!(
        reached == 100 && counted == 96 && held > 0,
        "{reached} {counted} {held}"
    );
    let (reached, counted, _) = of_mode(Mode::On);
    assert_eq!((reached, counted), (12, 96));
}

#[test]
fn allowed_networks_are_let_through() {
    let mut settings = ThrottleSettings::default();
    settings.allow.push("11.0.0.1/32".parse().unwrap());
    let mut world = World::with(settings);
    // Where allowances end by the clock of the throttle.
    world.now = world.throttle.now();
    for _ in 0..100 {
        assert_eq!(world.guess("alice@a.test", ip(1)), Some(Duration::ZERO));
        world.guess("alice@a.test", ip(2));
    }
    assert_eq!(world.guess("alice@a.test", ip(2)), None);
    let until = world.now.after(HOUR);
    let allowance = Allowance {
        network: "11.0.0.2/32".parse().unwrap(),
        until,
        reason: "a fair".to_owned(),
    };
    world.throttle.allow(allowance.clone()).unwrap();
    assert_eq!(world.guess("alice@a.test", ip(2)), Some(Duration::ZERO));
    let report = world.throttle.explain("alice@a.test", ip(2), world.now);
    assert!(report.finding.is_none() && report.allowed.is_some_and(|why| why.contains("a fair")));
    assert!(world.throttle.disallow(allowance.network) && !world.throttle.disallow(allowance.network));
    assert_eq!(world.guess("alice@a.test", ip(2)), None);
    world.throttle.allow(allowance).unwrap();
    world.now = until;
    world.pass(MINUTE);
    let report = world.throttle.explain("alice@a.test", ip(2), world.now);
    assert!(report.allowed.is_none());
}

#[test]
fn what_is_cleared_begins_anew() {
    let mut world = World::new();
    world.login("alice@a.test", ip(9));
    for n in 0..100 {
        world.guess("alice@a.test", ip(1));
        world.guess(&user(n), ip(2));
    }
    assert_eq!(world.guess("alice@a.test", ip(1)), None);
    assert!(
        world.throttle.clear(Some("alice@a.test"), None) >= 2,
        "the account, and its pairs"
    );
    // The address has failed, too, and is still delayed for that.
    assert!(world.guess("alice@a.test", ip(1)).is_some());
    assert_eq!(world.guess("bob@a.test", ip(2)), None);
    assert!(world.throttle.clear(None, Some(ip(2))) >= 1);
    assert_eq!(world.guess("bob@a.test", ip(2)), Some(Duration::ZERO));
    world.throttle.clear_all();
    assert!(world.throttle.held_off().is_empty());
    assert!(
        world.throttle.explain("alice@a.test", ip(9), world.now).known.is_some(),
        "it stays known"
    );
}

/// A million addresses fail once or twice: what is known of others stays, and the size stays what it is.
#[test]
fn a_flood_of_addresses_forgets_what_matters_least() {
    let mut world = World::new();
    let office = ip(0xff_0000);
    for n in 0..500 {
        world.login(&user(n), office);
    }
    for _ in 0..100 {
        world.guess("alice@a.test", ip(0xfe_0000));
    }
    for n in 0..1_000_000 {
        world.guess(&user(1_000 + n), ip(n as u32));
    }
    for n in 0..500 {
        assert_eq!(world.login(&user(n), office), Some(Duration::ZERO));
    }
    assert!(world.throttle.explain("bob@a.test", office, world.now).accounts >= 499);
    assert_eq!(
        world.guess("alice@a.test", ip(0xfe_0000)),
        None,
        "a guesser is not forgotten for them"
    );
    let bytes = world.throttle.lanes.bytes()
        + world.throttle.addresses.bytes()
        + world.throttle.tallies.bytes()
        + world.throttle.tried.bytes();
    assert!(bytes <= 64 << 20, "{bytes}");
}

#[tokio::test(start_paused = true)]
async fn attempts_wait_in_a_bounded_number() {
    let settings = ThrottleSettings {
        max_waiting: 20,
        ..ThrottleSettings::default()
    };
    let throttle = Arc::new(Throttle::new(settings));
    let claim = |n: u32| Claim {
        account: "alice@a.test",
        client: ip(n),
        password: None,
        channel: LoginChannel::default(),
    };
    for _ in 0..5 {
        let admitted = throttle.admit(&claim(1)).await.unwrap();
        throttle.answered(admitted.ticket, Answered::Wrong, throttle.now());
    }
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let throttle = throttle.clone();
        tasks.spawn(async move { throttle.admit(&claim(1)).await.map(|admitted| admitted.held) });
    }
    let results = tasks.join_all().await;
    let held: Vec<_> = results.iter().flatten().collect();
    assert_eq!(held.len(), 2, "a tenth of the places: {results:?}");
    assert!(held.iter().all(|held| held.as_secs() == 2), "{held:?}");
    assert_eq!(throttle.waiting(), 0);
}

/// A phone whose token has expired locks nobody out of the account, and an address that sends many bad ones is held off.
#[test]
fn failures_of_tokens_count_for_the_address() {
    let throttle = Throttle::new(ThrottleSettings::default());
    let (mut now, channel) = (
        throttle.now(),
        LoginChannel {
            token: true,
            ..LoginChannel::default()
        },
    );
    let mut send = |account: &str, n: u32, answer| {
        let claim = Claim {
            account,
            client: ip(1),
            password: Some(PasswordMark::of(&n.to_be_bytes())),
            channel,
        };
        now = now.after(Duration::from_millis(250));
        match throttle.ask(&claim, Duration::from_secs(60), now) {
            Judgement::Pass(ticket, _) => {
                throttle.answered(ticket, answer, now);
            }
            _ => return false,
        }
        true
    };
    // The same one counts once.
    assert!((0..100).all(|_| send("alice@a.test", 0, Answered::Wrong)));
    let passed = (1..100).filter(|n| send("alice@a.test", *n, Answered::Wrong)).count();
    assert_eq!(
        passed,
        29,
        "{:?}",
        throttle.explain("alice@a.test", ip(1), throttle.now())
    );
    let report = throttle.explain("alice@a.test", ip(2), throttle.now());
    assert!(
        report
            .levels
            .iter()
            .all(|level| level.rule == Rule::Many || level.failures < 0.5)
    );
    // Where the account is known, its tokens are not looked at.
    throttle.clear(None, Some(ip(1)));
    assert!(send("bob@a.test", 0, Answered::Right));
    assert!((0..100).all(|n| send("bob@a.test", n, Answered::Wrong)));
}
