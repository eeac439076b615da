//! HTTP/2 streams of a client, as their frames pass in both directions: which answers wait because the client does not
//! read, which uploads go on although they have been answered, and which requests the engine has refused by itself.
//!
//! A stream whose answer has ended is closed for us, but the engine goes on to read the request for as long as the
//! client sends and the server takes it, and does not report it (RFC 9113 §8.1). So a moment later the stream is ended
//! from here: the engine gets a frame that is an error of this stream alone, and resets it; the reset is sent on with
//! the real reason.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// How long a request may go on after the end of its answer: some clients end it in a frame of its own.
const EARLY: Duration = Duration::from_secs(1);
/// Most streams that are followed: the engine serves fewer at once, and refuses more than that.
const STREAMS_MAX: usize = 1024;
/// Length of what stands in front of a frame (RFC 9113 §4.1).
const PREFIX: usize = 9;
/// The window of a connection, and of a stream where nothing else is said (RFC 9113 §6.9.2).
const WINDOW: i64 = 65_535;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// SETTINGS_INITIAL_WINDOW_SIZE
const INITIAL_WINDOW: u16 = 4;
/// The error for a request that is malformed (RFC 9113 §8.1.1).
const PROTOCOL_ERROR: u32 = 1;
/// An error of our own (RFC 9113 §7).
const INTERNAL_ERROR: u32 = 2;
/// The longest head that holds a status and nothing else, after a change of HPACK's table. Every other answer has a
/// longer one.
const BARE: u32 = 5;
/// The error code of a stream whose answer is complete.
const NO_ERROR: [u8; 4] = [0; 4];

/// What is in front of a frame.
#[derive(Debug, Clone, Copy, Default)]
struct FrameHead {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds the frames in the bytes of one direction.
#[derive(Clone, Default)]
struct Scan {
    prefix: [u8; PREFIX],
    have: usize,
    frame: FrameHead,
    /// How much of the frame's payload is still to come.
    left: u32,
    /// Frames of a head must not be torn apart (RFC 9113 §4.3).
    in_block: bool,
    /// A parameter of a small frame.
    words: [u8; 8],
    words_have: usize,
}

/// What has been found.
enum FrameEvent {
    Frame(FrameHead),
    /// So much more may be sent on this stream; 0: on the connection.
    Window(u32, u32),
    InitialWindow(u32),
    /// A stream ends with this error; 0: the connection.
    Error(u32, u32),
}

impl Scan {
    /// Between two frames, and not within a head.
    fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0 && !self.in_block
    }

    fn pass(&mut self, mut bytes: &[u8], mut found: impl FnMut(FrameEvent)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (payload, rest) = bytes.split_at(bytes.len().min(self.left as usize));
                self.left -= payload.len() as u32;
                if matches!(self.frame.kind, SETTINGS | WINDOW_UPDATE | RST_STREAM | GOAWAY) {
                    payload.iter().filter_map(|&byte| self.word(byte)).for_each(&mut found);
                }
                bytes = rest;
                continue;
            }
            let (prefix, rest) = bytes.split_at(bytes.len().min(PREFIX - self.have));
            self.prefix[self.have..self.have + prefix.len()].copy_from_slice(prefix);
            self.have += prefix.len();
            bytes = rest;
            if self.have == PREFIX {
                self.begin();
                found(FrameEvent::Frame(self.frame));
            }
        }
    }

    fn begin(&mut self) {
        let [a, b, c, kind, flags, d, e, f, g] = self.prefix;
        self.frame = FrameHead {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes([d & 0x7F, e, f, g]),
        };
        (self.have, self.left, self.words_have) = (0, self.frame.length, 0);
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_block = flags & END_HEADERS == 0;
        }
    }

    /// Takes one more byte of a small frame; returns what it completes.
    fn word(&mut self, byte: u8) -> Option<FrameEvent> {
        // The text of a GOAWAY follows its error.
        *self.words.get_mut(self.words_have)? = byte;
        self.words_have += 1;
        let [a, b, c, d, e, f, g, h] = self.words;
        match (self.frame.kind, self.words_have) {
            (WINDOW_UPDATE, 4) => {
                self.words_have = 0;
                Some(FrameEvent::Window(
                    self.frame.stream,
                    u32::from_be_bytes([a & 0x7F, b, c, d]),
                ))
            }
            (RST_STREAM, 4) => Some(FrameEvent::Error(self.frame.stream, u32::from_be_bytes([a, b, c, d]))),
            (GOAWAY, 8) => Some(FrameEvent::Error(0, u32::from_be_bytes([e, f, g, h]))),
            (SETTINGS, 6) => {
                self.words_have = 0;
                let is_window = u16::from_be_bytes([a, b]) == INITIAL_WINDOW;
                is_window.then(|| FrameEvent::InitialWindow(u32::from_be_bytes([c, d, e, f])))
            }
            _ => None,
        }
    }
}

