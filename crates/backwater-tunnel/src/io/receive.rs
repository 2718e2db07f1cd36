//! The way from the sockets to the engine, and from there to the device.

use std::{
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use backwater_udp::RecvDatagram;
use tracing::warn;

use super::event_loop::{EventLoop, write_out};
use crate::engine::Received;

/// GRO batches that one call receives: half a megabyte of full ones, so that they stay in the cache until they are decrypted.
pub(super) const SLOTS: usize = 8;

/// Calls to receive on one socket in one turn.
const RECEIVES: usize = 2;

impl EventLoop {
    /// Takes what has arrived. Returns whether there may be more.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut more = false;
        for v6 in [false, true] {
            for turn in 1..=RECEIVES {
                let Some(side) = self.sockets.side(v6) else { break };
                match side.receiver.poll_recv(cx, &mut self.batch) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        warn!(%error, "a socket has failed");
                        self.broken = true;
                        break;
                    }
                }
                self.take_batch(now);
                // Whether that was all, only a call that waits tells: it registers this task.
                more |= turn == RECEIVES;
            }
            while let Some(error) = self.sockets.side(v6).and_then(|side| side.socket.next_icmp_error()) {
                self.learn_from(now, &error);
            }
        }
        more
    }

    fn take_batch(&mut self, now: Instant) {
        let Self { batch, engine, relay, link, .. } = self;
        for train in batch.gro_batches() {
            let mut relay = relay.as_mut().filter(|relay| relay.is_from(train.source));
            for datagram in train.datagrams() {
                if !engine.has_space(datagram.payload.len()) {
                    write_out(engine, link);
                }
                let received = match &mut relay {
                    None => engine.handle_datagram(now, datagram),
                    Some(relay) => {
                        let Some((source, payload)) = relay.handle(now, datagram.source, datagram.payload) else {
                            continue;
                        };
                        engine.handle_relayed(now, RecvDatagram { source, payload, ..datagram })
                    }
                };
                if let Received::Session(peer) = received {
                    engine.set_last_handshake(peer, SystemTime::now());
                }
            }
            // A GRO batch makes one packet; what comes one by one is joined with the rest of what was received.
            if train.datagram_count() > 1 {
                write_out(engine, link);
            }
        }
        write_out(engine, link);
    }
}
