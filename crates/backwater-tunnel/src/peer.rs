//! A peer: its session, its queue and its sender.
