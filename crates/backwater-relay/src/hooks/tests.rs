use super::*;

#[test]
fn url_of_a_hook_is_http_with_a_host() {
    for (text, host, port, path) in [
        ("http://127.0.0.1:8080/turn?token=a", "127.0.0.1", 8080, "/turn?token=a"),
        ("http://hooks.example.org", "hooks.example.org", 80, "/"),
        ("http://[::1]:81/", "::1", 81, "/"),
    ] {
        let url: HookUrl = text.parse().unwrap();
        assert_eq!(url.parts(), (host, port, path), "{text}");
        assert!(!format!("{url:?}").contains("token"));
    }
    for text in
        ["", "127.0.0.1:8080", "/turn", "ftp://a/", "https://a/", "http://user:password@a/", "http:///a", "http://a:x/"]
    {
        let problem = text.parse::<HookUrl>().unwrap_err();
        assert!(problem.starts_with("expected "), "{text}: {problem}");
    }
}

/// What is produced is sent, dropped or waits: nothing waits without bound.
#[test]
fn full_queue_drops_and_counts_the_events_that_come() {
    use backwater_turn::{
        ClientAddr, PerFamily, Protocol,
        server::{Event, EventKind},
    };
    let counters = Arc::<HookCounters>::default();
    let (sender, events) = events::queue(counters.clone());
    let event = Event {
        kind: EventKind::Made(Duration::from_secs(600)),
        client: ClientAddr("192.0.2.1:1".parse().unwrap()),
        protocol: Protocol::Udp,
        user: "alice".into(),
        relayed: PerFamily::default(),
        created: std::time::Instant::now(),
    };
    (0..5000).for_each(|_| sender.send(&event));
    assert_eq!((events.len(), counters.dropped.load(Relaxed), counters.events.load(Relaxed)), (4096, 904, 5000));
}
