//! System calls until what is offered is sent, dropped or refused. Nothing here waits.

use std::io;

use tokio::time::Instant;

use super::{Attempt, Failed};
use crate::{
    io::{Drained, Io},
    stats::DropReason,
    sys::errno,
    transmit::{Next, Scratch, Transmit},
    wait::{
        backoff::Class,
        decision::{Errno, Os, Refusal, Verdict},
    },
};

/// Calls in a row that may end in `EINTR`, and in an ICMP error about an earlier datagram.
const MAX_INTERRUPTED: u32 = 16;
const MAX_OTHERS_ERRORS: u32 = 3;

/// System calls that one poll may still make, and how many of them may succeed.
pub(super) struct Budget {
    calls: u32,
    successes: u32,
}

impl Budget {
    /// So many that other tasks run every few milliseconds: a call that sends 64 KiB takes up to 0.1 ms.
    pub(super) const OF_A_POLL: u32 = 64;

    pub(super) fn of_a_poll() -> Self {
        Self::of(Self::OF_A_POLL)
    }

    pub(super) fn of(calls: u32) -> Self {
        Self { calls, successes: u32::MAX }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.calls == 0
    }

    pub(super) fn unlimited() -> Self {
        Self::of(u32::MAX)
    }
}

/// Sends transmits that no sender has accepted before, as nearly all are: whole, in one call. How many datagrams went if that
/// was all.
#[inline]
pub(super) fn pass<I: Io>(io: &I, id: u32, ts: &mut [Transmit<'_>]) -> Result<Option<u32>, Failed> {
    if ts.iter().any(Transmit::is_accepted) {
        return Ok(None);
    }
    let all = ts.len();
    let (went, datagrams) = match ts {
        [t] => {
            let Some(chunk) = t.whole(|| io.limits(t)) else { return Ok(None) };
            io.send(&t.outgoing(&chunk)).map_err(|error| Failed { error, datagrams: chunk.datagrams })?;
            (1, mark_sent(io, t, t.remaining(), t.cursor.bytes_left))
        }
        _ => send_together(io, ts)?,
    };
    if went > 0 {
        io.stats().passed(datagrams);
        io.stats().attempt(1);
        found_room(io, id, ts.get(..went).unwrap_or_default());
    }
    Ok((went == all).then_some(datagrams as u32))
}

/// Tries each transmit that is not done, but none behind another that is held for the same destination: order is kept. What is
/// refused is advised only if all of it is. The first system call is not made if it is known to have failed.
pub(super) fn attempt<I: Io>(
    io: &I,
    id: u32,
    ts: &mut [Transmit<'_>],
    mut failed: Option<Failed>,
    mut budget: Budget,
) -> Attempt {
    if let [t] = ts {
        return attempt_one(io, id, t, failed, &mut budget);
    }
    let (mut refused, mut crowded) = (None, false);
    let mut i = ts.iter().take_while(|t| t.is_done()).count();
    while i < ts.len() {
        let is_held = refused.is_some() || crowded;
        // Those of them that nothing is held for.
        let (before, rest) = ts.split_at(i);
        let is_free = |t: &Transmit<'_>| !before.iter().any(|b| !b.is_done() && b.destination == t.destination);
        let free = if is_held { rest.iter().take_while(|t| is_free(t)).count() } else { rest.len() };
        if free == 0 {
            i += 1;
            continue;
        }
        let together = match failed.take() {
            Some(failed) => Err(failed),
            None => send_together(io, ts.get_mut(i..i + free).unwrap_or_default()),
        };
        let failed = match together {
            Ok((went, datagrams)) => {
                if went > 0 {
                    io.stats().attempt(1);
                    io.stats().sent(datagrams);
                    found_room(io, id, ts.get(i..i + went).unwrap_or_default());
                    budget.calls = budget.calls.saturating_sub(1);
                }
                i += went;
                if went == free {
                    continue;
                }
                None
            }
            Err(failed) => Some(failed),
        };
        let Some(t) = ts.get_mut(i) else { break };
        i += 1;
        match attempt_one(io, id, t, failed, &mut budget) {
            Attempt::Done => {}
            Attempt::Paused => return Attempt::Paused,
            Attempt::Crowded => crowded = true,
            Attempt::Refused(class) => {
                refused = Some(if refused == Some(Class::Silent) { Class::Silent } else { class });
            }
            Attempt::Fatal(e) => return Attempt::Fatal(e),
        }
    }
    refused.map_or(if crowded { Attempt::Crowded } else { Attempt::Done }, Attempt::Refused)
}

/// Sends those at the front that can go out whole, if there are several of them, in one call: how many went, and of how
/// many datagrams.
fn send_together<I: Io>(io: &I, ts: &mut [Transmit<'_>]) -> Result<(usize, usize), Failed> {
    let [first, second, ..] = ts else { return Ok((0, 0)) };
    if first.whole(|| io.limits(first)).is_none() || second.whole(|| io.limits(second)).is_none() {
        return Ok((0, 0));
    }
    let datagrams = first.remaining();
    let outs = ts.iter().map_while(|t| Some(t.outgoing(&t.whole(|| io.limits(t))?)));
    let sent = io.send_several(outs).map_err(|error| Failed { error, datagrams })?;
    let datagrams = ts.iter_mut().take(sent).map(|t| mark_sent(io, t, t.remaining(), t.cursor.bytes_left)).sum();
    Ok((sent, datagrams))
}

/// The loop of system calls, the first of which may be known to have failed. What a socket that has failed leaves is the caller's to
/// drop.
pub(super) fn attempt_one<I: Io>(
    io: &I,
    id: u32,
    t: &mut Transmit<'_>,
    mut failed: Option<Failed>,
    budget: &mut Budget,
) -> Attempt {
    let (mut calls, mut interrupted, mut others) = (0, 0, 0);
    let mut seen = io.icmp_errors();
    // Of a GSO batch that was refused: from which segment size on others will be too, once a datagram shows that it was the batch.
    let mut refused_from = None;
    let ended = loop {
        if t.is_done() {
            break Attempt::Done;
        }
        if budget.calls == 0 || budget.successes == 0 {
            break Attempt::Paused;
        }
        let mut scratch = Scratch::new();
        let (max_datagrams, max_bytes) = io.limits(t);
        let chunk = t.chunk(max_datagrams, max_bytes, &mut scratch);
        let (datagrams, bytes) = (chunk.datagrams, chunk.bytes);
        if datagrams == 0 {
            // The next one consists of more slices than fit in a call.
            let bytes = t.datagram_len().min(t.cursor.bytes_left);
            mark_dropped(io, t, 1, bytes, DropReason::Invalid);
            continue;
        }
        if datagrams == 1 && bytes > t.max_payload() {
            // On loopback the kernel answers with an ICMP message, which looks like one about an earlier datagram.
            failed = None;
            mark_dropped(io, t, 1, bytes, DropReason::TooLarge);
            continue;
        }
        calls += 1;
        budget.calls -= 1;
        let known = failed.is_some();
        // Another sender may have had a batch refused since the call that is known.
        let call = || io.send(&t.outgoing(&chunk)).map_err(|error| Failed { error, datagrams });
        let Err(Failed { error, datagrams: tried }) = failed.take().map_or_else(call, Err) else {
            (interrupted, others) = (0, 0);
            budget.successes -= 1;
            remember(io, t, refused_from.take());
            mark_sent(io, t, datagrams, bytes);
            if t.is_accepted() {
                io.stats().sent(datagrams);
            } else {
                io.stats().passed(datagrams);
            }
            found_room(io, id, std::slice::from_ref(t));
            continue;
        };
        // What was read before a call that is known is not, and a system without an error queue tells nothing at all.
        let maybe_earlier = others == 0 && (known || io.os() != Os::Linux && io.is_connected());
        let verdict = classify(io, t, &error, tried > 1, seen, maybe_earlier);
        seen = io.icmp_errors();
        match verdict {
            Verdict::Again if errno(&error) == Errno::Interrupted && interrupted < MAX_INTERRUPTED => interrupted += 1,
            Verdict::Again if others < MAX_OTHERS_ERRORS => others += 1,
            // A flood of them: hold the datagram, which they do not concern.
            Verdict::Again => break Attempt::Crowded,
            Verdict::WhenReady => break Attempt::Refused(Class::Advised),
            Verdict::OnTimer => break Attempt::Refused(Class::Silent),
            Verdict::OnTimerSmaller => {
                t.cursor.at_most = (tried as u8 / 2).max(1);
                break Attempt::Refused(Class::Silent);
            }
            Verdict::Drop(reason) => {
                if reason == DropReason::Other {
                    io.stats().unknown_error(&error);
                }
                if reason == DropReason::TooLarge {
                    remember(io, t, refused_from.take());
                    // None of the same length fits either.
                    let (datagrams, bytes) = t.as_long_as_next();
                    mark_dropped(io, t, datagrams, bytes, reason);
                } else {
                    mark_dropped(io, t, datagrams, bytes, reason);
                }
            }
            Verdict::Split => {
                t.cursor.at_most = 1;
                refused_from = Some(if errno(&error) == Errno::Io { 0 } else { t.datagram_len() });
            }
            Verdict::Fatal => break Attempt::Fatal(error),
        }
    };
    io.stats().attempt(calls);
    ended
}

/// Until one call succeeds, with no more datagrams than fit in so many bytes, but for the first. How many bytes are done after it.
pub(super) fn attempt_at_most<I: Io>(
    io: &I,
    id: u32,
    t: &mut Transmit<'_>,
    bytes: i64,
    budget: &mut Budget,
) -> (Attempt, usize) {
    let before = t.cursor.bytes_left;
    let at_most = t.cursor.at_most;
    let fit = usize::try_from(bytes).unwrap_or(0) / t.datagram_len().max(1);
    let offered = u8::try_from(fit).unwrap_or(u8::MAX).clamp(1, at_most);
    t.cursor.at_most = offered;
    budget.successes = 1;
    let ended = attempt_one(io, id, t, None, budget);
    budget.successes = u32::MAX;
    // Unless it was a train too many for the system.
    if t.cursor.at_most == offered {
        t.cursor.at_most = at_most;
    }
    (ended, before - t.cursor.bytes_left)
}

/// The system refuses GSO batches to the destination, with segments of so many bytes and more.
fn remember<I: Io>(io: &I, t: &Transmit<'_>, refused_from: Option<usize>) {
    let Some(segment_bytes) = refused_from else { return };
    io.segmentation_refused(&t.destination, segment_bytes);
    if segment_bytes == 0 {
        io.stats().segmentation_off();
    }
}

/// The system has taken some of these.
fn found_room<I: Io>(io: &I, id: u32, ts: &[Transmit<'_>]) {
    io.contention().found_room(id, ts.iter().map(Transmit::path), Instant::now);
}

/// The kernel has taken these, the next of the transmit. How many datagrams they are.
fn mark_sent<I: Io>(io: &I, t: &mut Transmit<'_>, datagrams: usize, bytes: usize) -> usize {
    if t.cursor.next == Next::MaybeQueued {
        io.stats().possible_duplicates(datagrams);
    }
    t.sent(datagrams, bytes);
    datagrams
}

/// These, the next of the transmit, are not sent.
fn mark_dropped<I: Io>(io: &I, t: &mut Transmit<'_>, datagrams: usize, bytes: usize, reason: DropReason) {
    if !t.is_accepted() {
        io.stats().accept(datagrams);
    }
    t.dropped(datagrams, bytes, reason);
    io.stats().dropped(reason, datagrams);
}

/// Gathers what the decision depends on, each thing only where it does.
fn classify<I: Io>(
    io: &I,
    t: &mut Transmit<'_>,
    error: &io::Error,
    train: bool,
    seen: u64,
    maybe_earlier: bool,
) -> Verdict {
    let errno = errno(error);
    let no_buffers = errno == Errno::NoBuffers;
    let drained = match errno {
        Errno::WouldBlock | Errno::NoBuffers | Errno::Interrupted => Drained::default(),
        // Whatever its number: one that is unknown may be an ICMP message's too.
        Errno::MessageSize
        | Errno::Invalid
        | Errno::Io
        | Errno::NotPermitted
        | Errno::Prohibited
        | Errno::Unreachable
        | Errno::Refused
        | Errno::Socket
        | Errno::Other => io.drain_errors(t.destination, seen),
    };
    let asks = io.os() == Os::Apple && (no_buffers && io.is_connected() || errno == Errno::WouldBlock);
    let refusal = Refusal {
        os: io.os(),
        errno,
        connected: io.is_connected(),
        writable: !asks || io.writable(),
        earlier_errors: drained.icmp,
        maybe_earlier: maybe_earlier && !drained.too_large,
        train,
        again: t.cursor.next != Next::Fresh,
    };
    let verdict = io.decide(&refusal);
    if no_buffers {
        let class = if verdict == Verdict::WhenReady { Class::Advised } else { Class::Silent };
        io.stats().no_buffers(refusal.connected, class);
        // XNU may refuse with this advice what it has queued (`FLOWADV_FLOW_CONTROLLED` set behind `ip_output`).
        if verdict == Verdict::WhenReady {
            t.cursor.next = Next::MaybeQueued;
        } else if t.cursor.next == Next::Fresh {
            t.cursor.next = Next::Refused;
        }
    }
    verdict
}

pub(super) fn drop_rest<I: Io>(io: &I, ts: &mut [Transmit<'_>], reason: DropReason) {
    for t in ts {
        mark_dropped(io, t, t.remaining(), t.cursor.bytes_left, reason);
    }
}

#[cfg(all(test, unix))]
mod tests;
