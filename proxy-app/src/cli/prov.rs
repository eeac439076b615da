//! `portico prov`: the verbs and the syntax of Carbonio's `prov`, on whichever directory this node uses (HTTP §10.1).
//!
//! It works beside a running Portico and without one: the directory is changed, and who follows it takes the change
//! over. What an administrator types is judged here before anything is written; how it is written is the business of
//! `mail_directory::edit`.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::Config;
use crate::provision::change::JudgedEditor;
use crate::provision::{Answer, Failure, SharedNames};

mod dump;
mod flush;
mod read;
mod verbs;
mod words;
mod write;

use verbs::Verb;

/// Longest line of commands. A certificate with its chain has 20 kB.
const MAX_LINE: u64 = 4 * 1024 * 1024;
/// What comes before each line of a person at a terminal.
const PROMPT: &str = "prov> ";

/// What stands before the verb.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    conf: Option<PathBuf>,
    file: Option<PathBuf>,
    bind_dn: Option<String>,
    bind_password_file: Option<PathBuf>,
    help: bool,
    flags: Flags,
}

/// What changes how a verb acts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Flags {
    /// `-e`: only what is written on the entry itself.
    own: bool,
    /// `-v`: everything of each entry.
    verbose: bool,
    /// `-r`: values that are safeguarded may be replaced.
    replace: bool,
    /// `-fd`: secrets are shown.
    secrets: bool,
}

impl Flags {
    /// The flag that this word is.
    fn take(&mut self, word: &str) -> bool {
        let flag = match word {
            "-e" => &mut self.own,
            "-v" => &mut self.verbose,
            "-r" => &mut self.replace,
            "-fd" => &mut self.secrets,
            // Carbonio's choice between its server and LDAP: here there is one way.
            "-l" | "-m" | "-z" | "-a" => return true,
            _ => return false,
        };
        *flag = true;
        true
    }
}

impl Options {
    /// Takes the options off; what is left begins with the verb.
    fn take(words: &[String]) -> Result<(Options, &[String]), String> {
        let mut options = Options::default();
        let mut rest = words;
        while let [word, more @ ..] = rest {
            if !word.starts_with('-') || word == "-" {
                break;
            }
            // Names a person in Carbonio; behind `flushCache` it is a flag.
            if word == "-a" {
                return Err("there is no account to log in as: the directory is changed directly".to_owned());
            }
            let argument = || more.first().cloned().ok_or_else(|| format!("{word} wants a value"));
            let mut with_argument = true;
            match word.as_str() {
                "-f" | "--file" => options.file = Some(argument()?.into()),
                "-c" | "--conf" => options.conf = Some(argument()?.into()),
                "--bind-dn" => options.bind_dn = Some(argument()?),
                "--bind-password-file" => options.bind_password_file = Some(argument()?.into()),
                "-h" | "--help" => (options.help, with_argument) = (true, false),
                word if options.flags.take(word) => with_argument = false,
                word => return Err(format!("unknown option {word}")),
            }
            rest = &more[usize::from(with_argument)..];
        }
        Ok((options, rest))
    }

    /// As whom the directory is changed, if they say it.
    fn account(&self) -> anyhow::Result<Option<(&String, &PathBuf)>> {
        // A name goes with its own password: the two are not taken from different places.
        match (&self.bind_dn, &self.bind_password_file) {
            (Some(dn), Some(file)) => Ok(Some((dn, file))),
            (None, None) => Ok(None),
            _ => anyhow::bail!("--bind-dn and --bind-password-file go together"),
        }
    }
}

/// The directory, open, and what the verbs need beside it.
pub(crate) struct Prov {
    editor: JudgedEditor,
    socket: Option<PathBuf>,
    flags: Flags,
}

