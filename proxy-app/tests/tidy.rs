//! House rules as tests: which crate may name which, what must be documented, what must not stand in a file.
//!
//! They read the sources as text and know no Rust grammar; a rule that needs more belongs into clippy. To add a
//! rule, add a function.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The crates of the program.
const CRATES: [&str; 4] = ["mail-directory", "route-cache", "mail-proxy", "proxy-app"];

/// Set it to have docs/attributes.md written again.
const UPDATE: &str = "UPDATE_DOCS";

#[test]
fn arrows_only_go_down() {
    let mut wrong = Vec::new();
    let mut never = |paths: Vec<String>, words: &[&str]| {
        for path in paths {
            let code = code(&path);
            let named = words.iter().filter(|word| code.contains(**word));
            wrong.extend(named.map(|word| format!("{path} names {word}")));
        }
    };
    let of = |name: &str| {
        let mut paths = files(&format!("{name}/src"), "rs");
        paths.push(format!("{name}/Cargo.toml"));
        paths
    };
    let above_cache = [
        "pingora",
        "openssl",
        "mail-proxy",
        "mail_proxy",
        "proxy-app",
        "proxy_app",
    ];
    never(of("route-cache"), &above_cache);
    let above_directory = [&above_cache[..], &["route-cache", "route_cache::"]].concat();
    never(of("mail-directory"), &above_directory);
    never(of("mail-proxy"), &["pingora", "openssl", "proxy-app", "proxy_app"]);
    let is_machine = |path: &String| {
        let file = path.trim_start_matches("mail-proxy/src/");
        let shared = [
            "line.rs",
            "sasl.rs",
            "machine.rs",
            "login.rs",
            "upstream.rs",
            "mechanism.rs",
            "gs2.rs",
            "scram.rs",
            "credentials.rs",
            "server_refusal.rs",
            "login_failure.rs",
        ];
        shared.contains(&file) || file.starts_with("imap") || file.starts_with("pop3")
    };
    let machines = files("mail-proxy/src", "rs").into_iter().filter(is_machine);
    never(machines.collect(), &["tokio"]);
    none("see docs/ARCHITECTURE.md, \"From above\"", wrong);
}

/// The floors of a crate, from top to bottom; folders of one floor may not name each other. A file beside the folders
/// stands on the floor of its name; `main` and `lib` are above all.
const FLOORS: [(&str, &[&[&str]]); 4] = [
    (
        "mail-directory",
        &[
            &["ldap"],
            &["last_good"],
            &["file"],
            &["directory"],
            &["check", "losses"],
            &["system"],
            &["edit", "view"],
            &["entry"],
            &["attributes"],
            &["yaml"],
            &["names", "secret", "secret_file", "tls_words"],
        ],
    ),
    (
        "route-cache",
        &[
            &["lookup_server"],
            &["cache"],
            &["source"],
            &["lookup"],
            &["addresses", "routing"],
            &["placement"],
            &["key", "max_sessions", "protocol"],
            &["hold", "memcached", "route"],
            &["host_port", "percent"],
        ],
    ),
    (
        "mail-proxy",
        &[
            &["session"],
            &["attempt"],
            &["environment", "conversation"],
            &["imap", "pop3"],
            &["login", "upstream"],
            &["machine", "sasl"],
            &["credentials", "relay", "scratch"],
            &["connection", "login_failure"],
            &["audit", "known_servers"],
            &[
                "handle",
                "learned",
                "line",
                "mechanism",
                "proto",
                "scram",
                "server_refusal",
                "server_rules",
                "throttle",
            ],
            &["gs2", "referral"],
        ],
    ),
    (
        "proxy-app",
        &[
            &["cli"],
            &["process"],
            &["admin"],
            &["listen"],
            &["web"],
            &["app"],
            &["acme", "locations", "nodes", "provision"],
            &["upstream", "config"],
            &["http"],
            &["tls"],
            &["node"],
        ],
    ),
];

