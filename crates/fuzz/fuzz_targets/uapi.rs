//! The lines of a set request of WireGuard's configuration protocol: they are understood as a whole, or refused as a whole.
#![no_main]

use backwater_tunnel::uapi::Set;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let end: &[u8] = if text.is_empty() || text.ends_with(b"\n") { b"" } else { b"\n" };
    let more =
        [text, end, b"public_key=0000000000000000000000000000000000000000000000000000000000000000\nremove=true\n"]
            .concat();
    match Set::parse(text) {
        Ok(set) => {
            let lines: Vec<_> = text.split(|&byte| byte == b'\n').collect();
            let sections = lines.iter().filter(|line| line.starts_with(b"public_key=")).count();
            assert_eq!(set.peers.len(), sections);
            let prefixes: usize = set.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
            assert!(prefixes <= lines.len());
            assert!(set.peers.iter().filter_map(|peer| peer.endpoint).all(|endpoint| endpoint.port() != 0));
            // A section more changes nothing of those before it.
            let more = Set::parse(&more).unwrap();
            assert_eq!(more.peers[..sections], set.peers);
            assert!(more.peers[sections].remove && more.peers.len() == sections + 1);
        }
        // What comes behind a wrong line does not heal it.
        Err(errno) => assert_eq!(Set::parse(&more), Err(errno)),
    }
});
