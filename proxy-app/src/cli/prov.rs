//! `portico prov`: the verbs and the syntax of Carbonio's `prov`, on whichever directory this node uses (HTTP §10.1).
//!
//! It works beside a running Portico and without one: the directory is changed, and nodes that follow it take the
//! change over. Input is checked by `provision` before anything is written; `mail_directory::edit` writes it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::provision::change::CheckedEditor;
use crate::provision::{CommandOutput, ProvisionError, SharedNames};

mod dump;
mod flush;
mod preview;
mod read;
mod verbs;
mod wait;
pub(super) mod words;
mod write;

use verbs::ProvVerb;
use wait::WaitChoice;

/// Longest line of commands. A certificate with its chain has 20 kB.
const MAX_LINE: u64 = 4 * 1024 * 1024;
/// Most bytes of commands, and of their answers, that wait until all of them are done.
const MAX_BATCH: usize = 16 * 1024 * 1024;
/// How long commands are gathered until they are written: others who change the file wait for 30 seconds.
const MAX_GATHERING: Duration = Duration::from_secs(5);
/// Bytes that are taken from a pipe at once.
const AT_HAND: usize = 64 * 1024;
/// The prompt at a terminal.
const PROMPT: &str = "prov> ";

/// What stands before the verb.
#[derive(Debug, Default, PartialEq, Eq)]
struct ProvOptions {
    conf: Option<PathBuf>,
    file: Option<PathBuf>,
    bind_dn: Option<String>,
    bind_password_file: Option<PathBuf>,
    wait: WaitChoice,
    dry_run: bool,
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

impl ProvOptions {
    /// Takes the options off; what is left begins with the verb.
    fn take(words: &[String]) -> Result<(Self, &[String]), String> {
        let mut options = Self::default();
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
                "--wait" => options.wait = WaitChoice::parse(&argument()?)?,
                "--dry-run" => (options.dry_run, with_argument) = (true, false),
                "-h" | "--help" => (options.help, with_argument) = (true, false),
                word if options.flags.take(word) => with_argument = false,
                word => return Err(format!("unknown option {word}")),
            }
            rest = &more[usize::from(with_argument)..];
        }
        Ok((options, rest))
    }

    /// The bind DN and password file for changes, if they are named.
    fn account(&self) -> anyhow::Result<Option<(&String, &PathBuf)>> {
        // A name goes with its own password: the two are not taken from different places.
        match (&self.bind_dn, &self.bind_password_file) {
            (Some(dn), Some(file)) => Ok(Some((dn, file))),
            (None, None) => Ok(None),
            _ => anyhow::bail!("--bind-dn and --bind-password-file go together"),
        }
    }
}

/// The result of a command: its output, warnings first, and the exit code.
#[derive(Debug, Default)]
struct Report {
    err: Vec<String>,
    out: String,
    code: u8,
    /// No more commands are done.
    is_end: bool,
}

impl Report {
    fn print(&self) {
        self.err.iter().for_each(|line| eprintln!("{}", printable(line)));
        print_out(&self.out);
    }
}

impl From<CommandOutput> for Report {
    fn from(output: CommandOutput) -> Self {
        Self {
            err: output.warnings,
            out: output.out,
            ..Self::default()
        }
    }
}

/// On standard output or standard error, as in Carbonio.
impl From<&ProvisionError> for Report {
    fn from(failure: &ProvisionError) -> Self {
        let mut report = Self {
            code: exit_code(failure),
            ..Self::default()
        };
        match failure {
            ProvisionError::Usage(text) => report.out = format!("{text}\n"),
            ProvisionError::Service { code, message } => report.err.push(format!("ERROR: {code} ({message})")),
            ProvisionError::Plain(text) => report.err.push(text.clone()),
        }
        report
    }
}

/// Where commands come from.
struct CommandSource {
    from: io::BufReader<File>,
    /// It is a file: its next lines do not depend on an answer.
    is_whole: bool,
}

impl CommandSource {
    fn of(file: File) -> anyhow::Result<Self> {
        let is_whole = file.metadata()?.is_file();
        Ok(Self {
            from: io::BufReader::with_capacity(AT_HAND, file),
            is_whole,
        })
    }