/// Most of the lines of all sources that may stand in one folder, in percent; of `proxy-app`, too. The libraries are
/// small, and have few folders.
const FOLDER_SHARE: usize = 20;

/// Type names that may be defined in several modules of a crate: their module says of what they are.
const COMMON_TYPES: [&str; 4] = ["Settings", "State", "Config", "Builder"];

#[test]
fn folders_name_only_those_below_them() {
    let mut wrong = Vec::new();
    assert_eq!(FLOORS.map(|(name, _)| name), CRATES, "every crate has its floors");
    for (name, floors) in FLOORS {
        let floor = |module: &str| {
            let folder = module.split("::").next().unwrap_or_default();
            let at = floors.iter().position(|floor| floor.contains(&folder));
            at.unwrap_or_else(|| panic!("{name}/src/{folder} is on no floor of FLOORS"))
        };
        for arrow in arrows(name) {
            let same = arrow.from.split("::").next() == arrow.to.split("::").next();
            if !same && floor(&arrow.to) <= floor(&arrow.from) {
                wrong.push(arrow.to_string());
            }
        }
    }
    none(
        "a folder names only folders below it: FLOORS in tests/tidy.rs, docs/ARCHITECTURE.md",
        wrong,
    );
}

#[test]
fn files_do_not_name_each_other_in_a_circle() {
    let mut wrong = Vec::new();
    for name in CRATES {
        let arrows = arrows(name);
        let mut below: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for arrow in &arrows {
            below.entry(&arrow.from).or_default().insert(&arrow.to);
        }
        // What can be reached from a file, until nothing is added any more.
        let mut reached = below.clone();
        loop {
            let mut grown = false;
            for files in reached.values_mut() {
                let further: BTreeSet<&str> = files
                    .iter()
                    .filter_map(|file| below.get(file))
                    .flatten()
                    .copied()
                    .collect();
                grown |= !further.is_subset(files);
                files.extend(further);
            }
            if !grown {
                break;
            }
        }
        let leads = |from: &str, to: &str| reached.get(from).is_some_and(|files| files.contains(to));
        wrong.extend(
            arrows
                .iter()
                .filter(|arrow| leads(&arrow.to, &arrow.from))
                .map(ToString::to_string),
        );
    }
    none("no file is named by those that it names", wrong);
}

#[test]
fn no_module_asks_the_running_app() {
    let app = code("proxy-app/src/app.rs");
    let fields = app.split("struct App {").nth(1).expect("app.rs has the App");
    let fields = fields.split("\n}").next().unwrap_or_default().lines();
    let open = fields.filter(|line| line.trim_start().starts_with("pub"));
    let mut wrong: Vec<_> = open.map(|line| format!("app.rs: {}", line.trim())).collect();
    let names_app = |path: &String| {
        let code = code(path);
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.any(|word| word == "App")
    };
    let others = files("proxy-app/src", "rs")
        .into_iter()
        .filter(|path| !path.starts_with("proxy-app/src/app"))
        .filter(|path| path != "proxy-app/src/process/service.rs");
    wrong.extend(others.filter(names_app).map(|path| format!("{path} names App")));
    none(
        "the service starts the App; all others get what they use of it, see app/env.rs",
        wrong,
    );
}

#[test]
fn no_folder_holds_too_much() {
    let mut lines: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for name in CRATES {
        let root = format!("{name}/src/");
        for path in files(&root, "rs") {
            // `web.rs` belongs to `web/`.
            let folder = path
                .trim_start_matches(&root)
                .split(['/', '.'])
                .next()
                .unwrap_or_default();
            *lines.entry((name, folder.to_owned())).or_default() += text(&path).lines().count();
        }
    }
    let all: usize = lines.values().sum();
    let app: usize = lines
        .iter()
        .filter(|((name, _), _)| *name == "proxy-app")
        .map(|(_, count)| count)
        .sum();
    assert!(all > app && app > 10_000, "the count finds too little: {app} of {all}");
    let mut wrong = Vec::new();
    for ((name, folder), count) in &lines {
        let whole = if *name == "proxy-app" { app } else { all };
        if count * 100 > whole * FOLDER_SHARE {
            wrong.push(format!("{name}/src/{folder} has {count} of {whole} lines"));
        }
    }
    none("no folder has more than a fifth of the lines", wrong);
}

