//! Our numbers and names are IANA's.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use backwater_stun::*;

/// The registry's names by number; ranges, and what the registry only reserves, are left out.
fn registry(csv: &'static str, radix: u32) -> BTreeMap<u16, &'static str> {
    csv.lines()
        .filter_map(|line| {
            let (number, rest) = line.split_once(',')?;
            let number = u16::from_str_radix(number.trim_start_matches("0x"), radix).ok()?;
            let name = rest.split(',').next()?;
            (!name.starts_with("Reserved") && name != "Unassigned").then_some((number, name))
        })
        .collect()
}

#[test]
fn methods() {
    let registry = registry(include_str!("vectors/stun-parameters-2.csv"), 16);
    let ours: BTreeMap<_, _> = Method::REGISTERED.iter().map(|m| (m.number(), m.name().unwrap())).collect();
    assert_eq!(ours, registry);
}

#[test]
fn attributes() {
    let mut registry = registry(include_str!("vectors/stun-parameters-4.csv"), 16);
    // Given to single vendors; not the business of this crate.
    registry.retain(|number, _| *number < 0xC000);
    // Spelled with underscores or with a word more; and one that RFC 5780 uses but the registry only reserves.
    registry.insert(0x8025, "TRANSACTION-TRANSMIT-COUNTER");
    registry.insert(0x802D, "ECN-CHECK");
    registry.insert(0x0003, "CHANGE-REQUEST");
    let ours: BTreeMap<_, _> = AttributeType::REGISTERED.iter().map(|t| (t.0, t.name().unwrap())).collect();
    assert_eq!(ours, registry);
}

#[test]
fn error_codes() {
    let mut registry = registry(include_str!("vectors/stun-parameters-6.csv"), 10);
    // RFC 8489 §14.8 has renamed it.
    registry.insert(401, "Unauthenticated");
    let ours: BTreeMap<_, _> = Code::REGISTERED.iter().map(|code| (code.number(), code.reason())).collect();
    assert_eq!(ours, registry);
}
