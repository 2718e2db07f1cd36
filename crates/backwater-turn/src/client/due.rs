//! What is due, and when: requests begin here, and what is in flight is dropped here.

use std::time::Instant;

use super::{
    Allocation, Client, Loss, Phase,
    transaction::{MAX_TRANSACTIONS, Purpose, Transaction},
};

impl Client {
    /// Begins the requests that are due.
    pub(super) fn drive(&mut self, now: Instant) {
        match &self.phase {
            Phase::Waiting(at) if *at <= now => self.phase = Phase::Allocating,
            Phase::Allocated(allocation) if allocation.expires <= now => {
                self.lost(now, Loss::Expired);
            }
            Phase::Waiting(_)
            | Phase::Allocated(_)
            | Phase::Allocating
            | Phase::Failed
            | Phase::Closing(_)
            | Phase::Closed => {}
        }
        if !self.connected {
            return self.schedule();
        }
        let in_flight = |purposes: &[Purpose]| self.transactions.iter().any(|t| purposes.contains(&t.purpose));
        match &self.phase {
            Phase::Allocating if !in_flight(&[Purpose::Allocate, Purpose::Abandon]) => {
                self.begin(now, Purpose::Allocate);
            }
            Phase::Closing(_) if !in_flight(&[Purpose::Delete]) => self.begin(now, Purpose::Delete),
            Phase::Allocated(Allocation { moving: true, .. }) => {
                if !in_flight(&[Purpose::Move]) {
                    self.begin(now, Purpose::Move);
                }
            }
            Phase::Allocated(allocation) => {
                let due = allocation.refresh_at.is_some_and(|at| at <= now);
                if due && !in_flight(&[Purpose::Refresh]) {
                    self.begin(now, Purpose::Refresh);
                }
                self.begin_for_peers(now);
                if self.keepalive_at().is_some_and(|at| at <= now) {
                    self.begin(now, Purpose::Binding);
                }
            }
            Phase::Allocating | Phase::Closing(_) | Phase::Waiting(_) | Phase::Failed | Phase::Closed => {}
        }
        self.schedule();
    }

    /// Begins the requests for channels and permissions that are due, as long as enough places are left for others.
    fn begin_for_peers(&mut self, now: Instant) {
        let refused = matches!(&self.phase, Phase::Allocated(allocation) if allocation.refresh_at.is_none());
        while !refused && self.transactions.len() < MAX_TRANSACTIONS - 2 {
            let purpose = if let Some((number, _)) = self.peers.due_channel(now) {
                Purpose::Channel(number)
            } else if let Some(ip) = self.peers.due_permission(now) {
                Purpose::Permission(ip)
            } else {
                return;
            };
            self.begin(now, purpose);
            if !matches!(self.phase, Phase::Allocated(_)) {
                return;
            }
        }
    }

    /// Returns when to look whether the NAT's binding is still there; `None` while that is being done.
    fn keepalive_at(&self) -> Option<Instant> {
        let in_flight = self.transactions.iter().any(|t| t.purpose == Purpose::Binding);
        let interval = self.config.keepalive.filter(|_| !in_flight)?;
        Some(self.last_sent.min(self.last_received) + interval)
    }

    /// Finds out when something is to be done next.
    pub(super) fn schedule(&mut self) {
        let of_phase = match &self.phase {
            Phase::Waiting(at) => Some(*at),
            Phase::Allocated(allocation) => {
                let refreshing = self.transactions.iter().any(|t| t.purpose == Purpose::Refresh);
                let refresh_at = allocation.refresh_at.filter(|_| !refreshing);
                let asks = allocation.refresh_at.is_some() && self.transactions.len() < MAX_TRANSACTIONS - 2;
                let peers = if asks { self.peers.next() } else { None };
                let due = [refresh_at, self.keepalive_at(), peers].into_iter().flatten().min();
                [Some(allocation.expires), due.filter(|_| !allocation.moving)].into_iter().flatten().min()
            }
            Phase::Allocating | Phase::Failed | Phase::Closing(_) | Phase::Closed => None,
        };
        let of_requests = self.transactions.iter().filter_map(Transaction::next).min();
        self.next = of_phase.into_iter().chain(of_requests).min();
    }

    /// Leaves the 5-tuple: what is in flight is lost, and the allocation too, unless a ticket takes it along.
    pub(super) fn leave(&mut self, now: Instant) {
        self.transactions.clear();
        self.peers.nothing_asked();
        self.rto.reset(now);
        self.may_be_allocated = false;
        match &mut self.phase {
            Phase::Allocated(allocation) if allocation.ticket.is_some() => {
                allocation.moving = true;
                self.may_be_allocated = true;
            }
            Phase::Allocated(_) => self.lost(now, Loss::Rebound),
            Phase::Closing(_) => self.closed(),
            Phase::Allocating | Phase::Waiting(_) | Phase::Failed | Phase::Closed => {}
        }
    }

    /// Drops the requests about the allocation and the peers, so that they begin again.
    pub(super) fn drop_unanswered(&mut self) {
        let stays = [Purpose::Allocate, Purpose::Abandon, Purpose::Delete, Purpose::Move];
        self.transactions.retain(|transaction| stays.contains(&transaction.purpose));
        self.peers.nothing_asked();
    }
}