#[test]
fn a_type_name_means_one_thing_in_its_crate() {
    let mut wrong = Vec::new();
    for name in CRATES {
        let mut defined: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for path in files(&format!("{name}/src"), "rs") {
            for word in types_of(&code(&path)) {
                defined.entry(word).or_default().insert(path.clone());
            }
        }
        assert!(defined.len() > 40, "the scan of {name} finds too little: {defined:?}");
        let twice = defined
            .iter()
            .filter(|(word, paths)| paths.len() > 1 && !COMMON_TYPES.contains(&word.as_str()));
        wrong.extend(twice.map(|(word, paths)| format!("{word} is defined in {paths:?}")));
    }
    none(
        "a type has a name of its own in its crate, see the glossary of docs/ARCHITECTURE.md",
        wrong,
    );
}

/// The structs, enums, traits and type aliases that a source defines outside of its tests; no associated types.
fn types_of(source: &str) -> Vec<String> {
    let word = |line: &str| {
        let is_inner = line.starts_with(' ');
        let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
        let kind = words.next()?;
        let is_type = ["struct", "enum", "trait"].contains(&kind) || (kind == "type" && !is_inner);
        let name = words.next().filter(|_| is_type)?;
        let end = name
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(name.len());
        Some(name[..end].to_owned())
    };
    without_tests(source).lines().filter_map(word).collect()
}

#[test]
fn every_key_of_the_node_file_is_documented_and_shown() {
    let keys = config_keys();
    assert!(keys.len() > 30, "the scan of config/ finds too little: {keys:?}");
    let rows = documented("Keys of Portico");
    let example = text("conf/portico.yaml");
    let last = |path: &str| {
        let last = path.rsplit('.').next().unwrap_or_default();
        last.trim_end_matches("[]").to_owned()
    };
    let mut wrong = Vec::new();
    for key in &keys {
        let shown = example.contains(&format!("{key}:"));
        match rows.iter().find(|(path, _)| last(path) == *key) {
            None => wrong.push(format!("{key} has no row in docs/configuration.md")),
            Some((_, row)) if !shown && !row.contains("Optional") => {
                wrong.push(format!(
                    "{key} is neither in conf/portico.yaml nor called Optional in its row"
                ));
            }
            Some(_) => {}
        }
    }
    let unknown = rows.keys().filter(|path| !keys.contains(&last(path)));
    wrong.extend(unknown.map(|path| format!("docs/configuration.md has {path}, which config/ does not read")));
    none("docs/configuration.md holds the keys of the node file", wrong);
}

#[test]
fn every_key_of_pingora_is_documented() {
    let known = pingora::server::configuration::ServerConf::default();
    let known = serde_yaml::to_value(known).expect("a plain struct");
    let known: BTreeSet<&str> = known
        .as_mapping()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.as_str())
        .collect();
    let page = text("docs/configuration.md");
    let missing = known.iter().filter(|key| !page.contains(&format!("`{key}`")));
    let mut wrong: Vec<_> = missing
        .map(|key| format!("{key} is not in docs/configuration.md"))
        .collect();
    let rows = documented("Pingora's own keys");
    let unknown = rows.keys().filter(|key| !known.contains(key.as_str()));
    wrong.extend(unknown.map(|key| format!("Pingora has no {key}")));
    none("Pingora's keys stand in docs/configuration.md", wrong);
}

#[test]
fn the_attributes_page_is_that_of_the_table() {
    let page = mail_directory::attributes::markdown();
    let path = house().join("docs/attributes.md");
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, &page).expect("docs/attributes.md can be written");
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        current == page,
        "docs/attributes.md is not what mail_directory::attributes says; run {UPDATE}=1 cargo test -p proxy-app --test tidy"
    );
}

