use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use backwater_stun::Code;

use crate::{
    auth::{Identity, time_limit},
    bucket::{Bucket, Rate, SharedRate, Ticks},
    server::PortRequest,
};

/// Limits for one user, or for all users together. The default has no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Allocations.
    pub allocations: usize,
    /// Permissions, in all allocations.
    pub permissions: usize,
    /// Channels, in all allocations.
    pub channels: usize,
    /// Payload bytes per second, of both directions together. A burst may have a second's worth, and at least 64 KiB.
    pub bytes_per_second: Option<u64>,
}

/// Counts what each user has. All threads of a relay share it.
///
/// A user is identified by the user name; a time-limited user by the name beside the expiry, or by the whole user name without such
/// a name, so that credentials without a name do not share one quota. The table holds only users with an allocation or a reserved
/// port.
pub struct Quotas {
    user: Bounds,
    total: Bounds,
    used: Usage,
    known: Mutex<Known>,
    ticks: Ticks,
}

/// Limits that may change while threads use them.
#[derive(Debug, Default)]
struct Bounds {
    counts: [AtomicUsize; 3],
    rate: SharedRate,
}

#[derive(Default)]
struct Known {
    users: HashMap<Arc<str>, User>,
    reserved: HashMap<[u8; 8], Reservation>,
}

/// A port that is reserved for a user (RFC 8656 §7.2). It counts as an allocation.
struct Reservation {
    account: Arc<Account>,
    until: Instant,
}

#[derive(Debug, Default)]
struct Usage {
    counts: [AtomicUsize; 3],
    bytes: Bucket,
}

/// A user with an allocation.
struct User {
    account: Arc<Account>,
    /// The identity of the user's last allocation. The next ones share it.
    identity: Arc<Identity>,
}

struct Account {
    name: Arc<str>,
    used: Usage,
}

/// The resources that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Allocations,
    Permissions,
    Channels,
}

/// A request that was refused because a limit is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverQuota {
    /// The user name of the request.
    pub user: Box<str>,
    /// The limit.
    pub reason: QuotaReason,
}

/// The limit that a request has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaReason {
    /// Allocations of this user: 486.
    UserAllocations,
    /// Allocations of all users: 508.
    TotalAllocations,
    /// Permissions of the user, of all users, or of the allocation: 508.
    Permissions,
    /// Channels, likewise: 508.
    Channels,
}

impl QuotaReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: &'static [Self] =
        &[Self::UserAllocations, Self::TotalAllocations, Self::Permissions, Self::Channels];

    /// Returns the name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserAllocations => "user_allocations",
            Self::TotalAllocations => "total_allocations",
            Self::Permissions => "permissions",
            Self::Channels => "channels",
        }
    }

    /// Returns the error code of the response (RFC 8656 §19).
    pub fn code(self) -> Code {
        match self {
            Self::UserAllocations => Code::ALLOCATION_QUOTA_REACHED,
            Self::TotalAllocations | Self::Permissions | Self::Channels => Code::INSUFFICIENT_CAPACITY,
        }
    }
}

/// Whose limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaReached {
    User,
    Total,
}

/// The share of an allocation in the counts. Dropping it gives back the allocation; its owner gives back permissions and channels.
pub(crate) struct Claim {
    quotas: Arc<Quotas>,
    account: Arc<Account>,
    /// Whether the claim counts the next port too, which is to be reserved.
    pair: bool,
}

/// The largest GSO batch. A bucket that cannot hold one would never let it pass.
const LEAST_BURST: u64 = 64 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self { allocations: usize::MAX, permissions: usize::MAX, channels: usize::MAX, bytes_per_second: None }
    }
}

impl Bounds {
    fn set(&self, limits: &Limits) {
        for (bound, limit) in self.counts.iter().zip([limits.allocations, limits.permissions, limits.channels]) {
            bound.store(limit, Relaxed);
        }
        self.rate.set(limits.bytes_per_second.map(|per_second| Rate::new(per_second, LEAST_BURST)));
    }

    fn of(&self, kind: Kind) -> usize {
        self.counts.get(kind as usize).map_or(0, |bound| bound.load(Relaxed))
    }
}

