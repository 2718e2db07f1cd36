//! The snippets of `docs/webrtc.md`: each is read or run, and they agree with each other.

use std::{
    collections::HashMap,
    io::Write,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use backwater_relay::{Arguments, Config};
use backwater_stun::Uri;
use backwater_turn::time_limited_password;
use serde_json::Value;

use crate::{
    client::{Client, start},
    support::{in_namespace, installed, path, skip},
};

const SECRET: &str = "a long shared secret";
const HOST: &str = "turn.example.org";

/// The fenced blocks: the language and the text of each.
fn snippets() -> Vec<(String, String)> {
    snippets_of("webrtc.md")
}

/// The same of another page of the documentation.
pub fn snippets_of(page: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').unwrap()).map(|(lang, text)| (lang.to_owned(), text.to_owned())).collect()
}

fn of(language: &str) -> Vec<String> {
    snippets().into_iter().filter(|(lang, _)| lang == language).map(|(_, text)| text).collect()
}

/// Lines such as `key: "value"` or `key = "value"`, also as an item of a list: the keys and values, without quotes.
fn pairs(text: &str, separator: &str) -> HashMap<String, String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let pairs = lines.map(|line| line.split_once(separator).unwrap_or_else(|| panic!("{line:?} is no pair")));
    let bare = |text: &str| text.trim().trim_start_matches("- ").trim_matches(['"', '[', ']']).to_owned();
    pairs.map(|(key, value)| (bare(key), bare(value))).collect()
}

fn config(args: &[&str], env: Vec<(String, String)>) -> Config {
    let matches = Arguments::command().try_get_matches_from([&["relay"], args].concat()).unwrap();
    Config::new(&Arguments::read(&matches, env).unwrap_or_else(|e| panic!("{e:?}"))).unwrap_or_else(|e| panic!("{e:?}"))
}

#[test]
fn every_snippet_has_a_test() {
    let mut languages: Vec<_> = snippets().into_iter().map(|(language, _)| language).collect();
    languages.sort_unstable();
    assert_eq!(languages, ["docker", "json", "lua", "lua", "nft", "sh", "toml", "yaml", "yaml"]);
}

#[test]
fn the_relays_configuration_is_one() {
    let path = std::env::temp_dir().join(format!("backwater-webrtc-{}.toml", std::process::id()));
    let text = &of("toml")[0];
    std::fs::write(&path, text).unwrap();
    config(&["--config", path.to_str().unwrap()], vec![]);
    std::fs::remove_file(path).unwrap();
    assert!(
        text.contains(&format!("secret = [\"{SECRET}\"]")) && text.contains("user = [\"livekit:a fixed password\"]")
    );
}

#[test]
fn the_shell_line_makes_a_credential_that_is_good() {
    if !installed("openssl") {
        return skip("openssl is not installed (package openssl)");
    }
    let out = Command::new("sh").args(["-c", &of("sh")[0]]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (user, password) = text.trim().split_once(' ').unwrap_or_else(|| panic!("{text:?}"));
    let mut relay = start(&["--secret", SECRET]);
    Client::new(relay.local_addrs()[0], user, password, "backwater").allocate();
    relay.stop(Duration::ZERO);
}

#[test]
fn the_ice_servers_are_json_with_uris_and_a_credential_of_the_secret() {
    let servers: Value = serde_json::from_str(&of("json")[0]).unwrap();
    let server = &servers["iceServers"][0];
    for uri in server["urls"].as_array().unwrap() {
        assert_eq!(Uri::parse(uri.as_str().unwrap()).unwrap().port_or_default(), 3478);
    }
    let user = server["username"].as_str().unwrap();
    assert_eq!(server["credential"], time_limited_password(SECRET, user));
}

#[test]
fn the_services_are_told_the_same_host_and_secret() {
    let yaml: Vec<_> =
        of("yaml").iter().map(|text| text.replace("rtc:\n", "").replace("  turn_servers:\n", "")).collect();
    let synapse = pairs(&yaml[0], ": ");
    assert_eq!(Uri::parse(&synapse["turn_uris"]).unwrap().port_or_default(), 3478);
    assert_eq!(synapse["turn_shared_secret"], SECRET);
    let livekit = pairs(&yaml[1], ": ");
    assert_eq!((&*livekit["host"], &*livekit["port"], &*livekit["protocol"]), (HOST, "3478", "udp"));
    assert_eq!((&*livekit["username"], &*livekit["credential"]), ("livekit", "a fixed password"));
    let lua = of("lua");
    let prosody = pairs(&lua[0], " = ");
    assert_eq!((&*prosody["turn_external_host"], &*prosody["turn_external_secret"]), (HOST, SECRET));
    assert_eq!(prosody["turn_external_port"], "3478");
    let jitsi = pairs(&lua[1], " = ");
    assert_eq!(jitsi["external_service_secret"], SECRET);
    assert!(jitsi["external_services"].contains(&format!("host = \"{HOST}\", port = 3478, transport = \"udp\"")));
}

#[test]
fn the_firewalls_rules_are_taken() {
    if !installed("nft") {
        return skip("nft is not installed (package nftables)");
    }
    in_namespace("webrtc::the_firewalls_rules_are_taken", || {
        let mut nft =
            Command::new("nft").args(["-c", "-f", "-"]).env("PATH", path()).stdin(Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(of("nft")[0].as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
    });
}

#[test]
fn the_containers_variables_are_a_configuration_for_the_published_ports() {
    let line = &of("docker")[0];
    let words: Vec<_> = line.split_whitespace().collect();
    let after = |flag| words.windows(2).filter(move |pair| pair[0] == flag).map(|pair| pair[1]);
    let env: HashMap<_, _> = after("-e").map(|pair| pair.split_once('=').unwrap()).collect();
    config(&[], env.iter().map(|(&name, &value)| (name.to_owned(), value.to_owned())).collect());
    let (ports, listen) = (env["BACKWATER_RELAY_PORTS"], env["BACKWATER_RELAY_LISTEN"]);
    assert_eq!(after("-p").collect::<Vec<_>>(), ["3478:3478/udp".to_owned(), format!("{ports}:{ports}/udp")]);
    assert_eq!(listen, "0.0.0.0:3478");
    env["BACKWATER_RELAY_EXTERNAL_ADDRESS"].parse::<IpAddr>().unwrap();
}