/// What is known of a stream.
struct OpenStream {
    /// How much the client still takes on it.
    window: i64,
    /// The client has sent its whole request.
    request_ended: bool,
    answer: AnswerState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AnswerState {
    Awaited,
    Begun,
    Ended,
}

/// The streams of a connection.
pub(crate) struct Streams {
    open: HashMap<u32, OpenStream>,
    /// The window of the connection, and that of a new stream.
    window: i64,
    initial: i64,
    inbound: Scan,
    outbound: Scan,
    /// Streams that were answered before their requests ended, and how long these may go on.
    early: VecDeque<(Instant, u32)>,
    /// Streams that the engine should reset.
    ended: HashSet<u32>,
}

/// More streams than any client needs.
#[derive(Debug, thiserror::Error)]
#[error("HTTP/2 streams without number")]
pub(crate) struct TooMany;

impl Streams {
    /// A connection whose preface has been read.
    pub(crate) fn new() -> Self {
        Self {
            open: HashMap::new(),
            window: WINDOW,
            initial: WINDOW,
            inbound: Scan::default(),
            outbound: Scan::default(),
            early: VecDeque::new(),
            ended: HashSet::new(),
        }
    }

    /// Takes note of what the client has sent.
    ///
    /// # Errors
    /// It has opened too many streams.
    pub(crate) fn note_received(&mut self, bytes: &[u8]) -> Result<(), TooMany> {
        let mut inbound = std::mem::take(&mut self.inbound);
        inbound.pass(bytes, |found| self.client_frame(found));
        self.inbound = inbound;
        if self.open.len() > STREAMS_MAX {
            Err(TooMany)
        } else {
            Ok(())
        }
    }

    fn client_frame(&mut self, found: FrameEvent) {
        let frame = match found {
            FrameEvent::Frame(frame) => frame,
            FrameEvent::InitialWindow(size) => {
                let more = i64::from(size) - self.initial;
                self.initial += more;
                self.open.values_mut().for_each(|stream| stream.window += more);
                return;
            }
            FrameEvent::Error(..) => return,
            FrameEvent::Window(0, more) => {
                self.window += i64::from(more);
                return;
            }
            FrameEvent::Window(on, more) => {
                if let Some(stream) = self.open.get_mut(&on) {
                    stream.window += i64::from(more);
                }
                return;
            }
        };
        match frame.kind {
            HEADERS | DATA => self.request_frame(frame),
            RST_STREAM => drop(self.open.remove(&frame.stream)),
            _ => {}
        }
    }

    fn request_frame(&mut self, frame: FrameHead) {
        let ends = frame.flags & END_STREAM != 0;
        match self.open.get_mut(&frame.stream) {
            Some(stream) => stream.request_ended |= ends,
            None if frame.kind == HEADERS => {
                let stream = OpenStream {
                    window: self.initial,
                    request_ended: ends,
                    answer: AnswerState::Awaited,
                };
                self.open.insert(frame.stream, stream);
            }
            None => {}
        }
        self.close(frame.stream);
    }

    /// Forgets a stream that both sides have ended.
    fn close(&mut self, number: u32) {
        let over = |stream: &OpenStream| stream.request_ended && stream.answer == AnswerState::Ended;
        if self.open.get(&number).is_some_and(over) {
            self.open.remove(&number);
        }
    }

    /// Takes note of what has been sent to the client. Returns how many requests the engine has refused in it.
    pub(crate) fn note_sent(&mut self, bytes: &[u8]) -> usize {
        let mut outbound = std::mem::take(&mut self.outbound);
        let mut refused = 0;
        outbound.pass(bytes, |found| {
            refused += usize::from(self.refuses(&found));
            if let FrameEvent::Frame(frame) = found {
                self.engine_frame(frame);
            }
        });
        self.outbound = outbound;
        // A reset that has been sent whole is done.
        if !self.ended.is_empty() && self.outbound.left == 0 {
            let open = &self.open;
            self.ended.retain(|number| open.contains_key(number));
        }
        refused
    }

