use std::fmt::{self, Write};

/// Metrics in Prometheus' text format, version 0.0.4: add the values, then print it.
///
/// Names and label names are the program's own and are printed as they are; label values and help may be anything.
#[derive(Debug, Default)]
pub struct Metrics {
    families: Vec<Family>,
}

/// What kind of metric a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows; its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Its samples' names end in `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// The samples of one metric.
#[derive(Debug)]
pub struct Family {
    name: String,
    kind: MetricKind,
    help: &'static str,
    lines: String,
}

/// The media type of the text.
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Metrics {
    /// The family of this name: the one that is there already, or a new one. Those of one name come out together, in the
    /// order of their first use.
    pub fn family(&mut self, name: &str, kind: MetricKind, help: &'static str) -> &mut Family {
        let at = self.families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            self.families.push(Family { name: name.to_owned(), kind, help, lines: String::new() });
            self.families.len() - 1
        });
        &mut self.families[at]
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &str, help: &'static str, value: u64) {
        self.family(name, MetricKind::Counter, help).add("", &[], value as f64);
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &'static str, value: f64) {
        self.family(name, MetricKind::Gauge, help).add("", &[], value);
    }
}

impl Family {
    /// Adds a sample: what its name has after the family's (nothing, but for a histogram), its labels and its value.
    pub fn add(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) -> &mut Self {
        // Writing into a string does not fail.
        let _ = self.write(suffix, labels, value);
        self
    }

    fn write(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) -> fmt::Result {
        let out = &mut self.lines;
        write!(out, "{}{suffix}", self.name)?;
        for (i, (name, value)) in labels.iter().enumerate() {
            let before = if i == 0 { '{' } else { ',' };
            write!(out, "{before}{name}=\"")?;
            for c in value.chars() {
                match c {
                    '\\' => out.push_str(r"\\"),
                    '"' => out.push_str("\\\""),
                    '\n' => out.push_str(r"\n"),
                    c => out.push(c),
                }
            }
            out.push('"');
        }
        out.push_str(if labels.is_empty() { " " } else { "} " });
        if value.is_infinite() {
            out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
        } else {
            write!(out, "{value}")?;
        }
        out.push('\n');
        Ok(())
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Family { name, kind, help, lines } in &self.families {
            if !help.is_empty() {
                writeln!(f, "# HELP {name} {}", help.replace('\\', r"\\").replace('\n', r"\n"))?;
            }
            let kind = match kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            write!(f, "# TYPE {name} {kind}\n{lines}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_come_out_together() {
        let mut m = Metrics::default();
        m.counter("a_total", "How many.", 3);
        m.family("d_total", MetricKind::Counter, "").add("", &[("reason", "x")], 1.0);
        m.gauge("b", "Now.", 0.25);
        m.family("d_total", MetricKind::Counter, "").add("", &[("reason", "y"), ("by", "z")], 2.0);
        let text = "# HELP a_total How many.\n# TYPE a_total counter\na_total 3\n\
                    # TYPE d_total counter\nd_total{reason=\"x\"} 1\nd_total{reason=\"y\",by=\"z\"} 2\n\
                    # HELP b Now.\n# TYPE b gauge\nb 0.25\n";
        assert_eq!(m.to_string(), text);
    }

    #[test]
    fn a_histogram_has_its_suffixes() {
        let mut m = Metrics::default();
        let h = m.family("s", MetricKind::Histogram, "");
        h.add("_bucket", &[("le", "0.5")], 1.0).add("_bucket", &[("le", "+Inf")], 2.0).add("_sum", &[], 1.5);
        h.add("_count", &[], 2.0);
        let text = "# TYPE s histogram\ns_bucket{le=\"0.5\"} 1\ns_bucket{le=\"+Inf\"} 2\ns_sum 1.5\ns_count 2\n";
        assert_eq!(m.to_string(), text);
    }

    #[test]
    fn what_the_format_would_misread_is_escaped() {
        let mut m = Metrics::default();
        m.family("a", MetricKind::Gauge, "a \\ and\na line").add("", &[("v", "\"\\\n}é")], f64::INFINITY);
        let text = "# HELP a a \\\\ and\\na line\n# TYPE a gauge\na{v=\"\\\"\\\\\\n}é\"} +Inf\n";
        assert_eq!(m.to_string(), text);
        for (value, text) in
            [(f64::NAN, "NaN"), (f64::NEG_INFINITY, "-Inf"), (1e15, "1000000000000000"), (5e-7, "0.0000005")]
        {
            let mut m = Metrics::default();
            m.gauge("a", "", value);
            assert_eq!(m.to_string(), format!("# TYPE a gauge\na {text}\n"));
        }
    }
}
