//! What the throttle has said of the login of a request, and what it is told of its end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mail_proxy::audit::{Outcome, Record};
use mail_proxy::throttle::{Admitted, Answered, Counted, PolicyAnswer, Throttled};
use pingora::http::ResponseHeader;

use crate::app::env::WebEnv;
use crate::http::login::{self, FAULT_MAX, LoginAttempt, LoginForm};

/// A server that has had a login for so long, and has not refused it, holds its answer back for another reason: a phone
/// waits for news for minutes, and leaves. A client that leaves sooner may be one that guesses: right passwords are
/// answered at once.
const REFUSED_BY_NOW: Duration = Duration::from_secs(30);

/// What the throttle has said of the login of a request.
#[derive(Default)]
pub(crate) struct LoginGate {
    admitted: Option<(Admitted, Instant)>,
    throttled: Option<Throttled>,
    is_told: bool,
    has_left: bool,
    /// The beginning of a fault whose code says what it means.
    fault: Option<Vec<u8>>,
}

impl LoginGate {
    /// Whether the throttle has not been asked yet.
    pub(super) fn is_undecided(&self) -> bool {
        self.admitted.is_none() && self.throttled.is_none()
    }

    /// It lets the login through.
    pub(super) fn open(&mut self, admitted: Admitted) {
        self.admitted = Some((admitted, Instant::now()));
    }

    /// It refuses the login.
    pub(super) fn close(&mut self, throttled: Throttled) {
        self.throttled = Some(throttled);
    }

    /// No server was asked, and the login will be judged again. Returns what the policy service has said of it.
    pub(super) fn withdraw(&mut self, env: &WebEnv) -> Option<PolicyAnswer> {
        let (admitted, _) = self.admitted.take()?;
        env.throttle.withdraw(admitted)
    }

    /// Seconds after which the client may try again, if it was refused.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.throttled.as_ref().map(|throttled| throttled.finding.retry_after())
    }

    /// The client has left while the login was delayed.
    pub(super) fn leave(&mut self) {
        self.has_left = true;
    }

    /// Whether the login was refused, or its client did not wait for what was delayed.
    pub(crate) fn is_closed(&self) -> bool {
        self.throttled.is_some() || self.has_left
    }

    /// Notes in the record of the login what the throttle has said.
    pub(crate) fn note(&self, record: &mut Record) {
        if let Some((admitted, _)) = &self.admitted {
            record.note_admitted(admitted);
        }
        if let Some(throttled) = &self.throttled {
            record.note(&throttled.finding, Duration::ZERO);
        }
        if self.has_left {
            record.why = Some("the client left while it was delayed".to_owned());
        }
    }

    /// The head of the answer is there: tells the throttle how the login has ended, or waits for the body to say so.
    pub(crate) fn answered(&mut self, env: &WebEnv, answer: &ResponseHeader, seen: &LoginAttempt, sets_cookie: bool) {
        let status = answer.status.as_u16();
        match login::is_told_by_body(status, &answer.headers, seen.form) {
            true => self.fault = Some(Vec::new()),
            false => drop(self.tell(env, seen, seen.outcome(status, sets_cookie))),
        }
    }

    /// A part of the body of the answer is there.
    pub(crate) fn read(&mut self, env: &WebEnv, seen: &LoginAttempt, chunk: Option<&Bytes>, end: bool) {
        let Some(fault) = self.fault.as_mut().filter(|_| !self.is_told) else {
            return;
        };
        let chunk = chunk.map_or(&[][..], |chunk| &chunk[..]);
        let room = FAULT_MAX - fault.len();
        fault.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if end || fault.len() == FAULT_MAX {
            self.tell(env, seen, Some(Outcome::BadCredentials));
        }
    }

    /// Tells the throttle how the login has ended, once. Returns as what it counts.
    pub(crate) fn tell(&mut self, env: &WebEnv, seen: &LoginAttempt, outcome: Option<Outcome>) -> Counted {
        let Some((admitted, since)) = self.admitted.as_ref().filter(|_| !self.is_told) else {
            return Counted::Not;
        };
        let is_fault_of_server = self.fault.as_ref().is_some_and(|fault| !login::says_wrong(fault));
        let answer = match outcome {
            Some(Outcome::Ok) if seen.form == LoginForm::Basic => Answered::Accepted,
            Some(Outcome::Ok) => Answered::Right,
            Some(Outcome::BadCredentials) if !is_fault_of_server => Answered::Wrong,
            Some(Outcome::ClientGone) if since.elapsed() < REFUSED_BY_NOW => Answered::Wrong,
            _ => Answered::Unknown,
        };
        self.is_told = true;
        env.throttle
            .answered(admitted.ticket.clone(), answer, env.throttle.now())
    }
}
