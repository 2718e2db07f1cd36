//! Users and secrets, as they are written.

use std::collections::HashSet;

use backwater_turn::{Credentials, PeerRules};

use super::{ConfigError, FirstRun, keys::Settings, values::Secret};

/// The realm, if none is given.
const REALM: &str = "backwater";

/// Returns the users and secrets. `None` if the realm cannot be used.
pub(super) fn credentials(s: &Settings, errors: &mut Vec<ConfigError>) -> Option<Credentials> {
    let realm = s.realm.values.last().map_or(REALM, String::as_str);
    let mut credentials = match Credentials::new(realm) {
        Ok(credentials) => credentials,
        Err(error) => {
            errors.push(s.realm.error(error.to_string()));
            return None;
        }
    };
    users(s, &mut credentials, errors);
    secrets(s, &mut credentials, errors);
    Some(credentials)
}

fn users(s: &Settings, credentials: &mut Credentials, errors: &mut Vec<ConfigError>) {
    let mut names = HashSet::new();
    for (setting, is_hashed) in [(&s.user, false), (&s.hashed_user, true)] {
        let expected = setting.key.value;
        for Secret(user) in &setting.values {
            let Some((name, rest)) = user.split_once(':') else {
                errors.push(setting.error(format!("expected {expected}, found no colon")));
                continue;
            };
            if !names.insert(name) {
                errors.push(setting.error(format!("expected each user once, found {name:?} twice")));
            }
            let added = if is_hashed {
                rest.parse().and_then(|keys| credentials.add_hashed_user(name, &keys))
            } else {
                credentials.add_user(name, rest)
            };
            if let Err(error) = added {
                errors.push(setting.error(format!("expected {expected}, but {error}")));
            }
        }
    }
}

/// Those with an id come first: the first one makes the credentials that no other is named for.
fn secrets(s: &Settings, credentials: &mut Credentials, errors: &mut Vec<ConfigError>) {
    let (mut ids, mut secrets) = (HashSet::new(), HashSet::new());
    let mut once =
        |secret| if secrets.insert(secret) { None } else { Some("expected each secret once, found one twice") };
    for Secret(named) in &s.named_secret.values {
        let Some((id, secret)) = named.split_once(':') else {
            errors.push(s.named_secret.error("expected ID:SECRET, found no colon"));
            continue;
        };
        if !ids.insert(id) {
            errors.push(s.named_secret.error(format!("expected each id once, found {id:?} twice")));
        }
        errors.extend(once(secret).map(|problem| s.named_secret.error(problem)));
        if let Err(error) = credentials.add_named_secret(id, secret) {
            errors.push(s.named_secret.error(format!("expected ID:SECRET, but {error}")));
        }
    }
    for Secret(secret) in &s.secret.values {
        errors.extend(once(secret).map(|problem| s.secret.error(problem)));
        if let Err(error) = credentials.add_secret(secret) {
            errors.push(s.secret.error(format!("expected a secret, but {error}")));
        }
    }
}

/// Makes a user for someone who has just started the program to look at it.
pub(super) fn make_up(
    s: &Settings,
    credentials: &mut Credentials,
    peers: &mut PeerRules,
    errors: &mut Vec<ConfigError>,
) -> FirstRun {
    let user = "backwater".to_owned();
    let mut random = [0; 12];
    if getrandom::fill(&mut random).is_err() {
        errors.push(s.user.error("expected one, since the system has no randomness to make one up"));
    }
    let password: String = random.iter().map(|b| format!("{b:02x}")).collect();
    if let Err(error) = credentials.add_user(&user, &password) {
        errors.push(s.user.error(error.to_string()));
    }
    let loopback_peers = !s.allow_peer.is_given();
    if loopback_peers {
        peers.allow = ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect();
    }
    FirstRun { user, password, loopback_peers }
}