/// Does what the words say; without a verb, what stands in the file or on standard input.
///
/// # Errors
/// There is nothing to act on: the node file is bad, or a file of commands cannot be read.
pub fn run(conf: &Path, words: &[String]) -> anyhow::Result<ExitCode> {
    let (options, rest) = match Options::take(words) {
        Ok(taken) => taken,
        Err(message) => {
            say(&format!("{message}\n{}\n", verbs::help(None)));
            return Ok(ExitCode::FAILURE);
        }
    };
    // What needs no directory.
    if options.help || rest.first().is_some_and(|verb| verb == "help") {
        say(&format!("{}\n", verbs::help(rest.get(1).map(String::as_str))));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(Err(failure)) = rest.first().map(|_| verbs::parse(rest, options.flags)) {
        return Ok(ExitCode::from(told(&failure)));
    }
    let conf = options.conf.as_deref().unwrap_or(conf);
    let (config, _) = Config::load(conf)?;
    let mut prov = Prov {
        editor: JudgedEditor::open(&config, options.account()?, SharedNames::Warned)?,
        socket: config.admin.socket,
        flags: options.flags,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let code = match (rest.is_empty(), &options.file) {
            (false, _) => prov.command(rest).await,
            (true, Some(path)) => {
                let file = std::fs::File::open(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
                prov.commands(io::BufReader::new(file), "").await?
            }
            (true, None) => {
                let prompt = if io::stdin().is_terminal() { PROMPT } else { "" };
                prov.commands(io::stdin().lock(), prompt).await?
            }
        };
        Ok(ExitCode::from(code))
    })
}

impl Prov {
    /// Does one command and says what became of it. Gives the exit code.
    async fn command(&mut self, words: &[String]) -> u8 {
        let done = match verbs::parse(words, self.flags) {
            Ok(command) => self.act(command).await,
            Err(failure) => Err(failure),
        };
        match done {
            Ok(answer) => {
                print(&answer);
                0
            }
            Err(failure) => told(&failure),
        }
    }

    /// One command a line; what fails does not keep the rest from being done. Gives the worst exit code.
    async fn commands(&mut self, mut lines: impl BufRead, prompt: &str) -> anyhow::Result<u8> {
        let mut worst = 0;
        loop {
            say(prompt);
            let mut line = String::new();
            if lines.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
                return Ok(worst);
            }
            anyhow::ensure!((line.len() as u64) < MAX_LINE, "a line is longer than {MAX_LINE} bytes");
            let code = match words::split(&line) {
                Ok(words) if words.is_empty() => 0,
                Ok(words) if ["exit", "quit"].contains(&words[0].as_str()) => return Ok(worst),
                Ok(words) if words[0] == "help" => {
                    say(&format!("{}\n", verbs::help(words.get(1).map(String::as_str))));
                    0
                }
                Ok(words) => self.command(&words).await,
                Err(message) => told(&Failure::Usage(message)),
            };
            worst = worst.max(code);
        }
    }

    async fn act(&mut self, command: verbs::Command) -> Result<Answer, Failure> {
        let verbs::Command { verb, flags, words } = command;
        match verb {
            Verb::Get(room) => self.get(room, &words, flags).await,
            Verb::GetAll(room) => self.get_all(room, &words, flags).await,
            Verb::GetConfig => self.get_config(&words, flags).await,
            Verb::GetDomainInfo => self.get_domain_info(&words).await,
            Verb::Modify(room) => self.modify(room, &words, flags).await,
            Verb::Create(room) => self.create(room, &words).await,
            Verb::CreateAliasDomain => self.create_alias_domain(&words).await,
            Verb::Delete(room) => self.delete(room, &words[0]).await,
            Verb::ProxyUrls => self.proxy_urls().await,
            Verb::ProxyBackends => self.proxy_backends().await,
            Verb::ProxyDomains => self.proxy_domains().await,
            Verb::FlushCache => self.flush_cache(&words).await,
        }
    }
}

/// Says why a command was not done, where Carbonio says it. Gives the exit code.
fn told(failure: &Failure) -> u8 {
    match failure {
        Failure::Usage(text) => say(&format!("{text}\n")),
        Failure::Service { code, message } => complain(&format!("ERROR: {code} ({message})")),
        Failure::Plain(text) => complain(text),
    }
    exit_code(failure)
}

/// On standard output. Whoever reads there may have seen enough.
fn say(text: &str) {
    let _ = io::stdout()
        .write_all(printable(text).as_bytes())
        .and_then(|()| io::stdout().flush());
}

/// Shows what a command answers.
fn print(answer: &Answer) {
    answer.warnings.iter().for_each(|warning| complain(warning));
    say(&answer.out);
}

/// The exit code of a failure.
fn exit_code(failure: &Failure) -> u8 {
    match failure {
        Failure::Usage(_) => 1,
        Failure::Service { .. } | Failure::Plain(_) => 2,
    }
}

/// On standard error.
fn complain(text: &str) {
    eprintln!("{}", printable(text));
}

/// Answers have lines; names and words of others that could drive a terminal do not reach it.
fn printable(text: &str) -> Cow<'_, str> {
    let drives = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match text.contains(drives) {
        true => text.replace(drives, "?").into(),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use mail_directory::edit::{EditError, Room};

    use super::*;

    #[test]
    fn options_stand_before_the_verb() {
        let words: Vec<String> = "-l -r -c n.yaml --bind-dn cn=x --bind-password-file p -fd ms -e x"
            .split(' ')
            .map(str::to_owned)
            .collect();
        let (options, rest) = Options::take(&words).unwrap();
        assert_eq!(rest, ["ms", "-e", "x"]);
        assert_eq!(options.conf.as_deref(), Some(Path::new("n.yaml")));
        assert_eq!(options.bind_dn.as_deref(), Some("cn=x"));
        assert!(options.flags.replace && options.flags.secrets && !options.flags.own);
        assert!(Options::take(&["-f".to_owned()]).is_err());
        assert!(Options::take(&["--frob".to_owned()]).is_err());
    }

    #[test]
    fn failures_are_called_as_in_carbonio() {
        for (error, code, message) in [
            (
                EditError::NoSuch(Room::Servers, "x".to_owned()),
                "account.NO_SUCH_SERVER",
                "no such server: x",
            ),
            (
                EditError::Exists(Room::Accounts, "x".to_owned()),
                "account.ACCOUNT_EXISTS",
                "email address already exists: x",
            ),
            (
                EditError::Failed("down".to_owned()),
                "service.FAILURE",
                "system failure: down",
            ),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure, Failure::service(code, message));
            assert_eq!(exit_code(&failure), 2);
        }
        assert_eq!(exit_code(&Failure::Usage(String::new())), 1);
    }
}
