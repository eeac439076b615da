//! Changes of domains in the directory, for those who make them from inside: the admin API, and orders of certificates.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mail_directory::attributes::Attribute;
use mail_directory::edit::{Act, Change, EntryKind, changed};
use mail_directory::yaml::Problems;
use mail_directory::{Entry, System};
use mail_proxy::audit::{Event, Record};
use tokio::time::Instant;

use crate::app::App;
use crate::provision::{CommandOutput, FAILED, ProvisionError};

/// How long to wait for a change where the node reads; a replica may be behind.
const SEEN: Duration = Duration::from_secs(5);
/// How often.
const LOOK: Duration = Duration::from_millis(250);

impl App {
    /// Records an act on the mail system, and who does it.
    pub(crate) fn audit_act(&self, who: &str, act: String) {
        log::info!("{who}: {act}");
        self.audit.record(Record {
            event: Some(Event::Admin),
            who: Some(who.to_owned()),
            act: Some(act),
            generation: self.snapshot.load().generation,
            ..Record::default()
        });
    }

    /// Checks a change of a domain and stores it. One after the other: two at once would both find a name free. Returns
    /// the previous entry.
    ///
    /// # Errors
    /// The directory cannot be changed, or does not take this change: nothing was changed.
    pub(crate) async fn change_domain(
        &self,
        key: &str,
        changes: &[Change],
        output: &mut CommandOutput,
    ) -> Result<Entry, ProvisionError> {
        self.change_domain_if(key, changes, output, |_| Ok(())).await
    }

    /// The same, if the entry as it stands there allows it.
    ///
    /// # Errors
    /// As [`Self::change_domain`], or it does not.
    pub(crate) async fn change_domain_if(
        &self,
        key: &str,
        changes: &[Change],
        output: &mut CommandOutput,
        allows: impl FnOnce(&Entry) -> Result<(), String>,
    ) -> Result<Entry, ProvisionError> {
        let closed = |message: String| ProvisionError::service(FAILED, message);
        let mut editor = self.editor().await.map_err(closed)?;
        let _storing = self.storing.lock().await;
        let before = editor.existing(EntryKind::Domains, key).await?;
        allows(&before).map_err(ProvisionError::Plain)?;
        editor.change(EntryKind::Domains, key, changes, output).await
    }

    /// Has the node read its directory until it sees the change of a domain there, and has it in force.
    ///
    /// # Errors
    /// It does not see it in time; with what is wrong where it reads.
    pub(crate) async fn domain_in_force(self: &Arc<Self>, domain: &str, changes: &[Change]) -> Result<(), Problems> {
        let end = Instant::now() + SEEN;
        loop {
            let looked = self.look_at_directory().await;
            if has(&self.snapshot.load().system, domain, changes) {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(looked.err().unwrap_or_default());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Sets an attribute, or takes it away.
pub(crate) fn replace(attribute: &Attribute, value: Option<String>) -> Change {
    Change {
        attribute: attribute.name.to_owned(),
        act: Act::Replace(value.into_iter().collect()),
    }
}

/// Whether the domain is so that these changes would change nothing. What was read before them may have come from
/// a replica that is behind, and does not count.
fn has(system: &System, domain: &str, changes: &[Change]) -> bool {
    let live = system.domain(domain).and_then(|domain| domain.entry());
    live.is_some_and(|live| {
        let after = changed(live, changes);
        let attributes: BTreeSet<&str> = changes.iter().map(|change| change.attribute.as_str()).collect();
        let same = |name: &str| values(live, name) == values(&after, name);
        attributes.into_iter().all(same)
    })
}

/// The values of an attribute, to be compared.
pub(crate) fn values<'e>(entry: &'e Entry, attribute: &str) -> HashSet<&'e str> {
    entry.values(attribute).iter().map(String::as_str).collect()
}
