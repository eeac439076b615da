//! Inputs for a target: its seeds, its dictionary, and random mixtures of both. The same in each run.

use std::fs;
use std::path::{Path, PathBuf};

/// Most pieces of a mixture.
const PIECES_MAX: usize = 12;

/// The folder of the fuzz targets.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// What is known of the inputs of a target.
#[derive(Debug)]
pub struct Known {
    /// The entries of `dictionaries/TARGET.dict`.
    pub pieces: Vec<Vec<u8>>,
    /// The files of `seeds/TARGET`: whole inputs, most of them good ones.
    pub seeds: Vec<Vec<u8>>,
}

impl Known {
    /// Reads both.
    ///
    /// # Panics
    /// One of them is not there, or is empty, or cannot be understood.
    pub fn of(target: &str) -> Self {
        let dictionary = read(&folder().join(format!("dictionaries/{target}.dict")));
        let dictionary = String::from_utf8(dictionary).expect("a dictionary is text");
        let pieces: Vec<_> = dictionary.lines().filter_map(piece).collect();
        let seeds = folder().join("seeds").join(target);
        let seeds = fs::read_dir(&seeds).unwrap_or_else(|error| panic!("{}: {error}", seeds.display()));
        let mut seeds: Vec<_> = seeds
            .map(|entry| entry.expect("a folder that can be read").path())
            .collect();
        seeds.sort();
        assert!(!pieces.is_empty() && !seeds.is_empty(), "{target} has none");
        Self {
            pieces,
            seeds: seeds.iter().map(|path| read(path)).collect(),
        }
    }

    /// Every seed, also with a long tail, every piece, and then mixtures without end.
    pub fn inputs(&self) -> impl Iterator<Item = Vec<u8>> {
        let long = vec![b'x'; 40_000];
        let tailed = self.seeds.iter().map(move |seed| [&seed[..], &long].concat());
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        let mixtures = std::iter::repeat_with(move || chance.mixture(self));
        let known = self.seeds.iter().chain(&self.pieces).cloned();
        known.chain(tailed).chain(mixtures)
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An entry of a dictionary: `"..."`, where a backslash stands before a quote, a backslash or `x` and two digits.
fn piece(line: &str) -> Option<Vec<u8>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let quoted = line.strip_prefix('"').and_then(|line| line.strip_suffix('"'));
    let mut rest = quoted
        .unwrap_or_else(|| panic!("no entry of a dictionary: {line}"))
        .bytes();
    let mut bytes = Vec::new();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => escaped(&mut rest).unwrap_or_else(|| panic!("no escape: {line}")),
            byte => byte,
        });
    }
    Some(bytes)
}

fn escaped(rest: &mut impl Iterator<Item = u8>) -> Option<u8> {
    match rest.next()? {
        b'x' => {
            let digits = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()
        }
        byte @ (b'\\' | b'"') => Some(byte),
        _ => None,
    }
}

/// Marsaglia's xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn one_of<'a>(&mut self, all: &'a [Vec<u8>]) -> &'a [u8] {
        &all[self.below(all.len())]
    }

    fn mixture(&mut self, known: &Known) -> Vec<u8> {
        let mut bytes = match self.below(3) {
            0 => self.pieces(known),
            _ => self.one_of(&known.seeds).to_vec(),
        };
        for _ in 0..1 + self.below(3) {
            self.change(&mut bytes, known);
        }
        bytes
    }

    /// Pieces one after the other. Some targets take the first bytes for a choice.
    fn pieces(&mut self, known: &Known) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.below(5) {
            bytes.push(self.below(256) as u8);
        }
        for _ in 0..self.below(PIECES_MAX) {
            bytes.extend_from_slice(self.one_of(&known.pieces));
        }
        bytes
    }

    /// Puts a piece in, takes some bytes out, doubles some, ends it, or spoils a byte.
    fn change(&mut self, bytes: &mut Vec<u8>, known: &Known) {
        let at = self.below(bytes.len() + 1);
        let end = (at + self.below(40)).min(bytes.len());
        match self.below(8) {
            0..3 => drop(bytes.splice(at..at, self.one_of(&known.pieces).to_vec())),
            3 => drop(bytes.splice(at..end, self.one_of(&known.pieces).to_vec())),
            4 => drop(bytes.drain(at..end)),
            5 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            6 if end - at > 10 => bytes.truncate(at),
            _ if at < bytes.len() => bytes[at] = self.below(256) as u8,
            _ => {}
        }
    }
}
