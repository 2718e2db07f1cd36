//! What the kernel dropped in front of a socket of ours, because we did not read fast enough.

use std::{fs, net::SocketAddr};

/// Datagrams that were dropped at the socket on this port since it was made; `None` where the system does not say.
///
/// Linux: the last column of `/proc/net/udp`.
pub(crate) fn dropped_at(local: SocketAddr) -> Option<u64> {
    let table = if local.is_ipv4() { "/proc/thread-self/net/udp" } else { "/proc/thread-self/net/udp6" };
    find(&fs::read_to_string(table).ok()?, local.port())
}

fn find(table: &str, port: u16) -> Option<u64> {
    let suffix = format!(":{port:04X}");
    let line = table.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|a| a.ends_with(&suffix)))?;
    line.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_of_the_right_line() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  109: 0100007F:0D96 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7 2 0000000000000000 12
  110: 0100007F:0D97 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 8 2 0000000000000000 34
";
        assert_eq!(find(table, 3478), Some(12));
        assert_eq!(find(table, 3479), Some(34));
        assert_eq!(find(table, 3480), None);
    }
}
