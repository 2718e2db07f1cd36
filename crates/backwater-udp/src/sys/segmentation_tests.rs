use super::*;

#[test]
fn a_driver_that_refuses_turns_segmentation_off_for_a_minute() {
    let segmentation = Segmentation::new(true);
    assert!(segmentation.is_on());
    segmentation.failed();
    assert!(!segmentation.is_on());
    let left = segmentation.off_until.load(Relaxed) - now();
    assert!((50..=60).contains(&left), "{left} s");
    segmentation.off_until.store(now(), Relaxed);
    assert!(segmentation.is_on());
    assert_eq!(segmentation.off_until.load(Relaxed), 0);
}

#[test]
fn a_kernel_without_segmentation_never_gets_it() {
    let segmentation = Segmentation::new(false);
    segmentation.failed();
    assert!(!segmentation.is_on());
    assert_eq!(segmentation.off_until.load(Relaxed), u64::MAX);
}
