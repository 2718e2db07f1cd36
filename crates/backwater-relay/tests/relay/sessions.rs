//! What the administration shows of the relay in JSON, and what an operator ends and switches.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use backwater_stun::Method;
use serde_json::Value;

use crate::{
    admin::{ask, get, start_with_admin, until},
    client::{channel_data, client, peer},
    program::Program,
};

fn json(admin: SocketAddr, method: &str, path: &str) -> Value {
    let (status, body) = ask(admin, method, path, "");
    assert_eq!(status, 200, "{method} {path}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// All pages of this length.
fn pages(admin: SocketAddr, limit: usize, more: &str) -> Vec<Vec<Value>> {
    let (mut pages, mut after) = (Vec::new(), "0.0".to_owned());
    loop {
        let mut page = json(admin, "GET", &format!("/sessions?limit={limit}&after={after}{more}"));
        let Value::Array(sessions) = page["sessions"].take() else { panic!("{page}") };
        assert!(sessions.len() <= limit);
        pages.push(sessions);
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => return pages,
        }
    }
}

#[test]
fn sessions_of_all_threads_come_in_pages_each_once() {
    let (mut relay, admin) = start_with_admin(&["--threads", "3", "--user", "bob=b&c:secret"]);
    assert_eq!(pages(admin, 7, ""), [Vec::<Value>::new()]);
    let mut clients: Vec<_> = (0..25).map(|_| client(&relay)).collect();
    let mut bob = crate::client::Client::new(relay.local_addrs()[0], "bob=b&c", "secret", "backwater");
    let mut expected: BTreeMap<SocketAddr, SocketAddr> = BTreeMap::new();
    for client in clients.iter_mut().chain([&mut bob]) {
        let relayed = client.allocate();
        expected.insert(client.socket.local_addr().unwrap(), relayed);
    }
    let found: Vec<_> = pages(admin, 7, "").into_iter().flatten().collect();
    let address = |value: &Value| value.as_str().unwrap().parse::<SocketAddr>().unwrap();
    let addresses: BTreeMap<_, _> = found.iter().map(|s| (address(&s["client"]), address(&s["relayed"][0]))).collect();
    assert_eq!((found.len(), addresses), (26, expected));
    let ids: BTreeSet<_> = found.iter().map(|session| session["id"].as_str().unwrap()).collect();
    let threads: BTreeSet<_> = ids.iter().map(|id| id.split('-').next().unwrap()).collect();
    assert_eq!((ids.len(), threads.len()), (26, 3), "spread over the threads: {ids:?}");
    assert_eq!(found.iter().filter(|session| session["user"] == "alice").count(), 25);
    let of_bob: Vec<_> = pages(admin, 1, "&user=bob%3Db%26c").into_iter().flatten().collect();
    assert_eq!(of_bob.len(), 1);
    assert_eq!(address(&of_bob[0]["client"]), bob.socket.local_addr().unwrap());
    relay.stop(Duration::ZERO);
}

#[test]
fn operator_sees_and_ends_one_session_and_the_others_go_on() {
    let (mut relay, admin) = start_with_admin(&[]);
    let (mut ended, mut other) = (client(&relay), client(&relay));
    let relayed = ended.allocate();
    other.allocate();
    let (peer, peer_addr) = peer();
    let mut buffer = [0; 2000];
    for client in [&mut ended, &mut other] {
        client.bind_channel(0x4001, peer_addr).unwrap();
        client.socket.send(&channel_data(0x4001, b"hello")).unwrap();
        peer.recv_from(&mut buffer).unwrap();
    }
    peer.send_to(b"hello, you", relayed).unwrap();
    ended.socket.recv(&mut buffer).unwrap();

    let address = ended.socket.local_addr().unwrap().to_string();
    let find = |pages: Vec<Vec<Value>>| pages.into_iter().flatten().find(|s| s["client"] == address.as_str());
    let id = find(pages(admin, 100, "")).unwrap()["id"].as_str().unwrap().to_owned();
    // A thread counts what it has sent after it was sent.
    until("the bytes are counted", || json(admin, "GET", &format!("/sessions/{id}"))["bytes_to_client"] == 10);
    let session = json(admin, "GET", &format!("/sessions/{id}"));
    assert_eq!((&session["user"], &session["transport"]), (&"alice".into(), &"udp".into()));
    assert_eq!(session["server"], relay.local_addrs()[0].to_string());
    assert_eq!(session["relayed"][0], relayed.to_string());
    assert_eq!(
        (&session["bytes_to_peers"], &session["permissions"], &session["channels"]),
        (&5.into(), &1.into(), &1.into())
    );
    let (age, left) = (session["age_seconds"].as_f64().unwrap(), session["expires_in_seconds"].as_f64().unwrap());
    assert!(age >= 0.0 && left > 0.0 && age + left < 601.0, "{session}");

    assert_eq!(json(admin, "DELETE", &format!("/sessions/{id}"))["client"], address.as_str());
    assert_eq!(ask(admin, "DELETE", &format!("/sessions/{id}"), "").0, 404);
    assert_eq!(get(admin, &format!("/sessions/{id}")).0, 404);
    assert_eq!(find(pages(admin, 100, "")), None);
    std::net::UdpSocket::bind(relayed).expect("its port is free");
    assert_eq!(ended.request(Method::REFRESH, &|_| ()).unwrap_err(), 437);
    ended.allocate();
    other.socket.send(&channel_data(0x4001, b"still here")).unwrap();
    assert_eq!(peer.recv_from(&mut buffer).unwrap().0, 10);
    relay.stop(Duration::ZERO);
}

/// The description is written by hand: what the relay answers has the members that it says, and no others.
#[test]
fn openapi_describes_the_answers() {
    let (mut relay, admin) = start_with_admin(&["--secret", "s"]);
    let mut client = client(&relay);
    client.allocate();
    let description = json(admin, "GET", "/openapi.json");
    let id = json(admin, "GET", "/sessions")["sessions"][0]["id"].as_str().unwrap().to_owned();
    let mut checked = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        for method in ["get", "delete"] {
            let schema = &item[method]["responses"]["200"]["content"]["application/json"]["schema"];
            // The log of this test is not the relay's.
            if !schema.is_object() || path == "/log-filter" {
                continue;
            }
            let asked = path.replace("{id}", &id).replace("/credentials", "/credentials?name=alice");
            check(&description, schema, &json(admin, &method.to_uppercase(), &asked), path);
            checked += 1;
        }
    }
    assert_eq!(checked, 7);
    relay.stop(Duration::ZERO);
}

