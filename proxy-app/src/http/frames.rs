//! HTTP/2 frames of a client as they pass: counts those that cost us more than the client, and times request heads.
//! Only the nine bytes in front of each frame are decoded here (RFC 9113 §4.1).
//!
//! The engine bounds streams, header lists and pending resets. It does not bound frames that it answers or drops at
//! once: a client that sends nothing else keeps a core busy.

use std::time::Duration;

use tokio::time::Instant;

/// Length of what stands in front of a frame.
const PREFIX: usize = 9;
/// Longest frame that is accepted: the least that RFC 9113 §4.2 allows for, and what the engine announces.
const PAYLOAD_MAX: u32 = 16_384;
/// Most frames of one request head: the engine takes lists of 32 KiB, which are two full frames.
const BLOCK_FRAMES: u32 = 16;
/// For frames that ask for an answer or for nothing: the burst, and then the rate per second. Browsers send a few in a
/// minute.
const IDLE_TALK: Bucket = Bucket::new(200.0, 20.0);
/// For streams that the client gives up: a page that is left cancels all that it still waits for, a hundred streams at
/// most.
const CANCELLED: Bucket = Bucket::new(300.0, 30.0);
/// For updates of windows: two for some KiB that are received.
const WINDOWS: Bucket = Bucket::new(100_000.0, 50_000.0);
/// An update that allows less than this counts as a frame that carries nothing.
const WINDOW_LEAST: u32 = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Why a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flood {
    /// Frames that carry nothing.
    #[error("HTTP/2 frames that carry nothing")]
    IdleTalk,
    /// Streams that are opened and given up.
    #[error("HTTP/2 streams that are opened and given up")]
    Cancelled,
    /// Updates of windows.
    #[error("HTTP/2 window updates without number")]
    Windows,
    /// A request head in too many parts.
    #[error("an HTTP/2 request head in too many parts")]
    Block,
    /// A frame that is longer than allowed.
    #[error("an HTTP/2 frame that is too long")]
    Length,
}

/// What has been seen of a connection.
pub struct Frames {
    prefix: [u8; PREFIX],
    /// How much of the prefix is there.
    have: usize,
    /// How much of the frame's payload is still to come.
    left: u32,
    /// The first bytes of a window update.
    increment: u32,
    kind: u8,
    /// Frames of the request head that has not ended.
    block: u32,
    idle_talk: Bucket,
    cancelled: Bucket,
    windows: Bucket,
    /// When the frame or head that is under way began, if it should be short.
    since: Option<Instant>,
    /// How long a request head may take, and a frame that is not data: as in HTTP/1.
    patience: Duration,
}

impl Frames {
    /// A connection whose preface has been read.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            prefix: [0; PREFIX],
            have: 0,
            left: 0,
            increment: 0,
            kind: DATA,
            block: 0,
            idle_talk: IDLE_TALK,
            cancelled: CANCELLED,
            windows: WINDOWS,
            since: None,
        }
    }

    /// Takes note of these bytes.
    ///
    /// # Errors
    /// It is too much; the connection should end.
    pub fn pass(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = bytes.len().min(self.left as usize);
                self.payload(&bytes[..taken], now)?;
                bytes = &bytes[taken..];
                continue;
            }
            let taken = bytes.len().min(PREFIX - self.have);
            self.prefix[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == PREFIX {
                self.have = 0;
                self.begin(now)?;
            }
        }
        let short = self.have > 0 || self.block > 0 || self.left > 0 && self.kind != DATA;
        self.since = short.then_some(self.since.unwrap_or(now));
        Ok(())
    }

    /// The deadline of the frame or head that is under way; `None`: there is none.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + self.patience)
    }

    fn begin(&mut self, now: Instant) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.prefix;
        let length = u32::from_be_bytes([0, a, b, c]);
        if length > PAYLOAD_MAX {
            return Err(Flood::Length);
        }
        self.left = length;
        self.kind = kind;
        self.increment = 0;
        match kind {
            HEADERS | CONTINUATION => {
                self.block += 1;
                if self.block > BLOCK_FRAMES {
                    return Err(Flood::Block);
                }
                if flags & END_HEADERS != 0 && self.left == 0 {
                    self.block = 0;
                }
            }
            DATA => {
                let empty = length == 0 || flags & PADDED != 0 && length <= 256;
                if empty && flags & END_STREAM == 0 {
                    self.idle_talk.take(now, Flood::IdleTalk)?;
                }
            }
            RST_STREAM => self.cancelled.take(now, Flood::Cancelled)?,
            WINDOW_UPDATE => self.windows.take(now, Flood::Windows)?,
            // SETTINGS, PING, PRIORITY, GOAWAY, and unknown frames.
            _ => self.idle_talk.take(now, Flood::IdleTalk)?,
        }
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8], now: Instant) -> Result<(), Flood> {
        self.left -= bytes.len() as u32;
        if self.kind == WINDOW_UPDATE {
            for byte in bytes {
                self.increment = self.increment << 8 | u32::from(*byte);
            }
            if self.left == 0 && self.increment & 0x7FFF_FFFF < WINDOW_LEAST {
                self.idle_talk.take(now, Flood::IdleTalk)?;
            }
        }
        let ends = matches!(self.kind, HEADERS | CONTINUATION) && self.prefix[4] & END_HEADERS != 0;
        if self.left == 0 && ends {
            self.block = 0;
        }
        Ok(())
    }
}

