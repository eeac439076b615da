//! Which listeners there should be, and how far those that are open have followed.

use std::time::Duration;

use mail_directory::yaml::Problems;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::Listener;

/// How long the listeners may take to follow: opening a socket takes no time.
const SETTLING: Duration = Duration::from_secs(10);

/// Which listeners should be open.
#[derive(Debug, Clone)]
pub(crate) struct ListenerList {
    /// Grows by one with each change.
    pub number: u64,
    /// The listeners.
    pub listeners: Vec<Listener>,
}

/// The list of listeners, according to the configuration in force.
#[derive(Clone)]
pub(crate) struct WantedListeners {
    list: watch::Sender<ListenerList>,
    /// How far it has been followed, and which listeners could not be opened.
    opened: watch::Sender<(u64, Problems)>,
}

impl WantedListeners {
    pub(super) fn new(listeners: Vec<Listener>) -> Self {
        Self {
            list: watch::Sender::new(ListenerList { number: 0, listeners }),
            opened: watch::Sender::new((0, Problems::new())),
        }
    }

    /// The listeners that should be open.
    pub(crate) fn current(&self) -> ListenerList {
        self.list.borrow().clone()
    }

    /// The list, to be notified whenever it changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<ListenerList> {
        self.list.subscribe()
    }

    /// The listeners have followed the list with this number, except for these problems.
    pub(crate) fn opened(&self, number: u64, problems: Problems) {
        self.opened.send_replace((number, problems));
    }

    /// Sets which listeners should be open.
    pub(super) fn set(&self, listeners: Vec<Listener>) {
        self.list.send_if_modified(|list| {
            let changed = list.listeners != listeners;
            if changed {
                list.number += 1;
                list.listeners = listeners;
            }
            changed
        });
    }

    /// Waits until the listeners are as they should be. Returns what cannot be opened.
    pub(super) async fn settled(&self) -> Problems {
        let number = self.list.borrow().number;
        let mut opened = self.opened.subscribe();
        match timeout(SETTLING, opened.wait_for(|opened| opened.0 >= number)).await {
            Ok(Ok(opened)) => opened.1.clone(),
            _ => Problems::new(),
        }
    }
}