    /// Whether this refuses a request and is seen only here: the engine reports it only to the client.
    fn refuses(&self, found: &FrameEvent) -> bool {
        match *found {
            FrameEvent::Error(0, code) => !matches!(code, 0 | INTERNAL_ERROR),
            FrameEvent::Error(stream, code) => code == PROTOCOL_ERROR && !self.ended.contains(&stream),
            FrameEvent::Frame(frame) => {
                let awaited = |stream: &OpenStream| stream.answer == AnswerState::Awaited;
                let is_bare = frame.flags & END_STREAM != 0 && frame.length <= BARE;
                frame.kind == HEADERS && is_bare && self.open.get(&frame.stream).is_some_and(awaited)
            }
            FrameEvent::Window(..) | FrameEvent::InitialWindow(_) => false,
        }
    }

    fn engine_frame(&mut self, frame: FrameHead) {
        if frame.kind == RST_STREAM {
            self.open.remove(&frame.stream);
            return;
        }
        let is_data = frame.kind == DATA;
        if is_data {
            self.window -= i64::from(frame.length);
        }
        let Some(stream) = self
            .open
            .get_mut(&frame.stream)
            .filter(|_| is_data || frame.kind == HEADERS)
        else {
            return;
        };
        if is_data {
            stream.window -= i64::from(frame.length);
        }
        stream.answer = AnswerState::Begun;
        if frame.flags & END_STREAM != 0 {
            stream.answer = AnswerState::Ended;
            if !stream.request_ended {
                self.early.push_back((Instant::now() + EARLY, frame.stream));
            }
            self.close(frame.stream);
        }
    }

    /// How many answers wait for the client; `stuck`: the connection takes nothing at all.
    pub(crate) fn waiting(&self, stuck: bool) -> usize {
        let none = stuck || self.window <= 0;
        let waits = |stream: &&OpenStream| stream.answer == AnswerState::Begun && (none || stream.window <= 0);
        self.open.values().filter(waits).count()
    }

    /// When a stream is to be ended next, if it can be.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let next = self.early.front().filter(|_| self.inbound.is_between());
        next.map(|(at, _)| *at)
    }

    /// Frames to put between those of the client, where this is possible now.
    pub(crate) fn interjection(&mut self, now: Instant) -> Vec<u8> {
        let mut frames = Vec::new();
        if !self.inbound.is_between() {
            return frames;
        }
        while let Some(&(at, number)) = self.early.front()
            && at <= now
        {
            self.early.pop_front();
            if self
                .open
                .get(&number)
                .is_some_and(|stream| stream.answer == AnswerState::Ended)
            {
                self.ended.insert(number);
                frames.extend(error_of(number));
            }
        }
        frames
    }

