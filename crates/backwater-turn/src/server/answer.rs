//! Writes responses.

use std::sync::Arc;

use arrayvec::ArrayVec;
use backwater_stun::{
    AttributeError, AttributeErrorKind, AttributeType, Class, Code, ErrorCode, Integrity, Message, Method, Nonce,
    Realm, TakesFingerprint, TransactionId, UnknownAttributes, WriteError, Writer,
};

use super::{Action, DropReason, Server, answered::Transaction, requests::amplifies};
use crate::{AuthFailure, FiveTuple, Now, OverQuota, PeerAddr, PeerRefused, QuotaReason, auth::Identity};

/// Unknown attributes that a 420 lists at most. RFC 8489 does not require all.
pub(super) const MAX_UNKNOWN: usize = 16;

/// Why a request is refused.
pub(super) enum Refusal {
    Code(Code),
    /// 401 or 438, with the nonce, realm and algorithms that the client needs for another attempt.
    Challenge(Code),
    Unknown(ArrayVec<AttributeType, MAX_UNKNOWN>),
    Forbidden(PeerAddr, PeerRefused),
    Unauthenticated(Box<AuthFailure>),
    OverQuota(QuotaReason),
    Drop(DropReason),
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self::Code(code)
    }
}

impl From<QuotaReason> for Refusal {
    fn from(reason: QuotaReason) -> Self {
        Self::OverQuota(reason)
    }
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl From<AttributeError> for Refusal {
    fn from(error: AttributeError) -> Self {
        let family = error.kind == AttributeErrorKind::Family;
        Self::Code(if family { Code::ADDRESS_FAMILY_NOT_SUPPORTED } else { Code::BAD_REQUEST })
    }
}

impl Server {
    pub(super) fn refuse(
        &self,
        now: Now,
        request: &Message<'_>,
        from: FiveTuple,
        refusal: Refusal,
        answer: &Answer,
        reply: &mut [u8],
    ) -> Action {
        let result = match refusal {
            Refusal::Drop(reason) => Err(reason),
            Refusal::Code(code) => answer.error(reply, code, |_| Ok(())),
            Refusal::Challenge(code) => {
                let nonce = self.nonces.make(from.client, now.unix);
                let mut challenge = |reason| {
                    answer.challenge(reply, |w| {
                        w.attribute(&ErrorCode { code, reason })?;
                        w.attribute(&Realm(self.config.credentials.realm()))?;
                        w.attribute(&Nonce(&nonce))?;
                        w.attribute(&self.config.credentials.algorithms()).map(drop)
                    })
                };
                // Browsers print the phrase. It is left out where the response to a forged source would amplify.
                match challenge(code.reason()) {
                    Ok(len) if amplifies(from, request, len) => challenge(""),
                    result => result,
                }
            }
            Refusal::Unauthenticated(failure) => return Action::Unauthenticated(failure),
            Refusal::Unknown(types) => {
                answer.error(reply, Code::UNKNOWN_ATTRIBUTE, |w| w.attribute(&UnknownAttributes::new(&types)).map(drop))
            }
            Refusal::Forbidden(peer, why) => {
                let result = answer.error(reply, Code::FORBIDDEN, |_| Ok(()));
                return result.map_or_else(Action::Drop, |len| Action::Forbid(len, peer, Box::new(why)));
            }
            Refusal::OverQuota(reason) => {
                let user = answer.user.as_ref().map(|(user, _)| user.name.clone()).unwrap_or_default();
                let result = answer.error(reply, reason.code(), |_| Ok(()));
                return result
                    .map_or_else(Action::Drop, |len| Action::OverQuota(len, Box::new(OverQuota { user, reason })));
            }
        };
        replied(result)
    }
}

/// What every response to a request has.
pub(super) struct Answer {
    pub(super) method: Method,
    pub(super) transaction_id: TransactionId,
    /// Present once the user is known: the response has the integrity attribute of the request (RFC 8489 §9.2.4).
    pub(super) user: Option<(Arc<Identity>, Integrity)>,
    /// Whether the request had a FINGERPRINT. The response then has one too.
    pub(super) fingerprint: bool,
}

impl Answer {
    /// Returns the transaction of the request.
    pub(super) fn transaction(&self, client: FiveTuple) -> Transaction {
        Transaction { client, method: self.method, id: self.transaction_id }
    }

    /// Writes a success response and returns its length.
    pub(super) fn success(
        &self,
        reply: &mut [u8],
        attributes: impl FnOnce(&mut Writer<'_>) -> Result<(), WriteError>,
    ) -> Result<usize, DropReason> {
        self.write(Class::SuccessResponse, reply, attributes).map_err(|_| DropReason::TooLong)
    }

    fn challenge(
        &self,
        reply: &mut [u8],
        attributes: impl FnOnce(&mut Writer<'_>) -> Result<(), WriteError>,
    ) -> Result<usize, DropReason> {
        self.write(Class::ErrorResponse, reply, attributes).map_err(|_| DropReason::TooLong)
    }

    /// Writes an error response with its code and the attributes of the code, and returns its length.
    pub(super) fn error(
        &self,
        reply: &mut [u8],
        code: Code,
        more: impl FnOnce(&mut Writer<'_>) -> Result<(), WriteError>,
    ) -> Result<usize, DropReason> {
        let attributes = |w: &mut Writer<'_>| {
            w.attribute(&ErrorCode::from(code))?;
            more(w)
        };
        self.write(Class::ErrorResponse, reply, attributes).map_err(|_| DropReason::TooLong)
    }

    fn write(
        &self,
        class: Class,
        reply: &mut [u8],
        attributes: impl FnOnce(&mut Writer<'_>) -> Result<(), WriteError>,
    ) -> Result<usize, WriteError> {
        let mut writer = Writer::new(reply, class, self.method, self.transaction_id)?;
        attributes(&mut writer)?;
        let written = match &self.user {
            None if self.fingerprint => writer.fingerprint()?.finish(),
            None => writer.finish(),
            Some((user, Integrity::Sha1)) => self.finish(writer.integrity_sha1(&user.key)?)?,
            Some((user, Integrity::Sha256)) => self.finish(writer.integrity_sha256(&user.key)?)?,
        };
        Ok(written.len())
    }

    fn finish<'b, Stage: TakesFingerprint>(&self, writer: Writer<'b, Stage>) -> Result<&'b [u8], WriteError> {
        Ok(if self.fingerprint { writer.fingerprint()?.finish() } else { writer.finish() })
    }
}

pub(super) fn replied(result: Result<usize, DropReason>) -> Action {
    result.map_or_else(Action::Drop, Action::Reply)
}
