use super::*;

const REGISTRY: &str = "registry+https://registry.example/index";

fn package(name: &str, version: &str, license: &str) -> Package {
    Package {
        name: name.into(),
        version: version.into(),
        license: Some(license.into()),
        source: Some(REGISTRY.into()),
        ..Package::default()
    }
}

fn rules(text: &str) -> Rules {
    Rules::parse(text).unwrap()
}

#[test]
fn a_licence_that_is_not_allowed_is_found() {
    let rules = rules("[licenses]\nallow = ['MIT', 'ISC', 'Apache-2.0 WITH LLVM-exception']\n");
    for (license, fine) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("MIT OR GPL-3.0-only", true),
        ("GPL-3.0-only/MIT", true),
        ("MIT AND GPL-3.0-only", false),
        ("MIT AND ISC", true),
        ("(GPL-3.0-only OR MIT) AND ISC", true),
        ("GPL-3.0-only OR MIT AND Zlib", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("MIT OR", false),
        ("(MIT", false),
        ("MIT)", false),
        ("", false),
        (&"(".repeat(100_000), false),
    ] {
        let all =
            [package("a", "1.0.0", license), package("b", "1.0.0", "MIT AND ISC AND Apache-2.0 WITH LLVM-exception")];
        let complaints = licenses(&rules, &all);
        assert_eq!(complaints.is_empty(), fine, "{license:.50}: {complaints:.50?}");
    }
    let none = Package { license: None, ..package("a", "1.0.0", "") };
    assert_eq!(licenses(&Rules::default(), &[none]), ["a 1.0.0: its manifest names no licence"]);
}

#[test]
fn a_licence_that_nobody_has_is_found() {
    let rules = rules("[licenses]\nallow = ['MIT', 'Zlib']\n");
    assert_eq!(licenses(&rules, &[package("a", "1.0.0", "MIT")]), ["Zlib is allowed, and no package has it"]);
}

#[test]
fn a_crate_may_be_an_exception() {
    let rules = rules("[licenses]\nallow = ['MIT']\nexceptions = [{ crate = 'a', allow = ['MPL-2.0'] }]\n");
    let (a, b) = (package("a", "1.0.0", "MPL-2.0"), package("b", "1.0.0", "MIT"));
    assert_eq!(licenses(&rules, &[a.clone(), b.clone()]), Complaints::new());
    let other = package("c", "1.0.0", "MPL-2.0");
    assert_eq!(licenses(&rules, &[a, b.clone(), other]), ["c 1.0.0: MPL-2.0 is not allowed"]);
    assert_eq!(licenses(&rules, &[b]), ["a is an exception, and is not there any more"]);
}

#[test]
fn an_exception_is_for_one_version_and_one_licence_and_in_no_program() {
    let of = |exception: &str| {
        let rules = rules(&format!("[licenses]\nallow = ['MIT']\nexceptions = [{{ {exception} }}]\n"));
        licenses(&rules, &[package("a", "0.10.2", "MPL-2.0"), package("b", "1.0.0", "MIT")])
    };
    assert_eq!(of("crate = 'a@0.10', allow = ['MPL-2.0']"), Complaints::new());
    assert_eq!(of("crate = 'a@0.11', allow = ['MPL-2.0']")[0], "a 0.10.2: MPL-2.0 is not allowed");
    assert_eq!(of("crate = 'a@0.10', allow = ['MPL-2.0', 'Zlib']"), ["a@0.10 needs no exception for Zlib"]);
    assert_eq!(of("crate = 'a@0.10', allow = ['MPL-2.0', 'MIT']"), ["a@0.10 needs no exception for MIT"]);

    let rules = rules("[licenses]\nexceptions = [{ crate = 'a@0.10', allow = ['MPL-2.0'] }]\n");
    let built = [package("a", "0.10.2", "MPL-2.0"), package("b", "1.0.0", "MIT")];
    assert_eq!(exceptions_in(&rules, &built), ["a 0.10.2 is an exception, and is in what we build"]);
    assert_eq!(exceptions_in(&rules, &built[1..]), Complaints::new());
}

