//! PgBouncer's manners: its command line, its `pgbouncer.ini`, its log. The ini becomes the same `Config` that TOML makes; what
//! serves the clients is the same program.

mod cli;
mod connstr;
mod handover;
mod import;
mod ini;
mod journal;
mod load;
pub(crate) mod log;
mod process;
mod run;
mod settings;
mod tls;
mod translate;
mod value;

pub use cli::{is_called, main};
pub use connstr::{DatabaseLine, PeerLine, UserLine};
pub(crate) use handover::{Carried, Inheritance};
pub use import::import;
pub(crate) use load::errno_text;
pub use load::{Grave, Loaded, Said};
pub use settings::{SETTINGS, Setting, Settings};
pub use translate::Untranslatable;
pub use value::{AuthType, Seconds};

/// The version whose manners these are, as `SHOW VERSION` and `--version` say it.
pub const VERSION: &str = "PgBouncer 1.25.2";