impl Quotas {
    /// Makes empty counts.
    pub fn new(user: Limits, total: Limits, now: Instant) -> Arc<Self> {
        let (bounds, used, known) = (Bounds::default, Usage::default(), Mutex::default());
        let quotas = Self { user: bounds(), total: bounds(), used, known, ticks: Ticks::new(now) };
        quotas.set_limits(user, total);
        Arc::new(quotas)
    }

    /// Changes the limits. What there is beyond a lower limit stays; nothing is added until there is less. After a change of bytes per
    /// second, each server needs [`Server::reconfigure`](crate::server::Server::reconfigure).
    pub fn set_limits(&self, user: Limits, total: Limits) {
        self.user.set(&user);
        self.total.set(&total);
    }

    /// Returns whether a limit of bytes per second is set.
    pub(crate) fn is_metered(&self) -> bool {
        self.user.rate.get().is_some() || self.total.rate.get().is_some()
    }

    /// Counts an allocation of this user, and returns the identity that the user's allocations share. An allocation that reserves
    /// the next port counts twice. An allocation on a port that the same user has reserved takes over the count of the port.
    pub(crate) fn claim(
        self: &Arc<Self>,
        user: Arc<Identity>,
        port: PortRequest,
        now: Instant,
    ) -> Result<(Claim, Arc<Identity>), QuotaReached> {
        let mut known = self.known();
        let expired: Vec<_> = known.reserved.extract_if(|_, reservation| reservation.until <= now).collect();
        expired.iter().for_each(|(_, reservation)| self.give_back_allocation(&mut known.users, &reservation.account));
        let name = account_name(&user.name);
        let (account, identity) = match known.users.get_mut(name) {
            Some(user_known) => {
                if !user_known.identity.is(&user) {
                    user_known.identity = user;
                }
                (user_known.account.clone(), user_known.identity.clone())
            }
            None => (Arc::new(Account { name: name.into(), used: Usage::default() }), user),
        };
        let pair = port == PortRequest::Even { reserve_next: true };
        let own = |reservation: &Reservation| Arc::ptr_eq(&reservation.account, &account);
        match port {
            PortRequest::Reserved(token) if known.reserved.get(&token).is_some_and(own) => {
                known.reserved.remove(&token);
            }
            PortRequest::Even { reserve_next: true } => {
                // A user may reserve no more ports than the user has in use, since a relay has few of them.
                let reserved = known.reserved.values().filter(|reservation| own(reservation)).count();
                if account.used.get(Kind::Allocations) < 2 * reserved {
                    return Err(QuotaReached::User);
                }
                self.take(&account, Kind::Allocations, 2)?;
            }
            PortRequest::Any | PortRequest::Even { reserve_next: false } | PortRequest::Reserved(_) => {
                self.take(&account, Kind::Allocations, 1)?;
            }
        }
        if let Entry::Vacant(place) = known.users.entry(account.name.clone()) {
            place.insert(User { account: account.clone(), identity: identity.clone() });
        }
        Ok((Claim { quotas: self.clone(), account, pair }, identity))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back_allocation(&self, users: &mut HashMap<Arc<str>, User>, account: &Account) {
        self.used.give_back(Kind::Allocations, 1);
        if account.used.give_back(Kind::Allocations, 1) {
            users.remove(&account.name);
        }
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

    fn get(&self, kind: Kind) -> usize {
        self.counts.get(kind as usize).map_or(0, |count| count.load(Relaxed))
    }

    /// Returns whether the count is zero now.
    fn give_back(&self, kind: Kind, n: usize) -> bool {
        self.counts.get(kind as usize).is_some_and(|count| count.fetch_sub(n, Relaxed) == n)
    }
}

impl Claim {
    /// Counts `n` more, or none of them.
    pub(crate) fn take(&self, kind: Kind, n: usize) -> Result<(), QuotaReached> {
        self.quotas.take(&self.account, kind, n)
    }

    /// Keeps the count of the next port for this token; gives it back without a token.
    pub(crate) fn reserved(&mut self, token: Option<[u8; 8]>, until: Instant) {
        if !std::mem::take(&mut self.pair) {
            return;
        }
        let mut known = self.quotas.known();
        let reservation = Reservation { account: self.account.clone(), until };
        let old = match token {
            Some(token) => known.reserved.insert(token, reservation),
            None => Some(reservation),
        };
        if let Some(Reservation { account, .. }) = old {
            self.quotas.give_back_allocation(&mut known.users, &account);
        }
    }

    pub(crate) fn give_back(&self, kind: Kind, n: usize) {
        self.account.used.give_back(kind, n);
        self.quotas.used.give_back(kind, n);
    }

    /// Returns whether so many bytes may pass now, and counts them.
    pub(crate) fn spend(&self, now: Instant, bytes: usize) -> bool {
        let Quotas { user, total, used, ticks, .. } = &*self.quotas;
        let (now, bytes) = (ticks.at(now), bytes as u64);
        let take = |rate: Option<Rate>, bucket: &Bucket| rate.is_none_or(|rate| bucket.take(now, rate, bytes));
        let own = &self.account.used.bytes;
        let rate = user.rate.get();
        if !take(rate, own) {
            return false;
        }
        let passes = take(total.rate.get(), &used.bytes);
        if let (false, Some(rate)) = (passes, rate) {
            own.put_back(rate, bytes);
        }
        passes
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut known = self.quotas.known();
        for _ in 0..=usize::from(self.pair) {
            self.quotas.give_back_allocation(&mut known.users, &self.account);
        }
    }
}

impl fmt::Debug for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quotas").field("user", &self.user).field("total", &self.total).finish_non_exhaustive()
    }
}