#[test]
fn the_schema_of_the_tests_knows_every_attribute() {
    let schema = text("tests/ldap/zimbra.schema") + &text("conf/portico.schema");
    let missing = mail_directory::attributes::ALL
        .iter()
        .filter(|attribute| !schema.contains(&format!("NAME '{}'", attribute.name)));
    let missing = missing.map(|attribute| format!("it lacks {}", attribute.name));
    none(
        "tests/ldap/zimbra.schema has the attributes of the table, conf/portico.schema those of Portico's own, and both \
         name them at their object classes",
        missing.collect(),
    );
}

#[test]
fn every_audit_field_and_word_is_documented() {
    let source = code("mail-proxy/src/audit.rs");
    let page = text("docs/audit.md");
    let mut words: Vec<String> = vec!["time".to_owned()];
    let fields = items(&source, "pub struct Record {");
    words.extend(
        fields
            .iter()
            .filter_map(|field| Some(field.split_once(':')?.0.to_owned())),
    );
    for name in ["Outcome", "Event", "EndedBy"] {
        let variants = items(&source, &format!("pub enum {name} {{"));
        words.extend(variants.iter().map(|variant| snake(variant)));
    }
    assert!(words.len() > 35, "the scan of audit.rs finds too little: {words:?}");
    let missing = words.iter().filter(|word| !page.contains(&format!("`{word}`")));
    let missing = missing.map(|word| format!("it does not name `{word}`"));
    none("docs/audit.md explains the audit log", missing.collect());
}

#[test]
fn sources_say_what_they_are_for() {
    let silent = files("", "rs")
        .into_iter()
        .filter(|path| !text(path).starts_with("//!"));
    none(
        "a source begins with //!: what it is for, and what it does not do",
        silent.collect(),
    );
}

#[test]
fn names_of_files_say_something() {
    let empty = [
        "utils", "util", "common", "helpers", "helper", "types", "misc", "prelude",
    ];
    let says_nothing = |path: &String| {
        let mut parts = path.trim_end_matches(".rs").split('/');
        parts.any(|part| empty.contains(&part))
    };
    let found = files("", "rs").into_iter().filter(says_nothing);
    none("a file is named for what is in it", found.collect());
}

/// Where it cannot be done without.
const UNSAFE: [&str; 4] = [
    "proxy-app/src/listen/sockets.rs",
    "proxy-app/src/tls/set_crl.rs",
    "proxy-app/src/tls/set_session.rs",
    "proxy-app/src/tls/ticket_method.rs",
];

#[test]
fn unsafe_code_stands_in_four_files() {
    let roots = [
        ("mail-directory/src/lib.rs", "#![forbid(unsafe_code)]"),
        ("route-cache/src/lib.rs", "#![forbid(unsafe_code)]"),
        ("mail-proxy/src/lib.rs", "#![forbid(unsafe_code)]"),
        ("proxy-app/src/main.rs", "#![forbid(unsafe_code)]"),
        ("proxy-app/src/lib.rs", "#![deny(unsafe_code)]"),
    ];
    let open = roots.iter().filter(|(root, words)| !code(root).contains(words));
    let mut wrong: Vec<_> = open.map(|(root, words)| format!("{root} lacks {words}")).collect();
    // Cut in two, so that this file does not find itself.
    let allowance = concat!("allow(", "unsafe_code)");
    let sources = files("", "rs")
        .into_iter()
        .filter(|path| !UNSAFE.contains(&path.as_str()));
    wrong.extend(
        sources
            .filter(|path| code(path).contains(allowance))
            .map(|path| format!("{path} allows it")),
    );
    none(&format!("unsafe code is in {UNSAFE:?} alone"), wrong);
}

