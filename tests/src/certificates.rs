//! Certificates for tests: an authority, and what it signs.

use std::path::PathBuf;

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use crate::folder::Folder;

/// A key, and the certificate for it.
#[derive(Debug)]
pub struct Certificate {
    key: PKey<Private>,
    certificate: X509,
}

impl Certificate {
    /// An authority of its own.
    #[must_use]
    pub fn authority(name: &str) -> Self {
        Self::new(name, None)
    }

    /// A certificate for this name, as CN and, if it is a host, as DNS name, signed by this authority.
    #[must_use]
    pub fn sign(&self, name: &str) -> Self {
        Self::new(name, Some(self))
    }

    fn new(name: &str, issuer: Option<&Self>) -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("the curve is known");
        let key = EcKey::generate(&group).and_then(PKey::from_ec_key).expect("a key can be made");
        let mut subject = X509NameBuilder::new().expect("a name");
        subject.append_entry_by_nid(Nid::COMMONNAME, name).expect("a common name");
        let subject = subject.build();
        let mut builder = X509::builder().expect("a builder");
        let issuer_name = issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name());
        builder.set_version(2).and_then(|()| builder.set_issuer_name(issuer_name)).expect("an issuer");
        builder.set_subject_name(&subject).and_then(|()| builder.set_pubkey(&key)).expect("a subject");
        Self::number_and_dates(&mut builder);
        if issuer.is_none() {
            let authority = BasicConstraints::new().critical().ca().build().expect("an extension");
            builder.append_extension(authority).expect("an extension");
        } else {
            let context = builder.x509v3_context(None, None);
            let names = SubjectAlternativeName::new().dns(name).build(&context).expect("an extension");
            builder.append_extension(names).expect("an extension");
        }
        let signer = issuer.map_or(&key, |issuer| &issuer.key);
        builder.sign(signer, MessageDigest::sha256()).expect("a signature");
        Self { certificate: builder.build(), key }
    }

    fn number_and_dates(builder: &mut X509Builder) {
        let mut number = BigNum::new().expect("a number");
        number.rand(120, MsbOption::MAYBE_ZERO, false).expect("a random number");
        let number = number.to_asn1_integer().expect("a number");
        let (from, to) = (Asn1Time::days_from_now(0), Asn1Time::days_from_now(2));
        builder.set_serial_number(&number).expect("a number");
        builder.set_not_before(&from.expect("today")).expect("a date");
        builder.set_not_after(&to.expect("in two days")).expect("a date");
    }

    /// Writes `NAME.crt` and `NAME.key` into a folder; the key is readable for its owner alone.
    ///
    /// # Panics
    /// When that cannot be written.
    pub fn write(&self, folder: &Folder, name: &str) -> (PathBuf, PathBuf) {
        use std::os::unix::fs::PermissionsExt;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("PEM is text");
        let certificate = folder.write(&format!("{name}.crt"), &text(self.certificate.to_pem().expect("PEM")));
        let key = folder.write(&format!("{name}.key"), &text(self.key.private_key_to_pem_pkcs8().expect("PEM")));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("our own file's mode can be set");
        crate::folder::give(&key);
        (certificate, key)
    }
}
