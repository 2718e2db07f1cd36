//! The back-pressure policy, in JSON.

use std::time::Duration;

use backwater_ops::PolicyText;
use backwater_udp::Policy;
use serde::{Deserialize, Serialize};

/// The policy in JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    policy: Kind,
    /// Only with `wait`; its default is that of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Wait,
    Drop,
}

impl Body {
    /// The policy, or why it is none, on one line.
    pub(super) fn read(json: &[u8]) -> Result<Policy, String> {
        let body: Self = serde_json::from_slice(json)
            .map_err(|e| format!("expected a policy such as {EXAMPLE}: {e}").replace(char::is_control, " "))?;
        match (body.policy, body.deadline_ms) {
            (Kind::Wait, None) => Ok(Policy::default()),
            (Kind::Wait, Some(ms)) => {
                PolicyText::wait(Duration::from_millis(ms)).map_err(|e| format!("deadline_ms: {e}"))
            }
            (Kind::Drop, None) => Ok(Policy::Drop),
            (Kind::Drop, Some(_)) => Err("expected no deadline_ms with the policy drop".to_owned()),
        }
    }
}

const EXAMPLE: &str = r#"{"policy":"wait","deadline_ms":100} or {"policy":"drop"}"#;

impl From<Policy> for Body {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Wait { deadline } => {
                Self { policy: Kind::Wait, deadline_ms: Some(deadline.as_millis().try_into().unwrap_or(u64::MAX)) }
            }
            Policy::Drop => Self { policy: Kind::Drop, deadline_ms: None },
        }
    }
}

/// Of a policy that [`Body::read`] or the relay has made.
impl From<Body> for Policy {
    fn from(body: Body) -> Self {
        match (body.policy, body.deadline_ms) {
            (Kind::Wait, Some(ms)) => Self::Wait { deadline: Duration::from_millis(ms) },
            (Kind::Wait, None) => Self::default(),
            (Kind::Drop, _) => Self::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_written_as_it_is_read() {
        let wait = |ms| Policy::Wait { deadline: Duration::from_millis(ms) };
        for (json, policy) in [
            (r#"{"policy":"wait","deadline_ms":100}"#, wait(100)),
            (r#"{"policy":"wait","deadline_ms":60000}"#, wait(60_000)),
            (r#"{"policy":"drop"}"#, Policy::Drop),
        ] {
            assert_eq!(Body::read(json.as_bytes()), Ok(policy));
            assert_eq!(serde_json::to_string(&Body::from(policy)).unwrap(), json);
        }
        assert_eq!(Body::read(br#" {"policy": "wait"} "#), Ok(Policy::default()));
    }

    #[test]
    fn what_is_no_policy_has_its_reason_on_one_line() {
        for (json, reason) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("[]", "expected a policy"),
            ("{}", "missing field `policy`"),
            (r#"{"policy":"maybe"}"#, "unknown variant"),
            ("{\"policy\":\"a\\nb\"}", "unknown variant"),
            (r#"{"policy":"wait","deadline_ms":0}"#, "from 1ms to 60s"),
            (r#"{"policy":"wait","deadline_ms":60001}"#, "from 1ms to 60s"),
            (r#"{"policy":"wait","deadline_ms":18446744073709551615}"#, "from 1ms to 60s"),
            (r#"{"policy":"wait","deadline_ms":18446744073709551616}"#, "expected u64"),
            (r#"{"policy":"wait","deadline_ms":-1}"#, "expected u64"),
            (r#"{"policy":"wait","deadline_ms":"50"}"#, "expected u64"),
            (r#"{"policy":"drop","deadline_ms":50}"#, "no deadline_ms"),
            (r#"{"policy":"wait","deadline":50}"#, "unknown field"),
            (r#"{"policy":"wait"} x"#, "trailing"),
        ] {
            let found = Body::read(json.as_bytes()).unwrap_err();
            assert!(found.contains(reason) && !found.contains('\n'), "{json}: {found}");
        }
        Body::read(b"\xff\xfe").unwrap_err();
    }
}
