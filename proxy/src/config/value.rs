//! How a TOML value becomes a value of ours, and what is said when it does not.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::Secret;

/// A type that an option may have.
pub(super) trait Value: Sized {
    /// What may be written, as a phrase ("a duration such as \"30s\"").
    fn allowed() -> String;
    /// The value, or what is wrong with it (empty: it is of the wrong type).
    fn read(value: &DeValue<'_>) -> Result<Self, String>;
    /// The value of a key that is absent and has no default; `None` if the key must be there.
    fn absent() -> Option<Self> {
        None
    }
}

/// A number of bytes, written `"64MiB"`, `"512KiB"`, `"1GiB"` or `"4096B"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// A host and a port to listen on; the host may be `*` for all interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    /// Name, IP address (without brackets) or `*`.
    pub host: String,
    /// Port; 0 lets the system choose one.
    pub port: u16,
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl ListenAddress {
    /// The socket addresses: of a name all that it has, of `*` both families. Asks the resolver, which may block.
    ///
    /// # Errors
    /// The name has no address.
    pub fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        if self.host == "*" {
            return Ok(vec![
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port)),
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port)),
            ]);
        }
        let mut addresses: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        addresses.dedup();
        Ok(addresses)
    }
}

/// The permission bits of a file, written in octal: `"0660"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl From<FileMode> for u32 {
    fn from(mode: FileMode) -> Self {
        mode.0
    }
}

fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    let text = value.as_str().ok_or_else(String::new)?;
    if text.contains('\0') { Err("contains a zero byte".to_owned()) } else { Ok(text) }
}

impl Value for String {
    fn allowed() -> String {
        "a string".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value).map(str::to_owned)
    }
}

impl Value for PathBuf {
    fn allowed() -> String {
        "a path".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        match text(value)? {
            "" => Err("is empty".to_owned()),
            path => Ok(path.into()),
        }
    }
}

impl Value for Secret {
    fn allowed() -> String {
        "a string".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        match text(value)? {
            "" => Err("is empty".to_owned()),
            secret => Ok(Self::new(secret)),
        }
    }
}

impl Value for Duration {
    fn allowed() -> String {
        "a duration such as \"250ms\", \"30s\" or \"5min\"".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        if value.is_integer() || value.is_float() {
            return Err("has no unit".to_owned());
        }
        let duration = humantime::parse_duration(text(value)?).map_err(|e| e.to_string())?;
        let longest = Duration::from_secs(366 * 24 * 3600);
        if duration > longest { Err("is longer than a year".to_owned()) } else { Ok(duration) }
    }
}

impl Value for Size {
    fn allowed() -> String {
        "a size such as \"512KiB\", \"64MiB\" or \"1GiB\"".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        if value.is_integer() || value.is_float() {
            return Err("has no unit".to_owned());
        }
        let text = text(value)?.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "b" => 1,
            "kib" | "kb" => 1 << 10,
            "mib" | "mb" => 1 << 20,
            "gib" | "gb" => 1 << 30,
            _ => return Err("has an unknown unit".to_owned()),
        };
        let number: usize = number.parse().map_err(|_| "is not a number with a unit".to_owned())?;
        number.checked_mul(unit).map(Size).ok_or_else(|| "is too large".to_owned())
    }
}

impl Value for bool {
    fn allowed() -> String {
        "true or false".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().ok_or_else(String::new)
    }
}

fn integer<T: TryFrom<i64>>(value: &DeValue<'_>) -> Result<T, String> {
    let number = value.as_integer().ok_or_else(String::new)?;
    let out_of_range = || "is out of range".to_owned();
    let number = i64::from_str_radix(number.as_str(), number.radix()).map_err(|_| out_of_range())?;
    T::try_from(number).map_err(|_| out_of_range())
}

/// A count; more than fits 32 bits is a mistake of the writer.
impl Value for usize {
    fn allowed() -> String {
        u32::allowed()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let count: u32 = integer(value)?;
        Self::try_from(count).map_err(|_| "is out of range".to_owned())
    }
}

impl Value for u32 {
    fn allowed() -> String {
        "a whole number from 0 to 4294967295".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        integer(value)
    }
}

impl Value for u16 {
    fn allowed() -> String {
        "a whole number from 0 to 65535".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        integer(value)
    }
}

impl Value for ListenAddress {
    fn allowed() -> String {
        "\"HOST:PORT\" such as \"127.0.0.1:6432\", \"[::1]:6432\" or \"*:6432\"".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let text = text(value)?;
        let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
        let port = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if bare.is_empty() {
            return Err("has no host".to_owned());
        }
        if bare.contains(':') && bare == host {
            return Err("has an IPv6 address without brackets".to_owned());
        }
        Ok(Self { host: bare.to_owned(), port })
    }
}

impl Value for topology::Endpoint {
    fn allowed() -> String {
        "\"http://HOST:PORT\" or \"https://HOST:PORT\" such as \"http://10.0.0.1:2379\"".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value)?.parse()
    }
}

