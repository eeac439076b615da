//! A preview in sentences.

use super::{AccountChanges, Preview, SessionChanges};
use crate::app::doors::ListenerChange;
use crate::tls::certificate_diff::NameChanges;

/// Where nothing of it would happen.
const NOTHING: &str = "no certificate, route, session or listener changes";

impl Preview {
    /// All of it, for people.
    pub(super) fn sentences(&self) -> Vec<String> {
        if !self.refused.is_empty() {
            let first = format!("{} would not take this over, and goes on as it is:", self.node);
            return heading(first, self.refused.iter().cloned(), 0);
        }
        let mut lines = Vec::new();
        let NameChanges { count, first } = &self.names;
        if *count > 0 {
            let what = format!(
                "certificates: {count} {}",
                one_or_many(*count, "name changes", "names change")
            );
            lines.extend(heading(
                what,
                first.iter().map(|one| one.line()),
                count.saturating_sub(first.len() as u64),
            ));
        }
        lines.extend(self.accounts.sentences());
        lines.extend(self.sessions.sentences());
        if !self.listeners.is_empty() {
            let each = self.listeners.iter().map(ListenerChange::line);
            lines.extend(heading("listeners:".to_owned(), each, 0));
        }
        if lines.is_empty() {
            lines.push(NOTHING.to_owned());
        }
        for (what, texts) in [("note", &self.notes), ("WARNING", &self.warnings)] {
            lines.extend(texts.iter().map(|text| format!("{what}: {text}")));
        }
        lines
    }
}

impl AccountChanges {
    fn sentences(&self) -> Vec<String> {
        if self.count == 0 {
            return Vec::new();
        }
        let are = one_or_many(self.count, "account is", "accounts are");
        let what = format!(
            "routes: {} {are} sent elsewhere, of {} compared",
            self.count, self.compared
        );
        let each = self.first.iter().map(|one| {
            let services = one.services.join(", ");
            format!("{} from {} to {} ({services})", one.account, one.from, one.to)
        });
        heading(what, each, self.count.saturating_sub(self.first.len() as u64))
    }
}

impl SessionChanges {
    fn sentences(&self) -> Vec<String> {
        let all = self.ended + self.stay;
        if all == 0 {
            return Vec::new();
        }
        let ended = match self.within_s.filter(|_| self.ended > 0) {
            Some(seconds) => format!("{} are ended within {seconds} s", self.ended),
            None => "none is ended".to_owned(),
        };
        let what = format!("sessions: {ended}, {} stay where they are", self.stay);
        let each = self.first.iter().map(|one| {
            let fate = if one.ended { "is ended" } else { "stays" };
            format!(
                "{} {} of {} on {} {fate}",
                one.protocol, one.id, one.account, one.server
            )
        });
        heading(what, each, all.saturating_sub(self.first.len() as u64))
    }
}

fn heading(first: String, each: impl Iterator<Item = String>, more: u64) -> Vec<String> {
    let more = (more > 0).then(|| format!("  and {more} more"));
    let each = each.map(|line| format!("  {line}"));
    std::iter::once(first).chain(each).chain(more).collect()
}

fn one_or_many<'a>(count: u64, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::preview::AccountChange;

    #[test]
    fn a_preview_is_said_in_sentences_with_few_names() {
        let nothing = Preview::default();
        assert_eq!(
            nothing.sentences(),
            ["no certificate, route, session or listener changes"]
        );
        let preview = Preview {
            accounts: AccountChanges {
                compared: 9,
                count: 3,
                first: vec![AccountChange {
                    account: "a@a.test".to_owned(),
                    services: vec!["imap".to_owned(), "web".to_owned()],
                    from: "s1".to_owned(),
                    to: "s2".to_owned(),
                    in_memory: true,
                }],
            },
            sessions: SessionChanges {
                ended: 1,
                within_s: Some(30),
                stay: 1,
                first: Vec::new(),
            },
            notes: vec!["so".to_owned()],
            ..Preview::default()
        };
        assert_eq!(
            preview.sentences(),
            [
                "routes: 3 accounts are sent elsewhere, of 9 compared",
                "  a@a.test from s1 to s2 (imap, web)",
                "  and 2 more",
                "sessions: 1 are ended within 30 s, 1 stay where they are",
                "  and 2 more",
                "note: so",
            ]
        );
    }
}
