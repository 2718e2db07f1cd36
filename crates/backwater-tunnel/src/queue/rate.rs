//! How fast the path is, and how much may wait for it.
