//! A policy as people write it: `wait`, `wait:50ms`, `drop`.

use std::{fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use crate::Policy;

/// A text that is no [`Policy`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// Neither `wait`, `wait:` with a time, nor `drop`.
    Unknown,
    /// The deadline is outside of [`Policy::DEADLINES`].
    Deadline,
}

impl Policy {
    /// The deadlines that a text may name. A longer one than a minute would hold what nobody wants any more; one below a
    /// millisecond is shorter than the timers.
    pub const DEADLINES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

    /// To wait no longer than `deadline`.
    ///
    /// # Errors
    /// [`PolicyError::Deadline`].
    pub fn wait(deadline: Duration) -> Result<Self, PolicyError> {
        if Self::DEADLINES.contains(&deadline) { Ok(Self::Wait { deadline }) } else { Err(PolicyError::Deadline) }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    /// Reads `wait` (100 ms; Apple's systems: 500), `wait:50ms`, `wait:2s` or `drop`.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text.split_once(':') {
            None if text == "drop" => Ok(Self::Drop),
            None if text == "wait" => Ok(Self::default()),
            Some(("wait", time)) => Self::wait(duration(time).ok_or(PolicyError::Unknown)?),
            None | Some(_) => Err(PolicyError::Unknown),
        }
    }
}

impl fmt::Display for Policy {
    /// As it is read; a deadline in milliseconds, so that what is below one is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait { deadline } => write!(f, "wait:{}ms", deadline.as_millis()),
            Self::Drop => f.write_str("drop"),
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

/// A whole number of milliseconds (`50ms`) or seconds (`2s`).
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
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let wait = |ms| Ok(Policy::Wait { deadline: Duration::from_millis(ms) });
        for (text, policy) in [
            ("drop", Ok(Policy::Drop)),
            ("wait", wait(100)),
            ("wait:50ms", wait(50)),
            ("wait:1ms", wait(1)),
            ("wait:2s", wait(2000)),
            ("wait:60s", wait(60_000)),
        ] {
            assert_eq!(text.parse(), policy, "{text}");
            assert_eq!(policy.clone().unwrap().to_string().parse(), policy, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_policy_is_an_error() {
        for text in
            ["", "Wait", "wait:", "wait:50", "wait:ms", "wait: 5ms", "wait:-5ms", "wait:5m", "drop:5ms", "wait:1.5s"]
        {
            assert_eq!(text.parse::<Policy>(), Err(PolicyError::Unknown), "{text}");
        }
        assert_eq!("wait:99999999999999999999s".parse::<Policy>(), Err(PolicyError::Unknown));
        for text in ["wait:0ms", "wait:0s", "wait:60001ms", "wait:61s", "wait:18446744073709551615s"] {
            assert_eq!(text.parse::<Policy>(), Err(PolicyError::Deadline), "{text}");
        }
    }
}