/// A burst, and then a rate per second.
#[derive(Clone, Copy)]
struct Bucket {
    size: f32,
    rate: f32,
    used: f32,
    at: Option<Instant>,
}

impl Bucket {
    const fn new(size: f32, rate: f32) -> Self {
        Self {
            size,
            rate,
            used: 0.0,
            at: None,
        }
    }

    fn take(&mut self, now: Instant, flood: Flood) -> Result<(), Flood> {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.used = (self.used - passed.as_secs_f32() * self.rate).max(0.0) + 1.0;
        if self.used > self.size { Err(flood) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);
    const PING: u8 = 6;
    const SETTINGS: u8 = 4;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let prefix = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        [&prefix[..], payload].concat()
    }

    /// How many of these frames pass at once, however they are cut.
    #[track_caller]
    fn check(frames: &[Vec<u8>], limit: usize, expected: Flood) {
        let now = Instant::now();
        for cut in [1, 7, 9, 1000] {
            let mut seen = Frames::new(DEADLINE);
            for round in 0..limit {
                for chunk in frames.concat().chunks(cut) {
                    assert_eq!(seen.pass(chunk, now), Ok(()), "{round}");
                }
            }
            let ended = frames
                .concat()
                .chunks(cut)
                .find_map(|chunk| seen.pass(chunk, now).err());
            assert_eq!(ended, Some(expected), "{cut}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn floods_end() {
        check(&[frame(PING, 0, &[0; 8])], 200, Flood::IdleTalk);
        check(&[frame(SETTINGS, 0, &[])], 200, Flood::IdleTalk);
        check(&[frame(SETTINGS, 0, &[0; 60])], 200, Flood::IdleTalk);
        check(&[frame(2, 0, &[0; 5])], 200, Flood::IdleTalk);
        check(&[frame(0xEE, 0, &[1; 100])], 200, Flood::IdleTalk);
        check(&[frame(DATA, 0, &[])], 200, Flood::IdleTalk);
        check(&[frame(DATA, PADDED, &[9; 10])], 200, Flood::IdleTalk);
        check(&[frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1])], 200, Flood::IdleTalk);
        check(&[frame(WINDOW_UPDATE, 0, &[0, 0, 0x40, 0])], 100_000, Flood::Windows);
        let reset = [frame(HEADERS, END_HEADERS, b"head"), frame(RST_STREAM, 0, &[0; 4])];
        check(&reset, 300, Flood::Cancelled);
        let mut long = vec![frame(HEADERS, 0, b"x")];
        long.extend(std::iter::repeat_n(frame(CONTINUATION, 0, b""), 15));
        let now = Instant::now();
        let mut seen = Frames::new(DEADLINE);
        assert_eq!(seen.pass(&long.concat(), now), Ok(()));
        assert_eq!(seen.pass(&frame(CONTINUATION, 0, b""), now), Err(Flood::Block));
        assert_eq!(
            Frames::new(DEADLINE).pass(&[1, 0, 0, DATA, 0, 0, 0, 0, 1], now),
            Err(Flood::Length)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_browser_sends_passes() {
        let mut seen = Frames::new(DEADLINE);
        for _ in 0..10_000 {
            let page = [
                frame(HEADERS, END_HEADERS, &[1; 300]),
                frame(HEADERS, 0, &[1; 9000]),
                frame(CONTINUATION, END_HEADERS, &[1; 9000]),
                frame(DATA, 0, &[2; 16384]),
                frame(DATA, END_STREAM, &[]),
                frame(WINDOW_UPDATE, 0, &[0, 0, 0x80, 0]),
                frame(PING, 0, &[0; 8]),
                frame(RST_STREAM, 0, &[0; 4]),
            ];
            assert_eq!(seen.pass(&page.concat(), Instant::now()), Ok(()));
            assert_eq!(seen.deadline(), None);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn heads_have_a_deadline_and_data_has_none() {
        let start = Instant::now();
        for begun in [&frame(HEADERS, 0, b"x")[..], &[0, 0], &frame(PING, 0, &[0; 8])[..12]] {
            let mut seen = Frames::new(DEADLINE);
            assert_eq!(seen.pass(begun, start), Ok(()));
            assert_eq!(seen.deadline(), Some(start + DEADLINE));
        }
        let mut slow = Frames::new(DEADLINE);
        assert_eq!(slow.pass(&frame(HEADERS, 0, b"xyz")[..10], start), Ok(()));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(slow.pass(b"y", Instant::now()), Ok(()));
        assert_eq!(slow.deadline(), Some(start + DEADLINE), "bytes do not extend it");
        let mut data = Frames::new(DEADLINE);
        assert_eq!(data.pass(&frame(DATA, 0, &[1; 500])[..20], start), Ok(()));
        assert_eq!(data.deadline(), None);
    }
}
