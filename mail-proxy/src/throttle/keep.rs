//! What is remembered, as bytes for a file and back: it survives a restart, and no name or address is in it but those
//! that an administrator has let through.
//!
//! The file begins with its form and the key of the hashes, and ends with a hash of all of it. One that is damaged, of
//! another form or of another size is not used: nothing is lost but memory.

use std::hash::Hasher;
use std::sync::PoisonError;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::allowance::Allowance;
use super::origin::HashKey;
use super::table::{Table, Words};
use super::{ADDRESSES, LANES, Moment, TALLIES, Throttle};

/// The form of the file.
const FORM: &[u8; 8] = b"portic\x00\x01";
/// Bytes of the hash at its end.
const HASH: usize = 8;
/// Longest reason of an allowance that is read, in bytes.
const REASON_MAX: usize = 1_024;
/// Words that hold attempts without an answer, which no other process will give.
const PENDING_OF_TALLY: usize = 3;
const PENDING_OF_ADDRESS: usize = 3;

/// A file of another form, or a damaged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is damaged, or of another version")]
pub struct NotKept;

impl Throttle {
    /// What is remembered.
    pub fn kept(&self) -> Vec<u8> {
        let mut out = FORM.to_vec();
        out.extend(self.key().0);
        out.extend([LANES, ADDRESSES, TALLIES].map(|slots| slots.ilog2() as u8));
        write_table(&self.lanes, None, &mut out);
        write_table(&self.addresses, Some(PENDING_OF_ADDRESS), &mut out);
        write_table(&self.tallies, Some(PENDING_OF_TALLY), &mut out);
        let newcomers = *super::lock(&self.newcomers);
        newcomers.iter().for_each(|word| out.extend(word.to_le_bytes()));
        let allowances = self.allowances();
        out.extend((allowances.len() as u32).to_le_bytes());
        allowances
            .iter()
            .for_each(|allowance| write_allowance(allowance, &mut out));
        let hash = hash(&out);
        out.extend(hash.to_le_bytes());
        out
    }

