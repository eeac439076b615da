//! What the mailbox servers have said that they can, so that a client is promised nothing before its login that its
//! server lacks.
//!
//! A list is kept for each server; only what is in all of them is promised, since nobody knows yet who comes. A client
//! that has asked for a name in TLS is promised what those servers share that logins under this name have met: mostly
//! those of one domain. A name under which they have met too many is that of no domain, and is promised what all servers
//! share.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a list counts after the last login at its server, as long as others go on: servers come and go.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Servers that are remembered.
const SERVERS: usize = 1024;
/// Names that clients ask for in TLS that are remembered. Where there are more, that goes under which nobody has logged in
/// for longest.
const NAMES: usize = 1024;
/// Octets of such a name (RFC 1035 section 2.3.4).
const NAME: usize = 255;
/// Servers that are told apart under one name. With `NAMES` and `NAME` this bounds what is kept for the next process to
/// some 5 MB.
const SERVERS_OF_NAME: usize = 16;
/// Octets of a list.
const LIST: usize = 4096;

/// How often servers are looked for that nobody logs in at any more: all are looked at then, and not at each login.
const LOOK: Duration = Duration::from_secs(600);

/// How a protocol writes what a server can.
#[derive(Debug)]
pub(crate) struct ListForm {
    /// Between two capabilities.
    pub(crate) separator: char,
    /// What a client can do here before its login, whatever its server is.
    pub(crate) ours: &'static [&'static str],
    /// Whether a capability of a server may stand in our list, and promises something of the server.
    pub(crate) is_theirs: fn(&str) -> bool,
}

/// The capabilities of the mailbox servers, as far as they have been heard.
#[derive(Debug)]
pub struct LearnedCapabilities {
    form: &'static ListForm,
    servers: Mutex<Servers>,
}

#[derive(Debug, Default)]
struct Servers {
    heard: HashMap<Box<str>, Heard>,
    /// What all of them have: made when one of them says something new, and not for each client.
    shared: Option<Arc<str>>,
    /// The servers that logins under a name have met, and what these have.
    names: HashMap<Box<str>, Met>,
    /// When those of old were forgotten the last time.
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Heard {
    list: Box<str>,
    last: Instant,
}

#[derive(Debug)]
struct Met {
    /// One more than are told apart: they are many, and no more are noted.
    servers: BTreeSet<Box<str>>,
    /// `None`: what all servers have.
    shared: Option<Arc<str>>,
    last: Instant,
}

/// What is known of one server, for the next process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedServer {
    /// Host and port.
    pub server: String,
    /// Its capabilities, as its protocol separates them.
    pub list: String,
    /// Names in TLS under which logins have met it.
    pub names: Vec<String>,
}

impl LearnedCapabilities {
    /// Knows nothing yet.
    pub(crate) fn new(form: &'static ListForm) -> Self {
        Self {
            form,
            servers: Mutex::default(),
        }
    }

    /// Notes what a server, named by host and port, has said of itself with a login now, whose client has asked for this
    /// name in TLS. `None`: nothing, and what it has said before still counts.
    pub(crate) fn note(&self, server: &str, name: Option<&str>, list: Option<&str>, now: Instant) {
        let list = list.filter(|list| list.len() <= LIST);
        self.servers.lock().heard(self.form, server, name, list, now);
    }

    /// What all servers have that logins under this name have met, or where there were none, all servers, with what a
    /// client can do here. `None` before any of them has said it.
    pub(crate) fn shared(&self, name: Option<&str>) -> Option<Arc<str>> {
        let servers = self.servers.lock();
        let met = name.and_then(|name| servers.names.get(name));
        let shared = met.and_then(|met| met.shared.as_ref());
        shared.or(servers.shared.as_ref()).cloned()
    }

    /// All that is known, for the next process.
    pub fn kept(&self) -> Vec<LearnedServer> {
        let servers = self.servers.lock();
        let mut names: HashMap<&str, Vec<String>> = HashMap::new();
        for (name, met) in &servers.names {
            for server in &met.servers {
                names.entry(server).or_default().push(name.to_string());
            }
        }
        let kept = servers.heard.iter().map(|(server, heard)| LearnedServer {
            server: server.to_string(),
            list: heard.list.to_string(),
            names: names.remove(&**server).unwrap_or_default(),
        });
        kept.collect()
    }

