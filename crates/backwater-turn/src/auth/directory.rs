//! Users that somebody else knows.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Algorithm, HashedPassword, Identity, identities_of};
use crate::bucket::{Buckets, Rate, Ticks, network};

/// Names whose answers are kept at most: 12 MiB with the longest names.
const MAX_NAMES: usize = 8192;

/// How long a question stays unanswered before it is put again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Questions a minute that one source may give rise to, and as many at once.
const QUESTIONS_PER_MINUTE: u64 = 300;

/// Users that are not in [`Credentials`](super::Credentials), but that somebody else is asked about: a service, a database.
///
/// The server asks when a request with a valid nonce has the name of a user that it does not know, and drops the request
/// ([`DropReason::Lookup`](crate::server::DropReason::Lookup)). The caller finds out meanwhile, and says so with
/// [`answer`](Self::answer); the request then authenticates, or its retransmission. Answers are kept for the time that they are good for.
/// All threads of a relay share the table, whose size is bounded: a new name takes the place of the oldest. A source (an IPv4 address
/// or an IPv6 network of 64 bits) gives rise to 300 questions a minute at most.
pub struct Directory {
    ask: Box<dyn Fn(&str) -> bool + Send + Sync>,
    names: Mutex<Names>,
    rate: Rate,
    ticks: Ticks,
    sources: Buckets,
}

#[derive(Default)]
struct Names {
    entries: HashMap<Arc<str>, Entry>,
    /// By their age.
    order: BTreeMap<u64, Arc<str>>,
    next: u64,
}

struct Entry {
    number: u64,
    until: Instant,
    state: State,
}

enum State {
    Asked,
    Nobody,
    /// An identity for each algorithm that there is a key of.
    User([Option<Arc<Identity>>; 2]),
}

/// What is known of a user.
pub(crate) enum Lookup {
    /// Nothing yet.
    Asked,
    Nobody,
    User(Arc<Identity>),
}

impl Directory {
    /// Makes an empty table. `ask` is called with a user name that is unknown, for an answer later; it must not wait. It returns false
    /// if it cannot ask now: the next request with the name tries again.
    pub fn new(now: Instant, ask: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self {
            ask: Box::new(ask),
            names: Mutex::default(),
            rate: Rate::per_minute(QUESTIONS_PER_MINUTE),
            ticks: Ticks::new(now),
            sources: Buckets::new(),
        }
    }

    /// Takes the answer to a question: the keys of a user, or that there is none. It is good until `until`.
    pub fn answer(&self, username: &str, keys: Option<&HashedPassword>, until: Instant) {
        let state = keys.map_or(State::Nobody, |keys| State::User(identities_of(username, keys)));
        self.names().insert(username, until, state);
    }

    /// Returns the identity of a user if it is known now.
    pub(crate) fn known(&self, username: &str, algorithm: Algorithm, now: Instant) -> Option<Arc<Identity>> {
        match self.names().get(username, algorithm, now) {
            Some(Lookup::User(user)) => Some(user),
            Some(Lookup::Asked | Lookup::Nobody) | None => None,
        }
    }

    /// Returns what is known of a user, and asks if that is nothing.
    pub(crate) fn find(&self, username: &str, algorithm: Algorithm, ip: IpAddr, now: Instant) -> Lookup {
        let mut names = self.names();
        if let Some(known) = names.get(username, algorithm, now) {
            return known;
        }
        if self.sources.take((ip.to_canonical().is_ipv4(), network(ip)), self.ticks.at(now), self.rate)
            && (self.ask)(username)
        {
            names.insert(username, now + PATIENCE, State::Asked);
        }
        Lookup::Asked
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    fn get(&self, username: &str, algorithm: Algorithm, now: Instant) -> Option<Lookup> {
        let entry = self.entries.get(username).filter(|entry| entry.until > now)?;
        Some(match &entry.state {
            State::Asked => Lookup::Asked,
            State::Nobody => Lookup::Nobody,
            State::User(keys) => keys[algorithm as usize].clone().map_or(Lookup::Nobody, Lookup::User),
        })
    }

    fn insert(&mut self, username: &str, until: Instant, state: State) {
        let name: Arc<str> = username.into();
        let (number, entry) = (self.next, Entry { number: self.next, until, state });
        self.next += 1;
        if let Some(old) = self.entries.insert(name.clone(), entry) {
            self.order.remove(&old.number);
        }
        self.order.insert(number, name);
        if self.order.len() > MAX_NAMES
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("names", &self.names().entries.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn keys() -> HashedPassword {
        HashedPassword::new("alice", "r", "secret").unwrap()
    }

    #[test]
    fn names_are_bounded_and_the_oldest_goes_first() {
        let now = Instant::now();
        let directory = Directory::new(now, |_| true);
        for n in 0..MAX_NAMES + 10 {
            directory.answer(&format!("user{n}"), Some(&keys()), now + PATIENCE);
        }
        let known = |n| directory.known(&format!("user{n}"), Algorithm::Md5, now).is_some();
        assert!(!known(9) && known(10) && known(MAX_NAMES + 9));
        let names = directory.names();
        assert_eq!((names.entries.len(), names.order.len()), (MAX_NAMES, MAX_NAMES));
    }

    #[test]
    fn a_source_asks_a_bounded_number_of_questions() {
        let now = Instant::now();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let directory = Directory::new(now, move |_| count.fetch_add(1, SeqCst) < usize::MAX);
        let ask = |ip: &str, names: std::ops::Range<usize>| {
            for n in names {
                directory.find(&format!("user{n}"), Algorithm::Md5, ip.parse().unwrap(), now);
            }
        };
        ask("192.0.2.1", 0..1000);
        assert_eq!(asked.load(SeqCst), 300);
        ask("192.0.2.2", 0..100);
        assert_eq!(asked.load(SeqCst), 300, "their answers are on the way");
        ask("192.0.2.2", 2000..2100);
        assert_eq!(asked.load(SeqCst), 400);
    }

    #[test]
    fn a_question_that_could_not_be_put_is_put_again() {
        let now = Instant::now();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let directory = Directory::new(now, move |_| count.fetch_add(1, SeqCst) > 0);
        let find = |at| directory.find("alice", Algorithm::Md5, IpAddr::from([192, 0, 2, 1]), at);
        assert!(matches!(find(now), Lookup::Asked) && matches!(find(now), Lookup::Asked));
        find(now);
        assert_eq!(asked.load(SeqCst), 2, "the second was put");
        find(now + PATIENCE);
        assert_eq!(asked.load(SeqCst), 3, "it was not answered");
        directory.answer("alice", None, now + PATIENCE);
        assert!(matches!(find(now), Lookup::Nobody));
    }
}