#[test]
fn nothing_is_left_for_later() {
    // Cut in two, so that this file does not find itself.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("#[ig", "nore"),
        concat!("todo", "!("),
    ];
    let mut wrong = Vec::new();
    for path in ["rs", "toml", "yaml", "md"]
        .iter()
        .flat_map(|extension| files("", extension))
    {
        let text = text(&path);
        let found = marks.iter().filter(|mark| text.contains(**mark));
        wrong.extend(found.map(|mark| format!("{path} has {mark}")));
    }
    none(
        "what is missing is an issue; a test that cannot run says what to install",
        wrong,
    );
}

#[test]
fn the_map_shows_every_room() {
    let page = text("docs/ARCHITECTURE.md");
    let mut wrong = Vec::new();
    for name in CRATES {
        let heading = format!("\n### {name}\n");
        let part = page.split(heading.as_str()).nth(1);
        let part = part.unwrap_or_else(|| panic!("docs/ARCHITECTURE.md has no part {name}"));
        let part = part.split("\n### ").next().unwrap_or_default();
        let rooms: BTreeSet<&str> = part
            .lines()
            .filter_map(|line| line.strip_prefix("- `")?.split('`').next())
            .collect();
        let sources = files(&format!("{name}/src"), "rs");
        let sources = sources
            .iter()
            .filter_map(|path| path.strip_prefix(name)?.strip_prefix('/'));
        let absent = sources.filter(|file| !rooms.contains(file));
        wrong.extend(absent.map(|file| format!("{name}/{file} is not in it")));
        let gone = rooms.iter().filter(|file| !house().join(name).join(file).is_file());
        wrong.extend(gone.map(|file| format!("{name}/{file} is in it, but not there")));
    }
    none(
        "the map of docs/ARCHITECTURE.md names every source of the crates",
        wrong,
    );
}

#[test]
fn the_ways_name_what_is_there() {
    let page = text("docs/ARCHITECTURE.md");
    let ways = page.split("\n## Ways through the house\n").nth(1);
    let ways = ways.expect("docs/ARCHITECTURE.md has the ways through the house");
    let ways = ways.split("\n## ").next().unwrap_or_default();
    let sources = CRATES.iter().flat_map(|name| files(&format!("{name}/src"), "rs"));
    let code: String = sources.map(|path| code(&path)).collect();
    let code: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let is_path = |word: &&str| word.contains("::");
    let paths = ways
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
        .filter(is_path);
    let paths: BTreeSet<&str> = paths.collect();
    assert!(paths.len() > 30, "the scan of the ways finds too little: {paths:?}");
    let unknown = paths
        .iter()
        .filter(|path| !path.split("::").all(|word| code.contains(word)));
    let wrong = unknown.map(|path| format!("there is no {path}"));
    none("docs/ARCHITECTURE.md walks through what there is", wrong.collect());
}

#[test]
fn decisions_are_numbered() {
    let mut seen = BTreeMap::new();
    let mut wrong = Vec::new();
    for path in files("docs/adr", "md") {
        let file = path.rsplit('/').next().unwrap_or_default().to_owned();
        let number = file.split('-').next().unwrap_or_default().to_owned();
        if number.len() != 4 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            wrong.push(format!("{path} does not begin with four digits"));
        }
        if !text(&path).starts_with(&format!("# {number}: ")) {
            wrong.push(format!("{path} does not begin with \"# {number}: \""));
        }
        if let Some(other) = seen.insert(number, file) {
            wrong.push(format!("{path} has the number of {other}"));
        }
    }
    none("a decision is docs/adr/NNNN-name.md with a number of its own", wrong);
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in files("", "md") {
        let folder = Path::new(&page).parent().unwrap_or(Path::new(""));
        for link in links(&text(&page)) {
            let target = link.split('#').next().unwrap_or_default();
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !elsewhere && !house().join(folder).join(target).exists() {
                wrong.push(format!("{page}: {link}"));
            }
        }
    }
    none("a link leads to a file of the house", wrong);
}