/// Returns the name that a user is counted by: of `expiry:name` and `name:expiry`, the name.
pub(crate) fn account_name(user: &str) -> &str {
    time_limit(user).map(|(_, name)| name).filter(|name| !name.is_empty()).unwrap_or(user)
}

#[cfg(test)]
mod tests {
    use std::{sync::LazyLock, time::Duration};

    use super::*;
    use crate::{Credentials, auth::Algorithm};

    const UNIX: Duration = Duration::from_secs(1_800_000_000);

    static CREDENTIALS: LazyLock<Credentials> = LazyLock::new(|| {
        let mut credentials = Credentials::new("r").unwrap();
        credentials.add_secret("s").unwrap();
        credentials.add_user("alice", "p").unwrap();
        credentials
    });

    fn user(name: &str) -> Arc<Identity> {
        CREDENTIALS.identities(name, Algorithm::Md5, UNIX).next().unwrap()
    }

    fn count(quotas: &Quotas) -> usize {
        quotas.known().users.len()
    }

    #[test]
    fn allocation_limits_of_a_user_and_of_all_users_hold() {
        let limits = |allocations| Limits { allocations, ..Limits::default() };
        let quotas = Quotas::new(limits(2), limits(3), Instant::now());
        let claim = |name: &str| quotas.claim(user(name), PortRequest::Any, Instant::now()).map(|(claim, _)| claim);
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
        let (_one, first) = quotas.claim(user("1900000000:alice"), PortRequest::Any, Instant::now()).unwrap();
        let (_two, second) = quotas.claim(user("1900000000:alice"), PortRequest::Any, Instant::now()).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let (_three, third) = quotas.claim(user("1900000001:alice"), PortRequest::Any, Instant::now()).unwrap();
        assert_eq!(&*third.name, "1900000001:alice");
        // The same name with the password that another secret makes.
        let mut credentials = Credentials::new("r").unwrap();
        credentials.add_secret("s").unwrap();
        credentials.add_secret("t").unwrap();
        let other = credentials.identities("1900000001:alice", Algorithm::Md5, UNIX).nth(1).unwrap();
        let (_four, fourth) = quotas.claim(other.clone(), PortRequest::Any, Instant::now()).unwrap();
        assert!(Arc::ptr_eq(&fourth, &other));
        drop((_one, _two, _three, _four));
        assert_eq!(count(&quotas), 0);
    }