    /// The next line, and those that are at hand behind it, if many are wanted; and whether there may be more.
    fn next(&mut self, many: bool) -> (Vec<String>, anyhow::Result<bool>) {
        let (mut lines, mut size) = (Vec::new(), 0);
        loop {
            let line = match self.line() {
                Ok(Some(line)) => line,
                Ok(None) => return (lines, Ok(false)),
                Err(error) => return (lines, Err(error)),
            };
            size += line.len();
            lines.push(line);
            let is_at_hand = self.is_whole || self.from.buffer().contains(&b'\n');
            if !many || !is_at_hand || size > MAX_BATCH {
                return (lines, Ok(true));
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = String::new();
        let read = self.from.by_ref().take(MAX_LINE).read_line(&mut line)?;
        anyhow::ensure!((line.len() as u64) < MAX_LINE, "a line is longer than {MAX_LINE} bytes");
        Ok((read > 0).then_some(line))
    }
}

/// The directory, open, and what the verbs need beside it.
pub(crate) struct Prov {
    editor: CheckedEditor,
    socket: Option<PathBuf>,
    flags: Flags,
    wait: WaitChoice,
    /// Something was changed that nobody has waited for.
    changed: bool,
}

/// Does one command; without a verb, those of the file or of standard input.
///
/// # Errors
/// There is nothing to act on: the node file is bad, or a file of commands cannot be read.
pub(crate) fn run(conf: &Path, words: &[String]) -> anyhow::Result<ExitCode> {
    let (options, rest) = match ProvOptions::take(words) {
        Ok(taken) => taken,
        Err(message) => {
            print_out(&format!("{message}\n{}\n", verbs::help(None)));
            return Ok(ExitCode::FAILURE);
        }
    };
    // What needs no directory.
    if options.help || rest.first().is_some_and(|verb| verb == "help") {
        print_out(&format!("{}\n", verbs::help(rest.get(1).map(String::as_str))));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(Err(failure)) = rest.first().map(|_| verbs::parse(rest, options.flags)) {
        let report = Report::from(&failure);
        report.print();
        return Ok(ExitCode::from(report.code));
    }
    let conf = options.conf.as_deref().unwrap_or(conf);
    let (config, _) = Config::load(conf)?;
    let editor = CheckedEditor::open(&config, options.account()?, SharedNames::Warned)?;
    let mut prov = Prov {
        editor: if options.dry_run { editor.rehearsing() } else { editor },
        socket: config.admin.socket,
        flags: options.flags,
        wait: options.wait,
        changed: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let code = match (rest.is_empty(), &options.file) {
            (false, _) => {
                let report = prov.command(rest).await;
                report.print();
                let waited = prov.wait().await;
                waited.print();
                report.code.max(waited.code)
            }
            (true, Some(path)) => {
                let file = File::open(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
                prov.commands(CommandSource::of(file)?, "").await?
            }
            (true, None) => {
                let prompt = if io::stdin().is_terminal() { PROMPT } else { "" };
                let stdin = io::stdin().as_fd().try_clone_to_owned()?;
                prov.commands(CommandSource::of(stdin.into())?, prompt).await?
            }
        };
        Ok(ExitCode::from(code))
    })
}

impl Prov {
    /// Does one command. Returns its result.
    async fn command(&mut self, words: &[String]) -> Report {
        let done = match verbs::parse(words, self.flags) {
            Ok(command) => self.act(command).await,
            Err(failure) => Err(failure),
        };
        match done {
            Ok(output) => output.into(),
            Err(failure) => (&failure).into(),
        }
    }

    /// The content of a line: a command, or nothing, or the end.
    async fn line(&mut self, line: &str) -> Report {
        match words::split(line) {
            Ok(words) if words.is_empty() => Report::default(),
            Ok(words) if ["exit", "quit"].contains(&words[0].as_str()) => Report {
                is_end: true,
                ..Report::default()
            },
            Ok(words) if words[0] == "help" => Report {
                out: format!("{}\n", verbs::help(words.get(1).map(String::as_str))),
                ..Report::default()
            },
            Ok(words) => self.command(&words).await,
            Err(message) => (&ProvisionError::Usage(message)).into(),
        }
    }

    /// One command a line; what fails does not keep the rest from being done. Returns the worst exit code.
    async fn commands(&mut self, mut lines: CommandSource, prompt: &str) -> anyhow::Result<u8> {
        let mut worst = 0;
        loop {
            print_out(prompt);
            let (batch, more) = lines.next(prompt.is_empty());
            // What speaks to a running Portico wants the directory as it is then.
            let flags = self.flags;
            for some in batch.chunk_by(|a, b| !is_apart(a, flags) && !is_apart(b, flags)) {
                let (code, is_end) = self.batch(some).await;
                let waited = self.wait().await;
                waited.print();
                worst = worst.max(code).max(waited.code);
                if is_end {
                    return Ok(worst);
                }
            }
            if !more? {
                return Ok(worst);
            }
        }
    }

    /// Does the commands of these lines, and where the directory can do many changes as one, together. Returns the
    /// worst exit code, and whether this is the end.
    async fn batch(&mut self, mut lines: &[String]) -> (u8, bool) {
        let (mut worst, mut is_end) = (0, false);
        while !lines.is_empty() && !is_end {
            let (reports, done) = match lines.len() > 1 && self.editor.begin() {
                true => {
                    let reports = self.together(lines).await;
                    (reports, self.editor.commit().await.is_ok())
                }
                false => (vec![self.line(&lines[0]).await], true),
            };
            let (taken, rest) = lines.split_at(reports.len());
            for (report, line) in reports.into_iter().zip(taken) {
                // What was not done together is done one by one, each with its own error.
                let report = if done { report } else { self.line(line).await };
                report.print();
                worst = worst.max(report.code);
                is_end |= report.is_end;
            }
            lines = rest;
        }
        (worst, is_end)
    }

    /// What became of these lines, or of the first of them, where they say much or one of them is the end.
    async fn together(&mut self, lines: &[String]) -> Vec<Report> {
        let (mut reports, mut size) = (Vec::new(), 0);
        let begun = Instant::now();
        for line in lines {
            let report = self.line(line).await;
            size += report.out.len();
            let is_enough = report.is_end || size > MAX_BATCH || begun.elapsed() > MAX_GATHERING;
            reports.push(report);
            if is_enough {
                break;
            }
        }
        reports
    }

    async fn act(&mut self, command: verbs::Command) -> Result<CommandOutput, ProvisionError> {
        let verbs::Command { verb, flags, words } = command;
        let changes = matches!(
            verb,
            ProvVerb::Modify(_) | ProvVerb::Create(_) | ProvVerb::CreateAliasDomain | ProvVerb::Delete(_)
        );
        let done = match verb {
            ProvVerb::Get(kind) => self.get(kind, &words, flags).await,
            ProvVerb::GetAll(kind) => self.get_all(kind, &words, flags).await,
            ProvVerb::GetConfig => self.get_config(&words, flags).await,
            ProvVerb::GetDomainInfo => self.get_domain_info(&words).await,
            ProvVerb::Modify(kind) => self.modify(kind, &words, flags).await,
            ProvVerb::Create(kind) => self.create(kind, &words).await,
            ProvVerb::CreateAliasDomain => self.create_alias_domain(&words).await,
            ProvVerb::Delete(kind) => self.delete(kind, &words[0]).await,
            ProvVerb::ProxyUrls => self.proxy_urls().await,
            ProvVerb::ProxyBackends => self.proxy_backends().await,
            ProvVerb::ProxyDomains => self.proxy_domains().await,
            ProvVerb::FlushCache => self.flush_cache(&words).await,
        };
        self.changed |= changes && done.is_ok();
        done
    }
}

/// Whether this is for a running Portico and not for the directory.
fn is_apart(line: &str, flags: Flags) -> bool {
    let words = words::split(line).unwrap_or_default();
    verbs::parse(&words, flags).is_ok_and(|command| command.verb == ProvVerb::FlushCache)
}

/// Prints to standard output. Its reader may have closed it.
fn print_out(text: &str) {
    let _ = io::stdout()
        .write_all(printable(text).as_bytes())
        .and_then(|()| io::stdout().flush());
}

/// The exit code of a failure.
fn exit_code(failure: &ProvisionError) -> u8 {
    match failure {
        ProvisionError::Usage(_) => 1,
        ProvisionError::Service { .. } | ProvisionError::Plain(_) => 2,
    }
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
    use mail_directory::edit::{EditError, EntryKind};

    use super::*;

    #[test]
    fn options_stand_before_the_verb() {
        let words: Vec<String> = "-l -r -c n.yaml --bind-dn cn=x --bind-password-file p -fd ms -e x"
            .split(' ')
            .map(str::to_owned)
            .collect();
        let (options, rest) = ProvOptions::take(&words).unwrap();
        assert_eq!(rest, ["ms", "-e", "x"]);
        assert_eq!(options.conf.as_deref(), Some(Path::new("n.yaml")));
        assert_eq!(options.bind_dn.as_deref(), Some("cn=x"));
        assert!(options.flags.replace && options.flags.secrets && !options.flags.own);
        assert!(ProvOptions::take(&["-f".to_owned()]).is_err());
        assert!(ProvOptions::take(&["--frob".to_owned()]).is_err());
    }

    #[test]
    fn failures_are_called_as_in_carbonio() {
        for (error, code, message) in [
            (
                EditError::NoSuch(EntryKind::Servers, "x".to_owned()),
                "account.NO_SUCH_SERVER",
                "no such server: x",
            ),
            (
                EditError::Exists(EntryKind::Accounts, "x".to_owned()),
                "account.ACCOUNT_EXISTS",
                "email address already exists: x",
            ),
            (
                EditError::Failed("down".to_owned()),
                "service.FAILURE",
                "system failure: down",
            ),
        ] {
            let failure = ProvisionError::from(error);
            assert_eq!(failure, ProvisionError::service(code, message));
            assert_eq!(exit_code(&failure), 2);
        }
        assert_eq!(exit_code(&ProvisionError::Usage(String::new())), 1);
    }
}
