//! An event as one JSON object on a line.

use std::{
    error::Error,
    fmt::{self, Debug, Write},
};

use serde::Serialize;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Spans are not written: the project has none.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = humantime::format_rfc3339_nanos(super::now());
        let severity = event.metadata().level();
        let Fields { message, others } = fields;
        let message = if message.is_empty() { "\"\"" } else { &message };
        writeln!(out, r#"{{"time":"{time}","severity":"{severity}","message":{message}{others}}}"#)
    }
}

#[derive(Default)]
struct Fields {
    /// As JSON.
    message: String,
    /// The members behind it, each after a comma.
    others: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: impl Serialize) {
        let Ok(value) = serde_json::to_string(&value) else { return };
        let name = match field.name() {
            "message" => {
                self.message = value;
                return;
            }
            // Two members of one name would leave it to the reader which of them counts.
            "time" => "time_",
            "severity" => "severity_",
            name => name,
        };
        // Writing into a string does not fail; a name is an identifier, or a string of the program's own.
        let _ = write!(self.others, ",{}:{value}", serde_json::Value::from(name));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field, value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::{Registry, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let make = buffer.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(Json).with_writer(move || make.clone());
        tracing::subscriber::with_default(Registry::default().with(layer), log);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn time_severity_and_message_come_first() {
        let error = io::Error::other("no");
        let line = line(|| {
            tracing::warn!(zeta = 1, alpha = "x\"\n", ok = true, half = 0.5, time = 3, %error, some = ?Some(1), "hello {}", 3);
        });
        let (time, rest) = line.strip_prefix("{\"time\":\"").unwrap().split_once('"').unwrap();
        assert!(
            humantime::parse_rfc3339(time).is_ok() && time.len() == "2026-01-01T00:00:00.000000000Z".len(),
            "{time}"
        );
        let expected = r#","severity":"WARN","message":"hello 3","zeta":1,"alpha":"x\"\n","ok":true,"half":0.5,"time_":3,"error":"no","some":"Some(1)"}"#;
        assert_eq!(rest, format!("{expected}\n"));
    }

    #[test]
    fn an_event_without_a_message_has_an_empty_one() {
        assert!(
            line(|| tracing::info!(a = f64::NAN)).ends_with("\"severity\":\"INFO\",\"message\":\"\",\"a\":null}\n")
        );
    }
}
