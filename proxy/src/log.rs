//! The log: events of `tracing` on standard error, a line each, as text or JSON. No event is made here.
//!
//! Users, databases and applications choose their own names: a control character in one of them could forge a line or
//! command a terminal. Whatever the event, each of them is written as an escape.

use std::io::{self, Write};

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::{Log, LogFormat};

/// The log of this process; keeps the handle by which its level is changed.
#[derive(Debug)]
pub struct Started {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Started {
    /// Takes a new level at a reload.
    ///
    /// # Errors
    /// The level is not understood; the old one stays in force.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        let filter = filter(level)?;
        self.filter.reload(filter).map_err(|e| e.to_string())
    }
}

/// Reads a level such as `info` or `info,proxy::pool=debug`.
///
/// # Errors
/// What is wrong with it.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    // Lines in PgBouncer's words are for those who called the program by its name.
    let quiet = format!("{}=off", crate::pgbouncer::log::TARGET).parse();
    let filter = EnvFilter::try_new(level).map_err(|e| e.to_string())?;
    Ok(filter.add_directive(quiet.expect("a directive of ours")))
}

/// Begins to log to standard error, for the whole process.
///
/// # Errors
/// The level is not understood, or the log has been started already.
pub fn start(options: &Log) -> Result<Started, String> {
    let (subscriber, started) = subscriber(options, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|e| e.to_string())?;
    Ok(started)
}

/// The subscriber that writes to `writer`.
fn subscriber<W>(options: &Log, writer: W) -> Result<(impl Subscriber + Send + Sync, Started), String>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(&options.level)?);
    let writer = OneLine { inner: writer, json: options.format == LogFormat::Json };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let lines = match options.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let subscriber = Registry::default().with(filter).with(lines);
    Ok((subscriber, Started { filter: handle }))
}

/// Writes an event as one line. An event comes as one buffer that ends with its line feed.
struct OneLine<W> {
    inner: W,
    json: bool,
}

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for OneLine<W> {
    type Writer = Line<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Line { inner: self.inner.make_writer(), json: self.json }
    }
}

struct Line<W> {
    inner: W,
    json: bool,
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = String::with_capacity(text.len() + 1);
        for c in text.chars() {
            if !is_dangerous(c) {
                line.push(c);
            } else if self.json {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| line.push_str(&format!("\\u{unit:04x}")));
            } else {
                line.extend(c.escape_default());
            }
        }
        line.push('\n');
        self.inner.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Whether a character can end a line, command a terminal or turn the direction of text.
pub(crate) fn is_dangerous(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written for events that carry this text in every way an event can.
    fn logged(format: LogFormat, text: &str) -> String {
        let memory = Memory::default();
        let to = memory.clone();
        let options = Log { format, level: "info".to_owned() };
        let (subscriber, _) = subscriber(&options, move || to.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("client", user = text, shown = %text).entered();
            tracing::info!("{text}");
            tracing::warn!(application = text, shown = %text, debug = ?text, "login");
        });
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const FORGED: &str = "a\n2026-01-01T00:00:00Z  INFO forged\r\u{1b}[2J\0\u{7f}\u{85}\u{2028}\u{202e}z\t";

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let log = logged(format, FORGED);
            assert_eq!(log.lines().count(), 2, "{log}");
            let bad: Vec<_> = log.replace('\n', "").chars().filter(|c| is_dangerous(*c)).collect();
            assert!(bad.is_empty(), "{log:?}");
            assert!(log.contains("forged"), "the text itself is there: {log}");
        }
    }

    #[test]
    fn json_lines_are_json_and_give_the_text_back() {
        for line in logged(LogFormat::Json, FORGED).lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["span"]["user"], FORGED);
        }
    }

    #[test]
    fn ordinary_text_is_left_as_it_is() {
        assert!(logged(LogFormat::Text, "Zürich \"q\" \\").contains("INFO client{user=\"Zürich"));
    }

    #[test]
    fn the_level_can_be_changed_and_a_bad_one_changes_nothing() {
        let memory = Memory::default();
        let to = memory.clone();
        let options = Log { format: LogFormat::Text, level: "warn".to_owned() };
        let (subscriber, started) = subscriber(&options, move || to.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("one");
            assert!(started.set_level("proxy=nonsense").is_err());
            tracing::info!("two");
            started.set_level("info").unwrap();
            tracing::info!("three");
        });
        let log = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("three") && !log.contains("one") && !log.contains("two"), "{log}");
    }
}
