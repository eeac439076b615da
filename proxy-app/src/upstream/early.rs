//! The beginning of an answer that comes before its request is sent: whether the server still needs the rest of it.

/// How far a server has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// Not at all, or in between (RFC 9110 §15.2).
    No,
    /// It agrees. It may go on reading the request while it answers.
    Agreeing,
    /// Whatever is still to come of the request, the answer is another one.
    Decided,
}

impl Answered {
    /// By a status.
    pub(crate) fn with(status: http::StatusCode) -> Self {
        match status.as_u16() {
            100..200 => Self::No,
            200..300 => Self::Agreeing,
            _ => Self::Decided,
        }
    }
}

/// An answer of HTTP/1, read as far as its status.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnswerBeginning(At);

#[derive(Debug, Clone, Copy)]
enum At {
    /// In the status line of a head; behind so many bytes.
    Line(u8),
    /// In the head of an interim answer; at the beginning of a line or not.
    Interim { begins: bool },
    /// Behind the status of the final one.
    Final(Answered),
}

/// How many bytes are in front of the status: `HTTP/1.1 `.
const STATUS: u8 = 9;

impl AnswerBeginning {
    pub(crate) const fn new() -> Self {
        Self(At::Line(0))
    }

    pub(crate) const fn answered(self) -> Answered {
        match self.0 {
            At::Final(answered) => answered,
            _ => Answered::No,
        }
    }

    /// Reads what has come next.
    #[inline]
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if matches!(self.0, At::Final(_)) {
                return;
            }
            self.0 = self.0.after(byte);
        }
    }
}

impl At {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Line(STATUS), b'1') => Self::Interim { begins: false },
            (Self::Line(STATUS), b'2') => Self::Final(Answered::Agreeing),
            (Self::Line(STATUS), _) => Self::Final(Answered::Decided),
            // The engine skips empty lines, too.
            (Self::Line(0), b'\r' | b'\n') | (Self::Interim { begins: true }, b'\n') => Self::Line(0),
            (Self::Line(passed), _) => Self::Line(passed + 1),
            (Self::Interim { .. }, b'\n') => Self::Interim { begins: true },
            (Self::Interim { begins }, b'\r') => Self::Interim { begins },
            (Self::Interim { .. }, _) => Self::Interim { begins: false },
            (Self::Final(_), _) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(answer: &str, expected: Answered) {
        for size in [1, 3, answer.len()] {
            let mut beginning = AnswerBeginning::new();
            for piece in answer.as_bytes().chunks(size) {
                beginning.read(piece);
            }
            assert_eq!(beginning.answered(), expected, "{answer:?} by {size}");
        }
    }

    #[test]
    fn only_a_final_answer_is_one() {
        check("HTTP/1.1 ", Answered::No);
        check("HTTP/1.1 413 Too large\r\n", Answered::Decided);
        check("HTTP/1.1 302", Answered::Decided);
        check("\r\nHTTP/1.0 200 OK\r\n\r\n", Answered::Agreeing);
        check("HTTP/1.1 100 Continue\r\n\r\n", Answered::No);
        check("HTTP/1.1 103 Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 4", Answered::Decided);
        check("HTTP/1.1 103 Hints\r\nLink: HTTP/1.1 413\r\n", Answered::No);
        check("HTTP/1.1 103 Hints\nLink: a\n\nHTTP/1.1 200", Answered::Agreeing);
    }
}
