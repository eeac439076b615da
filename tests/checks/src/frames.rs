//! The counting of HTTP/2 frames: the same verdict however they are cut, only what is allowed passes, and only what is
//! not allowed ends a connection. The frames are counted here once more, from the whole.

use std::time::Duration;

use proxy_app::http::frames::{Flood, Frames};
use tokio::time::Instant;

/// Length of what stands in front of a frame (RFC 9113 §4.1), and the longest payload (§4.2).
const PREFIX: usize = 9;
const PAYLOAD_MAX: usize = 16_384;
/// Most frames without use, given up streams, and parts of a request head, all at once.
const IDLE_TALK: usize = 200;
const CANCELLED: usize = 300;
const BLOCK: usize = 16;

/// How long a head may take. No time passes here.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was counted.
#[derive(Default, Debug)]
struct Counted {
    /// Frames that carry nothing for sure, and those that may be seen so.
    idle: usize,
    perhaps_idle: usize,
    cancelled: usize,
    windows: usize,
    block: usize,
    longest_block: usize,
    longest: usize,
    /// Whether something is on its way that has a deadline.
    on_its_way: bool,
}

pub(crate) fn check(bytes: &[u8]) {
    let now = Instant::now();
    let verdict = crate::check_ways(bytes, |pieces| pass(pieces, now));
    let counted = count(bytes);
    match verdict {
        Ok(has_deadline) => {
            assert!(
                counted.idle <= IDLE_TALK && counted.cancelled <= CANCELLED,
                "{counted:?}"
            );
            assert!(
                counted.longest_block <= BLOCK && counted.longest <= PAYLOAD_MAX,
                "{counted:?}"
            );
            assert_eq!(has_deadline, counted.on_its_way, "{counted:?}");
        }
        Err(Flood::IdleTalk) => assert!(counted.perhaps_idle > IDLE_TALK, "{counted:?}"),
        Err(Flood::Cancelled) => assert!(counted.cancelled > CANCELLED, "{counted:?}"),
        Err(Flood::Windows) => assert!(counted.windows > 100_000, "{counted:?}"),
        Err(Flood::Block) => assert!(counted.longest_block > BLOCK, "{counted:?}"),
        Err(Flood::Length) => assert!(counted.longest > PAYLOAD_MAX, "{counted:?}"),
    }
}

/// While no time passes: why it ends, or whether something has a deadline.
fn pass(pieces: &[&[u8]], now: Instant) -> Result<bool, Flood> {
    let mut frames = Frames::new(PATIENCE);
    for piece in pieces {
        frames.pass(piece, now)?;
    }
    Ok(frames.deadline().is_some())
}

fn count(mut rest: &[u8]) -> Counted {
    let mut counted = Counted::default();
    while let Some((&[a, b, c, kind, flags, ..], behind)) = rest.split_first_chunk::<PREFIX>() {
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        counted.longest = counted.longest.max(length);
        let payload = behind.get(..length);
        counted.frame(kind, flags, length, payload);
        let Some(payload) = payload else {
            counted.on_its_way = kind != 0 || counted.block > 0;
            return counted;
        };
        rest = &behind[payload.len()..];
    }
    counted.on_its_way = counted.block > 0 || !rest.is_empty();
    counted
}

impl Counted {
    /// A frame; `payload` is `None` if it is not all there.
    fn frame(&mut self, kind: u8, flags: u8, length: usize, payload: Option<&[u8]>) {
        let (ends_stream, ends_headers, padded) = (flags & 1 != 0, flags & 4 != 0, flags & 8 != 0);
        let (mut idle, mut perhaps) = (false, false);
        match kind {
            0 => {
                idle = !ends_stream && (length == 0 || padded && length <= 256);
            }
            1 | 9 => {
                self.block += 1;
                self.longest_block = self.longest_block.max(self.block);
                if ends_headers && payload.is_some() {
                    self.block = 0;
                }
            }
            3 => self.cancelled += 1,
            8 => {
                self.windows += 1;
                let increment = payload
                    .and_then(|payload| payload.try_into().ok())
                    .map(u32::from_be_bytes);
                idle = increment.is_some_and(|increment| increment & 0x7FFF_FFFF < 1024);
                perhaps = increment.is_none();
            }
            _ => idle = true,
        }
        self.idle += usize::from(idle);
        self.perhaps_idle += usize::from(idle || perhaps);
    }
}
