//! Packets of one flow, joined into one for the TUN device (receive offload).
