//! Routes that outlive their process: what the next one serves, what it drops first, in which order it asks again, and
//! what it does with a file that cannot be used.
// What cannot be done here is the end of the test.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mail_directory::{AccountBy, Directory, DirectoryError, Entry, News, System, Touched};
use parking_lot::Mutex;
use route_cache::{KeptRoutes, Lookup, RouteCache, Service, Settings, Subject, Tier};
use tempfile::TempDir;
use tokio::sync::broadcast;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A directory that every process of a test asks. All accounts are on `s1` but for those that moved; `alias…` and the
/// id `id…` are other names of `user…`.
struct Town {
    uuid: &'static str,
    down: AtomicBool,
    moved: Mutex<HashMap<String, String>>,
    asked: Mutex<Vec<String>>,
    /// How far it has come, and what it answers to a process that asks what changed.
    point: &'static str,
    changes: Mutex<Option<Vec<&'static str>>>,
    news: broadcast::Sender<News>,
    attribute: &'static str,
}

impl Town {
    fn new() -> Arc<Self> {
        Arc::new(Self::called("one", "zimbraMailHost"))
    }

    fn called(uuid: &'static str, attribute: &'static str) -> Self {
        Self {
            uuid,
            down: AtomicBool::new(false),
            moved: Mutex::default(),
            asked: Mutex::default(),
            point: "csn 1",
            changes: Mutex::new(Some(Vec::new())),
            news: broadcast::Sender::new(64),
            attribute,
        }
    }

    fn questions(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }

    fn go_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn relocate(&self, name: &str) {
        self.moved.lock().insert(name.to_owned(), "s2".to_owned());
    }
}

#[async_trait]
impl Directory for Town {
    fn system(&self) -> Arc<System> {
        let servers = ["s1", "s2"].map(|name| {
            let mut server = Entry::new(name);
            server.set("zimbraImapSSLBindPort", ["7993"]);
            server
        });
        let mut config = Entry::new("config");
        config.set("entryUUID", [self.uuid]);
        config.set("zimbraReverseProxyMailHostAttribute", [self.attribute]);
        Arc::new(System::new(config, servers, [], []))
    }

    async fn account(&self, by: &AccountBy) -> Result<Option<Arc<Entry>>, DirectoryError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(DirectoryError("down".to_owned()));
        }
        let (asked, name) = match by {
            AccountBy::Name(name) => (name.clone(), name.replace("alias", "user")),
            AccountBy::Id(id) => (id.clone(), format!("{}@x.test", id.replace("id", "user"))),
        };
        self.asked.lock().push(asked);
        let mut entry = Entry::new(name.clone());
        let host = self.moved.lock().get(&name).cloned();
        entry.set(self.attribute, [host.unwrap_or_else(|| "s1".to_owned())]);
        Ok((!name.starts_with("gone")).then(|| Arc::new(entry)))
    }

    async fn changed_since(&self, point: &str) -> Result<News, DirectoryError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(DirectoryError("down".to_owned()));
        }
        assert_eq!(point, self.point);
        let touched = |name: &&str| Touched {
            names: vec![(*name).to_owned()],
            ids: Vec::new(),
        };
        Ok(match &*self.changes.lock() {
            Some(names) => News::Touched(names.iter().map(touched).collect()),
            None => News::Unknown,
        })
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }
}

/// A process: its cache and the file that keeps it.
struct Process {
    town: Arc<Town>,
    cache: Arc<RouteCache>,
    kept: Arc<KeptRoutes>,
}

impl Process {
    fn new(town: &Arc<Town>, path: &Path) -> Self {
        let settings = Settings {
            node: "proxy.test".to_owned(),
            capacity: 100_000,
            ttl: HOUR,
            stale: 24 * HOUR,
            negative_ttl: 5 * SECOND,
        };
        let cache = Arc::new(RouteCache::new(settings, town.clone()));
        let kept = Arc::new(KeptRoutes::new(cache.clone(), path.to_owned()));
        let follower = cache.clone();
        tokio::spawn(async move { follower.follow_directory().await });
        Self {
            town: town.clone(),
            cache,
            kept,
        }
    }

