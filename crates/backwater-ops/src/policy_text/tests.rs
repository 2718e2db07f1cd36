use super::*;

#[test]
fn a_policy_is_read_as_it_is_written() {
    let wait = |ms| Ok(PolicyText(Policy::Wait { deadline: Duration::from_millis(ms) }));
    for (text, policy) in [
        ("drop", Ok(PolicyText(Policy::Drop))),
        ("wait", Ok(PolicyText(Policy::default()))),
        ("wait:50ms", wait(50)),
        ("wait:1ms", wait(1)),
        ("wait:2s", wait(2000)),
        ("wait:60s", wait(60_000)),
    ] {
        assert_eq!(text.parse(), policy, "{text}");
        assert_eq!(policy.unwrap().to_string().parse(), policy, "{text}");
    }
}

#[test]
fn a_text_that_is_no_policy_is_an_error() {
    for text in
        ["", "Wait", "wait:", "wait:50", "wait:ms", "wait: 5ms", "wait:-5ms", "wait:5m", "drop:5ms", "wait:1.5s"]
    {
        assert_eq!(text.parse::<PolicyText>(), Err(PolicyError::Unknown), "{text}");
    }
    assert_eq!("wait:99999999999999999999s".parse::<PolicyText>(), Err(PolicyError::Unknown));
    for text in ["wait:0ms", "wait:0s", "wait:60001ms", "wait:61s", "wait:18446744073709551615s"] {
        assert_eq!(text.parse::<PolicyText>(), Err(PolicyError::Deadline), "{text}");
    }
}
