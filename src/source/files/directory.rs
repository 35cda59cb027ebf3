//! Lists the files and reads those that changed. Blocking: called off the async threads.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use catalog_bridge_api::JsonText;
use chrono::{DateTime, Utc};

use super::document::{Problem, parse_documents};
use super::plan::Claim;

/// Largest file in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most files of a directory.
const FILES_MAX: usize = 20_000;
/// How deep directories are followed.
const DIRECTORIES_MAX: usize = 32;
/// Longest path below the directory; it is part of the version that the log keeps.
const PATH_BYTES_MAX: usize = 900;

/// A file as it was read last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileState {
    stamp: Stamp,
    content: Result<Vec<Claim>, Problem>,
}

/// What changes when a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    changed: (i64, i64),
    bytes: u64,
    inode: u64,
}

impl FileState {
    /// The entities that it brings; none when it is invalid.
    pub(super) fn claims(&self) -> &[Claim] {
        self.content.as_deref().unwrap_or_default()
    }

    /// Why it is invalid.
    pub(super) fn problem(&self) -> Option<&Problem> {
        self.content.as_ref().err()
    }

    /// When it was written.
    pub(super) fn changed_at(&self) -> Option<DateTime<Utc>> {
        self.stamp.modified.map(DateTime::from)
    }

    #[cfg(test)]
    pub(super) fn of(content: Result<Vec<Claim>, Problem>) -> Self {
        FileState { stamp: Stamp { modified: None, changed: (0, 0), bytes: 0, inode: 0 }, content }
    }
}

/// All files there are.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) files: BTreeMap<String, FileState>,
}

/// Lists everything, and reads what is not known as it is. An error means that the list is not complete.
pub(super) fn scan(root: &Path, known: &BTreeMap<String, FileState>) -> io::Result<Scan> {
    let mut paths = Vec::new();
    if std::fs::metadata(root)?.is_dir() {
        list(root, "", 0, &mut paths)?;
    } else {
        paths.push(String::new());
    }
    let mut files = BTreeMap::new();
    for path in paths {
        let metadata = match std::fs::metadata(join(root, &path)) {
            Ok(metadata) => metadata,
            // Gone since it was listed, or a link to nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if !metadata.is_file() {
            continue;
        }
        let stamp = stamp(&metadata);
        let state = match known.get(&path).filter(|known| known.stamp == stamp) {
            Some(known) => known.clone(),
            None => FileState { stamp, content: read(root, &path, &metadata).map(claims) },
        };
        files.insert(path, state);
    }
    Ok(Scan { files })
}

/// The entities of one file, as it is now.
pub(super) fn read_entities(root: &Path, path: &str) -> Result<Vec<(Claim, JsonText)>, Problem> {
    let metadata = std::fs::metadata(join(root, path)).map_err(|error| unreadable(&error))?;
    read(root, path, &metadata)
}

fn read(root: &Path, path: &str, metadata: &Metadata) -> Result<Vec<(Claim, JsonText)>, Problem> {
    if metadata.len() > FILE_BYTES_MAX {
        return Err(Problem {
            line: None,
            reason: format!("it has {} bytes, more than {FILE_BYTES_MAX}", metadata.len()),
        });
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(Problem { line: None, reason: format!("its path is longer than {PATH_BYTES_MAX} bytes") });
    }
    let text = std::fs::read_to_string(join(root, path)).map_err(|error| unreadable(&error))?;
    parse_documents(path, &text)
}

fn claims(entities: Vec<(Claim, JsonText)>) -> Vec<Claim> {
    entities.into_iter().map(|(claim, _)| claim).collect()
}

fn unreadable(error: &io::Error) -> Problem {
    Problem { line: None, reason: error.to_string() }
}

fn join(root: &Path, path: &str) -> std::path::PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(path) }
}

fn stamp(metadata: &Metadata) -> Stamp {
    Stamp {
        modified: metadata.modified().ok(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        bytes: metadata.len(),
        inode: metadata.ino(),
    }
}

/// Hidden names are left out (`.git`, the `..data` of a mounted ConfigMap, whose visible links are followed); links to
/// directories are not followed.
fn list(directory: &Path, prefix: &str, depth: usize, paths: &mut Vec<String>) -> io::Result<()> {
    if depth > DIRECTORIES_MAX {
        return Err(io::Error::other(format!("{} is deeper than {DIRECTORIES_MAX} directories", directory.display())));
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if name.starts_with('.') {
            continue;
        }
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{path}/"), depth + 1, paths)?;
        } else if name.ends_with(".yaml") || name.ends_with(".yml") {
            if paths.len() >= FILES_MAX {
                return Err(io::Error::other(format!("there are more than {FILES_MAX} files")));
            }
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changed_files_are_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| std::fs::write(directory.path().join(path), text).expect("written");
        std::fs::create_dir(directory.path().join("sub")).expect("created");
        write("sub/a.yaml", "kind: A\nmetadata: { name: a }\n");
        write("b.yml", "kind: [\n");
        write(".hidden.yaml", "kind: [\n");
        write("readme.md", "kind: [\n");

        let first = scan(directory.path(), &BTreeMap::new()).expect("scanned").files;
        let second = scan(directory.path(), &first).expect("scanned").files;
        write("b.yml", "kind: B\nmetadata: { name: b }\n");
        std::fs::remove_file(directory.path().join("sub/a.yaml")).expect("removed");
        let third = scan(directory.path(), &second).expect("scanned").files;

        assert_eq!(first.keys().collect::<Vec<_>>(), ["b.yml", "sub/a.yaml"]);
        assert!(first["b.yml"].problem().is_some() && first["sub/a.yaml"].claims().len() == 1);
        assert_eq!(first, second);
        assert_eq!(third.keys().collect::<Vec<_>>(), ["b.yml"]);
        assert_eq!(third["b.yml"].claims()[0].entity_ref.as_str(), "b:default/b");
    }

    #[test]
    fn a_directory_that_is_away_is_an_error() {
        assert!(scan(Path::new("/nowhere/at/all"), &BTreeMap::new()).is_err());
    }
}
