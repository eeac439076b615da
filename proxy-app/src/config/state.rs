//! `state_file`: where a node keeps what it knows from process to process.

use std::path::{Path, PathBuf};

use mail_directory::yaml::Mapping;

use super::read::ConfigReader;

/// Beside the other files that a node keeps; see `directory.snapshot`.
const STATE_FILE: &str = "/var/lib/portico/node.state";

impl ConfigReader {
    /// `None`: `off`.
    pub(super) fn state_file(&mut self, root: &mut Mapping<'_>) -> Option<PathBuf> {
        let Some(node) = root.take("state_file") else {
            return Some(Path::new(STATE_FILE).to_owned());
        };
        match node.str(&mut self.problems) {
            None | Some("off") => None,
            Some(_) => node.path_buf(&mut self.problems),
        }
    }
}
