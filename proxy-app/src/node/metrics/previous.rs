//! What previous processes have counted: an upgrade does not begin at zero.
//!
//! The old process tells it as long as it has sessions (`process/counts.rs`), and it is added at each scrape. The text
//! may be of another version, so it is judged as a whole before any of it counts; a series that this version does not
//! have is left out.

use std::collections::BTreeMap;

use prometheus::proto::{Bucket, Counter, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::node::metrics::{ALL, BUCKETS};

/// The form of the text.
const VERSION: u32 = 1;
/// Most series. A node has some hundred; upgrades of years add the servers that are gone.
const MAX_SERIES: usize = 16_384;
/// Longest value of a label. The longest are names of hosts and addresses.
const MAX_LABEL: usize = 512;
/// Longest text: as many series as may be.
pub(crate) const MAX_TEXT: usize = 16 << 20;

/// Labels by name.
type Labels = BTreeMap<String, String>;

/// The counters of a process and of those before it, as one process tells another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Counts {
    version: u32,
    series: Vec<Series>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Series {
    name: String,
    labels: Labels,
    #[serde(flatten)]
    value: Value,
}

/// How often, and for times how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Value {
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    times: Option<Times>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Times {
    #[serde(with = "exact")]
    seconds: f64,
    /// How many were at most as long as each of [`BUCKETS`].
    within: Vec<u64>,
}

/// A number as its bits: as digits it may come back a little smaller, and a counter that goes back counts anew.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(number.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

/// Why the counts of another process are not used.
#[derive(Debug, Error)]
pub(crate) enum CountsError {
    #[error("it is not readable: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("it is of version {0}")]
    Version(u32),
    #[error("it has {0} series")]
    TooMany(usize),
    #[error("it says of {0} what cannot be")]
    Absurd(String),
}

impl Counts {
    /// Those of all counters and times among these.
    pub(super) fn of(families: &[MetricFamily]) -> Self {
        let series = families.iter().flat_map(|family| {
            let is_counted = matches!(family.get_field_type(), MetricType::COUNTER | MetricType::HISTOGRAM);
            let metrics = family.get_metric().iter().filter(move |_| is_counted);
            metrics.map(|metric| Series {
                name: family.name().to_owned(),
                labels: labels_of(metric),
                value: Value::of(metric, family.get_field_type()),
            })
        });
        Self {
            version: VERSION,
            series: series.take(MAX_SERIES).collect(),
        }
    }

    /// Reads one line of another process.
    ///
    /// # Errors
    /// It is damaged or of another version. Nothing of it may be used.
    pub(crate) fn read(line: &[u8]) -> Result<Self, CountsError> {
        let counts: Self = serde_json::from_slice(line)?;
        if counts.version != VERSION {
            return Err(CountsError::Version(counts.version));
        }
        if counts.series.len() > MAX_SERIES {
            return Err(CountsError::TooMany(counts.series.len()));
        }
        match counts.series.iter().find(|series| !series.is_possible()) {
            Some(absurd) => Err(CountsError::Absurd(absurd.name.chars().take(MAX_LABEL).collect())),
            None => Ok(counts),
        }
    }

    /// One line for another process.
    pub(crate) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

impl Series {
    fn is_possible(&self) -> bool {
        let are_short = self.labels.values().all(|value| value.len() <= MAX_LABEL);
        let are_times = self.value.times.as_ref().is_none_or(|times| {
            let all = self.value.count;
            let ascend = times.within.is_sorted() && times.within.last().is_none_or(|last| *last <= all);
            ascend && times.within.len() == BUCKETS.len() && times.seconds.is_finite() && times.seconds >= 0.0
        });
        are_short && are_times
    }

    /// The name, if this version has such a series.
    fn known(&self) -> Option<&'static str> {
        let metric = ALL.iter().find(|metric| metric.name == self.name)?;
        let counts = metric.name.ends_with("_total") == self.value.times.is_none();
        let same_labels = self.labels.len() == metric.labels.len()
            && metric.labels.iter().all(|label| self.labels.contains_key(*label));
        (counts && same_labels).then_some(metric.name)
    }
}

impl Value {
    fn of(metric: &Metric, kind: MetricType) -> Self {
        if kind == MetricType::COUNTER {
            let count = metric.get_counter().get_value() as u64;
            return Self { count, times: None };
        }
        let histogram = metric.get_histogram();
        let within = histogram.get_bucket().iter().map(Bucket::cumulative_count);
        Self {
            count: histogram.get_sample_count(),
            times: Some(Times {
                seconds: histogram.get_sample_sum(),
                within: within.collect(),
            }),
        }
    }

    /// The larger of both: a counter never goes back.
    fn grow_to(&mut self, other: &Self) {
        if other.count >= self.count {
            self.clone_from(other);
        }
    }

    fn add_to(&self, metric: &mut Metric) {
        let Some(times) = &self.times else {
            let mut counter = Counter::default();
            counter.set_value(metric.get_counter().get_value() + self.count as f64);
            return metric.set_counter(counter);
        };
        let own = metric.get_histogram();
        let mut sum = Histogram::default();
        sum.set_sample_count(own.get_sample_count().saturating_add(self.count));
        sum.set_sample_sum(own.get_sample_sum() + times.seconds);
        let owns = own.get_bucket().iter().map(Bucket::cumulative_count);
        // A series that this process has not begun has no buckets.
        let owns = owns.chain(std::iter::repeat(0));
        let buckets = BUCKETS.iter().zip(&times.within).zip(owns).map(|((end, before), now)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*end);
            bucket.set_cumulative_count(before.saturating_add(now));
            bucket
        });
        sum.set_bucket(buckets.collect());
        metric.set_histogram(sum);
    }
}

