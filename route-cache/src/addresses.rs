//! Which mailbox server has an address.
//!
//! memcached and lookup services answer with an address and a port; routes name servers of the directory. An
//! [`AddressBook`] holds the addresses of all mailbox servers at one moment, so that a login waits for no resolver.
//! An address that is not in it belongs to no server.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mail_directory::attributes;
use mail_directory::{System, View};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::placement::PlacementAttributes;
use crate::protocol::Protocol;

/// How long addresses are used before they are looked up again, as in the book of host names that connections use.
const FRESH: Duration = Duration::from_secs(30);
/// How long the resolver may take for one name. What it does not say is left out.
const PATIENCE: Duration = Duration::from_secs(3);

/// Host names to addresses.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of a host (a name or an address).
    ///
    /// # Errors
    /// The name is unknown, or no resolver answers.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// Knows addresses by themselves, and no names.
#[derive(Debug, Clone, Copy, Default)]
pub struct Literal;

#[async_trait]
impl Resolve for Literal {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let address = host.parse().map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(vec![address])
    }
}

/// The addresses of the mailbox servers.
pub struct AddressBook {
    resolver: Arc<dyn Resolve>,
    page: watch::Sender<Option<Arc<Page>>>,
    turning: AtomicBool,
}

/// The addresses of the mailbox servers of one system.
pub(crate) struct Page {
    system: Arc<System>,
    at: Instant,
    /// Folded entry names.
    servers: HashMap<IpAddr, Vec<Arc<str>>>,
    addresses: HashMap<Arc<str>, IpAddr>,
    /// Whether every name had an address.
    complete: bool,
    suffice: bool,
}

impl AddressBook {
    /// An empty book.
    pub fn new(resolver: Arc<dyn Resolve>) -> Arc<Self> {
        Arc::new(Self {
            resolver,
            page: watch::Sender::new(None),
            turning: AtomicBool::new(false),
        })
    }

    /// The page for a system. A new one is written by a task of its own, so that a caller that gives up after
    /// `patience` leaves it to the next; an old one serves until then.
    pub(crate) async fn page(self: &Arc<Self>, system: &Arc<System>, patience: Duration) -> Option<Arc<Page>> {
        if let Some(page) = self.current(system) {
            if page.at.elapsed() >= FRESH {
                self.turn(system);
            }
            return Some(page);
        }
        let mut pages = self.page.subscribe();
        self.turn(system);
        let is_of = |page: &Option<Arc<Page>>| page.as_ref().is_some_and(|page| page.is_of(system));
        let page = timeout(patience, pages.wait_for(is_of)).await.ok()?.ok()?;
        page.clone()
    }

    /// The page for a system, if there is one already.
    pub(crate) fn current(&self, system: &Arc<System>) -> Option<Arc<Page>> {
        self.page.borrow().clone().filter(|page| page.is_of(system))
    }

    /// The address of any host, for callers that have to name one.
    pub(crate) async fn resolve(&self, host: &str) -> Option<IpAddr> {
        let found = timeout(PATIENCE, self.resolver.resolve(host)).await.ok()?.ok()?;
        preferred(&found)
    }

    fn turn(self: &Arc<Self>, system: &Arc<System>) {
        if self.turning.swap(true, Ordering::AcqRel) {
            return;
        }
        let (book, system) = (self.clone(), system.clone());
        tokio::spawn(async move {
            let page = Page::write(&*book.resolver, system).await;
            book.page.send_replace(Some(Arc::new(page)));
            book.turning.store(false, Ordering::Release);
        });
    }
}

impl Page {
    async fn write(resolver: &dyn Resolve, system: Arc<System>) -> Self {
        let mut page = Self {
            at: Instant::now(),
            servers: HashMap::new(),
            addresses: HashMap::new(),
            complete: true,
            suffice: suffice(&system),
            system: system.clone(),
        };
        for server in system.mailbox_servers() {
            let (Some(key), host) = (system.server_key(server.name()), host_of(server)) else {
                continue;
            };
            match timeout(PATIENCE, resolver.resolve(host)).await {
                Ok(Ok(addresses)) => page.add(key, &addresses),
                Ok(Err(_)) | Err(_) => page.complete = false,
            }
        }
        page
    }

    fn add(&mut self, server: &Arc<str>, addresses: &[IpAddr]) {
        for address in addresses {
            self.servers
                .entry(address.to_canonical())
                .or_default()
                .push(server.clone());
        }
        if let Some(address) = preferred(addresses) {
            self.addresses.insert(server.clone(), address);
        }
    }

    fn is_of(&self, system: &Arc<System>) -> bool {
        Arc::ptr_eq(&self.system, system)
    }

    /// The server that speaks a protocol at this address and port. `None` if there is none, or more than one.
    pub(crate) fn server_at(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<&Arc<str>> {
        let speaks = |name: &&Arc<str>| {
            let server = self.system.server(name);
            server.is_some_and(|server| protocol.at(server, &self.system).is_ok_and(|at| at.port == port))
        };
        let mut found = self.servers.get(&address.to_canonical())?.iter().filter(speaks);
        let server = found.next()?;
        found.next().is_none().then_some(server)
    }

    /// Whether any server has this address.
    pub(crate) fn knows(&self, address: IpAddr) -> bool {
        self.servers.contains_key(&address.to_canonical())
    }

    /// The address of a server, by its folded entry name.
    pub(crate) fn address_of(&self, server: &str) -> Option<IpAddr> {
        self.addresses.get(server).copied()
    }

    /// Whether an address is enough to route by.
    pub(crate) fn suffice(&self) -> bool {
        self.suffice
    }

    /// Whether every server's addresses are known, so that an unknown address certainly belongs to none.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }
}

fn host_of(server: View<'_>) -> &str {
    server.text(&attributes::SERVICE_HOSTNAME).unwrap_or(server.name())
}

/// Not where the directory has rules that need the account behind a name: from which addresses it may log in, and
/// with which name.
fn suffice(system: &System) -> bool {
    let guarded = |domain: View<'_>| !domain.list(&attributes::DOMAIN_ALLOWED_IPS).is_empty();
    !PlacementAttributes::of(system).names_logins() && !system.domains().any(guarded)
}

/// IPv4 first, as the lookup servlet of Zimbra does.
fn preferred(addresses: &[IpAddr]) -> Option<IpAddr> {
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    v4.or(addresses.first()).copied()
}