    /// Takes over what a previous process knew. It counts as heard now.
    pub fn take_over(&self, kept: &[LearnedServer], now: Instant) {
        let mut servers = self.servers.lock();
        for LearnedServer { server, list, names } in kept {
            if list.len() > LIST {
                continue;
            }
            servers.note(server, list, now);
            for name in names {
                servers.meet(server, name, now);
            }
        }
        servers.looked = Some(now);
        servers.share(self.form);
    }
}

impl Servers {
    fn heard(&mut self, form: &ListForm, server: &str, name: Option<&str>, list: Option<&str>, now: Instant) {
        let forgot = self.forget(now);
        let is_new = match list {
            Some(list) => self.note(server, list, now),
            None => self.goes_on(server, now),
        };
        let met = name.filter(|name| self.meet(server, name, now));
        if forgot {
            self.share(form);
        } else if is_new {
            self.share_of(form, server);
        } else if let Some(name) = met {
            self.share_under(form, name);
        }
    }

    /// Returns whether logins under this name have not met the server before, and may be promised something else now.
    fn meet(&mut self, server: &str, name: &str, now: Instant) -> bool {
        if let Some(met) = self.names.get_mut(name) {
            met.last = now;
            return !met.is_of_many() && !met.servers.contains(server) && met.servers.insert(server.into());
        }
        let is_worth_it = name.len() <= NAME && self.heard.contains_key(server);
        if is_worth_it {
            self.make_room_for_name();
            let met = Met {
                servers: [server.into()].into(),
                shared: None,
                last: now,
            };
            self.names.insert(name.into(), met);
        }
        is_worth_it
    }

    fn make_room_for_name(&mut self) {
        if self.names.len() < NAMES {
            return;
        }
        let oldest = self.names.iter().min_by_key(|(_, met)| met.last);
        if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
            self.names.remove(&oldest);
        }
    }

    /// Puts together what all servers have, and those of each name. Those that are forgotten have no word any more.
    fn share(&mut self, form: &ListForm) {
        let heard = &self.heard;
        self.names.retain(|_, met| {
            met.servers.retain(|server| heard.contains_key(server));
            met.share(form, heard);
            !met.servers.is_empty()
        });
        self.shared = self.in_all(form);
    }

    /// The same after one server has said something new: only where it counts.
    fn share_of(&mut self, form: &ListForm, server: &str) {
        let touched = self.names.values_mut().filter(|met| met.servers.contains(server));
        touched.for_each(|met| met.share(form, &self.heard));
        self.shared = self.in_all(form);
    }

    /// The same after logins under one name have met one more server.
    fn share_under(&mut self, form: &ListForm, name: &str) {
        if let Some(met) = self.names.get_mut(name) {
            met.share(form, &self.heard);
        }
    }

    /// Forgets, from time to time, where nobody logs in any more. Returns whether it has looked.
    fn forget(&mut self, now: Instant) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        let due = self.looked.is_none_or(|looked| since(looked) >= LOOK);
        if due {
            self.heard.retain(|_, heard| since(heard.last) < KEPT);
            self.looked = Some(now);
        }
        due
    }

    /// Returns whether that is new.
    fn note(&mut self, server: &str, list: &str, now: Instant) -> bool {
        let known = self.heard.get_mut(server);
        if let Some(heard) = known {
            heard.last = now;
            let is_new = *heard.list != *list;
            if is_new {
                heard.list = list.into();
            }
            return is_new;
        }
        let has_room = self.heard.len() < SERVERS;
        if has_room {
            let list = list.into();
            self.heard.insert(server.into(), Heard { list, last: now });
        }
        has_room
    }

    /// Notes that logins at it go on. Returns that nothing is new.
    fn goes_on(&mut self, server: &str, now: Instant) -> bool {
        if let Some(heard) = self.heard.get_mut(server) {
            heard.last = now;
        }
        false
    }

    fn in_all(&self, form: &ListForm) -> Option<Arc<str>> {
        form.in_all(self.heard.values().map(|heard| &*heard.list))
    }
}

impl Met {
    fn is_of_many(&self) -> bool {
        self.servers.len() > SERVERS_OF_NAME
    }

    fn share(&mut self, form: &ListForm, heard: &HashMap<Box<str>, Heard>) {
        let lists = self.servers.iter().filter_map(|server| heard.get(server));
        self.shared = match self.is_of_many() {
            true => None,
            false => form.in_all(lists.map(|heard| &*heard.list)),
        };
    }
}

