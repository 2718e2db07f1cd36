//! The window against a plain model, and the limits of a session.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const KEY: [u8; 32] = [7; 32];

fn session() -> Box<Session> {
    Session::new(Instant::now(), [1, 2], true, [&KEY, &KEY]).unwrap()
}

#[test]
fn datagram_that_8191_others_overtook_is_good() {
    for (behind, good) in [(0, true), (1023, true), (1024, true), (WINDOW - 1, true), (WINDOW, false)] {
        let mut window = Window::default();
        (0..=20_000).filter(|number| *number != 20_000 - behind).for_each(|number| _ = window.insert(number));
        let late = 20_000 - behind;
        // The newest itself is `behind` = 0: nothing has overtaken it.
        assert_eq!(window.is_new(late), good, "{behind} behind the newest");
    }
}

#[test]
fn numbers_that_have_not_come_are_missing_until_they_do() {
    let mut window = Window::default();
    let skipped = [0, 1, 4, 3, 2, 5, 20_000, 19_999].map(|number| window.insert(number));
    assert_eq!(skipped, [0, 0, 2, -1, -1, 0, 19_994, -1]);
}

proptest! {
    #[test]
    fn window_takes_each_number_once_and_none_that_is_too_old(
        steps in prop::collection::vec((0u64..3, 0u64..20_000), 0..300), start in 0u64..u64::MAX - (1 << 40),
    ) {
        let (mut window, mut model, mut next) = (Window::default(), BTreeSet::new(), 0);
        let mut at = start;
        for (kind, step) in steps {
            at = match kind {
                0 => at + step % 3,
                1 => at.saturating_sub(step),
                _ => at + step,
            };
            let is_new = !model.contains(&at) && (at >= next || next - at <= WINDOW);
            prop_assert_eq!(window.is_new(at), is_new, "{} of {}", at, next);
            if is_new {
                window.insert(at);
                model.insert(at);
                next = next.max(at + 1);
            }
            prop_assert!(!window.is_new(at));
        }
    }
}

#[test]
fn session_is_renewed_and_ends_by_the_number_of_its_messages() {
    let (mut session, now, mut message) = (session(), Instant::now(), [0; 64]);
    assert_eq!(session.seal(b"abc", &mut message), Some(16 + 3 + 16));
    session.set_next(REKEY_AFTER_MESSAGES);
    assert!(!session.has_sent_much());
    assert!(session.seal(b"abc", &mut message).is_some() && session.has_sent_much() && session.is_valid(now));
    session.set_next(REJECT_AFTER_MESSAGES - 1);
    assert!(session.is_valid(now));
    assert!(session.seal(b"abc", &mut message).is_some());
    assert!(!session.is_valid(now));
    assert_eq!(session.seal(b"abc", &mut message), None, "the counter would come to its end");
}

#[test]
fn message_beyond_the_last_number_is_refused() {
    let (mut sender, mut receiver, mut message, mut plain) = (session(), session(), [0; 64], [0; 64]);
    sender.set_next(REJECT_AFTER_MESSAGES - 1);
    let len = sender.seal(b"abc", &mut message).unwrap();
    let sealed = &message[16..len];
    assert_eq!(receiver.open(REJECT_AFTER_MESSAGES, sealed, &mut plain), Err(Error::Invalid));
    assert_eq!(receiver.open(REJECT_AFTER_MESSAGES - 1, sealed, &mut plain).unwrap().0, b"abc");
    assert_eq!(receiver.open(REJECT_AFTER_MESSAGES - 1, sealed, &mut plain), Err(Error::Replayed));
}

#[test]
fn buffer_that_is_too_short_is_an_error_and_uses_no_number() {
    let (mut sender, mut receiver, mut message) = (session(), session(), [0; 64]);
    for len in 0..16 + 3 + 16 {
        assert_eq!(sender.seal(b"abc", &mut message[..len]), None);
    }
    let len = sender.seal(b"abc", &mut message).unwrap();
    assert_eq!(message[8..16], [0; 8], "the first number");
    for short in 0..len - 16 {
        assert_eq!(receiver.open(0, &message[16..len], &mut [0; 64][..short]), Err(Error::Invalid));
    }
    assert_eq!(receiver.open(0, &message[16..len], &mut [0; 64]).unwrap().0, b"abc");
}

#[test]
fn a_changed_bit_anywhere_is_refused_and_its_number_may_still_come() {
    let (mut sender, mut receiver, mut message, mut plain) = (session(), session(), [0; 64], [0; 64]);
    let len = sender.seal(b"abc", &mut message).unwrap();
    for bit in 0..(len - 16) * 8 {
        message[16 + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(receiver.open(0, &message[16..len], &mut plain), Err(Error::Invalid));
        message[16 + bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(receiver.open(0, &message[16..len], &mut plain).unwrap().0, b"abc");
}
