//! Datagrams that the kernel dropped in front of a socket whose receive buffer was full.

use std::{collections::HashSet, fs, net::SocketAddr};

/// Returns the datagrams that were dropped at the sockets on these ports, of one family, since they were made; `None` where the system
/// does not count them.
///
/// Linux: the last column of `/proc/net/udp`.
pub(crate) fn dropped_at(locals: &[SocketAddr]) -> Option<u64> {
    let table = match locals.first()? {
        SocketAddr::V4(_) => "/proc/thread-self/net/udp",
        SocketAddr::V6(_) => "/proc/thread-self/net/udp6",
    };
    let ports: HashSet<u16> = locals.iter().map(SocketAddr::port).collect();
    sum(&fs::read_to_string(table).ok()?, &ports)
}

/// Returns `None` unless each port is listed once.
fn sum(table: &str, ports: &HashSet<u16>) -> Option<u64> {
    let drops = table.lines().filter_map(|line| {
        let mut columns = line.split_whitespace();
        let port = u16::from_str_radix(columns.nth(1)?.rsplit_once(':')?.1, 16).ok()?;
        ports.contains(&port).then(|| columns.last()?.parse::<u64>().ok())?
    });
    let (found, dropped) = drops.fold((0, 0), |(found, dropped), drops| (found + 1, dropped + drops));
    (found == ports.len()).then_some(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_the_last_column_of_the_socket_lines() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  109: 0100007F:0D96 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7 2 0000000000000000 12
  110: 0100007F:0D97 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 8 2 0000000000000000 34
";
        assert_eq!(sum(table, &[3478].into()), Some(12));
        assert_eq!(sum(table, &[3478, 3479].into()), Some(46));
        assert_eq!(sum(table, &[3479, 3480].into()), None);
    }
}