impl Value for FileMode {
    fn allowed() -> String {
        "permission bits in octal such as \"0660\"".to_owned()
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let mode = u32::from_str_radix(text(value)?, 8).map_err(|_| "is not octal".to_owned())?;
        if mode > 0o777 { Err("has more than permission bits".to_owned()) } else { Ok(Self(mode)) }
    }
}

/// An absent list is an empty one; a list that must have members has a default or a check of its own.
impl<T: Value> Value for Vec<T> {
    fn allowed() -> String {
        format!("a list, each {}", T::allowed())
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let list = value.as_array().ok_or_else(String::new)?;
        list.iter().map(|item| T::read(item.get_ref())).collect()
    }
}

/// Options that may be absent. A duration of zero means "never", as in PgBouncer.
macro_rules! optional {
    ($($type:ty),*) => {$(
        impl Value for Option<$type> {
            fn allowed() -> String {
                <$type>::allowed()
            }
            fn read(value: &DeValue<'_>) -> Result<Self, String> {
                <$type>::read(value).map(Some)
            }
            fn absent() -> Option<Self> {
                Some(None)
            }
        }
    )*};
}

optional!(String, PathBuf, Secret, usize, u16);

impl Value for Option<Duration> {
    fn allowed() -> String {
        format!("{}, or \"0s\" for never", Duration::allowed())
    }
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        Duration::read(value).map(|duration| Some(duration).filter(|d| !d.is_zero()))
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// An option that takes one word of a few.
macro_rules! words {
    ($(#[doc = $about:literal])+ $name:ident { $( $(#[doc = $doc:literal])+ $word:literal => $variant:ident ),+ $(,)? }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl $name {
            /// The words, in the order of the documentation.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The word for this value.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }

            /// The value for a word.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $( $word => Some(Self::$variant), )+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }

        impl $crate::config::value::Value for $name {
            fn allowed() -> String {
                format!("one of {}", Self::WORDS.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(", "))
            }
            fn read(value: &toml::de::DeValue<'_>) -> Result<Self, String> {
                let word = value.as_str().ok_or_else(String::new)?;
                Self::from_word(word).ok_or_else(|| format!("{word:?} is unknown"))
            }
        }

        impl $crate::config::value::Value for Option<$name> {
            fn allowed() -> String {
                <$name as $crate::config::value::Value>::allowed()
            }
            fn read(value: &toml::de::DeValue<'_>) -> Result<Self, String> {
                <$name as $crate::config::value::Value>::read(value).map(Some)
            }
            fn absent() -> Option<Self> {
                Some(None)
            }
        }
    };
}
pub(super) use words;

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Value>(toml: &str) -> Result<T, String> {
        T::read(DeValue::parse(toml).unwrap().get_ref())
    }

    #[test]
    fn durations_and_sizes_need_a_unit() {
        assert_eq!(read::<Duration>("\"250ms\""), Ok(Duration::from_millis(250)));
        assert_eq!(read::<Duration>("30"), Err("has no unit".to_owned()));
        assert!(read::<Duration>("\"30\"").is_err());
        assert!(read::<Duration>("\"9000000000000s\"").is_err());
        assert_eq!(read::<Option<Duration>>("\"0s\""), Ok(None));
        assert_eq!(read::<Size>("\"64MiB\""), Ok(Size(64 << 20)));
        assert_eq!(read::<Size>("\"1 kib\""), Ok(Size(1024)));
        for bad in
            ["64", "\"64\"", "\"MiB\"", "\"-1MiB\"", "\"99999999999999999999GiB\"", "\"18446744073709551615GiB\""]
        {
            assert!(read::<Size>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_keep_their_range() {
        assert_eq!(read::<u16>("6432"), Ok(6432));
        assert_eq!(read::<u16>("0x10"), Ok(16));
        assert_eq!(read::<u16>("65536"), Err("is out of range".to_owned()));
        assert_eq!(read::<u32>("-1"), Err("is out of range".to_owned()));
        assert_eq!(read::<u32>("99999999999999999999"), Err("is out of range".to_owned()));
        assert_eq!(read::<u32>("\"1\""), Err(String::new()));
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        let address = |host: &str, port| Ok(ListenAddress { host: host.to_owned(), port });
        assert_eq!(read::<ListenAddress>("\"127.0.0.1:6432\""), address("127.0.0.1", 6432));
        assert_eq!(read::<ListenAddress>("\"[::1]:0\""), address("::1", 0));
        assert_eq!(read::<ListenAddress>("\"*:6432\""), address("*", 6432));
        let any = ListenAddress { host: "*".to_owned(), port: 1 }.resolve().unwrap();
        assert_eq!(any.iter().map(ToString::to_string).collect::<Vec<_>>(), ["[::]:1", "0.0.0.0:1"]);
        for bad in ["\"localhost\"", "\":6432\"", "\"::1:6432\"", "\"h:65536\"", "\"h:x\"", "6432", "\"h:1\\u0000\""] {
            assert!(read::<ListenAddress>(bad).is_err(), "{bad}");
        }
    }
}