/// Compares a value with its schema, as far as the description uses JSON Schema.
fn check(description: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = description.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference} is not there"));
        return check(description, schema, value, place);
    }
    if let Some(all) = schema["oneOf"].as_array() {
        let schema = all.iter().find(|schema| (schema["type"] == "null") == value.is_null()).unwrap();
        return check(description, schema, value, place);
    }
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{place}: {value}");
    }
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types: Vec<_> = schema["type"]
        .as_str()
        .into_iter()
        .chain(schema["type"].as_array().into_iter().flatten().map(|t| t.as_str().unwrap()))
        .collect();
    let is_number = found == "integer" && types.contains(&"number");
    assert!(types.is_empty() || types.contains(&found) || is_number, "{place}: {types:?}, found {value}");
    for (name, member) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(schema), _) => check(description, schema, member, &place),
            (None, more) => {
                assert!(*more != false, "{place} is not described");
                check(description, more, member, &place);
            }
        }
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{place}.{name} is missing");
    }
    for item in value.as_array().into_iter().flatten() {
        check(description, &schema["items"], item, place);
    }
}

/// The page and the metrics are made of one snapshot.
#[test]
fn status_is_json_and_adds_up() {
    let (mut relay, admin) = start_with_admin(&["--threads", "2"]);
    let mut client = client(&relay);
    client.allocate();
    let (peer, peer_addr) = peer();
    client.bind_channel(0x4001, peer_addr).unwrap();
    let mut buffer = [0; 2000];
    for _ in 0..10 {
        client.socket.send(&channel_data(0x4001, b"up")).unwrap();
        peer.recv_from(&mut buffer).unwrap();
    }
    until("all is counted", || json(admin, "GET", "/status")["paths"]["peers"]["sent_total"] == 10);
    let status = json(admin, "GET", "/status");
    assert_eq!((&status["allocations"], &status["threads"]), (&1.into(), &2.into()));
    assert_eq!(status["bytes"]["to_peers"]["udp"], 20);
    assert_eq!(status["counters"]["to_peers"], 10);
    assert_eq!(status["paths"]["clients"]["sent_total"], status["counters"]["replies"]);
    let uri = format!("turn:{}?transport=udp", relay.local_addrs()[0]);
    assert_eq!(status["uris"], serde_json::json!([uri]));
    assert!(!status.to_string().contains("alice"), "no user's name");
    relay.stop(Duration::ZERO);
}

#[test]
fn log_filter_is_read_and_switched() {
    let args = "--listen 127.0.0.1:0 --user alice:secret --drain 0 --admin 127.0.0.1:0";
    let mut relay = Program::start(&args.split(' ').collect::<Vec<_>>(), 0);
    let listener = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    let admin: SocketAddr = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
    let filter = |text: &str| format!("{{\"filter\":\"{text}\"}}\n");
    assert_eq!(get(admin, "/log-filter"), (200, filter("info")));
    for body in ["", "debug", "{}", "{\"filter\":\"\"}", "{\"filter\":\"wran\"}", "{\"filter\":\"info\",\"x\":1}"] {
        let (status, reason) = ask(admin, "PUT", "/log-filter", body);
        assert_eq!((status, reason.matches('\n').count()), (400, 1), "{body}: {reason}");
    }
    assert_eq!(get(admin, "/log-filter"), (200, filter("info")), "as it was");
    assert_eq!(ask(admin, "PUT", "/log-filter", "{\"filter\":\"debug\"}"), (200, filter("debug")));
    assert_eq!(relay.line("log filter switched")["before"], "info");
    crate::client::Client::new(listener, "alice", "secret", "backwater").allocate();
    assert_eq!(relay.line("allocation made")["severity"], "DEBUG");
    assert_eq!(relay.terminate(), Some(0));
}
