use super::*;

#[test]
fn a_sample_is_the_same_for_the_same_seed_and_keeps_the_order() {
    let all: Vec<u32> = (1..=100).collect();
    let drawn = sample(all.clone(), 10, 7);
    assert_eq!(drawn, sample(all.clone(), 10, 7));
    assert_ne!(drawn, sample(all.clone(), 10, 8));
    assert!(drawn.len() == 10 && drawn.is_sorted());
    assert_eq!(sample(all.clone(), 1000, 7), all);
}

#[test]
fn a_listed_fault_needs_a_reason_and_has_to_exist() {
    let allowed = Allowed::parse("# title\n\na.rs f: no `x()` # only saves time\na.rs random: * # jitter\n").unwrap();
    assert!(allowed.covers("a.rs f: no `x()`") && allowed.covers("a.rs random: returns 0"));
    assert!(!allowed.covers("a.rs f: no `y()`"));
    assert_eq!(allowed.unknown(&["a.rs f: no `x()`".to_owned()]), ["a.rs random: *"]);
    assert!(allowed.unknown(&["b.rs f: no `x()`".to_owned()]).is_empty(), "of a file that is not looked at");
    assert!(Allowed::parse("a.rs f: no `x()`\n").is_err());
}
