//! Client certificates: what identifies them, and the authorities that the hub trusts to have signed them.

use std::sync::Arc;

use ring::digest;
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use serde::{Deserialize, Serialize};
use x509_cert::der::Decode as _;

/// Why a text cannot be a trusted authority.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The text is not PEM, or holds no certificate.
    #[error("there is no certificate in PEM: {0}")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// It is a certificate no chain can end in.
    #[error("the certificate cannot be an authority: {0}")]
    Authority(#[source] rustls::Error),
}

/// SHA-1 and SHA-256 of a certificate, in hexadecimal: the registry may hold either.
pub(super) fn thumbprints(certificate: &[u8]) -> [String; 2] {
    [&digest::SHA1_FOR_LEGACY_USE_ONLY, &digest::SHA256].map(|algorithm| {
        let hash = digest::digest(algorithm, certificate);
        hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
    })
}

/// The common name of the certificate's subject: the device it is for.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    let name = certificate.tbs_certificate().subject().common_name().ok()??;
    Some(name.value().into_owned())
}

/// Certificates of authorities, in DER.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Vec<u8>>", into = "Vec<Vec<u8>>")]
pub(super) struct Authorities(Vec<CertificateDer<'static>>);

impl From<Vec<Vec<u8>>> for Authorities {
    fn from(certificates: Vec<Vec<u8>>) -> Self {
        Self(certificates.into_iter().map(CertificateDer::from).collect())
    }
}

impl From<Authorities> for Vec<Vec<u8>> {
    fn from(authorities: Authorities) -> Self {
        authorities.0.iter().map(|certificate| certificate.to_vec()).collect()
    }
}

impl From<Vec<CertificateDer<'static>>> for Authorities {
    fn from(certificates: Vec<CertificateDer<'static>>) -> Self {
        Self(certificates)
    }
}

impl Authorities {
    /// Reads one or more certificates.
    pub fn from_pem(pem: &str) -> Result<Self, CertificateError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let certificates = certificates.map_err(CertificateError::Pem)?;
        if certificates.is_empty() {
            return Err(CertificateError::Pem(rustls::pki_types::pem::Error::NoItemsFound));
        }
        let authorities = Self(certificates);
        authorities.roots().map_err(CertificateError::Authority)?;
        Ok(authorities)
    }

    /// Adds those that are not there yet.
    pub fn extend(&mut self, more: Self) {
        let new: Vec<_> = more.0.into_iter().filter(|one| !self.0.contains(one)).collect();
        self.0.extend(new);
    }

    /// Whether one of them has signed `chain`, the client's own certificate first, for clients and for now.
    pub fn have_signed(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((client, intermediates)) = chain.split_first() else { return false };
        let Ok(roots) = self.roots() else { return false };
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        verifier
            .is_ok_and(|verifier| verifier.verify_client_cert(client, intermediates, UnixTime::now()).is_ok())
    }

    fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        self.0.iter().try_for_each(|certificate| roots.add(certificate.clone()))?;
        Ok(roots)
    }
}
