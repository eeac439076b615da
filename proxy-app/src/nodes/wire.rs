//! What nodes write into the engine and say in its channels: names, and texts in JSON with a version. Pure.
//!
//! All of it is untrusted when it is read: a text is bounded before it is looked at, and every name in it.

use redis::Value;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The form of all texts. What a newer one says is not guessed at.
pub(super) const VERSION: u32 = 1;
/// Longest message in a channel, in bytes.
pub(super) const MESSAGE_MAX: usize = 1024 * 1024;
/// Longest text of a field, in bytes.
pub(super) const FIELD_MAX: usize = 4 * 1024;
/// Longest name in a text, in bytes.
pub(super) const NAME_MAX: usize = 512;
/// How long sessions outlive the last word of their node, in seconds.
pub(super) const SESSIONS_KEPT: u64 = 10;
/// The field of its sessions that holds the number of the last change.
pub(super) const NUMBER: &str = "number";
/// How long the list of nodes outlives the last of them, in seconds.
pub(super) const KEPT: u64 = 3600;

/// The names of keys and channels. All have one hash tag, so that a Cluster keeps them in one place.
pub(super) struct Names<'a>(pub(super) &'a str);

impl Names<'_> {
    /// The list of nodes: a hash, by run.
    pub(super) fn nodes(&self) -> String {
        format!("{{{}}}:nodes", self.0)
    }

    /// What stands on all nodes: a hash.
    pub(super) fn standing(&self) -> String {
        format!("{{{}}}:standing", self.0)
    }

    /// What counts for the throttle: a stream.
    pub(super) fn guesses(&self) -> String {
        format!("{{{}}}:guesses", self.0)
    }

    /// The keys of TLS session tickets whose periods are so many milliseconds long: a hash, by period.
    pub(super) fn tickets(&self, life: u64) -> String {
        format!("{{{}}}:tickets:{life}", self.0)
    }

    /// Who orders certificates when: a hash, by turn.
    pub(super) fn turns(&self) -> String {
        format!("{{{}}}:acme:turns", self.0)
    }

    /// Challenges of an ACME authority that are open: a hash, by token.
    pub(super) fn challenges(&self) -> String {
        format!("{{{}}}:acme:challenges", self.0)
    }

    /// What has failed of orders of certificates: a hash, by domain.
    pub(super) fn pauses(&self) -> String {
        format!("{{{}}}:acme:pauses", self.0)
    }

    /// The sessions of a run: a hash.
    pub(super) fn sessions(&self, run: &str) -> String {
        format!("{{{}}}:sessions:{run}", self.0)
    }

    /// The channel of changes of sessions.
    pub(super) fn changes(&self) -> String {
        format!("{{{}}}:changes", self.0)
    }

    /// The channel of orders to all nodes.
    pub(super) fn orders(&self) -> String {
        format!("{{{}}}:orders", self.0)
    }

    /// The channel of answers to one run.
    pub(super) fn answers(&self, run: &str) -> String {
        format!("{{{}}}:answers:{run}", self.0)
    }
}

/// What a node says of itself, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Beat {
    v: u32,
    /// Name of the node.
    pub(super) node: String,
    /// Version of the program.
    pub(super) version: String,
    /// Process id.
    pub(super) pid: u32,
    /// What it does.
    pub(super) state: NodeDuty,
    /// When it started, in milliseconds since 1970.
    pub(super) since: u64,
    /// Number of its configuration in force.
    pub(super) generation: u64,
    /// Its logged-in sessions.
    pub(super) sessions: u64,
    /// The number of its latest change of sessions.
    #[serde(default)]
    pub(super) number: u64,
    /// When this was said, by the clock of the engine, in milliseconds since 1970.
    pub(super) at: u64,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NodeDuty {
    /// It takes new clients.
    Ready,
    /// An administrator has taken it out of service.
    Drained,
    /// It keeps its sessions until they end, and then ends.
    Leaving,
    /// A word that this version does not know.
    #[serde(other)]
    Other,
}

impl NodeDuty {
    /// As administrators read it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drained => "drained",
            Self::Leaving => "leaving",
            Self::Other => "other",
        }
    }
}

/// An order to other nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Order {
    v: u32,
    /// The number of the order, for answers.
    pub(super) id: String,
    /// The run that gives it.
    pub(super) from: String,
    /// The name of its node.
    pub(super) node: String,
    /// The name of the node that it is for; absent: all.
    pub(super) to: Option<String>,
    /// What to do.
    pub(super) verb: String,
    /// With what.
    pub(super) body: serde_json::Value,
    /// When it was given, by the clock of the engine, in milliseconds since 1970; 0: it is not known.
    #[serde(default)]
    pub(super) at: u64,
}

/// The answer of a node to an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Reply {
    v: u32,
    /// The number of the order.
    pub(super) id: String,
    /// The run that answers.
    pub(super) from: String,
    /// What has come of it, or why nothing has.
    pub(super) answer: Result<serde_json::Value, String>,
}

impl Beat {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        node: &str,
        version: &str,
        state: NodeDuty,
        since: u64,
        generation: u64,
        (sessions, number): (u64, u64),
        at: u64,
    ) -> Self {
        Self {
            v: VERSION,
            node: node.to_owned(),
            version: version.to_owned(),
            pid: std::process::id(),
            state,
            since,
            generation,
            sessions,
            number,
            at,
        }
    }
}

impl Order {
    pub(super) fn new(
        (id, at): (&str, u64),
        from: (&str, &str),
        to: Option<&str>,
        verb: &str,
        body: serde_json::Value,
    ) -> Self {
        Self {
            at,
            v: VERSION,
            id: id.to_owned(),
            from: from.0.to_owned(),
            node: from.1.to_owned(),
            to: to.map(str::to_owned),
            verb: verb.to_owned(),
            body,
        }
    }
}

