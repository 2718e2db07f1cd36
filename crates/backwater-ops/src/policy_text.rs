//! The back-pressure policy as an operator writes it: `wait`, `wait:50ms`, `drop`.

use std::{fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use backwater_udp::Policy;

/// A [`Policy`] that is read from text and written as text.
///
/// ```
/// use backwater_ops::PolicyText;
/// use backwater_udp::Policy;
///
/// assert_eq!("drop".parse::<PolicyText>()?.0, Policy::Drop);
/// assert_eq!("wait:2s".parse::<PolicyText>()?.to_string(), "wait:2000ms");
/// # Ok::<_, backwater_ops::PolicyError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyText(pub Policy);

/// A text or a deadline that is no [`Policy`] for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// The text is neither `wait`, `wait:` with a time, nor `drop`.
    Unknown,
    /// The deadline is outside of [`PolicyText::DEADLINES`].
    Deadline,
}

impl PolicyText {
    /// The deadlines that an operator may choose. A deadline above a minute would hold datagrams that no receiver waits for any
    /// more; one below a millisecond is shorter than the timers.
    pub const DEADLINES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

    /// Returns the policy that holds a datagram no longer than `deadline`.
    ///
    /// # Errors
    /// [`PolicyError::Deadline`].
    pub fn wait(deadline: Duration) -> Result<Policy, PolicyError> {
        if Self::DEADLINES.contains(&deadline) { Ok(Policy::Wait { deadline }) } else { Err(PolicyError::Deadline) }
    }
}

impl FromStr for PolicyText {
    type Err = PolicyError;

    /// Reads `wait` (100 ms; Apple's systems: 500), `wait:50ms`, `wait:2s` or `drop`.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let policy = match text.split_once(':') {
            None if text == "drop" => Policy::Drop,
            None if text == "wait" => Policy::default(),
            Some(("wait", time)) => Self::wait(duration(time).ok_or(PolicyError::Unknown)?)?,
            None | Some(_) => return Err(PolicyError::Unknown),
        };
        Ok(Self(policy))
    }
}

impl fmt::Display for PolicyText {
    /// Writes what [`from_str`](Self::from_str) reads. A deadline is written in whole milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Policy::Wait { deadline } => write!(f, "wait:{}ms", deadline.as_millis()),
            Policy::Drop => f.write_str("drop"),
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "expected wait, wait with a time such as wait:50ms or wait:2s, or drop",
            Self::Deadline => "expected a deadline from 1ms to 60s",
        })
    }
}

impl std::error::Error for PolicyError {}

/// Reads a whole number of milliseconds (`50ms`) or seconds (`2s`).
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
