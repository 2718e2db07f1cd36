//! What others can work out from what they are sent.

use std::collections::HashSet;

use super::*;

/// RFC 8489, section 5. A counter would tell each client how many datagrams the others are sent.
#[test]
fn transaction_ids_of_indications_say_nothing() {
    let mut all = HashSet::new();
    let mut servers = [0, 1].map(|thread| Bench::on_thread(thread).server);
    servers[1].transaction_ids = TransactionIds::new(&[2; 64], 0);
    servers.iter_mut().chain([&mut Bench::on_thread(1).server]).for_each(|server| {
        let ids: Vec<[u8; 12]> = (0..1000)
            .map(|_| {
                let prefix = server.data_indication(PeerAddr(addr(PEER)), 4).unwrap();
                let whole = [prefix.as_bytes(), b"data"].concat();
                Message::parse(&whole).unwrap().transaction_id().0
            })
            .collect();
        for at in 0..12 {
            let values: HashSet<_> = ids.iter().map(|id| id[at]).collect();
            assert!(values.len() > 200, "byte {at} has {} values in 1000 ids", values.len());
            let steps: HashSet<_> = ids.windows(2).map(|w| w[1][at].wrapping_sub(w[0][at])).collect();
            assert!(steps.len() > 200, "byte {at} goes on by one of {} steps", steps.len());
        }
        all.extend(ids);
    });
    assert_eq!(all.len(), 3000, "all differ, on all threads and with every key");
}