#[test]
fn what_is_promised_beside_others_has_a_test() {
    let page = text("docs/comparison.md");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let cells = rows.filter_map(|row| Some((row, row.split('|').nth(2)?.trim())));
    let has_test = |cell: &str| {
        let (name, path) = cell.split_once('[')?.1.split_once("](../")?;
        let source = text(path.split(')').next()?);
        source.contains(&format!("#[test]\nfn {name}(")).then_some(())
    };
    let (promises, rest): (Vec<_>, Vec<_>) = cells.partition(|(_, cell)| cell.starts_with("yes"));
    let lacks = promises.iter().filter(|(_, cell)| has_test(cell).is_none());
    let wrong = lacks.map(|(row, _)| (*row).to_owned()).collect();
    none("a yes names a test that there is", wrong);
    assert!(promises.len() > rest.len(), "{} promises", promises.len());
}

/// Fails with all that is wrong, and the rule.
#[track_caller]
fn none(rule: &str, wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{rule}:\n  {}", wrong.join("\n  "));
}

fn house() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
}

/// The text of a file, by its path in the house.
fn text(path: impl AsRef<Path>) -> String {
    let path = house().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A source without its comments, which may name what the code may not.
fn code(path: &str) -> String {
    let text = text(path);
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// A source up to its module of tests.
fn without_tests(source: &str) -> &str {
    source.split("#[cfg(test)]\nmod ").next().unwrap_or_default()
}

/// All files below a folder with this extension, as paths in the house. What is built or hidden is left out.
fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    collect(&house().join(folder), extension, &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<String>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.expect("a folder that can be read").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_symlink() || name.starts_with('.') || ["target", "corpus", "artifacts"].contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            collect(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            let inside = path.strip_prefix(house()).expect("found below it");
            found.push(inside.to_string_lossy().into_owned());
        }
    }
}

/// A file names another one of its crate.
struct Arrow {
    /// The module of the file, `web::way`.
    from: String,
    to: String,
    /// Where: path and line.
    at: String,
}

impl std::fmt::Display for Arrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} → {}", self.at, self.from, self.to)
    }
}

/// Which file names which, by the paths that begin with `crate` or `super` in what is no test. A file and its children
/// are one: it may use what it declares. `main.rs` and `lib.rs` may name all.
fn arrows(name: &str) -> Vec<Arrow> {
    let root = format!("{name}/src/");
    let paths = files(&root, "rs");
    let module = |path: &str| {
        path.trim_start_matches(&root)
            .trim_end_matches(".rs")
            .replace('/', "::")
    };
    let modules: BTreeSet<String> = paths.iter().map(|path| module(path)).collect();
    let mut found = Vec::new();
    for path in &paths {
        let from = module(path);
        if ["main", "lib"].contains(&from.as_str()) {
            continue;
        }
        for (line, named) in named(&text(path)) {
            let mut words: Vec<&str> = named.split("::").collect();
            let mut base: Vec<&str> = Vec::new();
            if words[0] == "super" {
                base = from.split("::").collect();
            }
            while words.first() == Some(&"super") {
                base.pop();
                words.remove(0);
            }
            if words.first() == Some(&"crate") {
                words.remove(0);
            }
            base.extend(words);
            let to = (1..=base.len()).rev().map(|length| base[..length].join("::"));
            let to = to.into_iter().find(|to| modules.contains(to));
            if let Some(to) = to.filter(|to| *to != from && !to.starts_with(&format!("{from}::"))) {
                let at = format!("{path}:{line}");
                found.push(Arrow {
                    from: from.clone(),
                    to,
                    at,
                });
            }
        }
    }
    assert!(found.len() > 20, "the scan of {name} finds too little: {}", found.len());
    found
}

/// The paths of a source that begin with `crate` or `super`, with their lines. Lists in braces are taken apart.
fn named(source: &str) -> Vec<(usize, String)> {
    let lines = without_tests(source)
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    let source = lines.collect::<Vec<_>>().join("\n");
    let starts = ["crate::", "super::"]
        .into_iter()
        .flat_map(|start| source.match_indices(start));
    let mut found = Vec::new();
    for (at, _) in starts {
        let before = source[..at].chars().next_back();
        // `pub(super)` has no colons behind it; `super::super::` is one path.
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let line = source[..at].matches('\n').count() + 1;
        let mut paths = Vec::new();
        taken_apart("", &source[at..], &mut paths);
        found.extend(paths.into_iter().map(|path| (line, path)));
    }
    found
}

