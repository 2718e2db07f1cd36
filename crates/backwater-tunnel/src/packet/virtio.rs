//! The header before each packet of a TUN device with offloads (`struct virtio_net_hdr`).
