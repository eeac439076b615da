//! When the next bytes of a request's body must have come from its client.
//!
//! The engine waits for them without a limit over HTTP/2, and over HTTP/1 looks at nothing but the last gap. Meanwhile it
//! listens to the server, so it is the server's socket that sees the time run out.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

/// The clock of one request, which is shared by those who read its body and its server's socket.
#[derive(Debug, Default)]
pub(crate) struct BodyClock(Mutex<Option<Instant>>);

impl BodyClock {
    /// The next bytes must have come by then.
    pub(crate) fn expect_by(&self, due: std::time::Instant) {
        *self.0.lock() = Some(due.into());
    }

    /// No more bytes are expected.
    pub(crate) fn stop(&self) {
        *self.0.lock() = None;
    }

    fn due(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

/// The alarm of one that waits for a [`BodyClock`]. It is moved when it has come, not with each byte.
#[derive(Default)]
pub(super) struct BodyAlarm(Option<Pin<Box<Sleep>>>);

impl BodyAlarm {
    /// Waits until the bytes of a body have not come in time.
    pub(super) fn poll_late(&mut self, clock: &BodyClock, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let Some(due) = clock.due() else {
                return Poll::Pending;
            };
            let alarm = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
            ready!(alarm.as_mut().poll(cx));
            match clock.due() {
                Some(due) if due <= Instant::now() => return Poll::Ready(io::Error::other(LateBody)),
                Some(due) => alarm.as_mut().reset(due),
                None => return Poll::Pending,
            }
        }
    }
}

/// The client, not the server, has been waited for in vain.
#[derive(Debug)]
struct LateBody;

impl fmt::Display for LateBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body of the request does not come")
    }
}

impl std::error::Error for LateBody {}

/// Whether this is the error of a socket whose request did not come in time.
pub(crate) fn is_late_body(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<LateBody>())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_body_that_is_expected_is_late() {
        let clock = BodyClock::default();
        let mut alarm = BodyAlarm::default();
        let after = |seconds| (Instant::now() + Duration::from_secs(seconds)).into_std();
        let waits = |left: &BodyAlarm| left.0.is_some();
        let late = poll_fn(|cx| Poll::Ready(alarm.poll_late(&clock, cx).is_ready())).await;
        assert!(!late && !waits(&alarm), "no body is expected");
        clock.expect_by(after(10));
        let begun = Instant::now();
        tokio::select! {
            _ = poll_fn(|cx| alarm.poll_late(&clock, cx)) => panic!("it is late before its time"),
            () = tokio::time::sleep(Duration::from_secs(9)) => clock.expect_by(after(11)),
        }
        let error = poll_fn(|cx| alarm.poll_late(&clock, cx)).await;
        assert!(is_late_body(&error) && !is_late_body(&io::ErrorKind::TimedOut.into()));
        assert_eq!(begun.elapsed().as_secs(), 20);
        clock.stop();
        assert!(poll_fn(|cx| Poll::Ready(alarm.poll_late(&clock, cx).is_pending())).await);
    }
}
