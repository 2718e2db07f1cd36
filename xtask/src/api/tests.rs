use super::*;

const SOURCE: &str = r#"
    mod inner {
        /// Documentation.
        #[non_exhaustive]
        pub struct Shown { pub field: u8, secret: u16 }
        pub struct Hidden;
        pub(crate) struct Half;
        impl Shown {
            pub fn public(&self, mut argument: u8) -> Option<u8> { None }
            fn private(&self) {}
        }
        impl ::core::clone::Clone for Shown { fn clone(&self) -> Self { loop {} } }
        pub(crate) trait Private {}
        impl Private for Shown {}
        const _: () = { impl Debug for Shown {} };
        pub mod deep { pub enum Deep { A, B(u8), C { d: u8 } } }
    }
    pub mod module { pub const LIMIT: usize = 3; fn private() {} }
    pub use inner::{Shown, deep::*};
    pub use other::Thing;
    pub fn function<T: Copy>(value: T) -> T where T: Send { value }
"#;

fn listing(source: &str) -> String {
    format(&list(source).unwrap()).unwrap()
}

#[test]
fn listing_has_what_is_reachable_and_nothing_else() {
    let text = listing(SOURCE);
    for line in [
        "#[non_exhaustive]",
        "pub struct Shown {",
        "    pub field: u8,",
        "    _private: _,",
        "    pub fn public(&self, argument: u8) -> Option<u8>;",
        "#[implements(Clone, Debug)]",
        "pub enum Deep {",
        "    C { d: u8 },",
        "    pub const LIMIT: usize;",
        "pub use other::Thing;",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
    assert!(text.contains("pub fn function<T: Copy>(value: T) -> T"), "{text}");
    for hidden in ["Hidden", "Half", "Private", "private()", "secret", "Documentation", "loop"] {
        assert!(!text.contains(hidden), "{hidden} is in\n{text}");
    }
}

#[test]
fn listing_changes_with_the_api_and_not_with_its_order_or_bodies() {
    let reordered = SOURCE.replace("pub use other::Thing;", "").replace("mod inner", "pub use other::Thing; mod inner");
    assert_eq!(listing(&reordered.replace("{ value }", "{ loop {} }")), listing(SOURCE));
    let changed = listing(&SOURCE.replace("Option<u8>", "Option<u16>"));
    let difference = difference(&listing(SOURCE), &changed).unwrap();
    assert_eq!(
        difference,
        "-     pub fn public(&self, argument: u8) -> Option<u8>;\n+     pub fn public(&self, argument: u8) -> Option<u16>;\n"
    );
}
