//! What `pgsteady check` looks at beyond the configuration itself: the files that it names.

use crate::auth::Store;
use crate::config::Config;
use crate::tls::TlsState;

/// What is wrong with certificates and the list of users; empty if all can be used.
#[must_use]
pub fn files(config: &Config) -> Vec<String> {
    let certificates = TlsState::load(config).err().map(|(section, error)| format!("{section}: {error}"));
    certificates.into_iter().chain(Store::load(config).err()).collect()
}
