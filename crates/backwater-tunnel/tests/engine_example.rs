//! The example, run.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../examples/engine.rs"]
mod engine;

#[test]
fn two_engines_shake_hands_and_pass_a_packet() {
    engine::main().unwrap();
}
