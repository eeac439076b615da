//! How far the HTTP engine reads ahead of its client.
//!
//! The engine reads an answer in pieces of up to 64 KiB, and nine of them before it stops for a client that takes
//! nothing. So a server's connection gives it one portion, and the next one only when it has passed the previous one
//! on to its filters: then the client has taken all but that.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Turns of the engine's task after which it has looked at what it has read: it polls its two halves in changing order.
const TURNS: u8 = 2;

/// The pace of one answer.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    /// How much may be read now.
    left: usize,
    /// What may be read before the filters have seen anything.
    first: usize,
    /// They have.
    heard: bool,
    /// The last reading took all that the server had sent.
    drained: bool,
    turns: u8,
    waker: Option<Waker>,
}

impl Pace {
    /// With a first portion of so many bytes.
    pub(crate) fn new(first: usize) -> Self {
        Self(Mutex::new(State {
            left: first,
            first,
            heard: false,
            drained: false,
            turns: 0,
            waker: None,
        }))
    }

    /// The filters have seen what has come: the engine may read this much more.
    pub(crate) fn pass(&self, portion: usize) {
        let mut state = self.0.lock();
        state.heard = true;
        state.left = portion;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Waits until something may be read, and says how much.
    pub(crate) fn poll_portion(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut state = self.0.lock();
        if state.left > 0 {
            return Poll::Ready(state.left);
        }
        if state.heard {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // A head that is longer than a portion, or the engine has had no time yet to look at it.
        if state.turns < TURNS {
            state.turns += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        state.turns = 0;
        state.left = state.first;
        Poll::Ready(state.left)
    }

    /// So many bytes have been read, and there was room for so many.
    pub(crate) fn note_read(&self, count: usize, room: usize) {
        let mut state = self.0.lock();
        state.drained = count < room;
        state.left = state.left.saturating_sub(count);
    }

    /// Whether the last reading brought less than it might have: the server had sent no more.
    pub(crate) fn is_drained(&self) -> bool {
        self.0.lock().drained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portion(pace: &Pace) -> Option<usize> {
        match pace.poll_portion(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(portion) => Some(portion),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_portion_and_then_the_next() {
        let pace = Pace::new(10);
        assert_eq!(portion(&pace), Some(10));
        pace.note_read(4, 10);
        assert_eq!(portion(&pace), Some(6));
        pace.pass(20);
        assert_eq!(portion(&pace), Some(20));
        assert!(pace.is_drained());
        pace.note_read(20, 20);
        assert!(!pace.is_drained());
        assert_eq!([portion(&pace), portion(&pace), portion(&pace)], [None, None, None]);
        pace.pass(10);
        assert_eq!(portion(&pace), Some(10));
    }

    /// Nothing is passed on before a head is whole.
    #[test]
    fn a_long_head_is_read_on() {
        let pace = Pace::new(10);
        for _ in 0..3 {
            pace.note_read(10, 10);
            assert_eq!([portion(&pace), portion(&pace), portion(&pace)], [None, None, Some(10)]);
        }
    }
}
