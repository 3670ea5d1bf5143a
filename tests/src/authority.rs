//! Certificates for tests of TLS.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A certificate authority and what it signs, as files.
pub struct Authority {
    dir: PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    /// NAME.crt in that directory.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn new(dir: &Path, name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(dir.join(format!("{name}.crt")), certificate.pem()).expect("a file");
        Self { dir: dir.to_owned(), issuer: rcgen::Issuer::new(params, key) }
    }

    /// NAME.crt and NAME.key for a common name and alternative names.
    ///
    /// # Panics
    /// Where they cannot be written, or a name is none.
    pub fn sign(&self, file: &str, common: &str, others: &[&str]) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let others: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(others).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.dir.join(format!("{file}.crt")), certificate.pem()).expect("a file");
        fs::write(self.dir.join(format!("{file}.key")), key.serialize_pem()).expect("a file");
    }
}
