//! Whether a server's certificate is for the host that was meant: libpq's rules (`fe-secure-common.c`), for verify-full.

use std::net::IpAddr;

use openssl::x509::X509Ref;

use super::TlsError;
use super::clients::common_name;

/// Names of one certificate that are looked at.
const MAX_NAMES: usize = 1000;
/// Names shown in an error.
const MAX_SHOWN: usize = 3;

/// Checks the alternative names; the common name counts only if none of them is of the host's own kind.
pub(super) fn check(certificate: &X509Ref, host: &str) -> Result<(), TlsError> {
    let address: Option<IpAddr> = host.parse().ok();
    let mut shown = Vec::new();
    let mut use_common_name = true;
    for name in certificate.subject_alt_names().into_iter().flatten().take(MAX_NAMES) {
        if let Some(dns) = name.dnsname() {
            if is_match(dns, host) {
                return Ok(());
            }
            use_common_name &= address.is_some();
            shown.push(dns.to_owned());
        } else if let Some(bytes) = name.ipaddress() {
            let ip = read_address(bytes);
            if ip.is_some() && ip == address {
                return Ok(());
            }
            use_common_name &= address.is_none();
            shown.extend(ip.map(|ip| ip.to_string()));
        }
    }
    let common_name = common_name(certificate).filter(|_| use_common_name);
    if common_name.as_deref().is_some_and(|name| is_match(name, host)) {
        return Ok(());
    }
    shown.extend(common_name);
    let more = shown.len().saturating_sub(MAX_SHOWN);
    let mut names = shown.iter().take(MAX_SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        names.push_str("nobody");
    } else if more > 0 {
        names.push_str(&format!(" and {more} other names"));
    }
    Err(TlsError::WrongName { host: host.to_owned(), names })
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Equal but for ASCII case, or `*.rest` with exactly one label in the place of the star.
fn is_match(pattern: &str, host: &str) -> bool {
    if pattern.is_empty() || host.is_empty() || pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(rest) = pattern.strip_prefix("*.").filter(|rest| !rest.is_empty()) else { return false };
    let Some((label, host_rest)) = host.split_once('.') else { return false };
    !label.is_empty() && host.parse::<IpAddr>().is_err() && host_rest.eq_ignore_ascii_case(rest)
}

#[cfg(test)]
mod tests {
    use super::is_match;

    #[test]
    fn a_star_is_one_label_and_the_leftmost() {
        assert!(is_match("db.example.com", "DB.example.com"));
        assert!(is_match("*.example.com", "db.example.com"));
        for (pattern, host) in [
            ("*.example.com", "a.db.example.com"),
            ("*.example.com", "example.com"),
            ("*.example.com", ".example.com"),
            ("d*.example.com", "db.example.com"),
            ("db.*.com", "db.example.com"),
            ("*", "db"),
            ("*.", "db."),
            ("", ""),
            ("*.0.0.1", "127.0.0.1"),
            ("db.example.com\0.evil.org", "db.example.com"),
        ] {
            assert!(!is_match(pattern, host), "{pattern:?} {host:?}");
        }
    }
}
