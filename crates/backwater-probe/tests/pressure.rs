//! `backwater-probe pressure`, as a user runs it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::Value;

#[cfg(target_os = "linux")]
#[path = "../../backwater-udp/tests/support/mod.rs"]
mod support;

fn pressure(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backwater-probe"));
    command.arg("pressure").args(arguments.split_whitespace()).output().unwrap()
}

fn json(arguments: &str) -> Value {
    let out = pressure(&format!("{arguments} --json"));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn dropped(run: &Value) -> f64 {
    run["dropped"].as_object().unwrap().values().map(|n| n.as_f64().unwrap()).sum()
}

#[test]
fn a_rate_is_not_exceeded_and_everything_is_accounted_for() {
    let found = json("127.0.0.1:9 --seconds 0.5 --rate 400 --size 100");
    let runs = found["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 6);
    for run in runs {
        // A busy machine offers fewer.
        let most = 400.0 * number(run, "seconds") + 1.0;
        assert!((1.0..=most).contains(&number(run, "offered")), "{run}");
        assert_eq!(number(run, "offered"), number(run, "sent") + dropped(run), "{run}");
        assert_eq!((number(run, "unaccounted"), &run["error"]), (0.0, &Value::Null), "{run}");
    }
}

#[test]
fn plan_is_printed_and_no_progress_without_a_terminal() {
    let out = pressure("127.0.0.1 --seconds 0.1 --rate 100 --policies wait,naive --connected no");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(stderr, "sends datagrams of 1200 bytes to 127.0.0.1:9, 100 per second, for 0.2 s\n");
    let stdout = String::from_utf8(out.stdout).unwrap();
    assert!(stdout.contains("── wait, not connected") && stdout.contains("\nhangs "), "{stdout}");
}

#[test]
fn summary_fits_one_screen_and_says_how_to_repeat_the_run() {
    let arguments = "127.0.0.1 --seconds 0.1 --rate 100 --summary";
    let out = pressure(arguments);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains(&format!("backwater-probe pressure {arguments}\n")), "{text}");
    // All six runs are columns of one table.
    let columns =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().count();
    assert_eq!((columns("policy"), columns("sent per second")), (6, 6), "{text}");
    let both = pressure(&format!("{arguments} --json"));
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn bad_input_is_one_line() {
    for (arguments, code) in [
        ("host.invalid", 2),
        ("127.0.0.1:0", 2),
        ("127.0.0.1 --policies hope", 2),
        ("127.0.0.1 --size 70000", 2),
        ("127.0.0.1 --seconds 0", 2),
        ("127.0.0.1 --rate -1", 2),
    ] {
        let out = pressure(arguments);
        assert_eq!(out.status.code(), Some(code), "{arguments}");
        let stderr = String::from_utf8(out.stderr).unwrap();
        // A wrong flag gets clap's advice as well.
        assert!(stderr.lines().count() == 1 || stderr.starts_with("error: "), "{arguments}: {stderr}");
        assert!(out.stdout.is_empty());
    }
}

/// Reads datagrams at a port until none has come for a second.
#[cfg(target_os = "linux")]
fn count() -> (std::net::SocketAddr, std::thread::JoinHandle<u64>) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let counting = std::thread::spawn(move || {
        let patience = std::time::Duration::from_secs;
        socket.set_read_timeout(Some(patience(10))).unwrap();
        let mut counted = 0;
        while socket.recv(&mut [0; 2000]).is_ok() {
            counted += 1;
            socket.set_read_timeout(Some(patience(1))).unwrap();
        }
        counted
    });
    (at, counting)
}

#[cfg(target_os = "linux")]
#[test]
fn behind_a_full_queue_the_policies_differ() {
    support::in_namespace("behind_a_full_queue_the_policies_differ", || {
        support::tc("qdisc add dev lo root tbf rate 1mbit burst 3k limit 12k");
        for connected in ["yes", "no"] {
            for policy in ["wait", "drop", "naive"] {
                let (to, counting) = count();
                let found = json(&format!("{to} --seconds 1.2 --policies {policy} --connected {connected}"));
                let run = &found["runs"][0];
                assert_eq!(run["policy"], policy);
                let sent = number(run, "sent");
                assert_eq!(counting.join().unwrap() as f64, sent, "the receiver disagrees: {run}");
                assert!(sent > 0.0, "{run}");
                assert_eq!((number(run, "unaccounted"), number(run, "offered")), (0.0, sent + dropped(run)), "{run}");
                let classes = run["classes"].as_array().unwrap();
                let sum = |name: &str| classes.iter().map(|class| number(class, name)).sum::<f64>();
                assert!(sum("enobufs") > 0.0, "nothing was refused: {run}");
                for class in classes {
                    let recovered: f64 =
                        class["recovered"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
                    let in_bars: f64 = class["recovery"].as_array().unwrap().iter().map(|b| number(b, "count")).sum();
                    assert_eq!(recovered, in_bars, "{class}");
                }
                let (holds, p50, p99) = (&run["holds"], &run["holds"]["p50_seconds"], &run["holds"]["p99_seconds"]);
                match policy {
                    "drop" => {
                        assert_eq!((number(holds, "count"), p50, p99), (0.0, &Value::Null, &Value::Null), "{run}")
                    }
                    _ => {
                        let (p50, p99) = (p50.as_f64().unwrap(), p99.as_f64().unwrap());
                        assert!(number(holds, "count") > 0.0 && 0.0 < p50 && p50 <= p99, "{run}");
                    }
                }
                match policy {
                    "wait" => {
                        assert!(run["dropped"].as_object().unwrap().keys().all(|reason| reason == "deadline"), "{run}");
                        assert!(number(run, "waits") > 0.0, "it did not wait: {run}");
                        // Two yields, then waits of 1, 2, 4 and 8 ms, where the queue takes 10 ms for a datagram.
                        assert!(number(run, "attempts") < 20.0 * number(run, "offered"), "it spins: {run}");
                    }
                    "drop" => assert!(number(&run["dropped"], "no_buffers") > 0.0, "{run}"),
                    // On Linux each refusal is followed by an event: it spins.
                    _ => assert!(number(run, "spurious_wakes") > 10.0 * number(run, "waits"), "{run}"),
                }
            }
        }
    });
}
