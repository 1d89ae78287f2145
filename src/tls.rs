//! TLS as a client: which roots are trusted, and which certificate is shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file could not be read, or is not PEM.
    #[error("cannot read {} as PEM", path.display())]
    ReadPem {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A PEM file without a certificate.
    #[error("no certificate in {}", path.display())]
    NoCertificate {
        /// Which file.
        path: PathBuf,
    },
    /// A root that rustls does not take.
    #[error("a root certificate in {} is not usable", path.display())]
    UnusableRoot {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The system has no roots at all.
    #[error("this system has no root certificates: install ca-certificates, or set a ca_file")]
    NoSystemRoots,
    /// Certificate and key do not belong together, or are of an unknown kind.
    #[error("the client certificate {} and its key {} are not usable together", certificate_file.display(), key_file.display())]
    UnusableIdentity {
        /// The chain.
        certificate_file: PathBuf,
        /// The key.
        key_file: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// TLS 1.2 and 1.3 are not both there: a fault of the build.
    #[error("the TLS library lacks a protocol version")]
    Versions(#[source] rustls::Error),
}

/// Whose signatures are trusted.
#[derive(Clone, Copy, Debug)]
pub enum Roots<'a> {
    /// The system's certificate store.
    System,
    /// Only the certificates in this PEM file.
    File(&'a Path),
}

impl<'a> From<Option<&'a Path>> for Roots<'a> {
    fn from(ca_file: Option<&'a Path>) -> Self {
        ca_file.map_or(Self::System, Self::File)
    }
}

/// A client certificate and its key, as files.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// PEM: the chain, leaf first.
    pub certificate_file: &'a Path,
    /// PEM: PKCS#8, PKCS#1 or SEC1.
    pub key_file: &'a Path,
}

/// A configuration for TLS 1.2 and 1.3 on ring. Reads files: not for an async thread. Nothing is
/// installed for the whole process.
///
/// # Errors
/// A file that is missing or not understood, or a system without roots.
pub fn client_config(roots: Roots<'_>, identity: Option<Identity<'_>>) -> Result<ClientConfig, TlsError> {
    // Microsoft's endpoints speak 1.2 everywhere and 1.3 in places.
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .with_root_certificates(load_roots(roots)?);
    let Some(identity) = identity else { return Ok(builder.with_no_client_auth()) };

    let chain = certificates(identity.certificate_file)?;
    let key = PrivateKeyDer::from_pem_file(identity.key_file)
        .map_err(|source| TlsError::ReadPem { path: identity.key_file.to_owned(), source })?;
    builder.with_client_auth_cert(chain, key).map_err(|source| TlsError::UnusableIdentity {
        certificate_file: identity.certificate_file.to_owned(),
        key_file: identity.key_file.to_owned(),
        source,
    })
}

fn load_roots(roots: Roots<'_>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {
            // System stores hold odd certificates; one that cannot be used is no reason to trust none.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() {
                return Err(TlsError::NoSystemRoots);
            }
        }
        Roots::File(path) => {
            for certificate in certificates(path)? {
                store
                    .add(certificate)
                    .map_err(|source| TlsError::UnusableRoot { path: path.to_owned(), source })?;
            }
        }
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| TlsError::ReadPem { path: path.to_owned(), source })?;
    if found.is_empty() { Err(TlsError::NoCertificate { path: path.to_owned() }) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_with(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_file_without_certificates_is_no_root() {
        let file = file_with("no PEM here\n");
        let error = client_config(Roots::File(file.path()), None).unwrap_err();
        assert!(matches!(error, TlsError::NoCertificate { .. }), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = client_config(Roots::File(Path::new("/nowhere/ca.pem")), None).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/ca.pem as PEM");
    }

    #[test]
    fn a_certificate_that_is_none_is_refused() {
        let file = file_with("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let error = client_config(Roots::File(file.path()), None).unwrap_err();
        assert!(matches!(error, TlsError::UnusableRoot { .. }), "{error}");
    }
}
