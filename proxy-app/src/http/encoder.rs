//! The encoders of compressed answers, small enough that many may wait for clients that read slowly.
//!
//! An encoder lives as long as its answer, and takes its memory whatever the client reads. Those that are usual take
//! megabytes, nearly all of it for windows and tables that pay for answers of many MB only. What these take, and what it
//! costs, is in docs/static-files.md.

use std::io::{self, Write};

use brotli::CompressorWriter;
use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ParamSwitch, Strategy};

/// Room for output that is made at once, and again as long as there is more.
const OUT: usize = 8 * 1024;
/// The level of Carbonio's configuration.
const GZIP_LEVEL: u32 = 6;
/// As bits: 32 KiB, the window of all that speaks gzip.
const GZIP_WINDOW: u8 = 15;
/// A level with one table of 256 KiB; those above have one of 512 KiB or more.
const BROTLI_QUALITY: u32 = 3;
/// As bits: 64 KiB.
const BROTLI_WINDOW: u32 = 16;
/// So much at once: its other buffers grow with what it has not sent on.
const BROTLI_PORTION: usize = 8 * 1024;
/// What it writes at once.
const BROTLI_OUT: usize = 4 * 1024;
/// A window of 64 KiB, a table of as much, and blocks of 16 KiB, by which its other buffers are measured. A thorough
/// search makes up for them: about the bytes and the CPU of gzip.
const ZSTD: [CParameter; 8] = [
    CParameter::CompressionLevel(5),
    CParameter::WindowLog(16),
    CParameter::HashLog(14),
    CParameter::ChainLog(13),
    CParameter::SearchLog(4),
    CParameter::Strategy(Strategy::ZSTD_lazy),
    CParameter::UseRowMatchFinder(ParamSwitch::Enable),
    CParameter::MaxBlockSize(16 * 1024),
];

/// A content coding that answers can get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// RFC 8878
    Zstd,
    /// RFC 1952
    Gzip,
    /// RFC 7932
    Brotli,
}

impl Coding {
    /// The one that costs least comes first.
    pub(crate) const ALL: [Self; 3] = [Self::Zstd, Self::Gzip, Self::Brotli];

    /// As in `Content-Encoding`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

/// What an encoder does behind the bytes that it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It keeps what compresses better together with what comes.
    Keep,
    /// It keeps nothing.
    Flush,
    /// It ends.
    End,
}

/// The encoder of one answer.
pub(crate) enum Encoder {
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(CCtx<'static>),
    Gzip(Compress),
}

impl Encoder {
    /// An encoder that has got nothing yet.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Brotli => {
                let writer = CompressorWriter::new(Vec::new(), BROTLI_OUT, BROTLI_QUALITY, BROTLI_WINDOW);
                Self::Brotli(Box::new(writer))
            }
            Coding::Zstd => {
                let mut context = CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
                for parameter in ZSTD {
                    context.set_parameter(parameter).map_err(zstd_error)?;
                }
                Self::Zstd(context)
            }
            Coding::Gzip => Self::Gzip(Compress::new_gzip(Compression::new(GZIP_LEVEL), GZIP_WINDOW)),
        })
    }

    /// Takes bytes of the answer and returns what is ready to be sent; that may be nothing.
    ///
    /// # Errors
    /// The encoder failed; the answer cannot go on.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<Bytes> {
        self.encode(bytes, Then::Keep)
    }

    /// The same, and the client can read all that has come so far: what is kept goes out, at the price of some bytes.
    ///
    /// # Errors
    /// As for [`Self::push`].
    pub(crate) fn push_and_flush(&mut self, bytes: &[u8]) -> io::Result<Bytes> {
        self.encode(bytes, Then::Flush)
    }

    /// Takes the last bytes and returns the end of the compressed answer.
    ///
    /// # Errors
    /// As for [`Self::push`].
    pub(crate) fn finish(mut self, bytes: &[u8]) -> io::Result<Bytes> {
        if let Self::Brotli(mut writer) = self {
            let mut out = brotli(&mut writer, bytes)?;
            out.append(&mut writer.into_inner());
            return Ok(out.into());
        }
        self.encode(bytes, Then::End)
    }

    fn encode(&mut self, bytes: &[u8], then: Then) -> io::Result<Bytes> {
        let out = match self {
            Self::Brotli(writer) => brotli(writer, bytes)?,
            Self::Zstd(context) => zstd(context, bytes, then)?,
            Self::Gzip(deflate) => gzip(deflate, bytes, then)?,
        };
        // Into a buffer of its size: it may wait for the client.
        Ok(out.into_boxed_slice().into())
    }
}

