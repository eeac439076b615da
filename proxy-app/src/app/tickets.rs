//! Which keys of TLS session tickets are in force on this node, and when others are.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mail_directory::Secret;

use crate::app::App;
use crate::tls::ticket_file::{TicketFile, TicketFileError};
use crate::tls::ticket_keys::{FromFile, TicketKeys};

impl App {
    /// Renews keys when they are due, by their file or by the time, until it is dropped.
    pub(crate) async fn follow_tickets(self: Arc<Self>) {
        loop {
            let pause = self.off_the_runtime(Self::renew_tickets).await;
            tokio::select! {
                () = self.tickets.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Puts in force the keys that are due now. Returns when to look again.
    pub(super) fn renew_tickets(&self) -> Duration {
        let config = self.config.load();
        let from_file = match &config.tls.ticket_keys_file {
            None => FromFile::No,
            Some(path) => match TicketFile::read(path) {
                Ok(file) => {
                    self.tickets.use_file(file);
                    FromFile::Used
                }
                Err(error) => {
                    report_fault(&self.tickets, path, &error);
                    FromFile::Wanted
                }
            },
        };
        let next = self
            .tickets
            .renew(self.ticket_time(), config.tls.ticket_key_life, from_file);
        next.min(config.directory.poll)
    }

    /// Goes on with the keys of the previous process.
    pub(crate) fn take_tickets(&self, told: &Secret<String>) {
        self.tickets.take_over(told);
        self.renew_tickets();
    }

    /// The time by which keys are renewed, in milliseconds since 1970: that of all nodes, where they have one.
    fn ticket_time(&self) -> u64 {
        let own = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_millis()
        };
        match &self.nodes {
            Some(nodes) => nodes.time(),
            None => u64::try_from(own()).unwrap_or(u64::MAX),
        }
    }
}

fn report_fault(tickets: &TicketKeys, path: &Path, error: &TicketFileError) {
    let why = format!("{}: {error}", path.display());
    if tickets.note_fault(&why) {
        log::warn!("tls.ticket_keys_file cannot be used, the keys in force stay: {why}");
    }
}
