//! A file of blocks with checksums, read as it comes: what is not whole, or not what was written, is found out before
//! it is used. What stands in a block is not known here.
//!
//! Each checksum covers the one before it, so that no block can be missing, twice there, or in another place.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::KeptFileError;

/// What such a file begins with; the version follows.
const MAGIC: &[u8] = b"portico routes ";
const VERSION: &[u8] = b"1\n";
/// Longest payload. A block is written out at half of it, and no record is as long as the other half.
pub(super) const MAX_PAYLOAD: usize = 128 * 1024;

/// The kind of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first one.
    Header,
    /// Some routes.
    Routes,
    /// The last one.
    End,
}

/// Of SHA-256: against disks, not against people, from whom the mode of the file keeps it.
type Checksum = [u8; 16];

/// Writes blocks.
pub(super) struct BlockWriter<W> {
    out: W,
    last: Checksum,
    bytes: u64,
}

/// Reads blocks.
pub(super) struct BlockReader<R> {
    input: R,
    last: Checksum,
    payload: Vec<u8>,
}

impl<W: Write> BlockWriter<W> {
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        out.write_all(VERSION)?;
        Ok(Self {
            out,
            last: Checksum::default(),
            bytes: 0,
        })
    }

    pub(super) fn write(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let head = head(kind, payload.len())?;
        self.last = checksum(&self.last, &head, payload);
        self.bytes += (head.len() + payload.len() + self.last.len()) as u64;
        self.out.write_all(&head)?;
        self.out.write_all(payload)?;
        self.out.write_all(&self.last)
    }

    /// How many bytes were written.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.out.flush()?;
        Ok(self.bytes)
    }
}

impl<R: Read> BlockReader<R> {
    pub(super) fn new(mut input: R) -> Result<Self, KeptFileError> {
        let (mut magic, mut version) = ([0; MAGIC.len()], [0; VERSION.len()]);
        input.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(KeptFileError::Damaged);
        }
        input.read_exact(&mut version)?;
        match version == VERSION {
            true => Ok(Self {
                input,
                last: Checksum::default(),
                payload: Vec::new(),
            }),
            false => Err(KeptFileError::Version),
        }
    }

    /// The next block, if its checksum is right. After the last one there is nothing.
    pub(super) fn next(&mut self) -> Result<(Kind, &[u8]), KeptFileError> {
        let mut head = [0; 5];
        self.input.read_exact(&mut head)?;
        let (kind, length) = parse(head).ok_or(KeptFileError::Damaged)?;
        self.payload.resize(length, 0);
        self.input.read_exact(&mut self.payload)?;
        let mut found = Checksum::default();
        self.input.read_exact(&mut found)?;
        self.last = checksum(&self.last, &head, &self.payload);
        let ends = kind != Kind::End || self.input.read(&mut [0])? == 0;
        match found == self.last && ends {
            true => Ok((kind, &self.payload)),
            false => Err(KeptFileError::Damaged),
        }
    }
}

fn head(kind: Kind, length: usize) -> io::Result<[u8; 5]> {
    let letter = match kind {
        Kind::Header => b'H',
        Kind::Routes => b'R',
        Kind::End => b'E',
    };
    let length = u32::try_from(length)
        .ok()
        .filter(|length| *length as usize <= MAX_PAYLOAD);
    let [a, b, c, d] = length.ok_or(io::ErrorKind::FileTooLarge)?.to_le_bytes();
    Ok([letter, a, b, c, d])
}

fn parse([letter, a, b, c, d]: [u8; 5]) -> Option<(Kind, usize)> {
    let kind = match letter {
        b'H' => Kind::Header,
        b'R' => Kind::Routes,
        b'E' => Kind::End,
        _ => return None,
    };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    (length <= MAX_PAYLOAD).then_some((kind, length))
}

fn checksum(last: &Checksum, head: &[u8], payload: &[u8]) -> Checksum {
    let whole = Sha256::new()
        .chain_update(last)
        .chain_update(head)
        .chain_update(payload)
        .finalize();
    let mut checksum = Checksum::default();
    checksum.copy_from_slice(&whole[..16]);
    checksum
}
