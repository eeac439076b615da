//! The verbs: names, short names, how each is written, and the help.

use std::fmt::Write as _;

use EntryKind::{Accounts, Config, Domains, Servers};
use ProvVerb::{Create, Delete, Get, GetAll, GetConfig, Modify};
use mail_directory::edit::EntryKind;

use crate::cli::prov::Flags;
use crate::provision::ProvisionError;

/// What a verb does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProvVerb {
    Get(EntryKind),
    GetAll(EntryKind),
    GetConfig,
    GetDomainInfo,
    Modify(EntryKind),
    Create(EntryKind),
    CreateAliasDomain,
    Delete(EntryKind),
    ProxyUrls,
    ProxyBackends,
    ProxyDomains,
    FlushCache,
}

/// A verb with its words, which are as many as it wants.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) verb: ProvVerb,
    pub(super) flags: Flags,
    pub(super) words: Vec<String>,
}

/// How a verb is written.
struct Syntax {
    verb: ProvVerb,
    name: &'static str,
    short: &'static str,
    usage: &'static str,
    /// Fewest words behind it, and most.
    least: usize,
    most: usize,
}

const ANY: usize = usize::MAX;

const fn syntax(
    verb: ProvVerb,
    (name, short): (&'static str, &'static str),
    usage: &'static str,
    (least, most): (usize, usize),
) -> Syntax {
    Syntax {
        verb,
        name,
        short,
        usage,
        least,
        most,
    }
}

const PAIRS: &str = "[attr1 value1 [attr2 value2...]]";

/// By subject, as the help shows them. Usage texts are Carbonio's, where it has the verb.
const VERBS: [Syntax; 25] = [
    syntax(
        Get(Accounts),
        ("getAccount", "ga"),
        "[-e] {name@domain|id} [attr1 [attr2...]]",
        (1, ANY),
    ),
    syntax(
        GetAll(Accounts),
        ("getAllAccounts", "gaa"),
        "[-v] [-e] [domain]",
        (0, 1),
    ),
    syntax(
        Create(Accounts),
        ("createAccount", "ca"),
        "{name@domain} {password} [attr1 value1 [attr2 value2...]]",
        (2, ANY),
    ),
    syntax(
        Modify(Accounts),
        ("modifyAccount", "ma"),
        "{name@domain|id} [attr1 value1 [attr2 value2...]]",
        (3, ANY),
    ),
    syntax(Delete(Accounts), ("deleteAccount", "da"), "{name@domain|id}", (1, 1)),
    syntax(
        Get(Domains),
        ("getDomain", "gd"),
        "[-e] {domain|id} [attr1 [attr2...]]",
        (1, ANY),
    ),
    syntax(
        GetAll(Domains),
        ("getAllDomains", "gad"),
        "[-v] [-e] [attr1 [attr2...]]",
        (0, ANY),
    ),
    syntax(
        ProvVerb::GetDomainInfo,
        ("getDomainInfo", "gdi"),
        "name|id|virtualHostname {value} [attr1 [attr2...]]",
        (2, ANY),
    ),
    syntax(
        Create(Domains),
        ("createDomain", "cd"),
        "{domain} [attr1 value1 [attr2 value2...]]",
        (1, ANY),
    ),
    syntax(
        ProvVerb::CreateAliasDomain,
        ("createAliasDomain", "cad"),
        "{alias-domain-name} {local-domain-name|id} [attr1 value1 [attr2 value2...]]",
        (2, ANY),
    ),
    syntax(
        Modify(Domains),
        ("modifyDomain", "md"),
        "{domain|id} [attr1 value1 [attr2 value2...]]",
        (3, ANY),
    ),
    syntax(Delete(Domains), ("deleteDomain", "dd"), "{domain|id}", (1, 1)),
    syntax(
        Get(Servers),
        ("getServer", "gs"),
        "[-e] {name|id} [attr1 [attr2...]]",
        (1, ANY),
    ),
    syntax(GetAll(Servers), ("getAllServers", "gas"), "[-v] [-e] [service]", (0, 1)),
    syntax(
        Create(Servers),
        ("createServer", "cs"),
        "{name} [attr1 value1 [attr2 value2...]]",
        (1, ANY),
    ),
    syntax(
        Modify(Servers),
        ("modifyServer", "ms"),
        "{name|id} [attr1 value1 [attr2 value2...]]",
        (3, ANY),
    ),
    syntax(Delete(Servers), ("deleteServer", "ds"), "{name|id}", (1, 1)),
    syntax(GetConfig, ("getConfig", "gcf"), "{name}", (1, 1)),
    syntax(GetConfig, ("getAllConfig", "gacf"), "[attr1 [attr2...]]", (0, ANY)),
    syntax(
        Modify(Config),
        ("modifyConfig", "mcf"),
        "attr1 value1 [attr2 value2...]",
        (2, ANY),
    ),
    syntax(ProvVerb::ProxyUrls, ("getAllReverseProxyURLs", "garpu"), "", (0, 0)),
    syntax(
        ProvVerb::ProxyBackends,
        ("getAllReverseProxyBackends", "garpb"),
        "",
        (0, 0),
    ),
    syntax(
        ProvVerb::ProxyDomains,
        ("getAllReverseProxyDomains", "garpd"),
        "",
        (0, 0),
    ),
    syntax(
        ProvVerb::FlushCache,
        ("flushCache", "fc"),
        "[-a] {type[,type2...]} [name1|id1 [name2|id2...]]",
        (1, ANY),
    ),
    syntax(
        Get(EntryKind::Cos),
        ("getCos", "gc"),
        "[-e] {name|id} [attr1 [attr2...]]",
        (1, ANY),
    ),
];

