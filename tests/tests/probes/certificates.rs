//! An authority of the tests' own and what it signs.

use crate::Host;
use lb_tests::lab::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use std::path::PathBuf;

/// Certificate and key of a server, as files.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Its certificate.
    pub file: PathBuf,
}

impl Authority {
    pub fn new(host: &Host) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let file = host.file("ca.pem", issuer.pem());
        Ok(Self { issuer, file })
    }

    /// A certificate for `name` that is good until the year.
    pub fn sign(&self, host: &Host, name: &str, year: i32) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair {
            certificate: host.file(&format!("{name}-{year}.pem"), certificate.pem()),
            key: host.file(&format!("{name}-{year}.key"), key.serialize_pem()),
        }
    }
}
