//! The system side: the TUN device, its addresses, routes and rules, and what changes in the network.
