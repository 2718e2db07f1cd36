use std::{collections::HashSet, num::NonZeroU32};

use proptest::{collection::vec, option, prelude::*};

use super::*;

const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

fn good(text: &str) -> (Config, Vec<Warning>) {
    Config::parse("t.conf", text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn bad(text: &str) -> Vec<String> {
    Config::parse("t.conf", text).unwrap_err().iter().map(str::to_owned).collect()
}

/// The errors of an `[Interface]` section with these lines after the private key (line 2), so from line 3 on.
fn interface(lines: &str) -> Vec<String> {
    bad(&format!("[Interface]\nPrivateKey = {PRIVATE}\n{lines}"))
}

/// The same for a peer, with its lines from line 5 on.
fn peer(lines: &str) -> Vec<String> {
    interface(&format!("[Peer]\nPublicKey={PEER}\n{lines}"))
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn everything_that_is_handled_is_understood() {
    let text = format!(
        "# a comment\r\n[interface]\r\nPRIVATEKEY={PRIVATE}   # mine\r\nAddress = 10.0.0.2/24, fd00::2/64\r\naddress = 10.1.0.2\r\n\
         ListenPort = 51820\r\nMTU = 1380\r\nFwMark = 0xCa6c\r\nTable = OFF\r\n\r\n\
         [Peer]\r\npublicKey = {PEER}\r\nPresharedKey = {OTHER}\r\nEndpoint = vpn.example.org:51820\r\n\
         AllowedIPs = 10.0.0.0/24,fd00::/64\r\nAllowedIPs = 192.168.3.7\r\nAllowedIPs =\r\nPersistentKeepalive = 25\r\n\
         [PEER]\r\nPublicKey = {OTHER}\r\nEndpoint = [2001:db8::1]:7\r\nPersistentKeepalive = off\r\n"
    );
    let (config, warnings) = good(&text);
    assert_eq!(warnings, []);
    let Interface { private_key, addresses, listen_port, mtu, fwmark, table, .. } = config.interface;
    assert_eq!(private_key.to_base64(), PRIVATE);
    assert_eq!(addresses, [net("10.0.0.2/24"), net("fd00::2/64"), net("10.1.0.2/32")]);
    assert_eq!((listen_port, mtu, fwmark, table), (51820, Some(1380), 0xca6c, Table::Off));
    let [one, two] = <[Peer; 2]>::try_from(config.peers).unwrap();
    assert_eq!((one.public_key.to_base64().as_str(), one.preshared_key), (PEER, Key::from_base64(OTHER)));
    assert_eq!(one.endpoint, Some(Endpoint::Name("vpn.example.org".to_owned(), 51820)));
    assert_eq!(one.allowed_ips, [net("10.0.0.0/24"), net("fd00::/64"), net("192.168.3.7/32")]);
    assert_eq!(one.persistent_keepalive, NonZeroU16::new(25));
    assert_eq!(two.endpoint, Some(Endpoint::Address("[2001:db8::1]:7".parse().unwrap())));
    assert_eq!((two.preshared_key, two.allowed_ips, two.persistent_keepalive), (None, vec![], None));
}

#[test]
fn what_is_not_said_has_its_default() {
    let (config, _) = good(&format!("\u{feff}[Interface]\nPrivateKey={PRIVATE}"));
    let Interface { addresses, listen_port, mtu, fwmark, table, .. } = config.interface;
    assert_eq!((addresses, listen_port, mtu, fwmark, table), (vec![], 0, None, 0, Table::Auto));
    assert!(config.peers.is_empty());
}

/// What `wg` and `wg-quick` take, and what does nothing there.
#[test]
fn what_wg_and_wg_quick_ignore_is_ignored() {
    let (config, warnings) = good(&format!(
        "[ Interface ]\nPrivate Key = {PRIVATE}\nAddress =\nMTU =\nTable =\nDNS =\nSaveConfig = false\nPreUp =\nPostUp = # nothing\n\
         PostUp =\nPreDown =\nPostDown =\nSaveConfig =\n[\tPeer ]\nPublicKey = {PEER}\nAllowed IPs =\n"
    ));
    let Interface { addresses, mtu, table, .. } = config.interface;
    assert_eq!((addresses, mtu, table, warnings), (vec![], None, Table::Auto, vec![]));
    assert_eq!(config.peers.len(), 1);
    // `wg` wants numbers there.
    assert!(interface("ListenPort =")[0].contains("found nothing"));
    assert!(interface("[ P eer s ]")[0].contains("wanted [Interface], [Peer] or [Relay]"));
}

#[test]
fn preshared_key_of_zeros_is_none() {
    let zeros = Key([0; 32]).to_base64();
    let peer = format!("[Interface]\nPrivateKey={PRIVATE}\n[Peer]\nPublicKey={PEER}\nPresharedKey=");
    assert_eq!(good(&format!("{peer}{zeros}")).0.peers[0].preshared_key, None);
    assert!(bad(&format!("{peer}x"))[0].ends_with("as `wg genpsk` prints them"));
}

#[test]
fn table_is_a_number_too() {
    for (text, table) in [("1234", 1234), ("4294967295", u32::MAX), ("0x10", 16)] {
        let (config, _) = good(&format!("[Interface]\nPrivateKey={PRIVATE}\nTable={text}"));
        assert_eq!(config.interface.table, Table::Number(NonZeroU32::new(table).unwrap()));
    }
    for text in ["0", "-1", "4294967296", "main"] {
        assert!(interface(&format!("Table = {text}"))[0].contains("wanted off, auto or a number"), "{text}");
    }
}

#[test]
fn endpoint_inside_the_routes_is_a_warning() {
    let warned = |interface: &str, endpoint: &str, allowed: &str| {
        let (_, warnings) = good(&format!(
            "[Interface]\nPrivateKey={PRIVATE}\n{interface}\n[Peer]\nPublicKey={PEER}\nEndpoint={endpoint}\n[Peer]\nPublicKey={OTHER}\n\
             AllowedIPs=10.9.0.0/16,{allowed}\n"
        ));
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        warned("", "10.1.2.3:7", "10.0.0.0/8"),
        [
            "t.conf:6: Endpoint 10.1.2.3:7 is inside the route 10.0.0.0/8 (line 9): what is sent to it goes into the tunnel itself, \
          unless a more exact route leads elsewhere"
        ]
    );
    assert_eq!(warned("", "[fd00::7]:7", "fd00::/64").len(), 1);
    // Default routes have rules of their own; another table has the operator's.
    for (interface, endpoint, allowed) in [
        ("", "10.1.2.3:7", "0.0.0.0/0"),
        ("Table = off", "10.1.2.3:7", "10.0.0.0/8"),
        ("Table = 7", "10.1.2.3:7", "10.0.0.0/8"),
        ("", "10.1.2.3:7", "10.1.3.0/30"),
        ("", "example.org:7", "10.0.0.0/8"),
    ] {
        assert_eq!(warned(interface, endpoint, allowed), [""; 0], "{interface} {endpoint} {allowed}");
    }
}

#[test]
fn marks_are_decimal_hexadecimal_or_off() {
    for (text, mark) in [("51820", 51820), ("0xffFFffff", u32::MAX), ("0X0a", 10), ("off", 0), ("0", 0)] {
        assert_eq!(good(&format!("[Interface]\nPrivateKey={PRIVATE}\nFwMark={text}")).0.interface.fwmark, mark);
    }
    for text in ["", "0x", "-1", "+1", "0x+1", "0x100000000", "4294967296", "ffff"] {
        let errors = interface(&format!("FwMark = {text}"));
        assert!(errors.len() == 1 && errors[0].starts_with("t.conf:3: FwMark: found "), "{errors:?}");
    }
}

#[test]
fn allowed_prefixes_lose_what_is_of_a_host_and_those_that_come_again() {
    let text = format!(
        "[Interface]\nPrivateKey={PRIVATE}\nAddress=10.0.0.2/24\nAddress=10.0.0.2/24\n[Peer]\nPublicKey={PEER}\nAllowedIPs=10.0.0.9/24,10.0.0.0/24"
    );
    let (config, _) = good(&text);
    assert_eq!(config.peers[0].allowed_ips, [net("10.0.0.0/24")]);
    assert_eq!(config.interface.addresses, [net("10.0.0.2/24")]);
}

#[test]
fn dns_is_servers_and_domains_in_any_order() {
    let text =
        format!("[Interface]\nDNS = 10.0.0.1, home,example.org\nPrivateKey={PRIVATE}\nDNS=::1, home ,10.0.0.1\n");
    let (config, warnings) = good(&text);
    assert_eq!(warnings, []);
    assert_eq!(config.interface.dns.to_string(), "10.0.0.1, ::1, home, example.org");
    let errors = interface("DNS = 10.0.0.1, 10.0.0.256, -x, a b, x/y\n");
    let wanted = "wanted the address of a server, or a domain to search";
    let expected =
        ["\"10.0.0.256\"", "\"-x\"", "\"a b\"", "\"x/y\""].map(|it| format!("t.conf:3: DNS: found {it}, {wanted}"));
    assert_eq!(errors, expected);
}

#[test]
fn commands_are_kept_in_their_order_and_saveconfig_is_a_warning() {
    let text = format!(
        "[Interface]\nPostUp = iptables -A FORWARD -i %i -j ACCEPT; true # all of it\nPrivateKey={PRIVATE}\npostup=\n\
         Post Up = echo a=b\nPreDown=true\nSaveConfig = true\n"
    );
    let (config, warnings) = good(&text);
    let hook = |at, command: &str| Hook { at, command: command.to_owned() };
    let expected = [
        hook(HookTime::PostUp, "iptables -A FORWARD -i %i -j ACCEPT; true"),
        hook(HookTime::PostUp, "echo a=b"),
        hook(HookTime::PreDown, "true"),
    ];
    assert_eq!(config.interface.hooks, expected);
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(warning.to_string(), "t.conf:7: SaveConfig: no configuration is written");
    let skipped = config.interface.hooks[1].skipped(Path::new("t.conf"));
    assert_eq!(skipped.to_string(), "t.conf: PostUp is not run (--allow-hooks runs it): \"echo a=b\"");
    let secret = hook(HookTime::PreUp, &format!("wg set x private-key {PRIVATE}")).skipped(Path::new("t.conf"));
    assert!(!secret.to_string().contains(&PRIVATE[..20]), "{secret}");
    assert_eq!(interface("SaveConfig = maybe"), ["t.conf:3: SaveConfig: found \"maybe\", wanted true or false"]);
}

/// As generators of providers write them: CR LF, a byte-order mark, blanks and case as they come, what is said twice.
#[test]
fn files_of_providers_load() {
    let peer = format!("PublicKey = {PEER}\r\nAllowedIPs = 0.0.0.0/0,::/0\r\nEndpoint = 198.51.100.7:51820\r\n");
    for interface in [
        format!(
            "\u{feff}[Interface]\r\nPrivateKey = {PRIVATE}\r\nAddress = 10.64.0.2/32,fc00:bbbb::2/128\r\nDNS = 10.64.0.1\r\n"
        ),
        format!(
            "[Interface]\nprivatekey={PRIVATE}\nAddress = 10.2.0.2/32\nDNS = 10.2.0.1\nPostUp = iptables -I OUTPUT ! -o %i -j REJECT\nPreDown = iptables -D OUTPUT ! -o %i -j REJECT\n"
        ),
        format!(
            "# a comment\n\n[INTERFACE]\nAddress=10.14.0.2/16\nPrivateKey={PRIVATE}\nDNS=162.252.172.57, 149.154.159.92\nMTU=1420\n"
        ),
        format!(
            "[Interface]\nPrivateKey = {PRIVATE} # mine\nAddress = 172.16.0.2, 2606:4700:110:8a36:df92:102a:9602:fa18\nDNS = 1.1.1.1, 2606:4700:4700::1111, local\nMTU = 1280\n"
        ),
        format!(
            "[Interface]\nSaveConfig = true\nListenPort=51820\nAddress = 192.168.7.1/24\nAddress = fe80::1/64\nPrivateKey = {PRIVATE}\nTable = auto\nFwMark = off\n"
        ),
    ] {
        let (config, _) = good(&format!("{interface}[Peer]\r\n{peer}AllowedIPs = 0.0.0.0/0\r\n"));
        assert_eq!(config.peers[0].allowed_ips, [net("0.0.0.0/0"), net("::/0")]);
    }
}

#[test]
fn all_errors_come_at_once_in_the_order_of_the_file() {
    let text = "Address = 10.0.0.1\n[Interface]\nAddress = 10.0.0\nListenPort = 65536\nListenPort = 1\nMTU = big\nTable = main\n\
                PostUp = iptables -A FORWARD\nColour = red\nnonsense\n[Peers]\nPublicKey = 1\n[Peer]\nEndpoint = example.org\n\
                AllowedIPs = 10.0.0.0/33, ::/0\nPersistentKeepalive = -1\nPublicKey = short\n[Peer]\n";
    let expected = [
        "1: Address: found it before any section, wanted [Interface] or [Peer] above it",
        "2: PrivateKey: found none in this section, wanted 32 bytes in base64, as `wg genkey` prints them",
        "3: Address: found \"10.0.0\", wanted an address or a prefix, such as 10.0.0.1/24 or fd00::1/64",
        "4: ListenPort: found \"65536\", wanted a number from 0 to 65535",
        "5: ListenPort: found it again, after line 4, wanted it once",
        "6: MTU: found \"big\", wanted a number from 576 to 65535",
        "7: Table: found \"main\", wanted off, auto or a number from 1 to 4294967295",
        "9: Colour: found an unknown key of [Interface], wanted one of PrivateKey, Address, ListenPort, MTU, FwMark, \
         Table, DNS, PreUp, PostUp, PreDown, PostDown",
        "10: line: found \"nonsense\", wanted a key, = and a value",
        "11: section: found \"[Peers]\", wanted [Interface], [Peer] or [Relay]",
        "14: Endpoint: found \"example.org\", wanted IPv4:port, [IPv6]:port or name:port",
        "15: AllowedIPs: found \"10.0.0.0/33\", wanted an address or a prefix, such as 10.0.0.1/24 or fd00::1/64",
        "16: PersistentKeepalive: found \"-1\", wanted seconds from 0 to 65535, or off",
        "17: PublicKey: found 5 characters, wanted 32 bytes in base64, as `wg pubkey` prints them",
        "18: PublicKey: found none in this section, wanted 32 bytes in base64, as `wg pubkey` prints them",
    ];
    assert_eq!(bad(text), expected.map(|line| format!("t.conf:{line}")));
}

#[test]
fn sections_that_are_missing_or_too_many_are_errors() {
    assert_eq!(bad(""), ["t.conf:1: [Interface]: found no such section, wanted one"]);
    assert_eq!(
        interface(&format!("[Interface]\nPrivateKey={PRIVATE}")),
        ["t.conf:3: [Interface]: found it again, wanted one such section"]
    );
    let mut many = format!("[Interface]\nPrivateKey={PRIVATE}\n");
    for n in 1..=1024u16 {
        let mut key = [1; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        many += &format!("[Peer]\nPublicKey={}\n", Key(key).to_base64());
    }
    assert_eq!(good(&many).0.peers.len(), 1024);
    many += &format!("[Peer]\nPublicKey={PEER}\n");
    assert_eq!(bad(&many), ["t.conf:2051: [Peer]: found 1025 of them, wanted at most 1024"]);
}

#[test]
fn what_does_not_fit_together_is_an_error() {
    assert_eq!(
        interface("Address = fd00::1/64\nMTU = 1279"),
        ["t.conf:4: MTU: found 1279, wanted at least 1280, since there is an IPv6 address"]
    );
    good(&format!("[Interface]\nPrivateKey={PRIVATE}\nAddress=10.0.0.1\nMTU=576"));
    assert_eq!(interface("MTU = 575"), ["t.conf:3: MTU: found \"575\", wanted a number from 576 to 65535"]);
    assert_eq!(interface("Address = ::/0"), ["t.conf:3: Address: found ::/0, wanted an address of one host"]);
    assert_eq!(
        peer(&format!("[Peer]\nPublicKey={PEER}")),
        ["t.conf:6: PublicKey: found that of line 4, wanted a key of its own for each peer"]
    );
    let own = Key::from_base64(PRIVATE).unwrap().public().to_base64();
    assert_eq!(
        interface(&format!("[Peer]\nPublicKey={own}")),
        ["t.conf:4: PublicKey: found this side's own, wanted the peer's"]
    );
    assert_eq!(
        peer(&format!(
            "AllowedIPs=::/0\nAllowedIPs=10.0.0.1/8\n[Peer]\nPublicKey={OTHER}\nAllowedIPs=1.1.1.1,10.2.0.0/8"
        )),
        ["t.conf:9: AllowedIPs: found 10.0.0.0/8 here and at another peer, line 6, wanted each prefix at one peer"]
    );
    let zeros = Key([0; 32]).to_base64();
    assert!(bad(&format!("[Interface]\nPrivateKey={zeros}"))[0].contains("found 32 zeros"));
}

#[test]
fn endpoints_are_an_address_or_a_name_with_a_port() {
    for text in ["192.0.2.1:1", "[::1]:65535", "[fe80::1%3]:9", "a-b.c_d.:7", "localhost:51820", "x1:2"] {
        let (config, _) =
            good(&format!("[Interface]\nPrivateKey={PRIVATE}\n[Peer]\nPublicKey={PEER}\nEndpoint={text}"));
        assert_eq!(config.peers[0].endpoint.as_ref().map(ToString::to_string).as_deref(), Some(text));
    }
    for text in [
        "",
        ":1",
        "a:",
        "a:0",
        "a:+1",
        "a:65536",
        "a b:1",
        "192.0.2.1:0",
        "192.0.2.300:1",
        "1.2.3:1",
        "::1:5",
        "[::1]",
        "https://a:1",
        ".:1",
        "a/b:1",
    ] {
        let errors = peer(&format!("Endpoint = {text}"));
        assert!(errors.len() == 1 && errors[0].starts_with("t.conf:5: Endpoint: found "), "{text}: {errors:?}");
    }
}

#[test]
fn keys_are_44_characters_of_canonical_base64() {
    for text in
        ["", "abc", &PRIVATE[..43], &PRIVATE.replace('+', "-"), &format!("{PRIVATE}="), &PRIVATE.replace("k=", "l=")]
    {
        assert_eq!(Key::from_base64(text), None, "{text}");
        assert!(bad(&format!("[Interface]\nPrivateKey = {text}"))[0].starts_with("t.conf:2: PrivateKey: found "));
    }
    // RFC 7748, section 6.1: Alice's.
    let hex = |text: &str| Key(std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()));
    let private = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    assert_eq!(private.public(), hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
}

#[test]
fn keys_are_overwritten_when_dropped_and_not_shown() {
    assert!(std::mem::needs_drop::<Key>());
    let (config, _) =
        good(&format!("[Interface]\nPrivateKey={PRIVATE}\n[Peer]\nPublicKey={PEER}\nPresharedKey={OTHER}"));
    let shown = format!("{config:?} {config:#?}");
    for key in [PRIVATE, OTHER, PEER] {
        let bytes = format!("{:?}", Key::from_base64(key).unwrap().0);
        assert!(!shown.contains(key) && !shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }
}

#[test]
fn a_file_is_named_and_bounded() {
    let directory = std::env::temp_dir().join(format!("backwater-config-{}-{}", std::process::id(), fastrand::u64(..)));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("wg0.conf");
    let name = path.display().to_string();
    let errors = Config::read(&path).unwrap_err().to_string();
    assert!(errors.starts_with(&format!("{name}: cannot be read: ")) && !errors.contains('\n'), "{errors}");

    std::fs::write(&path, format!("[Interface]\nPrivateKey = {PRIVATE}\nSaveConfig = true\n")).unwrap();
    let (config, warnings) = Config::read(&path).unwrap();
    assert_eq!(config.interface.private_key.to_base64(), PRIVATE);
    assert!(warnings.last().unwrap().to_string().starts_with(&format!("{name}:3: SaveConfig")));

    std::fs::write(&path, b"[Interface]\nDNS = \xff").unwrap();
    assert_eq!(
        Config::read(&path).unwrap_err().to_string(),
        format!("{name}:2: found bytes that are no text, wanted UTF-8")
    );
    std::fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
    assert!(Config::read(&path).unwrap_err().to_string().contains("found more than 1048576 bytes"));
    std::fs::remove_dir_all(directory).unwrap();
}

#[cfg(unix)]
#[test]
fn a_file_that_others_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("bw{}.conf", fastrand::u32(..)));
    std::fs::write(&path, format!("[Interface]\nPrivateKey = {PRIVATE}\n")).unwrap();
    for (mode, warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o660, true)] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let (_, warnings) = Config::read(&path).unwrap();
        assert_eq!(warnings.iter().any(|warning| warning.to_string().contains("others can read")), warned, "{mode:o}");
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_tunnel_is_named_after_its_file() {
    for (path, name) in
        [("/etc/wireguard/wg0.conf", "wg0"), ("a.b.conf", "a.b"), ("home", "home"), ("A_=+.-9.conf", "A_=+.-9")]
    {
        assert_eq!(tunnel_name(Path::new(path)).as_deref(), Ok(name));
    }
    for path in ["", "/", ".conf", "..conf", "...conf", "sixteencharacter.conf", "wg 0.conf", "wg/..", "é.conf"] {
        let errors = tunnel_name(Path::new(path)).unwrap_err();
        assert!(errors.to_string().contains("wanted 1 to 15 of the characters"), "{errors}");
    }
    tunnel_name(Path::new("fifteencharacte.conf")).unwrap();
}

#[test]
fn no_more_errors_than_somebody_reads() {
    let errors = bad(&"x\n".repeat(5000));
    assert_eq!((errors.len(), errors.last().map(String::as_str)), (1001, Some("t.conf: and 4001 more")));
}

const RELAY: &str = "[Relay]\nUri = turn:relay.example.org, turn:192.0.2.1:3479?transport=udp\nuri = turn:[2001:db8::1]\n\
                     Username = alice\nPassword = correct horse = battery\nMode = Always # no other way\n";

#[test]
fn relay_section_is_understood() {
    let (config, warnings) = good(&format!("[Interface]\nPrivateKey = {PRIVATE}\n{RELAY}[Peer]\nPublicKey = {PEER}\n"));
    let relay = config.relay.unwrap();
    let address = |text: &str| Endpoint::Address(text.parse().unwrap());
    let servers = [
        Endpoint::Name("relay.example.org".to_owned(), 3478),
        address("192.0.2.1:3479"),
        address("[2001:db8::1]:3478"),
    ];
    assert_eq!((relay.servers, relay.mode, warnings), (servers.to_vec(), Mode::Always, vec![]));
    assert!(!format!("{:?}", relay.login).contains("horse"), "{:?}", relay.login);
    let password = Secret(Zeroizing::new("correct horse = battery".to_owned()));
    assert_eq!(relay.login, Login::Password { username: "alice".to_owned(), password });
    assert_eq!(config.peers.len(), 1);
}

/// Comments, in any section, stand for the section, so that other programs can read the file.
#[test]
fn relay_comments_are_the_same_as_the_section() {
    let section = good(&format!("[Interface]\nPrivateKey = {PRIVATE}\n{RELAY}[Peer]\nPublicKey = {PEER}\n")).0;
    let lines: Vec<_> = RELAY.lines().skip(1).map(|line| format!("  #@ Relay {line}\n")).collect();
    let (before, after) = lines.split_at(2);
    let text = format!(
        "{}[Interface]\n#@ other = 1\n{}PrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {PEER}\n#@relays are ignored\n",
        before.concat(),
        after.concat()
    );
    assert_eq!(good(&text).0, section);
    let errors = bad(&format!("{text}{RELAY}"));
    assert!(errors[0].ends_with("[Relay]: found it again, wanted one such section"), "{errors:?}");
}

#[test]
fn relay_with_a_secret_makes_its_own_credentials() {
    let relay = |lines: &str| {
        good(&format!("[Interface]\nPrivateKey = {PRIVATE}\n[Relay]\nUri = turn:r.example\n{lines}")).0.relay.unwrap()
    };
    let secret = Secret(Zeroizing::new("s".to_owned()));
    let login = |username: &str| Login::Secret { username: username.to_owned(), secret: secret.clone() };
    assert_eq!((relay("Secret = s").login, relay("Secret = s").mode), (login(""), Mode::Auto));
    assert_eq!(relay("Username = laptop\nSecret = s\nMode = never").login, login("laptop"));
}

#[test]
fn relay_inside_a_route_of_the_tunnel_is_a_warning() {
    let warnings = |mode: &str| {
        let peer = format!("[Peer]\nPublicKey = {PEER}\nEndpoint = 10.1.0.1:7\nAllowedIPs = 10.0.0.0/8\n");
        let relay = format!("[Relay]\nSecret = s\nUri = turn:10.2.0.1\nMode = {mode}\n");
        let warnings = good(&format!("[Interface]\nPrivateKey = {PRIVATE}\n{peer}{relay}")).1;
        warnings
            .iter()
            .map(|warning| warning.to_string().split(" is inside").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(warnings("auto"), ["t.conf:5: Endpoint 10.1.0.1:7", "t.conf:9: Uri 10.2.0.1:3478"]);
    // The peer is reached from the relay alone.
    assert_eq!(warnings("always"), ["t.conf:9: Uri 10.2.0.1:3478"]);
}

#[test]
fn errors_of_the_relay_section_tell_no_password() {
    let relay = |lines: &str| interface(&format!("[Relay]\n{lines}"));
    let only = |lines: &str, error: &str| assert_eq!(relay(lines), [format!("t.conf:{error}")], "{lines}");
    let uri = "turn:host or turn:host:port (UDP)";
    only("Secret = s", &format!("3: Uri: found none in this section, wanted {uri}"));
    for text in
        ["turns:r.example", "stun:r.example", "turn:r.example?transport=tcp", "turn:r.example:0", "r.example", ""]
    {
        let found = if text.is_empty() { "nothing".to_owned() } else { format!("{text:?}") };
        only(&format!("Uri = {text}\nSecret = s"), &format!("4: Uri: found {found}, wanted {uri}"));
    }
    let many: Vec<_> = (1..=9).map(|n| format!("turn:192.0.2.{n}")).collect();
    only(&format!("Uri = {}\nSecret = s", many.join(",")), "4: Uri: found one more, wanted at most 8");
    only("Uri = turn:r.example", "3: Password: found none in this section, wanted Password or Secret");
    only(
        "Uri = turn:r.example\nPassword = hunter2\nSecret = s",
        "6: Secret: found it beside Password, wanted one of the two",
    );
    only(
        "Uri = turn:r.example\nPassword = hunter2",
        "3: Username: found none in this section, wanted the name that goes with Password",
    );
    only("Uri = turn:r.example\nSecret = s\nMode = on", "6: Mode: found \"on\", wanted auto, always or never");
    only("Uri = turn:r.example\nSecret = s\nSecret = t", "6: Secret: found it again, after line 5, wanted it once");
    let errors = relay("Uri = turn:r.example\nUsername = a\u{7}\nPassword = hunter2\nBogus = hunter2");
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(!errors.concat().contains("hunter2"), "{errors:?}");
}

fn key() -> impl Strategy<Value = Key> {
    any::<[u8; 32]>().prop_map(|mut bytes| {
        bytes[0] |= 8;
        Key(bytes)
    })
}

fn any_net() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(ip, len)| IpNet::new(ip.into(), len).unwrap());
    let v6 = (any::<[u8; 16]>(), 0..=128u8).prop_map(|(ip, len)| IpNet::new(ip.into(), len).unwrap());
    prop_oneof![v4, v6]
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let address = |ip: std::net::IpAddr, port| Endpoint::Address(SocketAddr::new(ip, port));
    prop_oneof![
        (any::<[u8; 4]>(), 1u16..).prop_map(move |(ip, port)| address(ip.into(), port)),
        (any::<[u8; 16]>(), 1u16..).prop_map(move |(ip, port)| address(ip.into(), port)),
        ("[a-z0-9_-]{1,20}\\.[a-z][a-z0-9]{0,10}", 1u16..).prop_map(|(name, port)| Endpoint::Name(name, port)),
    ]
}

prop_compose! {
    fn any_peer()(
        public_key in key(),
        preshared_key in option::of(key()),
        endpoint in option::of(any_endpoint()),
        nets in vec(any_net(), 0..5),
        keepalive in any::<u16>(),
    ) -> Peer {
        let allowed_ips = nets.iter().map(IpNet::trunc).collect();
        Peer { public_key, preshared_key, endpoint, allowed_ips, persistent_keepalive: NonZeroU16::new(keepalive) }
    }
}

fn any_table() -> impl Strategy<Value = Table> {
    prop_oneof![Just(Table::Auto), Just(Table::Off), any::<NonZeroU32>().prop_map(Table::Number)]
}

fn any_dns() -> impl Strategy<Value = Dns> {
    let servers =
        vec(prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)], 0..3);
    (servers, vec("[a-z][a-z0-9-]{0,10}(\\.[a-z]{1,5}){0,2}", 0..3)).prop_map(|(mut servers, mut search)| {
        let (mut seen, mut known) = (HashSet::new(), HashSet::new());
        servers.retain(|server| seen.insert(*server));
        search.retain(|domain| known.insert(domain.clone()));
        Dns { servers, search }
    })
}

fn any_hook() -> impl Strategy<Value = Hook> {
    (prop::sample::select(&HookTime::ALL[..]), "[a-z%;=&|\"'][ -\"$-~]{0,20}[a-z]")
        .prop_map(|(at, command)| Hook { at, command })
}

fn any_relay() -> impl Strategy<Value = Relay> {
    let secret = || "[a-z0-9=!$]{1,20}".prop_map(|text| Secret(Zeroizing::new(text)));
    let login = prop_oneof![
        ("[a-z]{1,9}", secret()).prop_map(|(username, password)| Login::Password { username, password }),
        ("[a-z]{0,9}", secret()).prop_map(|(username, secret)| Login::Secret { username, secret }),
    ];
    let mode = prop_oneof![Just(Mode::Auto), Just(Mode::Always), Just(Mode::Never)];
    (vec(any_endpoint(), 1..4), login, mode).prop_map(|(mut servers, login, mode)| {
        // IPv4-mapped addresses are read as what they stand for.
        let mut seen = HashSet::new();
        servers.retain(|server| seen.insert(server.to_string()));
        Relay { servers, login, mode }
    })
}

prop_compose! {
    fn any_config()(
        private_key in key(),
        addresses in vec(any_net(), 0..4),
        listen_port in any::<u16>(),
        mtu in option::of(1280u16..),
        fwmark in any::<u32>(),
        table in any_table(),
        dns in any_dns(),
        hooks in vec(any_hook(), 0..3),
        mut peers in vec(any_peer(), 0..6),
        relay in option::of(any_relay()),
    ) -> Config {
        let one_host = |net: &IpNet| !net.addr().is_unspecified() && !net.addr().is_multicast();
        let mut seen = HashSet::new();
        let addresses = addresses.into_iter().filter(|net| one_host(net) && seen.insert(*net)).collect();
        seen.clear();
        for peer in &mut peers {
            peer.allowed_ips.retain(|net| seen.insert(*net));
        }
        let interface = Interface { private_key, addresses, listen_port, mtu, fwmark, table, dns, hooks };
        Config { interface, peers, relay }
    }
}

/// Lines that come near to a configuration, some with a secret where it does not belong.
fn any_line() -> impl Strategy<Value = String> {
    let key = "PrivateKey|privatekey|Address|ListenPort|MTU|FwMark|Table|DNS|PublicKey|PresharedKey|Endpoint|AllowedIPs|\
               PersistentKeepalive|PostUp|Uri|Username|Password|Secret|Mode|Bogus|";
    let value = prop_oneof![
        Just(PRIVATE.to_owned()),
        "[0-9a-fx:./,%\\[\\]+-]{0,12}",
        "(off|auto|10\\.0\\.0\\.[0-9]/[0-9]{1,2}|\\[::1\\]:[0-9]{1,6})",
        "\\PC{0,8}",
        Just(OTHER.to_owned()),
    ];
    let glue = prop_oneof![Just(" = "), Just("="), Just(""), Just(" "), Just(", "), Just("#")];
    prop_oneof![
        8 => (key, glue.clone(), value.clone(), glue, value).prop_map(|(k, g, v, h, w)| [&*k, g, &v, h, &w].concat()),
        1 => "\\[(Interface|Peer|peer|Relay|x)\\]?",
        1 => (Just("["), Just(PRIVATE)).prop_map(|(a, b)| [a, b].concat()),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_the_same(config in any_config()) {
        let text = config.to_text();
        prop_assert_eq!(Config::parse("t.conf", &text).map(|(config, _)| config), Ok(config));
    }

    #[test]
    fn no_text_is_too_strange(text in "(?s).{0,300}") {
        let _ = Config::parse("t.conf", &text);
    }

    /// Each error is one line of its form, and tells no secret.
    #[test]
    fn errors_are_lines_without_secrets(lines in vec(any_line(), 0..12), ending in "(\n|\r\n)") {
        match Config::parse("t.conf", &lines.join(&ending)) {
            // DNS, and endpoints.
            Ok((_, warnings)) => prop_assert!(warnings.len() <= 1 + lines.len()),
            Err(errors) => {
                prop_assert!(errors.iter().count() > 0);
                for line in errors.iter() {
                    let rest = line.strip_prefix("t.conf:").and_then(|rest| rest.split_once(": "));
                    let number = rest.and_then(|(number, _)| number.parse::<usize>().ok());
                    prop_assert!(number.is_some_and(|n| 1 <= n && n <= lines.len().max(1)), "{}", line);
                    prop_assert!(line.contains(": found ") && line.contains(", wanted ") && !line.contains(['\n', '\r']));
                    for secret in [PRIVATE, OTHER] {
                        prop_assert!(!(0..secret.len() - 12).any(|at| line.contains(&secret[at..at + 12])), "{}", line);
                    }
                }
            }
        }
    }
}
