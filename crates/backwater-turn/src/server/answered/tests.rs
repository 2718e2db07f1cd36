use super::*;
use crate::{ClientAddr, Credentials, auth::Algorithm};

fn user(name: &str) -> Arc<Identity> {
    let mut credentials = Credentials::new("r").unwrap();
    credentials.add_user("alice", "p").unwrap();
    credentials.add_secret("s").unwrap();
    credentials.identities(name, Algorithm::Md5, Duration::ZERO).next().unwrap()
}

fn transaction(n: u32) -> Transaction {
    let client = ClientAddr("192.0.2.1:1".parse().unwrap());
    let mut id = [0; 12];
    id[..4].copy_from_slice(&n.to_be_bytes());
    Transaction {
        client: FiveTuple::udp(client, "192.0.2.2:3478".parse().unwrap()),
        method: Method::ALLOCATE,
        id: TransactionId(id),
    }
}

impl Answered {
    /// Panics unless all that is kept of the answers agrees.
    fn check(&self) {
        let held = |f: fn(&Held) -> usize| self.users.values().map(f).sum::<usize>();
        let bytes = self.answers.values().map(Answer::bytes).sum::<usize>()
            + self.users.keys().map(|name| USER + name.len()).sum::<usize>();
        assert_eq!((self.bytes, held(|held| held.bytes)), (bytes, bytes));
        assert_eq!((self.order.len(), held(|held| held.order.len())), (self.answers.len(), self.answers.len()));
        let above = self.users.values().filter(|held| held.bytes > SHARE).count();
        assert_eq!(above, self.above_share.len());
        assert!(self.bytes <= MAX_BYTES && above < 16);
        assert!(self.users.values().all(|held| !held.order.is_empty()));
    }

    fn of(&self, account: &str) -> usize {
        self.users.get(account).map_or(0, |held| held.order.len())
    }
}

#[test]
fn answers_are_bounded_in_bytes_and_in_time() {
    let (mut answered, now, alice) = (Answered::default(), Instant::now(), user("alice"));
    let mut reply = [0; 1232];
    for n in 0..50_000 {
        answered.remember(now, transaction(n), &alice, &[n as u8; 1232]);
    }
    answered.check();
    assert!(answered.order.len() > 4000, "{}", answered.order.len());
    assert_eq!(answered.again(now, &transaction(49_999), &alice, &mut reply), Some(1232));
    assert_eq!(reply, [49_999_u32 as u8; 1232]);
    assert_eq!(answered.again(now, &transaction(1), &alice, &mut reply), None);
    let later = now + REMEMBERED;
    assert_eq!(answered.again(later, &transaction(49_999), &alice, &mut reply), None);
    answered.remember(later, transaction(1), &alice, b"again");
    answered.check();
    assert_eq!((answered.answers.len(), answered.bytes), (1, 5 + OVERHEAD + 5 + USER));
    assert!(answered.above_share.is_empty());
}

#[test]
fn the_identity_of_a_time_limited_user_counts() {
    let (mut answered, name) = (Answered::default(), format!("4000000000:{}", "x".repeat(400)));
    answered.remember(Instant::now(), transaction(0), &user(&name), b"reply");
    answered.check();
    assert!(answered.bytes >= 5 + OVERHEAD + size_of::<Identity>() + name.len(), "{}", answered.bytes);
}

#[test]
fn the_user_with_most_answers_loses_its_own_under_whatever_time_limited_names() {
    let (mut answered, now, alice) = (Answered::default(), Instant::now(), user("alice"));
    for n in 0..100 {
        answered.remember(now, transaction(n), &alice, &[0; 100]);
    }
    let bob = [user("4000000000:bob"), user("4000000001:bob"), user("bob:4000000002")];
    for n in 100..30_000 {
        answered.remember(now, transaction(n), &bob[n as usize % 3], &[0; 100]);
    }
    answered.check();
    assert_eq!((answered.of("alice"), answered.users.len()), (100, 2));
    let bobs = answered.of("bob");
    // Others have room at the expense of the user that has most.
    for n in 30_000..31_000 {
        answered.remember(now, transaction(n), &alice, &[0; 100]);
    }
    answered.check();
    assert_eq!(answered.of("alice"), 1100);
    assert!(answered.of("bob") < bobs);
}

#[test]
fn without_a_user_above_its_share_the_oldest_answer_is_forgotten() {
    let (mut answered, now) = (Answered::default(), Instant::now());
    let users: Vec<_> = (0..40).map(|n| user(&format!("4000000000:{n}"))).collect();
    for n in 0..30_000 {
        answered.remember(now, transaction(n), &users[n as usize % users.len()], &[0; 100]);
    }
    answered.check();
    assert!(answered.above_share.is_empty());
    let first = 30_000 - answered.answers.len() as u32;
    assert!(first > 0 && (first..30_000).all(|n| answered.answers.contains_key(&transaction(n))));
}
