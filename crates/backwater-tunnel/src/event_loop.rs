//! The loop over device, sockets, timers and control.
