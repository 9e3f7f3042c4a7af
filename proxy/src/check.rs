//! What `pgsteady check` looks at beyond the configuration itself: the files that it names.

use crate::config::Config;
use crate::tls::TlsState;

/// What is wrong with certificates; empty if all can be used.
#[must_use]
pub fn files(config: &Config) -> Vec<String> {
    TlsState::load(config).err().into_iter().map(|(section, error)| format!("{section}: {error}")).collect()
}
