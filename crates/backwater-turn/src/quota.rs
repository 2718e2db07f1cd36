use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use crate::{
    auth::Identity,
    bucket::{Bucket, Rate, Ticks},
};

/// What there may be of everything, of one user's or of all users' together. The default has no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Allocations.
    pub allocations: usize,
    /// Permissions, in all allocations.
    pub permissions: usize,
    /// Channels, in all allocations.
    pub channels: usize,
    /// Payload bytes a second, both ways together; a second's worth of them at once, and no less than 64 KiB.
    pub bytes_per_second: Option<u64>,
}

/// Who has how much. Shared by all threads of a relay.
///
/// A user is who a user name says: of a time-limited one, what follows the expiry. Nothing is known of users without an
/// allocation.
pub struct Quotas {
    user: Limits,
    total: Limits,
    user_rate: Option<Rate>,
    total_rate: Option<Rate>,
    used: Usage,
    users: Mutex<HashMap<Arc<str>, User>>,
    ticks: Ticks,
}

#[derive(Debug, Default)]
struct Usage {
    counts: [AtomicUsize; 3],
    bytes: Bucket,
}

/// A user with an allocation.
struct User {
    account: Arc<Account>,
    /// The last one that an allocation was made with: the next ones share it.
    identity: Arc<Identity>,
}

struct Account {
    name: Arc<str>,
    used: Usage,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Allocations,
    Permissions,
    Channels,
}

/// Why there is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaReached {
    User,
    Total,
}

/// An allocation's place in the accounts. Gives back the allocation when it is dropped; what else was taken is the owner's to give
/// back.
pub(crate) struct Claim {
    quotas: Arc<Quotas>,
    account: Arc<Account>,
}

/// The longest train: a bucket that could not hold it would stop it for ever.
const LEAST_BURST: u64 = 64 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self { allocations: usize::MAX, permissions: usize::MAX, channels: usize::MAX, bytes_per_second: None }
    }
}

impl Limits {
    fn rate(&self) -> Option<Rate> {
        self.bytes_per_second.map(|per_second| Rate::new(per_second, LEAST_BURST))
    }

    fn of(&self, kind: Kind) -> usize {
        match kind {
            Kind::Allocations => self.allocations,
            Kind::Permissions => self.permissions,
            Kind::Channels => self.channels,
        }
    }
}

impl Quotas {
    /// Nobody has anything yet.
    pub fn new(user: Limits, total: Limits, now: Instant) -> Arc<Self> {
        let [user_rate, total_rate] = [user, total].map(|limits| limits.rate());
        let (used, users) = (Usage::default(), Mutex::default());
        Arc::new(Self { user, total, user_rate, total_rate, used, users, ticks: Ticks::new(now) })
    }

    /// Whether bytes are counted.
    pub(crate) fn is_metered(&self) -> bool {
        self.user_rate.is_some() || self.total_rate.is_some()
    }

    /// A place for an allocation of this user, and the user as the others of the same user have it.
    pub(crate) fn claim(self: &Arc<Self>, user: Arc<Identity>) -> Result<(Claim, Arc<Identity>), QuotaReached> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let name = account_name(&user.name);
        let (account, identity) = match users.get_mut(name) {
            Some(known) => {
                if !known.identity.is(&user) {
                    known.identity = user;
                }
                (known.account.clone(), known.identity.clone())
            }
            None => (Arc::new(Account { name: name.into(), used: Usage::default() }), user),
        };
        self.take(&account, Kind::Allocations, 1)?;
        if let Entry::Vacant(place) = users.entry(account.name.clone()) {
            place.insert(User { account: account.clone(), identity: identity.clone() });
        }
        Ok((Claim { quotas: self.clone(), account }, identity))
    }

    fn take(&self, account: &Account, kind: Kind, n: usize) -> Result<(), QuotaReached> {
        if !account.used.take(kind, n, self.user.of(kind)) {
            return Err(QuotaReached::User);
        }
        if !self.used.take(kind, n, self.total.of(kind)) {
            account.used.give_back(kind, n);
            return Err(QuotaReached::Total);
        }
        Ok(())
    }
}

impl Usage {
    fn take(&self, kind: Kind, n: usize, limit: usize) -> bool {
        let more = |used: usize| used.checked_add(n).filter(|&used| used <= limit);
        self.counts.get(kind as usize).is_some_and(|count| count.fetch_update(Relaxed, Relaxed, more).is_ok())
    }

    /// Returns whether nothing is left.
    fn give_back(&self, kind: Kind, n: usize) -> bool {
        self.counts.get(kind as usize).is_some_and(|count| count.fetch_sub(n, Relaxed) == n)
    }
}

impl Claim {
    /// Takes so many more, or none.
    pub(crate) fn take(&self, kind: Kind, n: usize) -> Result<(), QuotaReached> {
        self.quotas.take(&self.account, kind, n)
    }

    pub(crate) fn give_back(&self, kind: Kind, n: usize) {
        self.account.used.give_back(kind, n);
        self.quotas.used.give_back(kind, n);
    }