impl Reply {
    pub(super) fn new(id: &str, from: &str, answer: Result<serde_json::Value, String>) -> Self {
        Self {
            v: VERSION,
            id: id.to_owned(),
            from: from.to_owned(),
            answer,
        }
    }
}

/// What must hold of a text besides its form.
pub(super) trait Bounded {
    /// The names in it.
    fn names(&self) -> Vec<&str>;
}

impl Bounded for Beat {
    fn names(&self) -> Vec<&str> {
        vec![&self.node, &self.version]
    }
}

impl Bounded for Order {
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = vec![&self.id, &self.from, &self.node, &self.verb];
        names.extend(self.to.as_deref());
        names
    }
}

impl Bounded for Reply {
    fn names(&self) -> Vec<&str> {
        vec![&self.id, &self.from]
    }
}

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// A text; `None` if it is not what it should be.
pub(super) fn read<T: DeserializeOwned + Bounded>(text: &[u8], most: usize) -> Option<T> {
    if text.len() > most {
        return None;
    }
    let Versioned { v: VERSION } = serde_json::from_slice(text).ok()? else {
        return None;
    };
    let read: T = serde_json::from_slice(text).ok()?;
    fit(&read).then_some(read)
}

/// Whether a newer version has written this text.
pub(super) fn is_newer(text: &[u8], most: usize) -> bool {
    let version = serde_json::from_slice(text).map(|Versioned { v }| v);
    text.len() <= most && version.is_ok_and(|version| version > VERSION)
}

/// Whether all names in it are such as names are.
pub(super) fn fit(read: &impl Bounded) -> bool {
    let fits = |name: &str| !name.is_empty() && name.len() <= NAME_MAX && !name.chars().any(char::is_control);
    read.names().into_iter().all(fits)
}

/// The text of what is said; it cannot fail for what stands here.
pub(super) fn text(said: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(said).unwrap_or_default()
}

/// An answer that is a string.
pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

/// Fields of a hash, with their texts.
pub(super) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// An answer that is a hash, as pairs.
pub(super) fn pairs(value: Value) -> Fields {
    match value {
        Value::Map(pairs) => {
            let both = |(name, value)| Some((bytes(name)?, bytes(value)?));
            pairs.into_iter().filter_map(both).collect()
        }
        Value::Array(items) => {
            let mut items = items.into_iter();
            let pair = || Some((bytes(items.next()?)?, bytes(items.next()?)?));
            std::iter::from_fn(pair).collect()
        }
        _ => Vec::new(),
    }
}

/// The answer to `TIME`, in milliseconds since 1970.
pub(super) fn time(value: Value) -> Option<u64> {
    let Value::Array(parts) = value else { return None };
    let number = |value| String::from_utf8(bytes(value)?).ok()?.parse::<u64>().ok();
    let mut parts = parts.into_iter().map(number);
    let (seconds, micros) = (parts.next()??, parts.next()??);
    seconds.checked_mul(1000)?.checked_add(micros / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat() -> Beat {
        Beat::new("proxy1.test", "1.2.3", NodeDuty::Ready, 1, 2, (3, 0), 4)
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(read::<Beat>(&text(&beat()), FIELD_MAX), Some(beat()));
        let order = Order::new(
            ("1", 5),
            ("a", "proxy1"),
            Some("proxy2"),
            "kick",
            serde_json::json!({"user": "x"}),
        );
        assert_eq!(read::<Order>(&text(&order), MESSAGE_MAX), Some(order));
        for answer in [Ok(serde_json::json!([1])), Err("no".to_owned())] {
            let reply = Reply::new("1", "a", answer);
            assert_eq!(read::<Reply>(&text(&reply), MESSAGE_MAX), Some(reply));
        }
    }

    #[test]
    fn what_is_not_ours_is_not_read() {
        let good = String::from_utf8(text(&beat())).unwrap();
        let long = "x".repeat(NAME_MAX + 1);
        let nested = "[".repeat(100_000);
        let wrong = [
            good.replace("\"v\":1", "\"v\":2"),
            good.replace("proxy1.test", &long),
            good.replace("proxy1.test", ""),
            good.replace("proxy1.test", "\\u001b[2J"),
            good.replace("\"pid\":", "\"pid\":-"),
            good[..good.len() - 1].to_owned(),
            nested,
            "null".to_owned(),
            String::new(),
        ];
        for text in wrong {
            assert_eq!(
                read::<Beat>(text.as_bytes(), MESSAGE_MAX),
                None,
                "{}",
                &text[..text.len().min(80)]
            );
        }
        assert_eq!(read::<Beat>(good.as_bytes(), good.len() - 1), None);
        let newer = good
            .replace("\"ready\"", "\"dancing\"")
            .replace("\"pid\"", "\"more\":1,\"pid\"");
        assert_eq!(
            read::<Beat>(newer.as_bytes(), FIELD_MAX).unwrap().state,
            NodeDuty::Other
        );
    }

    #[test]
    fn answers_have_several_forms() {
        let string = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let pair = (b"a".to_vec(), b"b".to_vec());
        assert_eq!(
            pairs(Value::Map(vec![(string("a"), string("b"))])),
            std::slice::from_ref(&pair)
        );
        assert_eq!(pairs(Value::Array(vec![string("a"), string("b"), string("c")])), [pair]);
        assert!(pairs(Value::Int(1)).is_empty());
        assert_eq!(time(Value::Array(vec![string("5"), string("2000")])), Some(5002));
        assert_eq!(time(Value::Array(vec![string("5")])), None);
        assert_eq!(
            time(Value::Array(vec![string("18446744073709551615"), string("0")])),
            None
        );
    }
}
