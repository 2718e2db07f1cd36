//! Long-term credentials, from the client's side (RFC 8489 §9.2).

use std::{
    fmt,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use backwater_stun::{
    AttributeType, ChallengeError, Code, HmacKey, Integrity, LongTermKey, Message, Nonce, PasswordAlgorithm,
    PasswordAlgorithms, RawAttribute, Realm, TransactionId, Userhash, Username, WriteError, Writer, opaque_string,
};

use super::{Failure, transaction::Signature};

/// Challenges that are answered within [`CHALLENGE_PERIOD`].
const MAX_CHALLENGES: usize = 3;

/// See [`MAX_CHALLENGES`].
const CHALLENGE_PERIOD: Duration = Duration::from_secs(60);

/// Bytes of a PASSWORD-ALGORITHMS that is sent back. The two algorithms of the registry have 8.
const MAX_ALGORITHMS: usize = 64;

/// The user name and the password of a TURN user. `Debug` does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    username: String,
    password: String,
}

/// A user name or a password that cannot be used: it is empty, OpaqueString (RFC 8265 §4.2) does not allow it, or the user name has
/// more than 509 bytes (RFC 8489 §14.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a user name has 1 to 509 bytes, a password at least 1, and neither has control characters")]
pub struct InvalidCredential;

impl Credential {
    /// Prepares a user name and a password (RFC 8489 §9.2.2).
    ///
    /// # Errors
    /// [`InvalidCredential`].
    pub fn new(username: &str, password: &str) -> Result<Self, InvalidCredential> {
        let prepare = |text| opaque_string(text).map(|text| text.into_owned()).map_err(|_| InvalidCredential);
        let (username, password) = (prepare(username)?, prepare(password)?);
        if username.len() > 509 {
            return Err(InvalidCredential);
        }
        Ok(Self { username, password })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How requests authenticate to one server.
pub(super) struct Authentication {
    credential: Credential,
    hide_username: bool,
    session: Option<Session>,
    /// When the last challenges were answered.
    answered: ArrayVec<Instant, MAX_CHALLENGES>,
    challenges: u64,
}

/// The content of the last challenge, and the key that it led to.
struct Session {
    realm: String,
    nonce: Vec<u8>,
    /// The server's PASSWORD-ALGORITHMS, which each request sends back, and the choice.
    algorithms: Option<(Vec<u8>, PasswordAlgorithm<'static>)>,
    /// USERHASH, if the server accepts it and the user wants it.
    userhash: Option<Userhash>,
    key: HmacKey,
}

/// What to do after a 401 or 438.
pub(super) enum Answer {
    /// Send the request again, with the credential.
    Retry,
    /// Send the request again at this time: there were too many challenges.
    Wait(Instant),
    /// No request can succeed with this credential.
    Refused(Failure),
}

impl Authentication {
    pub(super) fn new(credential: Credential, hide_username: bool) -> Self {
        Self { credential, hide_username, session: None, answered: ArrayVec::new(), challenges: 0 }
    }

    /// Forgets the server: another one is asked, or the user is another one.
    pub(super) fn reset(&mut self) {
        *self = Self { challenges: self.challenges, ..Self::new(self.credential.clone(), self.hide_username) };
    }

    pub(super) fn set_credential(&mut self, credential: Credential) {
        self.credential = credential;
        self.reset();
    }

    /// Handles a 401 or 438 in answer to a request with this signature (RFC 8489 §9.2.5).
    pub(super) fn challenged(
        &mut self,
        now: Instant,
        code: Code,
        response: &Message<'_>,
        signature: Option<&Signature>,
    ) -> Answer {
        if self.session.is_some() && signature.is_none_or(|signature| signature.challenge < self.challenges) {
            // The client has answered a newer challenge since.
            return Answer::Retry;
        }
        let realm = match response.get::<Realm<'_>>() {
            Ok(Some(Realm(realm))) => Some(realm),
            Ok(None) | Err(_) => None,
        };
        let known = self.session.as_ref().map(|session| session.realm.clone());
        let known = known.as_deref();
        let (Some(realm), Ok(Some(nonce))) = (realm.or(known), response.get::<Nonce<'_>>()) else {
            return Answer::Refused(Failure::Malformed);
        };
        if code == Code::UNAUTHENTICATED && known == Some(realm) {
            return Answer::Refused(Failure::Unauthenticated);
        }
        let offered = response.get::<PasswordAlgorithms<'_>>().ok().flatten();
        let raw = response.attributes().find(|raw| raw.attribute_type == AttributeType::PASSWORD_ALGORITHMS);
        let algorithms = match PasswordAlgorithms::choose(&nonce, offered) {
            Ok(None) => None,
            Ok(Some(chosen)) => raw.map(|raw| (raw.value.to_vec(), chosen)),
            Err(ChallengeError::BidDown) => return Answer::Refused(Failure::BidDown),
            Err(_) => return Answer::Refused(Failure::NoCommonAlgorithm),
        };
        if algorithms.as_ref().is_some_and(|(list, _)| list.len() > MAX_ALGORITHMS) {
            return Answer::Refused(Failure::NoCommonAlgorithm);
        }
        if let Some(at) = self.limit(now) {
            return Answer::Wait(at);
        }
        let Credential { username, password } = &self.credential;
        let algorithm = algorithms.as_ref().map_or(PasswordAlgorithm::MD5, |(_, algorithm)| *algorithm);
        let Some(key) = LongTermKey::new(algorithm, username, realm, password) else {
            return Answer::Refused(Failure::NoCommonAlgorithm);
        };
        let anonymous = nonce.security_features().is_some_and(|features| features.username_anonymity);
        let userhash = (self.hide_username && anonymous).then(|| Userhash::new(username, realm));
        let (realm, nonce, key) = (realm.to_owned(), nonce.0.to_vec(), HmacKey::from(&key));
        self.session = Some(Session { realm, nonce, algorithms, userhash, key });
        self.challenges += 1;
        Answer::Retry
    }

    /// Counts a challenge. Returns when it may be answered, if not now.
    fn limit(&mut self, now: Instant) -> Option<Instant> {
        self.answered.retain(|at| now.saturating_duration_since(*at) < CHALLENGE_PERIOD);
        if self.answered.try_push(now).is_ok() {
            return None;
        }
        self.answered.first().map(|first| *first + CHALLENGE_PERIOD)
    }

    /// Writes the end of a request: the attributes of the credential, if the server has sent a challenge, and the message integrity.
    pub(super) fn finish(
        &self,
        mut writer: Writer<'_>,
        id: &TransactionId,
    ) -> Result<(Vec<u8>, Option<Signature>), WriteError> {
        let Some(session) = &self.session else { return Ok((writer.finish().to_vec(), None)) };
        match &session.userhash {
            Some(userhash) => writer.attribute(userhash)?,
            None => writer.attribute(&Username(&self.credential.username))?,
        };
        writer.attribute(&Realm(&session.realm))?.attribute(&Nonce(&session.nonce))?;
        let integrity = match &session.algorithms {
            None => Integrity::Sha1,
            Some((list, chosen)) => {
                let raw = RawAttribute { attribute_type: AttributeType::PASSWORD_ALGORITHMS, value: list };
                let list: PasswordAlgorithms<'_> = raw.decode(id).map_err(WriteError::Attribute)?;
                writer.attribute(&list)?.attribute(chosen)?;
                Integrity::Sha256
            }
        };
        let bytes = match integrity {
            Integrity::Sha1 => writer.integrity_sha1(&session.key)?.finish(),
            Integrity::Sha256 => writer.integrity_sha256(&session.key)?.finish(),
        };
        let signature = Signature { key: session.key.clone(), integrity, challenge: self.challenges };
        Ok((bytes.to_vec(), Some(signature)))
    }
}