    /// A port that is set aside is its user's, until somebody takes it or 30 seconds have gone.
    #[test]
    fn reserved_ports_are_allocations() {
        const PAIR: PortRequest = PortRequest::Even { reserve_next: true };
        let limits = Limits { allocations: 3, ..Limits::default() };
        let (start, token) = (Instant::now(), |n| [n; 8]);
        let quotas = Quotas::new(limits, Limits::default(), start);
        let claim = |name: &str, port, now| quotas.claim(user(name), port, now).map(|(claim, _)| claim);
        let until = start + Duration::from_secs(30);
        let mut first = claim("alice", PAIR, start).unwrap();
        first.reserved(Some(token(1)), until);
        // Its place goes to the allocation that takes it, and is free with that.
        let second = claim("alice", PortRequest::Reserved(token(1)), start).unwrap();
        assert_eq!(claim("alice", PAIR, start).err(), Some(QuotaReached::User), "a pair is two");
        drop(claim("alice", PortRequest::Any, start).unwrap());
        drop(second);
        let mut pair = claim("alice", PAIR, start).unwrap();
        pair.reserved(None, until);
        drop(claim("alice", PortRequest::Any, start).unwrap());
        drop((first, pair));
        assert_eq!((count(&quotas), quotas.used.get(Kind::Allocations)), (0, 0));
        // Without its allocation it is still there, and another user's token does not free it.
        let mut first = claim("alice", PAIR, start).unwrap();
        first.reserved(Some(token(2)), until);
        drop(first);
        assert_eq!(claim("alice", PAIR, start).err(), Some(QuotaReached::User), "no more set aside than in use");
        drop(claim("1900000000:eve", PortRequest::Reserved(token(2)), start).unwrap());
        assert_eq!(quotas.used.get(Kind::Allocations), 1);
        drop(claim("alice", PAIR, until).unwrap());
        assert_eq!((count(&quotas), quotas.used.get(Kind::Allocations)), (0, 0));
    }

    /// Credentials without a name are users of their own: there is nothing else to tell them by.
    #[test]
    fn time_limited_users_without_a_name_share_no_quota() {
        let limits = Limits { allocations: 1, ..Limits::default() };
        let quotas = Quotas::new(limits, Limits::default(), Instant::now());
        let names = ["1900000000", "1900000000:", "1900000001", "1900000001:", "1900000000:a"];
        let claims =
            names.map(|name| quotas.claim(user(name), PortRequest::Any, Instant::now()).map(|(claim, _)| claim));
        assert!(claims.iter().all(Result::is_ok));
        for name in names {
            assert!(quotas.claim(user(name), PortRequest::Any, Instant::now()).is_err(), "{name}");
        }
    }

    #[test]
    fn dropped_allocation_gives_back_its_quota() {
        let limits = Limits { permissions: 5, ..Limits::default() };
        let quotas = Quotas::new(Limits { permissions: 4, ..limits }, limits, Instant::now());
        let (alice, _) = quotas.claim(user("alice"), PortRequest::Any, Instant::now()).unwrap();
        let (bob, _) = quotas.claim(user("1900000000:bob"), PortRequest::Any, Instant::now()).unwrap();
        alice.take(Kind::Permissions, 3).unwrap();
        assert_eq!(alice.take(Kind::Permissions, 2), Err(QuotaReached::User));
        assert_eq!(bob.take(Kind::Permissions, 3), Err(QuotaReached::Total));
        bob.take(Kind::Permissions, 2).unwrap();
        alice.give_back(Kind::Permissions, 3);
        bob.take(Kind::Permissions, 2).unwrap();
        assert_eq!(alice.take(Kind::Permissions, usize::MAX), Err(QuotaReached::User));
    }

    #[test]
    fn byte_limits_of_a_user_and_of_all_users_hold() {
        let now = Instant::now();
        let limits = |bytes| Limits { bytes_per_second: Some(bytes), ..Limits::default() };
        let quotas = Quotas::new(limits(100_000), limits(150_000), now);
        assert!(quotas.is_metered());
        let (alice, _) = quotas.claim(user("alice"), PortRequest::Any, Instant::now()).unwrap();
        let (again, _) = quotas.claim(user("alice"), PortRequest::Any, Instant::now()).unwrap();
        let (bob, _) = quotas.claim(user("1900000000:bob"), PortRequest::Any, Instant::now()).unwrap();
        let spend = |claim: &Claim, now| (0..1000).filter(|_| claim.spend(now, 1000)).count();
        assert_eq!((spend(&alice, now), spend(&again, now)), (100, 0));
        assert_eq!(spend(&bob, now), 50, "what is left of all");
        // What the total refused did not count against the user.
        let later = now + Duration::from_millis(500);
        assert_eq!(spend(&bob, later), 75);
        assert_eq!(spend(&alice, later + Duration::from_secs(10)), 100);
    }
}
