//! Completions for shells and man pages, made from the description of the command line.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory, ValueEnum};

use crate::cli::Cli;

/// A shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Prints the completions for a shell.
pub(crate) fn completions(shell: Shell) -> ExitCode {
    print!("{}", completions_for(shell));
    ExitCode::SUCCESS
}

fn completions_for(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), "portico", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Writes a man page for each verb into a folder, which is made.
///
/// # Errors
/// The folder or a file cannot be written.
pub(crate) fn man(folder: &Path) -> anyhow::Result<ExitCode> {
    write(folder).with_context(|| format!("cannot write man pages into {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command(), folder)
}

fn command() -> Command {
    // Its package has another name.
    Cli::command().name("portico").display_name("portico")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_can_be_completed_and_read_about() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("man1")).unwrap();
        for verb in command().get_subcommands() {
            let name = verb.get_name();
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                assert!(completions_for(shell).contains(name), "{shell:?} does not know {name}");
            }
            let page = folder.path().join(format!("man1/portico-{name}.1"));
            assert!(page.is_file(), "no {}", page.display());
        }
        let page = std::fs::read_to_string(folder.path().join("man1/portico.1")).unwrap();
        assert!(
            page.contains("front door") && page.contains(".SH SUBCOMMANDS"),
            "{page}"
        );
        let page = std::fs::read_to_string(folder.path().join("man1/portico-route-explain.1")).unwrap();
        assert!(page.contains("without side effects"), "{page}");
    }
}
