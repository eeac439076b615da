//! The table in force, and how it changes: with the directory, which has the lengths of the waits, and with its files.
//!
//! Files that cannot be used change nothing: the previous good table stays in force.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mail_directory::System;
use mail_directory::attributes as a;
use mail_directory::yaml::Problems;
use parking_lot::Mutex;

use crate::locations::{LocationTable, Locations};

/// The state of a file when it was read: its device, inode, length and time of change; `None`: it did not exist.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The table in force.
pub(crate) struct LiveLocations {
    /// Name of this node's server entry.
    node: String,
    written: ArcSwap<Locations>,
    table: ArcSwap<LocationTable>,
    /// The states of all files when they were last read, good or bad.
    stamps: Mutex<Vec<(PathBuf, Stamp)>>,
}

impl LiveLocations {
    /// Reads `files` and makes their table on a node of this directory. The second value holds warnings.
    ///
    /// # Errors
    /// All problems of the files.
    pub(crate) fn load(files: &[PathBuf], node: &str, system: &System) -> Result<(Self, Problems), Problems> {
        let stamps = stamps(files);
        let (written, warnings) = Locations::load(files)?;
        let table = table(&written, node, system);
        let mut live = Self {
            node: node.to_owned(),
            written: ArcSwap::from_pointee(written),
            table: ArcSwap::from_pointee(table),
            stamps: Mutex::new(stamps),
        };
        live.stamp_included();
        Ok((live, warnings))
    }

    /// The table.
    pub(crate) fn table(&self) -> Arc<LocationTable> {
        self.table.load_full()
    }

    /// The locations and groups as they are written.
    pub(crate) fn written(&self) -> Arc<Locations> {
        self.written.load_full()
    }

    /// Takes over another directory.
    pub(crate) fn adopt(&self, system: &System) {
        let table = table(&self.written.load(), &self.node, system);
        self.table.store(Arc::new(table));
    }

    /// Whether a file has changed since it was last read.
    pub(crate) fn has_changed(&self) -> bool {
        self.stamps.lock().iter().any(|(file, before)| stamp(file) != *before)
    }

    /// Reads the files that the node file names again. Returns the warnings.
    ///
    /// # Errors
    /// All problems of the files; then nothing has changed.
    pub(crate) fn reload(&self, files: &[PathBuf], system: &System) -> Result<Problems, Problems> {
        // Taken before the reading, so that a change during it is seen at the next look. A bad file is not read again
        // until it changes.
        let mut known: Vec<PathBuf> = self.stamps.lock().iter().map(|(file, _)| file.clone()).collect();
        let fresh: Vec<PathBuf> = files.iter().filter(|file| !known.contains(file)).cloned().collect();
        known.extend(fresh);
        *self.stamps.lock() = stamps(&known);
        let (written, warnings) = Locations::load(files)?;
        // Files that are not read any more are not watched.
        let is_read = |file: &PathBuf| written.files.contains(file);
        self.stamps.lock().retain(|(file, _)| is_read(file));
        let included: Vec<PathBuf> = written
            .files
            .iter()
            .filter(|file| !known.contains(file))
            .cloned()
            .collect();
        self.stamps.lock().extend(stamps(&included));
        self.table.store(Arc::new(table(&written, &self.node, system)));
        self.written.store(Arc::new(written));
        Ok(warnings)
    }

    /// Included files are known only when the others have been read.
    fn stamp_included(&mut self) {
        let known = self.stamps.get_mut();
        let written = self.written.load();
        let included = written
            .files
            .iter()
            .filter(|file| known.iter().all(|(other, _)| other != *file));
        let included = stamps(&included.cloned().collect::<Vec<_>>());
        known.extend(included);
    }
}

fn table(written: &Locations, node: &str, system: &System) -> LocationTable {
    let node = system.node(node);
    let named = node.list(&a::REVERSE_PROXY_UPSTREAM_EWS_SERVERS);
    let has_ews = named.iter().any(|name| system.server(name).is_some());
    LocationTable::new(&written.locations, &node, has_ews)
}

fn stamps(files: &[PathBuf]) -> Vec<(PathBuf, Stamp)> {
    files.iter().map(|file| (file.clone(), stamp(file))).collect()
}

fn stamp(file: &PathBuf) -> Stamp {
    let of = |file: Metadata| (file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec());
    std::fs::metadata(file).ok().map(of)
}

#[cfg(test)]
mod tests {
    use mail_directory::Entry;

    use super::*;

    fn system() -> System {
        System::new(Entry::new("config"), [], [], [])
    }

    #[test]
    fn bad_files_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let new = dir.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, dir.path().join(name)).unwrap();
            dir.path().join(name)
        };
        let file = write(
            "site.yaml",
            "locations:\n- {exact: /a, answer: {}}\n- {include: more.yaml}\n",
        );
        write("more.yaml", "locations:\n- {exact: /b, answer: {}}\n");
        let (live, _) = LiveLocations::load(std::slice::from_ref(&file), "node", &system()).unwrap();
        assert_eq!(live.table().entries().len(), 2);
        assert!(!live.has_changed());
        write("more.yaml", "locations:\n- {exact: /b, answr: {}}\n");
        assert!(live.has_changed());
        let problems = live
            .reload(std::slice::from_ref(&file), &system())
            .unwrap_err()
            .to_string();
        assert!(problems.contains("more.yaml:2: locations[0].answr: "), "{problems}");
        assert_eq!(live.table().entries().len(), 2);
        // It is not read again and again.
        assert!(!live.has_changed());
        write(
            "more.yaml",
            "locations:\n- {exact: /b, answer: {}}\n- {exact: /c, answer: {}}\n",
        );
        assert!(live.has_changed());
        assert!(live.reload(std::slice::from_ref(&file), &system()).unwrap().is_empty());
        assert_eq!(live.table().entries().len(), 3);
        std::fs::remove_file(dir.path().join("more.yaml")).unwrap();
        assert!(live.has_changed());
        assert!(live.reload(std::slice::from_ref(&file), &system()).is_err());
        assert_eq!(live.table().entries().len(), 3);
        live.adopt(&system());
        assert_eq!(live.table().entries().len(), 3);
    }
}