    /// Whether so many bytes may pass now, which count then.
    pub(crate) fn spend(&self, now: Instant, bytes: usize) -> bool {
        let Quotas { user_rate, total_rate, used, ticks, .. } = &*self.quotas;
        let (now, bytes) = (ticks.at(now), bytes as u64);
        let take = |rate: &Option<Rate>, bucket: &Bucket| rate.is_none_or(|rate| bucket.take(now, rate, bytes));
        let own = &self.account.used.bytes;
        if !take(user_rate, own) {
            return false;
        }
        let passes = take(total_rate, &used.bytes);
        if let (false, Some(rate)) = (passes, *user_rate) {
            own.put_back(rate, bytes);
        }
        passes
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.quotas.used.give_back(Kind::Allocations, 1);
        let mut users = self.quotas.users.lock().unwrap_or_else(PoisonError::into_inner);
        if self.account.used.give_back(Kind::Allocations, 1) {
            users.remove(&self.account.name);
        }
    }
}

impl fmt::Debug for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quotas").field("user", &self.user).field("total", &self.total).finish_non_exhaustive()
    }
}

/// Whose a user name is: of `expiry:name`, the name.
fn account_name(user: &str) -> &str {
    user.split_once(':').map(|(_, name)| name).filter(|name| !name.is_empty()).unwrap_or(user)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Credentials, auth::Algorithm};

    const UNIX: Duration = Duration::from_secs(1_800_000_000);

    fn user(name: &str) -> Arc<Identity> {
        let mut credentials = Credentials::new("r").unwrap();
        credentials.add_secret("s").unwrap();
        credentials.add_user("alice", "p").unwrap();
        credentials.identities(name, Algorithm::Md5, UNIX).next().unwrap()
    }

    fn count(quotas: &Quotas) -> usize {
        quotas.users.lock().unwrap().len()
    }

    #[test]
    fn allocations_of_a_user_and_of_all() {
        let limits = |allocations| Limits { allocations, ..Limits::default() };
        let quotas = Quotas::new(limits(2), limits(3), Instant::now());
        let claim = |name: &str| quotas.claim(user(name)).map(|(claim, _)| claim);
        let first = claim("alice").unwrap();
        // Whoever has several credentials is one user all the same.
        let _second = claim("1900000000:alice").unwrap();
        assert_eq!(claim("1900000001:alice").err(), Some(QuotaReached::User));
        let _third = claim("1900000000:bob").unwrap();
        assert_eq!(claim("1900000000:eve").err(), Some(QuotaReached::Total));
        assert_eq!(count(&quotas), 2, "who got nothing leaves nothing");
        drop(first);
        claim("1900000000:eve").unwrap();
        assert_eq!(count(&quotas), 2);
    }

    #[test]
    fn a_users_allocations_share_their_key() {
        let quotas = Quotas::new(Limits::default(), Limits::default(), Instant::now());
        let (_one, first) = quotas.claim(user("1900000000:alice")).unwrap();
        let (_two, second) = quotas.claim(user("1900000000:alice")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let (_three, third) = quotas.claim(user("1900000001:alice")).unwrap();
        assert_eq!(&*third.name, "1900000001:alice");
        // The same name with the password that another secret makes.
        let mut credentials = Credentials::new("r").unwrap();
        credentials.add_secret("s").unwrap();
        credentials.add_secret("t").unwrap();
        let other = credentials.identities("1900000001:alice", Algorithm::Md5, UNIX).nth(1).unwrap();
        let (_four, fourth) = quotas.claim(other.clone()).unwrap();
        assert!(Arc::ptr_eq(&fourth, &other));
        drop((_one, _two, _three, _four));
        assert_eq!(count(&quotas), 0);
    }

    #[test]
    fn what_is_taken_is_given_back() {
        let limits = Limits { permissions: 5, ..Limits::default() };
        let quotas = Quotas::new(Limits { permissions: 4, ..limits }, limits, Instant::now());
        let (alice, _) = quotas.claim(user("alice")).unwrap();
        let (bob, _) = quotas.claim(user("1900000000:bob")).unwrap();
        alice.take(Kind::Permissions, 3).unwrap();
        assert_eq!(alice.take(Kind::Permissions, 2), Err(QuotaReached::User));
        assert_eq!(bob.take(Kind::Permissions, 3), Err(QuotaReached::Total));
        bob.take(Kind::Permissions, 2).unwrap();
        alice.give_back(Kind::Permissions, 3);
        bob.take(Kind::Permissions, 2).unwrap();
        assert_eq!(alice.take(Kind::Permissions, usize::MAX), Err(QuotaReached::User));
    }

    #[test]
    fn bytes_of_a_user_and_of_all() {
        let now = Instant::now();
        let limits = |bytes| Limits { bytes_per_second: Some(bytes), ..Limits::default() };
        let quotas = Quotas::new(limits(100_000), limits(150_000), now);
        assert!(quotas.is_metered());
        let (alice, _) = quotas.claim(user("alice")).unwrap();
        let (again, _) = quotas.claim(user("alice")).unwrap();
        let (bob, _) = quotas.claim(user("1900000000:bob")).unwrap();
        let spend = |claim: &Claim, now| (0..1000).filter(|_| claim.spend(now, 1000)).count();
        assert_eq!((spend(&alice, now), spend(&again, now)), (100, 0));
        assert_eq!(spend(&bob, now), 50, "what is left of all");
        // What the total refused did not count against the user.
        let later = now + Duration::from_millis(500);
        assert_eq!(spend(&bob, later), 75);
        assert_eq!(spend(&alice, later + Duration::from_secs(10)), 100);
    }
}
