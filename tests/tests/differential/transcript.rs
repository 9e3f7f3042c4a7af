//! Messages as lines of text. Left out is what cannot be the same twice or everywhere: keys, salts, process numbers, ports, times,
//! addresses of objects, and what depends on PostgreSQL's version.

use harness::wire::{Message, Raw};

/// Columns of the console whose values are never the same, beside averages and sums of times; nor is the account that the tests run as.
const FLEETING: [&str; 21] = [
    "recv_pos",
    "pkt_pos",
    "pkt_remain",
    "send_pos",
    "send_remain",
    "pkt_avail",
    "send_avail",
    "addr",
    "port",
    "local_port",
    "connect_time",
    "request_time",
    "wait",
    "wait_us",
    "ptr",
    "link",
    "remote_pid",
    "id",
    "maxwait",
    "maxwait_us",
    "fd",
];

/// Parameters that are compared: those that PgBouncer tracks. Which others there are depends on PostgreSQL's version, and its time
/// zone on the machine.
const TRACKED: [&str; 5] =
    ["application_name", "client_encoding", "DateStyle", "IntervalStyle", "standard_conforming_strings"];

/// What one connection has heard.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    /// The columns of the result that is being read.
    columns: Vec<String>,
}

impl Transcript {
    /// One line for each message, and one for how it ended, if it did not with the last of them.
    pub(crate) fn all(&mut self, raw: &mut Raw, messages: &[Message], ended: Option<&str>) -> Vec<String> {
        let mut lines: Vec<String> = messages.iter().map(|message| self.line(raw, message)).collect();
        lines.retain(|line| !line.is_empty());
        // parameters in any order say the same
        lines.chunk_by_mut(|a, b| a.starts_with("S ") && b.starts_with("S ")).for_each(<[String]>::sort);
        lines.extend(ended.map(str::to_owned));
        lines
    }

    fn line(&mut self, raw: &mut Raw, message: &Message) -> String {
        let tag = char::from(message.tag);
        let body = &message.body;
        match message.tag {
            b'K' => {
                let (pid, key) = body.split_first_chunk::<4>().expect("BackendKeyData has a number");
                raw.key = (i32::from_be_bytes(*pid), key.to_vec());
                format!("K of {} bytes", body.len())
            }
            b'R' => {
                let (code, rest) = body.split_first_chunk::<4>().expect("an authentication request has a code");
                match i32::from_be_bytes(*code) {
                    5 => format!("R 5 and a salt of {} bytes", rest.len()),
                    10 => format!("R 10 {:?}", String::from_utf8_lossy(rest)),
                    code => format!("R {code} and {} bytes", rest.len()),
                }
            }
            b'E' | b'N' => {
                // file, line and routine of PostgreSQL's are those of its version
                let fields = body.split(|byte| *byte == 0).filter(|field| !field.is_empty());
                let fields = fields.filter(|field| !b"FLR".contains(&field[0]));
                format!("{tag} {:?}", fields.map(String::from_utf8_lossy).collect::<Vec<_>>())
            }
            b'S' => {
                let text = String::from_utf8_lossy(body);
                let (name, value) = text.split_once('\0').expect("a parameter has a value");
                // `application_name_add_host` adds a port
                let value = value.rsplit_once(':').map_or(value, |(before, _)| before);
                if TRACKED.contains(&name) { format!("S {name}={value:?}") } else { String::new() }
            }
            b'A' => format!("A {:?}", String::from_utf8_lossy(&body[4..])),
            b'T' => self.description(body),
            b'D' => self.row(message),
            _ => format!("{tag} {:?}", String::from_utf8_lossy(body)),
        }
    }

    /// Names, and everything else as it is.
    fn description(&mut self, body: &[u8]) -> String {
        let (mut rest, mut line) = (&body[2..], "T".to_owned());
        self.columns.clear();
        while let Some(end) = rest.iter().position(|byte| *byte == 0) {
            let name = String::from_utf8_lossy(&rest[..end]).into_owned();
            let about = &rest[end + 1..end + 19];
            line.push_str(&format!(" {name}{about:?}"));
            self.columns.push(name);
            rest = &rest[end + 19..];
        }
        line
    }

    fn row(&self, message: &Message) -> String {
        let values = message.columns();
        let shown = values.iter().enumerate().map(|(place, value)| {
            let name = self.columns.get(place).map_or("", String::as_str);
            let key = if name == "value" { values[0].as_str() } else { "" };
            if is_fleeting(name) || is_fleeting(key) || key == "user" || (name != "database" && self.has_averages()) {
                "*"
            } else {
                value.as_str()
            }
        });
        format!("D {:?}", shown.collect::<Vec<_>>())
    }

    /// Whether nothing but averages is shown.
    fn has_averages(&self) -> bool {
        let has = |name: &str| self.columns.iter().any(|column| column == name);
        has("avg_bind_count") && !has("total_bind_count")
    }
}

fn is_fleeting(name: &str) -> bool {
    FLEETING.contains(&name)
        || name.starts_with("avg_")
        || ["xact_time", "query_time", "wait_time"].iter().any(|time| name.ends_with(time))
}
