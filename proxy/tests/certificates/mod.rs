//! Certificates made for a test: an authority and leaves of every kind that PostgreSQL's users have.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Name, X509NameBuilder};

/// A certificate with its key.
pub(crate) struct Pair {
    pub(crate) certificate: X509,
    pub(crate) key: PKey<Private>,
}

/// What a certificate is to be.
pub(crate) struct Wanted<'a> {
    pub(crate) common_name: &'a str,
    pub(crate) dns: &'a [&'a str],
    pub(crate) ip: &'a [&'a str],
    pub(crate) is_authority: bool,
    /// 0 is X.509 v1, 2 is v3.
    pub(crate) version: i32,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        Self { common_name: "", dns: &[], ip: &[], is_authority: false, version: 2 }
    }
}

/// An authority, signed by itself.
pub(crate) fn authority(name: &str) -> Pair {
    make(&Wanted { common_name: name, is_authority: true, ..Wanted::default() }, None)
}

/// A certificate signed by `issuer`, or by itself.
pub(crate) fn make(wanted: &Wanted<'_>, issuer: Option<&Pair>) -> Pair {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("P-256");
    let key = PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key");
    let mut builder = X509::builder().expect("a builder");
    builder.set_version(wanted.version).expect("version");
    let mut serial = BigNum::new().expect("a number");
    serial.rand(64, openssl::bn::MsbOption::MAYBE_ZERO, false).expect("random");
    builder.set_serial_number(&serial.to_asn1_integer().expect("a number")).expect("serial");
    let name = subject(wanted.common_name);
    builder.set_subject_name(&name).expect("subject");
    let issuer_name = issuer.map_or(&*name, |i| i.certificate.subject_name());
    builder.set_issuer_name(issuer_name).expect("issuer");
    builder.set_pubkey(&key).expect("key");
    builder.set_not_before(&Asn1Time::days_from_now(0).expect("now")).expect("time");
    builder.set_not_after(&Asn1Time::days_from_now(2).expect("a day")).expect("time");
    if wanted.is_authority {
        builder
            .append_extension(BasicConstraints::new().critical().ca().build().expect("extension"))
            .expect("extension");
    }
    if !wanted.dns.is_empty() || !wanted.ip.is_empty() {
        let mut names = SubjectAlternativeName::new();
        for dns in wanted.dns {
            names.dns(dns);
        }
        for ip in wanted.ip {
            names.ip(ip);
        }
        let extension = names.build(&builder.x509v3_context(None, None)).expect("names");
        builder.append_extension(extension).expect("names");
    }
    builder.sign(issuer.map_or(&key, |i| &i.key), MessageDigest::sha256()).expect("signature");
    Pair { certificate: builder.build(), key }
}

fn subject(common_name: &str) -> X509Name {
    let mut name = X509NameBuilder::new().expect("a name");
    name.append_entry_by_nid(Nid::ORGANIZATIONNAME, "pgsteady tests").expect("a name");
    if !common_name.is_empty() {
        name.append_entry_by_nid(Nid::COMMONNAME, common_name).expect("a name");
    }
    name.build()
}

impl Pair {
    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        use std::os::unix::fs::PermissionsExt;

        let files = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&files.0, self.certificate.to_pem().expect("PEM")).expect("a file");
        std::fs::write(&files.1, self.key.private_key_to_pem_pkcs8().expect("PEM")).expect("a file");
        std::fs::set_permissions(&files.1, PermissionsExt::from_mode(0o600)).expect("permissions");
        files
    }
}