impl ListForm {
    /// What all of these lists have, with what a client can do here.
    fn in_all<'a>(&self, mut lists: impl Iterator<Item = &'a str>) -> Option<Arc<str>> {
        let first = lists.next()?;
        let theirs = first.split(self.separator).filter(|one| (self.is_theirs)(one));
        let mut shared: Vec<&str> = theirs.collect();
        for list in lists {
            #[cfg(test)]
            tests::COMPARED.set(tests::COMPARED.get() + 1);
            shared.retain(|one| list.split(self.separator).any(|other| other.eq_ignore_ascii_case(one)));
        }
        let all: Vec<&str> = self.ours.iter().copied().chain(shared).collect();
        Some(all.join(self.separator.encode_utf8(&mut [0; 4])).into())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Lists that were compared with another one.
        pub(super) static COMPARED: Cell<usize> = const { Cell::new(0) };
    }

    static FORM: ListForm = ListForm {
        separator: ' ',
        ours: &["OURS"],
        is_theirs: |one| !one.is_empty() && !one.starts_with("AUTH="),
    };

    fn nothing() -> LearnedCapabilities {
        LearnedCapabilities::new(&FORM)
    }

    #[test]
    fn only_what_all_servers_have_is_shown() {
        let learned = nothing();
        assert_eq!(learned.shared(None), None);
        let note = |server: &str, list: Option<&str>| learned.note(server, None, list, Instant::now());
        note("one:143", None);
        assert_eq!(learned.shared(None), None, "it has said nothing of itself");
        note("one:143", Some("AUTH=PLAIN IDLE Move  QUOTA ACL"));
        let shared = || learned.shared(None).unwrap().to_string();
        assert_eq!(shared(), "OURS IDLE Move QUOTA ACL");
        note("two:143", Some("MOVE IDLE XLIST"));
        assert_eq!(shared().split(' ').count(), 3, "{}", shared());
        note("two:143", Some("ACL"));
        assert_eq!(shared(), "OURS ACL");
        note("two:143", None);
        assert_eq!(shared(), "OURS ACL");
    }

    /// A name is promised what its own servers have, also by the next process.
    #[test]
    fn each_name_has_its_servers() {
        let (learned, now) = (nothing(), Instant::now());
        let note = |server: &str, name: Option<&str>, list: &str| {
            learned.note(server, name, Some(list), now);
        };
        note("one:143", Some("a.test"), "IDLE MOVE");
        note("two:143", Some("b.test"), "IDLE ACL");
        let check = |learned: &LearnedCapabilities, name: Option<&str>, expected: &str| {
            let shared = learned.shared(name).unwrap();
            assert_eq!(*shared, *format!("OURS {expected}"), "{name:?}");
        };
        check(&learned, Some("a.test"), "IDLE MOVE");
        check(&learned, Some("b.test"), "IDLE ACL");
        check(&learned, Some("c.test"), "IDLE");
        check(&learned, None, "IDLE");
        note("two:143", Some("a.test"), "IDLE ACL");
        check(&learned, Some("a.test"), "IDLE");
        // What a server says newly counts for every name.
        note("two:143", None, "IDLE MOVE ACL");
        check(&learned, Some("a.test"), "IDLE MOVE");
        let next = nothing();
        next.take_over(&learned.kept(), now);
        check(&next, Some("a.test"), "IDLE MOVE");
        check(&next, Some("b.test"), "IDLE MOVE ACL");
        check(&next, None, "IDLE MOVE");
    }

    /// Whoever can log in can ask for any name that a certificate with a `*` is good for.
    #[test]
    fn of_the_names_that_goes_under_which_nobody_has_logged_in_for_longest() {
        let (learned, begun) = (nothing(), Instant::now());
        let note = |server: &str, name: &str, list: &str, at: usize| {
            let now = begun + Duration::from_millis(at as u64);
            learned.note(server, Some(name), Some(list), now);
        };
        let shared = |name: &str| learned.shared(Some(name)).unwrap().to_string();
        note("all:143", "other.test", "IDLE", 0);
        note("one:143", "used.test", "IDLE MOVE", 0);
        note("one:143", "left.test", "IDLE MOVE", 1);
        for n in 2..2 * NAMES {
            note("one:143", &format!("n{n}.test"), "IDLE MOVE", n);
            note("one:143", "used.test", "IDLE MOVE", n);
        }
        assert_eq!(learned.servers.lock().names.len(), NAMES);
        assert_eq!(shared("used.test"), "OURS IDLE MOVE");
        assert_eq!(shared("left.test"), "OURS IDLE", "that of all");
        note("one:143", &"n".repeat(NAME + 1), "IDLE MOVE", 0);
        assert!(!learned.servers.lock().names.contains_key("n".repeat(NAME + 1).as_str()));
    }

    /// Such a name is promised what all servers share, also by the next process.
    #[test]
    fn a_name_of_many_servers_is_that_of_no_domain() {
        let (learned, now) = (nothing(), Instant::now());
        let note = |learned: &LearnedCapabilities, n: usize, name: Option<&str>, list: &str| {
            learned.note(&format!("store{n}:143"), name, Some(list), now);
        };
        let is_promised_move = |learned: &LearnedCapabilities| learned.shared(Some("a.test")).unwrap().contains("MOVE");
        note(&learned, 0, None, "IDLE");
        for n in 1..=SERVERS_OF_NAME {
            note(&learned, n, Some("a.test"), "IDLE MOVE");
            assert!(is_promised_move(&learned), "{n}");
        }
        for n in SERVERS_OF_NAME + 1..=2 * SERVERS_OF_NAME {
            note(&learned, n, Some("a.test"), "IDLE MOVE");
            assert!(!is_promised_move(&learned), "{n}");
        }
        let kept = learned.kept();
        let named = kept.iter().filter(|server| !server.names.is_empty());
        assert_eq!(named.count(), SERVERS_OF_NAME + 1);
        let next = nothing();
        next.take_over(&kept, now);
        assert!(!is_promised_move(&next));
    }

    /// Everybody who asks what can be done waits for it.
    #[test]
    fn what_is_new_costs_no_more_than_it_concerns() {
        const ALL: usize = 100;
        let (learned, now) = (nothing(), Instant::now());
        let names: Vec<String> = (0..ALL).map(|n| format!("n{n}.test")).collect();
        let kept = |n: usize| LearnedServer {
            server: format!("store{n}:143"),
            list: "IDLE".to_owned(),
            names: names.clone(),
        };
        let cost = |work: &dyn Fn()| {
            COMPARED.set(0);
            work();
            COMPARED.get()
        };
        let kept: Vec<LearnedServer> = (0..10).map(kept).collect();
        assert_eq!(cost(&|| learned.take_over(&kept, now)), (ALL + 1) * 9);
        let note = |server: &str, name: &str, list: &str| cost(&|| learned.note(server, Some(name), Some(list), now));
        assert_eq!(
            note("new:143", "own.test", "IDLE"),
            10,
            "what all have, and one name with one server"
        );
        assert_eq!(note("new:143", "n1.test", "IDLE"), 10, "one name");
        assert_eq!(note("new:143", "n1.test", "IDLE"), 0);
        assert_eq!(note("new:143", "own.test", "MOVE"), 20, "what all have, and two names");
        assert_eq!(learned.shared(Some("own.test")).as_deref(), Some("OURS MOVE"));
        assert_eq!(learned.shared(Some("n1.test")).as_deref(), Some("OURS"));
    }

    #[test]
    fn lists_and_servers_are_bounded() {
        let learned = nothing();
        let note = |server: &str, list: &str| learned.note(server, None, Some(list), Instant::now());
        note("one:143", &"X".repeat(LIST + 1));
        assert_eq!(learned.shared(None), None);
        for n in 0..2 * SERVERS {
            note(&format!("store{n}:143"), "IDLE");
        }
        assert_eq!(learned.servers.lock().heard.len(), SERVERS);
    }

    #[test]
    fn a_server_that_nobody_logs_in_at_does_not_count_for_ever() {
        let (learned, begun) = (nothing(), Instant::now());
        learned.note("old:143", None, Some("IDLE"), begun);
        learned.note("new:143", None, Some("MOVE"), begun + KEPT / 2);
        assert_eq!(learned.shared(None).as_deref(), Some("OURS"));
        learned.note("new:143", None, Some("MOVE"), begun + KEPT);
        assert_eq!(learned.shared(None).as_deref(), Some("OURS MOVE"));
    }
}
