//! TLS as a client: which roots are trusted, what the time has to do with it, and which certificate is shown.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::system::EARLIEST_UNIX_SECS;

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
    /// The roots cannot be put to use.
    #[error("the root certificates are not usable")]
    Verifier(#[source] VerifierBuilderError),
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

impl Identity<'_> {
    /// Reads both files: not for an async thread.
    ///
    /// # Errors
    /// When one cannot be read, or they do not belong together.
    pub fn load(&self) -> Result<CertifiedKey, TlsError> {
        let chain = certificates(self.certificate_file)?;
        let key = PrivateKeyDer::from_pem_file(self.key_file)
            .map_err(|source| TlsError::ReadPem { path: self.key_file.to_owned(), source })?;
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|source| {
            TlsError::UnusableIdentity {
                certificate_file: self.certificate_file.to_owned(),
                key_file: self.key_file.to_owned(),
                source,
            }
        })
    }
}

/// A configuration for TLS 1.2 and 1.3 on ring. Reads files: not for an async thread. Nothing is
/// installed for the whole process.
///
/// # Errors
/// A file that is missing or not understood, or a system without roots.
pub fn client_config(roots: Roots<'_>, identity: Option<Identity<'_>>) -> Result<ClientConfig, TlsError> {
    // Microsoft's endpoints speak 1.2 everywhere and 1.3 in places.
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(load_roots(roots)?);
    let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByLeastTime(webpki.map_err(TlsError::Verifier)?)));
    Ok(match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.load()?)))
        }
    })
}

/// Judges servers as webpki does, except that the clock is taken for the least time that it may be: a device without a
/// battery starts in 1970, or where it was switched off, and nobody may ever set it. A certificate that is yet to be
/// valid is judged by the time from which it is; one whose time is over stays refused, and so does any other fault.
/// What is lost is small: authorities do not sign ahead of time.
#[derive(Debug)]
struct ByLeastTime(Arc<WebPkiServerVerifier>);

/// A leaf, and more authorities above it than anybody has: each may move the time once.
const CHAIN_MAX: usize = 8;

impl ServerCertVerifier for ByLeastTime {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judge =
            |time| self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, time);
        let mut time = now.max(UnixTime::since_unix_epoch(Duration::from_secs(EARLIEST_UNIX_SECS)));
        for _ in 0..CHAIN_MAX {
            match judge(time) {
                Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    not_before,
                    ..
                })) if not_before > time => time = not_before,
                judged => return judged,
            }
        }
        judge(time)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// What to tell a person of a certificate whose time is over, by this device's clock or in truth; `None` for any
/// other error.
#[must_use]
pub fn expired(error: &(dyn Error + 'static)) -> Option<String> {
    let mut causes = std::iter::successors(Some(error), |cause| inner(*cause));
    causes.find_map(|cause| match cause.downcast_ref()? {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            let [time, not_after] = [time, not_after].map(|time| {
                let time = UNIX_EPOCH + Duration::from_secs(time.as_secs());
                humantime::format_rfc3339_seconds(time).to_string()
            });
            // By the day: told once, and not at each attempt. The clock may show an earlier one.
            let day = time.split('T').next().unwrap_or_default();
            Some(format!(
                "the server's certificate ended at {not_after}, and for this device it is {day} or later: one of the \
                 two must be renewed or set right"
            ))
        }
        _ => None,
    })
}

/// `io::Error` hides what it wraps from [`Error::source`].
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => error.get_ref().map(|wrapped| wrapped as &(dyn Error + 'static)),
        None => error.source(),
    }
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

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::time_provider::TimeProvider;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;

    /// Shakes hands over memory, at this time, with a server whose authority and own certificate are valid from and to
    /// these years.
    fn handshake(now_secs: u64, authority: (i32, i32), own: (i32, i32)) -> Result<(), rustls::Error> {
        let parameters = |name: &str, (from, to)| {
            let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
            parameters.distinguished_name.push(DnType::CommonName, name);
            (parameters.not_before, parameters.not_after) =
                (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
            parameters
        };
        let mut root = parameters("authority", authority);
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = KeyPair::generate().unwrap();
        let file = file_with(&root.self_signed(&root_key).unwrap().pem());
        // One below it: what is trusted by itself is not asked for its time.
        let mut between = parameters("between", authority);
        between.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let between_key = KeyPair::generate().unwrap();
        let between_own = between.signed_by(&between_key, &Issuer::new(root, root_key)).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = parameters("localhost", own).signed_by(&key, &Issuer::new(between, between_key)).unwrap();
        let chain = vec![leaf.der().clone(), between_own.der().clone()];

        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let mut client = client_config(Roots::File(file.path()), None).unwrap();
        client.time_provider = Arc::new(Stopped(now_secs));
        let mut client = ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[derive(Debug)]
    struct Stopped(u64);

    impl TimeProvider for Stopped {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
        }
    }

    const IN_1970: u64 = 3600;
    const IN_2027: u64 = 1_800_000_000;
    const IN_2040: u64 = 2_210_000_000;

    /// Shows F20; rauc/rauc#353, #581, #781.
    #[test]
    fn a_clock_that_was_never_set_keeps_no_certificate_out_but_those_that_are_over() {
        for (now, authority, own, taken) in [
            (IN_2027, (2020, 2035), (2026, 2028), true),
            (IN_1970, (2020, 2035), (2026, 2028), true),
            // Made after this device was last switched off, by an authority that is new too.
            (IN_1970, (2030, 2045), (2031, 2032), true),
            (IN_2027, (2030, 2045), (2031, 2032), true),
            // Over, whatever the time is.
            (IN_1970, (2020, 2035), (2024, 2026), false),
            (IN_2027, (2020, 2035), (2024, 2026), false),
            (IN_2040, (2020, 2035), (2026, 2028), false),
            // Never both at one time.
            (IN_1970, (2020, 2030), (2031, 2032), false),
        ] {
            let judged = handshake(now, authority, own);
            assert_eq!(judged.is_ok(), taken, "{now} {authority:?} {own:?}: {judged:?}");
        }
    }

    /// Shows rauc/rauc#353, #581, #781.
    #[test]
    fn a_certificate_that_is_over_is_told_with_both_times() {
        let told = |now, own| {
            let refused = handshake(now, (2020, 2045), own).unwrap_err();
            expired(&std::io::Error::other(refused)).unwrap()
        };
        let late = told(IN_2040, (2026, 2028));
        assert!(
            late.contains("2028-01-01T00:00:00Z") && late.contains("it is 2040-01-12 or later"),
            "{late}"
        );
        assert_eq!(told(IN_2040 + 1, (2026, 2028)), late, "the same is told once");
        let early = told(IN_1970, (2024, 2026));
        assert!(early.contains("or later") && !early.contains("1970") && !early.contains("clock"), "{early}");
        assert_eq!(expired(&std::io::Error::other("another")), None);
    }

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