/// It keeps nothing, so it always flushes.
fn brotli(writer: &mut CompressorWriter<Vec<u8>>, bytes: &[u8]) -> io::Result<Vec<u8>> {
    for portion in bytes.chunks(BROTLI_PORTION) {
        writer.write_all(portion)?;
        writer.flush()?;
    }
    Ok(std::mem::take(writer.get_mut()))
}

fn zstd(context: &mut CCtx<'static>, bytes: &[u8], then: Then) -> io::Result<Vec<u8>> {
    let wish = match then {
        Then::Keep => ZSTD_EndDirective::ZSTD_e_continue,
        Then::Flush => ZSTD_EndDirective::ZSTD_e_flush,
        Then::End => ZSTD_EndDirective::ZSTD_e_end,
    };
    let mut input = InBuffer::around(bytes);
    let mut out = Vec::new();
    loop {
        out.reserve(OUT);
        let begun = out.len();
        let mut output = OutBuffer::around_pos(&mut out, begun);
        let left = context
            .compress_stream2(&mut output, &mut input, wish)
            .map_err(zstd_error)?;
        // What does not fit in comes out the next time.
        if input.pos() == bytes.len() && (left == 0 || then == Then::Keep) {
            return Ok(out);
        }
    }
}

fn zstd_error(code: usize) -> io::Error {
    io::Error::other(zstd_safe::get_error_name(code))
}

fn gzip(deflate: &mut Compress, mut bytes: &[u8], then: Then) -> io::Result<Vec<u8>> {
    let wish = match then {
        Then::Keep => FlushCompress::None,
        Then::Flush => FlushCompress::Sync,
        Then::End => FlushCompress::Finish,
    };
    let mut out = Vec::new();
    loop {
        out.reserve(OUT);
        let taken = deflate.total_in();
        let status = deflate.compress_vec(bytes, &mut out, wish).map_err(io::Error::other)?;
        bytes = &bytes[(deflate.total_in() - taken) as usize..];
        let done = match then {
            Then::End => status == Status::StreamEnd,
            Then::Keep | Then::Flush => bytes.is_empty() && out.len() < out.capacity(),
        };
        if done {
            return Ok(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// What a client can read of it, and whether it knows that this is all.
    fn read(coding: Coding, packed: &[u8]) -> (Vec<u8>, bool) {
        let mut text = Vec::new();
        let whole = match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(packed).read_to_end(&mut text).is_ok(),
            Coding::Brotli => brotli::Decompressor::new(packed, 64).read_to_end(&mut text).is_ok(),
            Coding::Zstd => {
                text.reserve(1 << 20);
                let mut context = zstd_safe::DCtx::create();
                let mut output = OutBuffer::around(&mut text);
                let hint = context.decompress_stream(&mut output, &mut InBuffer::around(packed));
                hint == Ok(0)
            }
        };
        (text, whole)
    }

    fn text() -> Vec<u8> {
        (0..40_000_u32)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 16).to_string().into_bytes())
            .collect()
    }

    #[test]
    fn clients_read_what_was_sent() {
        let text = text();
        for coding in Coding::ALL {
            for portion in [1_000, 8 * 1024, 128 * 1024, text.len()] {
                let mut encoder = Encoder::new(coding).unwrap();
                let mut packed = Vec::new();
                let (last, first) = (text.len() % portion, text.chunks_exact(portion));
                for bytes in first {
                    packed.extend(encoder.push(bytes).unwrap());
                }
                packed.extend(encoder.finish(&text[text.len() - last..]).unwrap());
                assert_eq!(read(coding, &packed), (text.clone(), true), "{coding:?} {portion}");
                assert!(packed.len() < text.len() * 6 / 10, "{coding:?}: {}", packed.len());
            }
        }
    }

    #[test]
    fn what_is_flushed_can_be_read_and_is_not_whole() {
        for coding in Coding::ALL {
            let mut encoder = Encoder::new(coding).unwrap();
            let mut packed = encoder.push(b"some ").unwrap().to_vec();
            for bytes in [&b"text"[..], b"", b", and more"] {
                packed.extend(encoder.push_and_flush(bytes).unwrap());
            }
            assert_eq!(
                read(coding, &packed),
                (b"some text, and more".to_vec(), false),
                "{coding:?}"
            );
            packed.extend(encoder.finish(b"").unwrap());
            assert_eq!(
                read(coding, &packed),
                (b"some text, and more".to_vec(), true),
                "{coding:?}"
            );
        }
    }

    #[test]
    fn an_empty_answer_has_an_end() {
        for coding in Coding::ALL {
            let packed = Encoder::new(coding).unwrap().finish(b"").unwrap();
            assert_eq!(read(coding, &packed), (Vec::new(), true), "{coding:?}");
        }
    }
}