/// Takes one path, or one list of paths, off a text. Gives what is left.
fn taken_apart<'a>(prefix: &str, text: &'a str, paths: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
        .unwrap_or(text.len());
    let (path, mut rest) = text.split_at(end);
    let path = format!("{prefix}{path}");
    match rest.strip_prefix('{').filter(|_| path.ends_with("::")) {
        Some(mut list) => loop {
            list = taken_apart(&path, list, paths).trim_start();
            // `a as b`
            let next = list.find([',', '}']).unwrap_or(list.len());
            list = &list[next..];
            match list.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => list = more,
                _ => {
                    rest = list.trim_start_matches([',', ' ', '\n']);
                    return rest.strip_prefix('}').unwrap_or(rest);
                }
            }
        },
        None => {
            paths.push(path.trim_end_matches("::self").trim_end_matches(':').to_owned());
            rest
        }
    }
}

/// Keys of the node file: the texts that `config.rs` and the files of the sections take out of a mapping.
fn config_keys() -> BTreeSet<String> {
    let mut paths = files("proxy-app/src/config", "rs");
    paths.push("proxy-app/src/config.rs".to_owned());
    let sources = paths.iter().map(|path| {
        let source = code(path);
        source.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
    });
    let config: String = sources.collect();
    let calls = [
        ".take(",
        ".require(",
        ".section(",
        ".text(",
        ".duration(",
        ".target(",
        ".not_yet(",
    ];
    let arguments = calls
        .iter()
        .flat_map(|call| config.split(call).skip(1))
        .filter_map(|rest| rest.split(')').next());
    let mut keys: BTreeSet<String> = arguments
        .filter_map(|arguments| Some(arguments.split('"').nth(1)?.to_owned()))
        .collect();
    for start in ["for key in [", "for (key, limit) in [", "for (key, wait) in ["] {
        for list in config.split(start).skip(1) {
            let list = list.split(']').next().unwrap_or_default();
            keys.extend(list.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    // Lists of keys, each with the place of its value.
    let pairs = config.split("(\"").skip(1).filter_map(|rest| rest.split_once('"'));
    keys.extend(
        pairs
            .filter(|(key, behind)| behind.starts_with(", &mut ") && !key.contains(' '))
            .map(|(key, _)| key.to_owned()),
    );
    keys
}

/// What stands in the first column of the tables of a part of docs/configuration.md, each with its whole row.
fn documented(heading: &str) -> BTreeMap<String, String> {
    let page = text("docs/configuration.md");
    let part = page.split("\n## ").find(|part| part.starts_with(heading));
    let part = part.unwrap_or_else(|| panic!("docs/configuration.md has no part {heading:?}"));
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.flat_map(|row| {
        let first = row.split('|').nth(1).unwrap_or_default();
        let keys = first.split('`').skip(1).step_by(2);
        keys.map(move |key| (key.to_owned(), row.to_owned()))
    });
    cells.collect()
}

/// The lines of a struct or an enum, without attributes.
fn items(source: &str, opening: &str) -> Vec<String> {
    let body = source.split(opening).nth(1);
    let body = body.unwrap_or_else(|| panic!("there is no {opening}"));
    let body = body.split("\n}").next().unwrap_or_default();
    let lines = body
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.trim_start_matches("pub ").trim_end_matches(',').to_owned())
        .collect()
}

/// `BadCredentials` is `bad_credentials`, as serde writes it.
fn snake(name: &str) -> String {
    let mut word = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.extend(letter.to_lowercase());
    }
    word
}

/// What stands in `](…)`, outside of code blocks.
fn links(page: &str) -> Vec<String> {
    let prose: String = page.split("```").step_by(2).collect();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}
