//! What the packages contain: the same in both kinds, and all of `conf/`.
//!
//! `scripts/check-packages` builds and uses them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Where Debian and the rpm distributions differ, and what only one of them has: (in the .deb, in the .rpm).
const DIFFERENT: [(&str, &str); 3] = [
    (
        "completions/zsh /usr/share/zsh/vendor-completions/_portico",
        "completions/zsh /usr/share/zsh/site-functions/_portico",
    ),
    // Restarts services by itself; a program of Debian and Ubuntu.
    ("packaging/needrestart.conf /etc/needrestart/conf.d/portico.conf", ""),
    // A .deb gets its copyright file from `license-file`.
    ("", "LICENSE /usr/share/licenses/portico/"),
];

/// The tables of the manifest, as Cargo reads them.
fn metadata() -> Value {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let out = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version=1",
            "--manifest-path",
            manifest,
        ])
        .output()
        .unwrap();
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    let own = |package: &&Value| package["name"] == "proxy-app";
    all["packages"].as_array().unwrap().iter().find(own).unwrap()["metadata"].clone()
}

/// "source destination mode" of each asset; sources without the folder in which they are put together.
fn assets(table: &Value) -> BTreeSet<String> {
    let text = |asset: &Value, key: &str| asset[key].as_str().unwrap().to_owned();
    let line = |asset: &Value| {
        let source = text(asset, "source");
        let source = source.trim_start_matches("../").trim_start_matches("target/package/");
        format!("{source} {}", text(asset, "dest"))
    };
    table["assets"].as_array().unwrap().iter().map(line).collect()
}

#[test]
fn both_packages_have_the_same_files() {
    let metadata = metadata();
    let (mut deb, mut rpm) = (assets(&metadata["deb"]), assets(&metadata["generate-rpm"]));
    assert!(deb.len() > 15, "{deb:#?}");
    for (in_deb, in_rpm) in DIFFERENT {
        assert!(in_deb.is_empty() || deb.remove(in_deb), "the .deb has no {in_deb}");
        assert!(in_rpm.is_empty() || rpm.remove(in_rpm), "the .rpm has no {in_rpm}");
    }
    assert_eq!(deb, rpm);
}

#[test]
fn modes_are_the_same_and_configuration_is_kept() {
    let metadata = metadata();
    let of = |kind: &str, dest: &str| {
        let assets = metadata[kind]["assets"].as_array().unwrap().iter();
        assets
            .filter(|asset| asset["dest"] == dest)
            .cloned()
            .collect::<Vec<Value>>()
    };
    for asset in metadata["generate-rpm"]["assets"].as_array().unwrap() {
        let dest = asset["dest"].as_str().unwrap();
        let is_configuration = dest.starts_with("/etc/");
        assert_eq!(is_configuration, asset["config"] == "noreplace", "{asset}");
        for other in of("deb", dest) {
            assert_eq!(asset["mode"], other["mode"], "{dest}");
        }
    }
}

#[test]
fn all_of_conf_is_shipped() {
    let shipped = assets(&metadata()["deb"]);
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let mut folders = vec![conf.clone()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            seen += 1;
            let name = path.strip_prefix(&conf).unwrap().to_str().unwrap();
            let folder = name
                .rsplit_once('/')
                .map_or(String::new(), |(folder, _)| format!("conf/{folder}/* "));
            let is = |line: &String| {
                line.starts_with(&format!("conf/{name} "))
                    || line.starts_with(&format!("units/{name} "))
                    || (!folder.is_empty() && line.starts_with(&folder))
            };
            assert!(shipped.iter().any(is), "conf/{name} is in no package");
        }
    }
    assert!(seen > 8, "only {seen} files in conf");
}