fn labels_of(metric: &Metric) -> Labels {
    let pairs = metric.get_label().iter();
    pairs
        .map(|pair| (pair.name().to_owned(), pair.value().to_owned()))
        .collect()
}

fn pair((name, value): (&String, &String)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.clone());
    pair.set_value(value.clone());
    pair
}

/// What the previous processes have counted, as far as this one has been told.
#[derive(Debug, Default)]
pub(super) struct PreviousCounts(BTreeMap<&'static str, BTreeMap<Labels, Value>>);

impl PreviousCounts {
    /// Takes the newest counts in the place of earlier ones.
    pub(super) fn take(&mut self, counts: Counts) {
        for series in counts.series {
            let Some(name) = series.known() else { continue };
            let values = self.0.entry(name).or_default();
            if let Some(value) = values.get_mut(&series.labels) {
                value.grow_to(&series.value);
            } else if values.len() < MAX_SERIES {
                values.insert(series.labels, series.value);
            }
        }
    }

    /// The values of a label of this metric.
    pub(super) fn values(&self, name: &str, label: &str) -> impl Iterator<Item = &String> {
        let series = self.0.get(name).into_iter().flatten();
        series.filter_map(move |(labels, _)| labels.get(label))
    }

    /// Adds it to what this process has counted.
    pub(super) fn add_to(&self, families: Vec<MetricFamily>) -> Vec<MetricFamily> {
        if self.0.is_empty() {
            return families;
        }
        let named = families.into_iter().map(|family| (family.name().to_owned(), family));
        let mut named: BTreeMap<String, MetricFamily> = named.collect();
        for (name, values) in &self.0 {
            let family = named.entry((*name).to_owned()).or_insert_with(|| empty(name));
            let mut left: BTreeMap<&Labels, &Value> = values.iter().collect();
            for metric in family.mut_metric() {
                if let Some(value) = left.remove(&labels_of(metric)) {
                    value.add_to(metric);
                }
            }
            for (labels, value) in left {
                let mut metric = Metric::from_label(labels.iter().map(pair).collect());
                value.add_to(&mut metric);
                family.mut_metric().push(metric);
            }
        }
        named.into_values().collect()
    }
}

/// A metric that this process has not counted yet.
fn empty(name: &str) -> MetricFamily {
    let mut family = MetricFamily::default();
    let help = ALL
        .iter()
        .find(|metric| metric.name == name)
        .map_or("", |metric| metric.help);
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(match name.ends_with("_total") {
        true => MetricType::COUNTER,
        false => MetricType::HISTOGRAM,
    });
    family
}