#[test]
fn a_source_other_than_the_registry_is_found() {
    let fine = package("a", "1.0.0", "MIT");
    let ours = Package { source: None, member: true, ..package("ours", "1.0.0", "MIT") };
    assert_eq!(sources(&[fine.clone(), ours.clone()]), Complaints::new());
    for source in [Some("git+https://example.org/b"), Some("registry+https://other.example/index"), None] {
        let foreign = Package { source: source.map(str::to_owned), ..package("b", "1.0.0", "MIT") };
        assert_eq!(sources(&[fine.clone(), ours.clone(), foreign]).len(), 1, "{source:?}");
    }
}

#[test]
fn denied_crates_and_wildcards_are_found() {
    let rules = rules("[bans]\ndeny = [{ crate = 'openssl-sys' }, 'b']\n");
    let ours = Package { member: true, wildcards: vec!["c".into()], ..package("ours", "1.0.0", "MIT") };
    let all = [package("openssl-sys", "0.9.0", "MIT"), package("c", "1.0.0", "MIT"), ours];
    assert_eq!(bans(&rules, &all), ["openssl-sys 0.9.0: is denied", "ours: any version of c will do"]);
}

#[test]
fn a_new_duplicate_and_one_that_is_gone_are_found() {
    let all = [("a", "0.1.5"), ("a", "0.10.2"), ("b", "1.0.0")].map(|(name, version)| package(name, version, "MIT"));
    let of = |skip: &str| duplicates(&rules(&format!("[bans]\nskip = [{skip}]\n")), &all);
    assert_eq!(of(""), ["a: 0.1.5, 0.10.2: cargo tree --target all -i a@VERSION says whose they are"]);
    for skip in ["'a@0.1'", "'a@0.1.5'", "'a@0.10'", "{ crate = 'a', reason = 'why' }"] {
        assert_eq!(of(skip), Complaints::new(), "{skip}");
    }
    assert_eq!(of("'a@0.1', 'b@2'"), ["b@2 is skipped as a duplicate, and is not there any more"]);
}

#[test]
fn a_rule_that_is_not_checked_is_refused() {
    for text in [
        "[bans]\nmultiple-versions = 'warn'\n",
        "[sources]\nallow-git = ['https://example.org/a']\n",
        "[licenses]\nexceptions = [{ crate = 'a' }]\n",
        "[licenses]\nconfidence-threshold = 0.9\n",
        "[graph]\nall-features = false\n",
        "[other]\nx = 1\n",
        "x = 1\n",
        "[bans]\ndeny = [{ name = 1 }]\n",
    ] {
        Rules::parse(text).unwrap_err();
    }
    Rules::parse("[advisories]\nyanked = 'deny'\n[sources]\nunknown-git = 'deny'\n").unwrap();
}

#[test]
fn packages_are_read_from_cargo_s_metadata() {
    let text = r#"{
        "workspace_members": ["path#ours"],
        "packages": [
            {"id": "path#ours", "name": "ours", "version": "0.1.0", "license": "MIT", "source": null, "dependencies": [
                {"name": "any", "req": "*", "source": "registry"},
                {"name": "some", "req": "^1", "source": "registry"},
                {"name": "near", "req": "*", "source": null, "path": "/near"}]},
            {"id": "registry#any", "name": "any", "version": "1.0.0", "license": null, "source": "registry"}]}"#;
    let all = packages(&serde_json::from_str(text).unwrap()).unwrap();
    assert_eq!((all[0].member, &all[0].wildcards), (true, &vec!["any".to_owned()]));
    assert_eq!((all[1].member, &all[1].license, all[1].source.as_deref()), (false, &None, Some("registry")));
}
