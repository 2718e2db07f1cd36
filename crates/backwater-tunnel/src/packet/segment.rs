//! A packet of many segments, as the TUN device hands it over, taken apart (segmentation offload).
