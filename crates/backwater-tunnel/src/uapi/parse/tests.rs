use std::fmt::Write;

use proptest::prelude::*;

use super::*;

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

fn hex(key: &Key) -> String {
    key.0.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// The lines of a request, one after the other, as they come from a client.
fn parse(text: &[u8]) -> Result<Set, Errno> {
    let mut set = Set::default();
    let lines = text.strip_suffix(b"\n").unwrap_or(text);
    if !text.is_empty() {
        lines.split(|&byte| byte == b'\n').try_for_each(|line| set.take_line(line))?;
    }
    Ok(set)
}

/// The request of the published protocol, with what `wg` writes in addition.
#[test]
fn request_of_the_published_protocol_is_understood() {
    let text = format!(
        "private_key={KEY}\nfwmark=0\nlisten_port=12912\nreplace_peers=true\npublic_key={KEY}\npreshared_key={KEY}\n\
         endpoint=[abcd:23::33]:51820\nreplace_allowed_ips=true\nallowed_ip=192.168.4.4/32\nprotocol_version=1\n\
         public_key={KEY}\nendpoint=182.122.22.19:3233\npersistent_keepalive_interval=111\nallowed_ip=192.168.4.6/24\n\
         allowed_ip=-fd00::/64\nupdate_only=true\npublic_key={}\nremove=true\n",
        KEY.to_uppercase()
    );
    let set = parse(text.as_bytes()).unwrap();
    let [first, second, third] = &set.peers[..] else { panic!("{set:?}") };
    assert_eq!((set.fwmark, set.listen_port, set.replace_peers), (Some(0), Some(12912), true));
    assert_eq!(set.private_key.as_ref().map(hex).as_deref(), Some(KEY));
    assert_eq!(first.preshared_key.as_ref().map(hex).as_deref(), Some(KEY));
    assert_eq!(first.endpoint, Some("[abcd:23::33]:51820".parse().unwrap()));
    assert!(first.replace_allowed_ips && !first.update_only && !first.remove);
    assert_eq!(second.persistent_keepalive, Some(111));
    let allowed = [("192.168.4.0/24", true), ("fd00::/64", false)].map(|(net, adds)| (net.parse().unwrap(), adds));
    assert_eq!(second.allowed_ips, allowed);
    assert!(second.update_only && !second.replace_allowed_ips);
    assert!(third.remove && hex(&third.public_key) == KEY);
    assert_eq!(parse(b""), Ok(Set::default()));
}

/// What comes before `replace_allowed_ips` is replaced too.
#[test]
fn replacing_allowed_ips_forgets_those_of_the_lines_before() {
    let text = format!("public_key={KEY}\nallowed_ip=10.0.0.1/32\nreplace_allowed_ips=true\nallowed_ip=10.0.0.2/32");
    let set = parse(text.as_bytes()).unwrap();
    assert_eq!(set.peers[0].allowed_ips, [("10.0.0.2/32".parse().unwrap(), true)]);
}

#[test]
fn wrong_line_has_the_errno_of_the_protocol() {
    for (line, errno) in [
        ("", Errno::PROTO),
        ("listen_port", Errno::PROTO),
        ("listen_port=", Errno::INVAL),
        ("listen_port=65536", Errno::INVAL),
        ("listen_port=+1", Errno::INVAL),
        ("listen_port=-1", Errno::INVAL),
        ("listen_port= 1", Errno::INVAL),
        ("fwmark=4294967296", Errno::INVAL),
        ("fwmark=0x1", Errno::INVAL),
        ("replace_peers=false", Errno::INVAL),
        ("private_key=00", Errno::INVAL),
        (&format!("private_key={}g", &KEY[1..]), Errno::INVAL),
        (&format!("private_key={}é", &KEY[2..]), Errno::INVAL),
        // Of a peer, before there is one.
        ("endpoint=192.0.2.1:1", Errno::INVAL),
        ("unknown=1", Errno::INVAL),
    ] {
        assert_eq!(parse(format!("fwmark=1\n{line}\nfwmark=2").as_bytes()), Err(errno), "{line}");
    }
    for line in [
        "listen_port=1",
        "endpoint=example.org:1",
        "endpoint=192.0.2.1",
        "endpoint=192.0.2.1:0",
        "endpoint=2001:db8::1:5",
        "persistent_keepalive_interval=65536",
        "allowed_ip=10.0.0.1",
        "allowed_ip=10.0.0.1/33",
        "allowed_ip=--10.0.0.1/32",
        "protocol_version=2",
        "remove=yes",
    ] {
        assert_eq!(parse(format!("public_key={KEY}\n{line}").as_bytes()), Err(Errno::INVAL), "{line}");
    }
    assert_eq!(parse(b"fwmark=\xff"), Err(Errno::PROTO));
    assert_eq!(parse(b"\n"), Err(Errno::PROTO));
}

/// A key is in no message for people.
#[test]
fn debug_output_shows_no_key() {
    let set = parse(format!("private_key={KEY}\npublic_key={KEY}\npreshared_key={KEY}").as_bytes()).unwrap();
    assert!(!format!("{set:?}").contains("185"), "{set:?}");
}

/// Lines that are right, nearly right, and wrong.
fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("private_key"),
        Just("listen_port"),
        Just("fwmark"),
        Just("replace_peers"),
        Just("public_key"),
        Just("remove"),
        Just("update_only"),
        Just("preshared_key"),
        Just("endpoint"),
        Just("persistent_keepalive_interval"),
        Just("replace_allowed_ips"),
        Just("allowed_ip"),
        Just("protocol_version"),
    ];
    let value = prop_oneof![
        4 => Just(KEY.to_owned()),
        4 => Just("true".to_owned()),
        4 => "[0-9]{1,6}",
        2 => "-?[0-9]{1,3}\\.0\\.0\\.1/[0-9]{1,2}",
        2 => "\\[fd00::[0-9a-f]{1,4}\\]:[0-9]{1,5}",
        1 => "\\PC{0,20}",
    ];
    prop_oneof![9 => (key, value).prop_map(|(key, value)| format!("{key}={value}")), 1 => "\\PC{0,30}"]
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes);
    }

    /// A request is either understood as a whole, with each section where it was, or refused as a whole.
    #[test]
    fn requests_are_understood_as_a_whole_or_not_at_all(lines in prop::collection::vec(line(), 0..20)) {
        let text = lines.join("\n");
        let sections = lines.iter().filter(|line| line.starts_with("public_key=")).count();
        match parse(text.as_bytes()) {
            Ok(set) => {
                prop_assert_eq!(set.peers.len(), sections);
                let prefixes: usize = set.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
                prop_assert!(prefixes <= lines.len());
                // The same lines once more say the same again.
                prop_assert_eq!(parse(text.as_bytes()), Ok(set));
            }
            Err(errno) => {
                prop_assert!(matches!(errno, Errno::INVAL | Errno::PROTO));
                // What comes after a wrong line does not heal it.
                prop_assert_eq!(parse(format!("{text}\nremove=true").as_bytes()), Err(errno));
            }
        }
    }
}
