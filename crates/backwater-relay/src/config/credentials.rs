//! Users and secrets, as they are written.

use std::collections::HashSet;

use backwater_turn::{Credentials, PeerRules};

use super::{
    FirstRun,
    keys::*,
    reader::{Reader, Text},
};

impl Reader<'_> {
    pub(super) fn credentials(&mut self, realm: &str) -> Credentials {
        let mut credentials = match Credentials::new(realm) {
            Ok(credentials) => credentials,
            Err(error) => {
                self.error(&REALM, &error.to_string());
                return Self::no_credentials();
            }
        };
        self.users(&mut credentials);
        self.secrets(&mut credentials);
        credentials
    }

    fn users(&mut self, credentials: &mut Credentials) {
        let mut names = HashSet::new();
        for key in [&USER, &HASHED_USER] {
            for Text(user) in self.list(key, "") {
                let Some((name, rest)) = user.split_once(':') else {
                    self.error(key, &format!("expected {}, found no colon", key.value));
                    continue;
                };
                if !names.insert(name.to_owned()) {
                    self.error(key, &format!("expected each user once, found {name:?} twice"));
                }
                let added = if key.name == USER.name {
                    credentials.add_user(name, rest)
                } else {
                    rest.parse().and_then(|keys| credentials.add_hashed_user(name, &keys))
                };
                if let Err(error) = added {
                    self.error(key, &format!("expected {}, but {error}", key.value));
                }
            }
        }
    }

    /// Those with an id come first: the first one makes the credentials that no other is named for.
    fn secrets(&mut self, credentials: &mut Credentials) {
        let (mut ids, mut secrets) = (HashSet::new(), HashSet::new());
        for Text(named) in self.list(&NAMED_SECRET, "") {
            let Some((id, secret)) = named.split_once(':') else {
                self.error(&NAMED_SECRET, "expected ID:SECRET, found no colon");
                continue;
            };
            if !ids.insert(id.to_owned()) {
                self.error(&NAMED_SECRET, &format!("expected each id once, found {id:?} twice"));
            }
            if !secrets.insert(secret.to_owned()) {
                self.error(&NAMED_SECRET, "expected each secret once, found one twice");
            }
            if let Err(error) = credentials.add_named_secret(id, secret) {
                self.error(&NAMED_SECRET, &format!("expected ID:SECRET, but {error}"));
            }
        }
        for Text(secret) in self.list(&SECRET, "") {
            if !secrets.insert(secret.clone()) {
                self.error(&SECRET, "expected each secret once, found one twice");
            }
            if let Err(error) = credentials.add_secret(&secret) {
                self.error(&SECRET, &format!("expected a secret, but {error}"));
            }
        }
    }

    /// A placeholder beside an error: nobody in the default realm.
    fn no_credentials() -> Credentials {
        #[allow(clippy::unwrap_used, reason = "a constant that a test reads too")]
        Credentials::new("backwater").unwrap()
    }

    /// Makes a user for someone who has just started the program to look at it.
    pub(super) fn make_up(&mut self, credentials: &mut Credentials, peers: &mut PeerRules) -> FirstRun {
        let user = "backwater".to_owned();
        let mut random = [0; 12];
        if getrandom::fill(&mut random).is_err() {
            self.error(&USER, "expected one, since the system has no randomness to make one up");
        }
        let password: String = random.iter().map(|b| format!("{b:02x}")).collect();
        if let Err(error) = credentials.add_user(&user, &password) {
            self.error(&USER, &error.to_string());
        }
        let loopback_peers = !self.has(&ALLOW_PEER);
        if loopback_peers {
            peers.allow = ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect();
        }
        FirstRun { user, password, loopback_peers }
    }
}