    /// The next one, which has loaded the file.
    async fn next(town: &Arc<Town>, path: &Path) -> Self {
        let process = Self::new(town, path);
        process.kept.load().await;
        process
    }

    /// The directory has told all changes up to its point.
    async fn reach(&self) {
        let _ = self.town.news.send(News::Reached(self.town.point.into()));
        settle().await;
    }

    /// Server and tier of the answer, or the error.
    async fn ask(&self, name: &str) -> String {
        match self.cache.route(&login(name)).await {
            Ok(route) => format!("{} {}", route.server, route.tier.name()),
            Err(error) => error.to_string(),
        }
    }

    async fn ask_all(&self, names: &[&str]) {
        for name in names {
            self.ask(name).await;
        }
        self.town.questions();
    }

    fn follow(&self) -> tokio::task::JoinHandle<()> {
        let kept = self.kept.clone();
        tokio::spawn(async move { kept.follow().await })
    }
}

async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn login(name: &str) -> Lookup {
    let address: IpAddr = "192.0.2.1".parse().unwrap();
    Lookup {
        subject: match name.strip_prefix('#') {
            Some(id) => Subject::Id(id.to_owned()),
            None => Subject::Login(name.to_owned()),
        },
        service: Service::Imap,
        client: address,
        local: address,
        host: None,
    }
}

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes.snapshot");
    (dir, path)
}

const SOME: [&str; 4] = ["user1@x.test", "alias2@x.test", "#id3", "user4@x.test"];

/// A file that a process has left, with the routes of [`SOME`].
async fn left_by_a_process(town: &Arc<Town>) -> (TempDir, PathBuf) {
    let (dir, path) = place();
    let process = Process::next(town, &path).await;
    process.reach().await;
    process.ask_all(&SOME).await;
    process.kept.write_last().await;
    (dir, path)
}

#[tokio::test(start_paused = true)]
async fn everybody_seen_before_gets_in_while_the_directory_is_down() {
    let town = Town::new();
    let (_dir, path) = place();
    let process = Process::next(&town, &path).await;
    process.reach().await;
    for i in 0..10_000 {
        process.ask(&format!("user{i}@x.test")).await;
    }
    process.ask_all(&SOME).await;
    process.kept.write_last().await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    town.go_down(true);
    let next = Process::next(&town, &path).await;
    for i in 0..10_000 {
        assert_eq!(next.ask(&format!("user{i}@x.test")).await, "s1 kept_file");
    }
    for name in SOME {
        assert_eq!(next.ask(name).await, "s1 kept_file");
    }
    assert_eq!(next.ask("new@x.test").await, "directory: down");
    // The process after that one, too, although nothing was asked meanwhile.
    next.kept.write_last().await;
    let third = Process::next(&town, &path).await;
    assert_eq!(third.ask("user1@x.test").await, "s1 kept_file");
    town.go_down(false);
    tokio::time::advance(3 * SECOND).await;
    assert_eq!(third.ask("user1@x.test").await, "s1 directory");
}

#[tokio::test(start_paused = true)]
async fn what_changed_meanwhile_is_dropped_first_and_the_rest_serves_at_once() {
    let town = Town::new();
    let (_dir, path) = left_by_a_process(&town).await;
    town.relocate("user2@x.test");
    *town.changes.lock() = Some(vec!["user2@x.test"]);
    let next = Process::next(&town, &path).await;
    assert!(town.questions().is_empty());
    for name in ["user1@x.test", "#id3", "user4@x.test"] {
        assert_eq!(next.ask(name).await, "s1 kept_file");
    }
    assert!(town.questions().is_empty(), "not asked for before it serves");
    assert_eq!(next.ask("alias2@x.test").await, "s2 directory");
    let explained = next.cache.explain(&login("user1@x.test")).await;
    assert_eq!(explained.tiers[0].tier, Tier::KeptFile);
    assert_eq!(explained.route.unwrap().tier, Tier::KeptFile);
}