    /// Remembers it again, instead of what is known now.
    ///
    /// # Errors
    /// It is damaged or of another form; then nothing is changed.
    pub fn restore(&self, kept: &[u8]) -> Result<(), NotKept> {
        let (all, end) = kept.split_at_checked(kept.len().wrapping_sub(HASH)).ok_or(NotKept)?;
        if hash(all).to_le_bytes() != *end {
            return Err(NotKept);
        }
        let mut rest = Reader(all);
        let is_ours = rest.take(FORM.len())? == FORM;
        let key = HashKey(rest.take(16)?.try_into().map_err(|_| NotKept)?);
        let sizes = [LANES, ADDRESSES, TALLIES].map(|slots| slots.ilog2() as u8);
        if !is_ours || rest.take(sizes.len())? != sizes {
            return Err(NotKept);
        }
        let lanes = rest.table::<2>()?;
        let addresses = rest.table::<8>()?;
        let tallies = rest.table::<4>()?;
        let newcomers = rest.words::<4>()?;
        let allowances = rest.allowances()?;
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = key;
        fill(&self.lanes, lanes);
        fill(&self.addresses, addresses);
        fill(&self.tallies, tallies);
        *super::lock(&self.newcomers) = newcomers;
        self.allowances.clear();
        for allowance in allowances {
            let _there_are_no_more_than_were_allowed = self.allow(allowance);
        }
        Ok(())
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

fn write_table<const N: usize>(table: &Table<N>, without: Option<usize>, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend([0; 4]);
    let mut count = 0_u32;
    table.each(|place, words| {
        let mut words = *words;
        without.iter().for_each(|at| words[*at] = 0);
        out.extend(place.to_le_bytes());
        words.iter().for_each(|word| out.extend(word.to_le_bytes()));
        count += 1;
    });
    out[at..at + 4].copy_from_slice(&count.to_le_bytes());
}

fn write_allowance(allowance: &Allowance, out: &mut Vec<u8>) {
    out.extend(allowance.until.0.as_secs().to_le_bytes());
    for text in [&allowance.network.to_string(), &allowance.reason] {
        let text = &text.as_bytes()[..text.len().min(REASON_MAX)];
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text);
    }
}

fn fill<const N: usize>(table: &Table<N>, kept: Vec<(u32, Words<N>)>) {
    table.clear();
    for (place, words) in kept {
        table.restore(place, words);
    }
}

/// Reads what [`Throttle::kept`] has written, without trusting it.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], NotKept> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(NotKept)?;
        self.0 = rest;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, NotKept> {
        let bytes = self.take(4)?.try_into().map_err(|_| NotKept)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn words<const N: usize>(&mut self) -> Result<Words<N>, NotKept> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.word()?;
        }
        Ok(words)
    }

    fn table<const N: usize>(&mut self) -> Result<Vec<(u32, Words<N>)>, NotKept> {
        let count = self.word()?;
        (0..count).map(|_| Ok((self.word()?, self.words()?))).collect()
    }

    fn text(&mut self) -> Result<String, NotKept> {
        let length = self.word()? as usize;
        let text = self.take(length)?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn allowances(&mut self) -> Result<Vec<Allowance>, NotKept> {
        let count = self.word()?;
        let one = |reader: &mut Self| {
            let until = reader.take(8)?.try_into().map_err(|_| NotKept)?;
            Ok(Allowance {
                until: Moment(Duration::from_secs(u64::from_le_bytes(until))),
                network: reader.text()?.parse().map_err(|_| NotKept)?,
                reason: reader.text()?,
            })
        };
        (0..count).map(|_| one(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::{Answered, Claim, Judgement, LoginChannel, ThrottleSettings};

    fn seen() -> Throttle {
        let throttle = Throttle::new(ThrottleSettings::default());
        let now = throttle.now();
        for n in 0..200_u32 {
            let account = format!("{n}@a.test");
            let client = std::net::IpAddr::from(n.to_be_bytes().map(|byte| byte.max(1)));
            let claim = Claim {
                account: &account,
                client,
                password: None,
                channel: LoginChannel::default(),
            };
            let Judgement::Pass(ticket, _) = throttle.ask(&claim, Duration::ZERO, now) else {
                panic!("a first attempt passes");
            };
            let answer = if n % 2 == 0 { Answered::Right } else { Answered::Wrong };
            throttle.answered(ticket, answer, now);
        }
        let allowance = Allowance {
            network: "192.0.2.0/24".parse().unwrap(),
            until: now.after(Duration::from_secs(60)),
            reason: "a fair".to_owned(),
        };
        throttle.allow(allowance).unwrap();
        throttle
    }

    #[test]
    fn what_is_kept_is_remembered() {
        let (one, other) = (seen(), Throttle::new(ThrottleSettings::default()));
        let now = one.now();
        // What was allowed here before is not added to that.
        let taken_back = Allowance {
            network: "198.51.100.0/24".parse().unwrap(),
            until: now.after(Duration::from_secs(60)),
            reason: "over".to_owned(),
        };
        other.allow(taken_back).unwrap();
        other.restore(&one.kept()).unwrap();
        for n in 0..200_u32 {
            let account = format!("{n}@a.test");
            let client = std::net::IpAddr::from(n.to_be_bytes().map(|byte| byte.max(1)));
            let [one, other] = [&one, &other].map(|throttle| throttle.explain(&account, client, now));
            assert_eq!(one.known.is_some(), n % 2 == 0, "{n}");
            assert_eq!(one.known.is_some(), other.known.is_some(), "{n}");
            let failures =
                |levels: &[crate::throttle::Level]| levels.iter().map(|level| level.failures.round()).sum::<f32>();
            assert_eq!(failures(&one.levels), failures(&other.levels), "{n}");
        }
        let reasons = other.allowances();
        assert_eq!((reasons.len(), reasons[0].reason.as_str()), (1, "a fair"));
        assert_eq!(one.kept().len(), other.kept().len());
    }

    #[test]
    fn what_is_damaged_changes_nothing() {
        let (kept, other) = (seen().kept(), Throttle::new(ThrottleSettings::default()));
        let empty = other.kept();
        for at in [0, 7, 8, 24, 27, 40, kept.len() - 20, kept.len() - 1] {
            let mut damaged = kept.clone();
            damaged[at] ^= 1;
            assert_eq!(other.restore(&damaged), Err(NotKept), "{at}");
        }
        for end in [0, 7, 8, 100, kept.len() - 1] {
            assert_eq!(other.restore(&kept[..end]), Err(NotKept), "{end}");
        }
        // A whole one whose parts do not fit together.
        let mut torn = kept[..200].to_vec();
        torn.extend(hash(&torn).to_le_bytes());
        assert_eq!(other.restore(&torn), Err(NotKept));
        assert_eq!(other.kept(), empty);
    }
}
