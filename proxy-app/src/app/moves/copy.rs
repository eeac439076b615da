//! The administrator's own program that copies the mail of an account. It is run without a shell; its exit code decides.

use std::time::Duration;

use crate::node::program;

/// The program.
#[derive(Debug, Clone)]
pub(crate) struct CopyProgram {
    /// The program and its arguments, in which `{account}`, `{from}` and `{to}` are replaced.
    pub words: Vec<String>,
    /// How long it may take.
    pub limit: Duration,
}

impl CopyProgram {
    /// Runs it for an account.
    ///
    /// # Errors
    /// It cannot be started, does not end in time, or says with its exit code that it has failed.
    pub(super) async fn run(&self, account: &str, from: &str, to: &str) -> Result<(), String> {
        // An argument that begins so could be taken for an option.
        if account.starts_with('-') {
            return Err("no program is run for an account whose name begins with -".to_owned());
        }
        let filled = |word: &String| {
            word.replace("{account}", account)
                .replace("{from}", from)
                .replace("{to}", to)
        };
        let words: Vec<String> = self.words.iter().map(filled).collect();
        program::run(&words, &[], self.limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(words: &[&str], limit: u64) -> Result<(), String> {
        let program = CopyProgram {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            limit: Duration::from_millis(limit),
        };
        program.run("a@x", "s1", "s2").await
    }

    #[tokio::test]
    async fn it_gets_the_account_and_both_servers() {
        let sh = |script: &'static str| ["/bin/sh", "-c", script, "copy", "{account}", "{from}/{to}"];
        run(&sh("test \"$1 $2\" = 'a@x s1/s2'"), 60_000).await.unwrap();
        assert!(run(&sh("test \"$1\" = 'b@x'"), 60_000).await.is_err());
    }

    #[tokio::test]
    async fn an_account_is_no_option() {
        let program = CopyProgram {
            words: vec!["/bin/true".to_owned(), "{account}".to_owned()],
            limit: Duration::from_secs(60),
        };
        assert!(program.run("-x@y", "s1", "s2").await.is_err());
    }
}
