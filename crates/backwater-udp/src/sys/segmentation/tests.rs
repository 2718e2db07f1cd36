use super::*;

fn to(host: u16) -> SocketAddr {
    (std::net::Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]), 9).into()
}

/// Makes what is remembered as old as that.
fn age(segmentation: &Segmentation, seconds: u64) {
    for refusal in segmentation.refusals.get().unwrap().groups.iter().flatten() {
        let what = refusal.what.load(Relaxed);
        refusal.what.store((what >> 16).saturating_sub(seconds) << 16 | what & 0xffff, Relaxed);
    }
}

#[test]
fn a_refusal_concerns_one_destination_for_a_minute() {
    let segmentation = Segmentation::new(true);
    assert!(segmentation.allows(&to(1), 1200));
    assert!(segmentation.refusals.get().is_none(), "nothing is allocated before");
    segmentation.refused(&to(1), 0);
    assert!(!segmentation.allows(&to(1), 1200) && !segmentation.allows(&to(1), 1));
    assert!(!segmentation.allows(&SocketAddr::new(to(1).ip(), 10), 1200), "its other ports have the same route");
    assert!(segmentation.allows(&to(2), 1200));
    age(&segmentation, 50);
    assert!(!segmentation.allows(&to(1), 1200));
    age(&segmentation, 10);
    assert!(segmentation.allows(&to(1), 1200));
}

#[test]
fn shorter_segments_than_those_that_were_refused_are_allowed() {
    let segmentation = Segmentation::new(true);
    segmentation.refused(&to(1), 1400);
    assert!(segmentation.allows(&to(1), 1399));
    assert!(!segmentation.allows(&to(1), 1400) && !segmentation.allows(&to(1), 9000));
    segmentation.refused(&to(1), 1300);
    assert!(segmentation.allows(&to(1), 1299) && !segmentation.allows(&to(1), 1300));
    segmentation.refused(&to(2), 70_000);
    assert!(segmentation.allows(&to(2), 60_000) && !segmentation.allows(&to(2), 70_000));
}

#[test]
fn a_full_table_forgets_the_oldest_refusal_and_no_other() {
    let segmentation = Segmentation::new(true);
    segmentation.refused(&to(0), 0);
    let refusals = segmentation.refusals.get().unwrap();
    let group = |host| std::ptr::from_ref(refusals.place(to(host).ip()).1);
    let mut others = (1..).filter(|&host| group(host) == group(0));
    let others: [u16; 4] = std::array::from_fn(|_| others.next().unwrap());
    for (kept, host) in others.into_iter().enumerate() {
        assert!(!segmentation.allows(&to(0), 1200), "{kept} others of a group of four");
        age(&segmentation, 1);
        segmentation.refused(&to(host), 0);
    }
    assert!(segmentation.allows(&to(0), 1200));
    assert!(others.iter().all(|&host| !segmentation.allows(&to(host), 1200)));
    // A refusal that is renewed takes no other's place.
    segmentation.refused(&to(others[0]), 0);
    assert!(others.iter().all(|&host| !segmentation.allows(&to(host), 1200)));
}

#[test]
fn a_kernel_without_segmentation_never_gets_it() {
    assert!(Segmentation::new(true).is_supported() && !Segmentation::new(false).is_supported());
    let segmentation = Segmentation::new(false);
    assert!(!segmentation.allows(&to(1), 1200));
    segmentation.refused(&to(1), 0);
    age(&segmentation, 60);
    assert!(!segmentation.allows(&to(1), 1200));
}
