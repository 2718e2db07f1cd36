//! Medians and their intervals.

/// A median and the interval that it is known to lie in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// How sure the interval is, where there are values enough: five give 0.94 with all of them.
const CONFIDENCE: f64 = 0.9;

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The median with the interval between two order statistics that holds the true median with [`CONFIDENCE`], whatever
/// the distribution; with too few values, between the least and the greatest.
pub(crate) fn estimate(values: &[f64]) -> Estimate {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let cut = (0..n / 2).rev().find(|&k| coverage(n, k) >= CONFIDENCE).unwrap_or(0);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    Estimate { median: median(values), low: at(cut), high: at(n.wrapping_sub(1 + cut)) }
}

/// How likely the median lies between the values `k` from each end: the fair coin falls neither way `k` times or fewer.
fn coverage(n: usize, k: usize) -> f64 {
    let mut term = 0.5f64.powi(n as i32);
    let mut tail = 0.0;
    for i in 0..=k {
        tail += term;
        term *= (n - i) as f64 / (i + 1) as f64;
    }
    1.0 - 2.0 * tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn intervals_narrow_with_values() {
        let values = |n: usize| (1..=n).map(|i| i as f64).collect::<Vec<_>>();
        assert_eq!(estimate(&values(1)), Estimate { median: 1.0, low: 1.0, high: 1.0 });
        assert_eq!(estimate(&values(5)), Estimate { median: 3.0, low: 1.0, high: 5.0 });
        assert_eq!(estimate(&values(8)), Estimate { median: 4.5, low: 2.0, high: 7.0 });
        assert_eq!(estimate(&values(11)), Estimate { median: 6.0, low: 3.0, high: 9.0 });
    }

    #[test]
    fn coverage_is_the_binomial() {
        assert!((coverage(5, 0) - 0.9375).abs() < 1e-12);
        assert!((coverage(8, 1) - (1.0 - 2.0 * 9.0 / 256.0)).abs() < 1e-12);
    }
}
