//! What PgBouncer says of TLS settings that are not good, before any file is read and after.

use super::{AuthType, Settings};
use crate::config::SslMode;
use crate::tls::TlsError;

/// What is wrong with the settings, or with the files that they name, which are read only if the settings are good.
pub(super) fn wrong(settings: &Settings, read: impl FnOnce() -> Result<(), TlsError>) -> Option<String> {
    let of_files = || read().err().map(|error| words(&error));
    mistake(settings).map(str::to_owned).or_else(of_files)
}

/// What is wrong with the settings themselves.
fn mistake(settings: &Settings) -> Option<&'static str> {
    let mode = settings.client_tls_sslmode;
    let lacks = |file: &str| file.is_empty();
    if mode != SslMode::Disable && (lacks(&settings.client_tls_key_file) || lacks(&settings.client_tls_cert_file)) {
        return Some(
            "To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set.",
        );
    }
    if settings.auth_type == AuthType::Cert {
        if mode != SslMode::VerifyFull {
            return Some("auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL");
        }
        return lacks(&settings.client_tls_ca_file).then_some("auth_type=cert requires client_tls_ca_file");
    }
    let verifies = mode == SslMode::VerifyFull;
    (verifies && lacks(&settings.client_tls_ca_file)).then_some("client_tls_sslmode requires client_tls_ca_file")
}

/// Why the files cannot be used.
fn words(error: &TlsError) -> String {
    let TlsError::File { option, file, said } = error else { return format!("TLS setup failed: {error}") };
    let what = match *option {
        "certificate" => "failed to load certificate file",
        "key" => "failed to load private key file",
        _ => return format!("TLS setup failed: failed to load CA: {said}"),
    };
    let why = if file.exists() { said.as_str() } else { "(null)" }; // it asks OpenSSL, which was not asked to open it
    format!("TLS setup failed: {what} \"{}\": {why}", file.display())
}