    /// Whether an answer of the engine may have to be changed.
    pub(crate) fn changes(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Sets the real reason in the resets that were asked for in [`Streams::interjection`]. These are the next bytes
    /// that are sent.
    pub(crate) fn change(&self, bytes: &mut [u8]) {
        let mut outbound = self.outbound.clone();
        for byte in bytes {
            let was = *byte;
            let frame = outbound.frame;
            if outbound.left > 0 && frame.kind == RST_STREAM && self.ended.contains(&frame.stream) {
                let at = (frame.length - outbound.left) as usize;
                *byte = NO_ERROR.get(at).copied().unwrap_or(was);
            }
            outbound.pass(&[was], |_| {});
        }
    }
}

/// An error of a stream, and of nothing else: it depends on itself (RFC 7540 §5.3.1).
fn error_of(stream: u32) -> Vec<u8> {
    let number = stream.to_be_bytes();
    [&[0, 0, 5, PRIORITY, 0][..], &number, &number, &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn hear(streams: &mut Streams, bytes: &[u8]) {
        for part in bytes.chunks(3) {
            streams.note_received(part).unwrap();
        }
    }

    fn say(streams: &mut Streams, bytes: &[u8]) {
        for part in bytes.chunks(5) {
            streams.note_sent(part);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_wait_while_a_window_is_shut() {
        let mut streams = Streams::new();
        hear(
            &mut streams,
            &frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9, 0, 4, 0, 0, 0, 100]),
        );
        for stream in [1, 3] {
            hear(&mut streams, &frame(HEADERS, END_HEADERS | END_STREAM, stream, b"get"));
            assert_eq!(streams.waiting(true), usize::from(stream == 3), "nothing is said yet");
            say(&mut streams, &frame(HEADERS, END_HEADERS, stream, b"200"));
            assert_eq!(streams.waiting(false), 0);
        }
        assert_eq!(streams.waiting(true), 2);
        say(&mut streams, &frame(DATA, 0, 1, &[7; 100]));
        assert_eq!(streams.waiting(false), 1);
        hear(&mut streams, &frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 9]));
        assert_eq!(streams.waiting(false), 0);
        hear(&mut streams, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
        assert_eq!(streams.waiting(false), 2, "{}", streams.open[&1].window);
        hear(&mut streams, &frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]));
        assert_eq!(streams.waiting(false), 0);
        say(&mut streams, &frame(DATA, 0, 3, &[7; 65_435 - 100]));
        say(&mut streams, &frame(DATA, 0, 3, &[7; 100]));
        assert_eq!(streams.waiting(false), 2, "the window of all");
        hear(&mut streams, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 9, 9]));
        assert_eq!(streams.waiting(true), 2);
        hear(&mut streams, &frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]));
        say(&mut streams, &frame(DATA, END_STREAM, 3, b"end"));
        assert_eq!((streams.waiting(true), streams.open.len()), (0, 0));
    }

    #[test]
    fn what_the_engine_refuses_by_itself() {
        let code = |code: u8| [0, 0, 0, code];
        let goaway = |code: u8| [&[0; 7][..], &[code], b"too_many_words"].concat();
        for (said, expected) in [
            (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x8c"), 1),
            (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x8c and more"), 0),
            (frame(HEADERS, END_HEADERS, 1, b"\x8c"), 0),
            (frame(RST_STREAM, 0, 1, &code(1)), 1),
            (frame(RST_STREAM, 0, 1, &code(8)), 0),
            (frame(RST_STREAM, 0, 3, &code(1)), 0),
            (frame(GOAWAY, 0, 0, &goaway(11)), 1),
            (frame(GOAWAY, 0, 0, &goaway(0)), 0),
        ] {
            let mut streams = Streams::new();
            hear(&mut streams, &frame(HEADERS, END_HEADERS, 1, b"post"));
            // We have asked for its reset ourselves.
            streams.ended.insert(3);
            streams.open.insert(3, ended());
            let refused: usize = said.chunks(5).map(|part| streams.note_sent(part)).sum();
            assert_eq!(refused, expected, "{said:?}");
        }
    }

    fn ended() -> OpenStream {
        OpenStream {
            window: WINDOW,
            request_ended: false,
            answer: AnswerState::Ended,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_goes_on_behind_its_answer_is_ended() {
        let mut streams = Streams::new();
        hear(&mut streams, &frame(HEADERS, END_HEADERS, 1, b"post"));
        say(&mut streams, &frame(HEADERS, END_HEADERS | END_STREAM, 1, b"413"));
        let at = streams.deadline().unwrap();
        assert_eq!(at, Instant::now() + EARLY);
        assert!(streams.interjection(Instant::now()).is_empty());
        // Not within a frame.
        let data = frame(DATA, 0, 1, &[1; 20]);
        hear(&mut streams, &data[..15]);
        assert!(streams.deadline().is_none() && streams.interjection(at).is_empty());
        hear(&mut streams, &data[15..]);
        assert_eq!(streams.interjection(at), error_of(1));
        assert!(streams.changes() && streams.interjection(at).is_empty());
        // The engine resets it, and others.
        let resets =
            |reason: [u8; 4]| [frame(RST_STREAM, 0, 5, &[0, 0, 0, 2]), frame(RST_STREAM, 0, 1, &reason)].concat();
        let mut out = resets([0, 0, 0, 1]);
        for part in out.chunks_mut(4) {
            let was = part.to_vec();
            streams.change(part);
            streams.note_sent(&was);
        }
        assert_eq!(out, resets([0; 4]));
        assert!(!streams.changes() && streams.open.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ends_in_time_is_let_be() {
        let mut streams = Streams::new();
        hear(&mut streams, &frame(HEADERS, END_HEADERS, 1, b"post"));
        say(&mut streams, &frame(HEADERS, END_HEADERS, 1, b"200"));
        say(&mut streams, &frame(DATA, END_STREAM, 1, b"done"));
        hear(&mut streams, &frame(DATA, END_STREAM, 1, b""));
        assert!(streams.open.is_empty());
        assert!(streams.interjection(Instant::now() + EARLY).is_empty());
        for stream in 0..=STREAMS_MAX as u32 {
            let heard = streams.note_received(&frame(HEADERS, END_HEADERS, 2 * stream + 3, b""));
            assert_eq!(heard.is_ok(), stream < STREAMS_MAX as u32);
        }
    }
}