impl Syntax {
    fn usage(&self) -> String {
        format!("{}({}) {}", self.name, self.short, self.usage)
    }

    fn refuse(&self, message: &str) -> ProvisionError {
        let usage = self.usage();
        ProvisionError::Usage(format!(
            "{message}\nusage:  {}\nFor general help, type : zmprov --help",
            usage.trim_end()
        ))
    }
}

/// Reads a command: the verb, its flags, its words.
pub(super) fn parse(words: &[String], before: Flags) -> Result<Command, ProvisionError> {
    let [name, rest @ ..] = words else {
        return Err(ProvisionError::Usage(help(None)));
    };
    let is_it = |syntax: &&Syntax| {
        [syntax.name, syntax.short]
            .iter()
            .any(|own| own.eq_ignore_ascii_case(name))
    };
    let Some(syntax) = VERBS.iter().find(is_it) else {
        return Err(ProvisionError::Usage(format!("unknown command {name}\n{}", help(None))));
    };
    let mut flags = before;
    let count = rest.iter().take_while(|word| flags.take(word)).count();
    let words = rest[count..].to_vec();
    let bound = match words.len() {
        given if given < syntax.least => Some(("at least", syntax.least)),
        given if given > syntax.most => Some(("no more than", syntax.most)),
        _ => None,
    };
    if let Some((bound, number)) = bound {
        return Err(syntax.refuse(&format!(
            "{} is expecting {bound} {number} arguments but {} arguments have been provided",
            syntax.name,
            words.len()
        )));
    }
    let leading = match syntax.verb {
        Modify(Config) => 0,
        Modify(_) | Create(Servers | Domains) => 1,
        Create(_) | ProvVerb::CreateAliasDomain => 2,
        _ => words.len(),
    };
    if (words.len() - leading) % 2 != 0 {
        return Err(syntax.refuse("not enough arguments"));
    }
    Ok(Command {
        verb: syntax.verb,
        flags,
        words,
    })
}

/// The help: what there is, or everything about one verb or the verbs of one subject.
pub(super) fn help(subject: Option<&str>) -> String {
    let mut text = String::from(HEAD);
    let subject = subject.unwrap_or_default().to_ascii_lowercase();
    let all = subject.is_empty() || subject == "commands";
    let fits = |syntax: &&Syntax| {
        all || syntax.short == subject || syntax.name.to_ascii_lowercase().contains(subject.trim_end_matches('s'))
    };
    for syntax in VERBS.iter().filter(fits) {
        let _fits = writeln!(text, "  {}", syntax.usage().trim_end());
    }
    text.push_str(TAIL);
    debug_assert!(text.contains(PAIRS) || !all);
    text
}

const HEAD: &str = "portico prov [options] [command [arguments]]

  -c, --conf FILE              the node file, which names the directory
  -f FILE                      read commands from FILE, one per line; without a command and -f, read them from standard input
  -r                           allow replacing safeguarded attributes (zimbraServiceEnabled, zimbraServiceInstalled)
  -fd                          show secret values
  --bind-dn DN, --bind-password-file FILE
                               LDAP bind DN and password
  --wait node|all|none         after a change, wait until the node on this machine, or every node, has taken it over, and
                               say so; or do not
  --dry-run                    write nothing; say what the change would do on the node on this machine
  -h, --help                   print this text; also: help, help commands, help SUBJECT

";
const TAIL: &str = "
  -e  only the entry's own values, without inherited ones and defaults
  -v  all attributes of each entry

  attr value   sets a value; repeat attr to set several            +attr value   adds one
  attr \"\"      unsets                                              -attr value   removes one
  For a certificate or key, file:PATH reads the value from that file.";

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = VERBS
            .iter()
            .flat_map(|v| [v.name, v.short])
            .map(str::to_ascii_lowercase)
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn verbs_have_their_flags_and_words() {
        let command = parse(&words("GAS -v -e mailbox"), Flags::default()).unwrap();
        assert_eq!(command.verb, GetAll(Servers));
        assert!(command.flags.verbose && command.flags.own);
        assert_eq!(command.words, ["mailbox"]);
        let command = parse(&words("ms s -zimbraServiceEnabled mta"), Flags::default()).unwrap();
        assert_eq!(command.words, ["s", "-zimbraServiceEnabled", "mta"]);
    }

    #[test]
    fn too_few_and_too_many_words_show_the_usage() {
        let usage = |line: &str| match parse(&words(line), Flags::default()) {
            Err(ProvisionError::Usage(text)) => text,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(
            usage("modifyServer a b"),
            "modifyServer is expecting at least 3 arguments but 2 arguments have been provided\n\
             usage:  modifyServer(ms) {name|id} [attr1 value1 [attr2 value2...]]\n\
             For general help, type : zmprov --help"
        );
        assert!(usage("ds a b").starts_with("deleteServer is expecting no more than 1 arguments but 2 "));
        assert!(usage("ms a b c d").starts_with("not enough arguments\nusage:  modifyServer(ms) "));
        assert!(usage("ca a@b pw x").starts_with("not enough arguments"));
        assert!(usage("garpu x").contains("usage:  getAllReverseProxyURLs(garpu)\n"));
        assert!(usage("frobnicate").starts_with("unknown command frobnicate\nportico prov "));
        assert!(usage("").starts_with("portico prov "));
    }

    #[test]
    fn help_shows_what_is_asked() {
        assert!(help(None).contains("modifyServer(ms)") && help(None).contains("flushCache(fc)"));
        let domains = help(Some("domain"));
        assert!(domains.contains("modifyDomain(md)") && !domains.contains("modifyServer"));
        assert!(help(Some("ms")).contains("modifyServer(ms)"));
    }
}