#[tokio::test(start_paused = true)]
async fn where_it_cannot_be_told_what_changed_nothing_is_believed() {
    let town = Town::new();
    let (_dir, path) = left_by_a_process(&town).await;
    town.relocate("user1@x.test");
    *town.changes.lock() = None;
    let next = Process::next(&town, &path).await;
    assert_eq!(next.ask("user1@x.test").await, "s2 directory");
    assert_eq!(next.ask("user4@x.test").await, "s1 directory");
    town.go_down(true);
    assert_eq!(next.ask("#id3").await, "s1 kept_file");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_returns_says_what_changed_before_anything_is_believed() {
    let town = Town::new();
    let (_dir, path) = left_by_a_process(&town).await;
    town.go_down(true);
    let next = Process::next(&town, &path).await;
    let task = next.follow();
    assert_eq!(next.ask("user1@x.test").await, "s1 kept_file");
    // A later point says nothing about what changed before it, as long as that was not asked.
    let _ = town.news.send(News::Reached("csn 9".into()));
    settle().await;
    town.relocate("user1@x.test");
    *town.changes.lock() = Some(vec!["user1@x.test"]);
    town.go_down(false);
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(next.ask("user1@x.test").await, "s2 directory");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_for_old_is_not_believed_by_the_next_process_either() {
    let town = Town::new();
    let (_dir, path) = place();
    let process = Process::next(&town, &path).await;
    process.reach().await;
    process.ask_all(&SOME).await;
    process.cache.expire();
    process.ask("user4@x.test").await;
    process.cache.forget(&login("#id3"));
    process.kept.write_last().await;
    town.questions();
    let next = Process::next(&town, &path).await;
    assert_eq!(next.ask("user4@x.test").await, "s1 kept_file");
    assert_eq!(next.ask("user1@x.test").await, "s1 directory");
    town.go_down(true);
    assert_eq!(next.ask("alias2@x.test").await, "s1 kept_file");
    assert_eq!(next.ask("#id3").await, "directory: down", "forgotten on demand");
}

#[tokio::test(start_paused = true)]
async fn routes_are_asked_for_again_the_latest_first_and_not_all_at_once() {
    let town = Town::new();
    let (_dir, path) = place();
    let process = Process::next(&town, &path).await;
    process.reach().await;
    let names: Vec<String> = (0..300).map(|i| format!("user{i:03}@x.test")).collect();
    for name in &names {
        process.ask(name).await;
        tokio::time::advance(SECOND).await;
    }
    process.kept.write_last().await;
    town.questions();
    let next = Process::next(&town, &path).await;
    let task = next.follow();
    tokio::time::sleep(SECOND).await;
    let first = town.questions();
    assert!((50..=101).contains(&first.len()), "{}", first.len());
    assert_eq!(first[..3], ["user299@x.test", "user298@x.test", "user297@x.test"]);
    // Nobody is asked while it is down, and nothing is left out.
    town.go_down(true);
    tokio::time::sleep(60 * SECOND).await;
    assert!(town.questions().is_empty());
    town.go_down(false);
    tokio::time::sleep(10 * SECOND).await;
    let rest = town.questions();
    let mut all = [first, rest].concat();
    all.reverse();
    assert_eq!(all, names);
    assert_eq!(next.ask("user000@x.test").await, "s1 memory");
    assert!(town.questions().is_empty());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn accounts_that_are_gone_and_routes_that_are_too_old_do_not_return() {
    let town = Town::new();
    let (_dir, path) = left_by_a_process(&town).await;
    town.go_down(true);
    let settings = |stale| Settings {
        node: "proxy.test".to_owned(),
        capacity: 100,
        ttl: Duration::from_millis(1),
        stale,
        negative_ttl: SECOND,
    };
    for (stale, expected) in [(HOUR, "s1 kept_file"), (Duration::ZERO, "directory: down")] {
        let cache = Arc::new(RouteCache::new(settings(stale), town.clone()));
        KeptRoutes::new(cache.clone(), path.clone()).load().await;
        let answer = match cache.route(&login("user1@x.test")).await {
            Ok(route) => format!("{} {}", route.server, route.tier.name()),
            Err(error) => error.to_string(),
        };
        assert_eq!(answer, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_file_is_written_when_something_changed_and_never_after_the_last_time() {
    let town = Town::new();
    let (_dir, path) = place();
    let process = Process::next(&town, &path).await;
    let task = process.follow();
    tokio::time::sleep(60 * SECOND).await;
    assert!(!path.exists(), "nothing to keep");
    process.ask("user1@x.test").await;
    tokio::time::sleep(5 * SECOND).await;
    let first = fs::read(&path).unwrap();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(fs::read(&path).unwrap(), first);
    process.ask("user2@x.test").await;
    process.kept.write_last().await;
    let second = fs::read(&path).unwrap();
    assert!(second.len() > first.len());
    process.ask("user3@x.test").await;
    tokio::time::sleep(60 * SECOND).await;
    process.kept.write_last().await;
    assert_eq!(fs::read(&path).unwrap(), second, "another process owns it");
    process.kept.write_on();
    tokio::time::sleep(5 * SECOND).await;
    assert!(fs::read(&path).unwrap().len() > second.len());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    task.abort();
}

/// Nothing of the file serves, it stays as it is, and it is set aside before the next one is written.
async fn check_unusable(town: &Arc<Town>, path: &Path, what: &str) {
    let content = fs::read(path).ok();
    let process = Process::next(town, path).await;
    assert!(process.cache.is_empty(), "{what}");
    assert_eq!(fs::read(path).ok(), content, "{what}");
    process.ask("user9@x.test").await;
    process.kept.write_last().await;
    let aside = path.with_file_name("routes.snapshot.unusable");
    assert_eq!(fs::read(&aside).ok(), content, "{what}");
    let next = Process::next(town, path).await;
    assert!(!next.cache.is_empty(), "{what}");
    match aside.is_dir() {
        true => fs::remove_dir(&aside).unwrap(),
        false => fs::remove_file(&aside).unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_set_aside_wherever_the_damage_is() {
    let town = Town::new();
    let (_dir, path) = left_by_a_process(&town).await;
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        for (bytes, what) in [(&flipped[..], "flipped"), (&good[..at], "truncated")] {
            fs::write(&path, bytes).unwrap();
            let process = Process::next(&town, &path).await;
            assert!(process.cache.is_empty(), "{what} at {at} of {}", good.len());
        }
    }
    let (longer, other) = ([&good[..], b"x"].concat(), b"something else".to_vec());
    for (bytes, what) in [
        (&good[..good.len() - 1], "truncated"),
        (&longer, "longer"),
        (&other, "another"),
        (&[], "empty"),
    ] {
        fs::write(&path, bytes).unwrap();
        check_unusable(&town, &path, what).await;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_of_another_version_directory_or_reader_is_set_aside() {
    let town = Town::new();
    let (_dir, path) = left_by_a_process(&town).await;
    let mut other = fs::read(&path).unwrap();
    other[b"portico routes ".len()] = b'0';
    fs::write(&path, other).unwrap();
    check_unusable(&town, &path, "version").await;

    let (_dir, path) = left_by_a_process(&town).await;
    let foreign = Arc::new(Town::called("two", "zimbraMailHost"));
    check_unusable(&foreign, &path, "directory").await;
    let reader = Arc::new(Town::called("two", "otherHost"));
    check_unusable(&reader, &path, "attribute").await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_others_can_read_or_that_is_none_is_set_aside() {
    let town = Town::new();
    for mode in [0o644, 0o640, 0o602] {
        let (_dir, path) = left_by_a_process(&town).await;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        check_unusable(&town, &path, &format!("{mode:o}")).await;
    }
    let (_dir, path) = left_by_a_process(&town).await;
    let elsewhere = path.with_file_name("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    check_unusable(&town, &path, "symlink").await;
    assert!(elsewhere.exists());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    check_unusable(&town, &path, "folder").await;
}

#[tokio::test(start_paused = true)]
async fn a_place_that_cannot_be_written_harms_nothing() {
    let town = Town::new();
    let (dir, _) = place();
    let process = Process::next(&town, &dir.path().join("missing").join("routes")).await;
    let task = process.follow();
    for name in SOME {
        assert_eq!(process.ask(name).await, "s1 directory");
        tokio::time::sleep(3 * SECOND).await;
    }
    process.kept.write_last().await;
    task.abort();
}
