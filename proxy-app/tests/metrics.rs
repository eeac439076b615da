//! The page and the dashboard of the metrics name those that there are, and no others; the page of the admin API
//! names its paths.

use std::collections::BTreeSet;
use std::path::Path;

use proxy_app::admin::api;
use proxy_app::node::metrics::ALL;

fn text(path: &str) -> String {
    let house = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(house.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Everything that looks like a name of a metric, without what a histogram adds.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
    let ours = words.filter(|word| word.starts_with("portico_"));
    ours.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

fn all() -> BTreeSet<String> {
    ALL.iter().map(|metric| metric.name.to_owned()).collect()
}

#[test]
fn every_metric_is_documented_with_its_labels() {
    let page = text("docs/metrics.md");
    assert_eq!(named(&page), all());
    for metric in ALL {
        let row = page.lines().find(|line| line.contains(&format!("`{}`", metric.name)));
        let row = row.unwrap_or_else(|| panic!("no row for {}", metric.name));
        for label in metric.labels {
            assert!(
                row.contains(&format!("`{label}`")),
                "{label} of {} is missing: {row}",
                metric.name
            );
        }
    }
}

#[test]
fn the_dashboard_shows_every_metric_and_no_other() {
    let dashboard = text("conf/grafana-dashboard.json");
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let targets = parsed["panels"].as_array().into_iter().flatten();
    let targets = targets.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let shown: String = targets.map(|target| format!("{} ", target["expr"])).collect();
    assert_eq!(named(&shown), all());
}

#[test]
fn every_path_of_the_admin_api_is_documented() {
    let description = serde_json::to_value(api::description()).expect("a plain struct");
    let paths = description["paths"].as_object().expect("it has paths");
    assert!(paths.len() > 10, "{paths:?}");
    let pages = text("docs/admin.md") + &text("docs/metrics.md");
    for (path, methods) in paths {
        for method in methods
            .as_object()
            .into_iter()
            .flatten()
            .map(|(method, _)| method.to_uppercase())
        {
            let named = format!("{method} {path}");
            assert!(pages.contains(&named), "docs/admin.md does not name {named}");
        }
    }
}
