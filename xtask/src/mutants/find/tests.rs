use super::*;

const SOURCE: &str = r#"
struct S { open: bool, since: Option<u32> }
impl S {
    fn close(&mut self, a: u32, b: u32) -> bool {
        self.since = None;
        if a < b && self.open || a == 1 {
            self.leave();
        }
        match a {
            1 | 2 if b > 0 => true,
            3 => self.open,
            _ => false,
        }
    }
    fn leave(&mut self) {
        self.open = a(self.since.filter(|x| *x > 1));
    }
    fn chain(&self) {
        if let Some(x) = self.since && x > 3 { f(|y| y.leave()) }
    }
}
const fn constant() -> bool { true }
#[cfg(test)]
mod tests { fn t() { f(); } }
"#;

fn names() -> Vec<String> {
    let source = Source::parse("s.rs", "", SOURCE.to_owned()).unwrap();
    source.mutants.into_iter().map(|mutant| mutant.name).collect()
}

#[test]
fn every_kind_of_fault_is_found() {
    let names = names();
    for name in [
        "s.rs S::close: returns true",
        "s.rs S::close: no `self.since = None;`",
        "s.rs S::close: no `self.leave();`",
        "s.rs S::close: `a < b && self.open || a == 1` is true",
        "s.rs S::close: `a < b && self.open` is false",
        "s.rs S::close: `self.open` is true",
        "s.rs S::close: <= in `a < b`",
        "s.rs S::close: `1` does `false`",
        "s.rs S::close: `2` does `false`",
        "s.rs S::close: `3` does `false`",
        "s.rs S::close: `_` does `true`",
        "s.rs S::close: `b > 0` is true",
        "s.rs S::close: `true` is inverted",
        "s.rs S::leave: returns at once",
        "s.rs S::leave: no .filter(|x| *x > 1)",
        "s.rs S::chain: `let Some(x) = self.since && x > 3` is false",
        "s.rs S::chain: `x > 3` is true",
        "s.rs S::chain: no `y.leave()`",
    ] {
        assert!(names.iter().any(|found| found == name), "{name} is not among {names:#?}");
    }
    assert!(!names.iter().any(|name| name.contains("tests") || name.contains("constant")), "{names:#?}");
}

#[test]
fn names_are_unique() {
    let mut names = names();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn what_is_written_is_rust_with_all_faults_and_the_source_without_any() {
    let source = Source::parse("s.rs", "", SOURCE.to_owned()).unwrap();
    assert_eq!(source.write(|_| None).text, SOURCE);
    let all = source.write(|index| Some(index as u32 + 1));
    syn::parse_file(&all.text).unwrap();
    for id in 1..=source.mutants.len() {
        assert!(all.text.contains(&format!("crate::mutant::on({id})")), "{id}");
    }
}

/// Three that `&&` joins are a pair and the third: the pair's fault is around that of its first.
#[test]
fn the_fault_of_a_pair_is_around_those_of_its_parts() {
    let source = Source::parse("s.rs", "", "fn f() { if a && b && c { g(); } }".to_owned()).unwrap();
    let index = |name: &str| source.mutants.iter().position(|mutant| mutant.name == format!("s.rs f: {name}")).unwrap();
    let whole = source.write(|index| Some(index as u32 + 1)).whole;
    let [pair, first] = ["`a && b` is true", "`a` is true"].map(|name| &whole[&index(name)]);
    assert!(pair.start < first.start && first.end < pair.end, "{pair:?} {first:?}");
}
