//! A certificate authority: it signs the servers of this emulator and its devices' certificates.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

/// The names every server of the emulator answers to. All are this machine.
const SERVER_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Why the authority could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key or a certificate could not be made.
    #[error("make a key or certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused the server's certificate or settings.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// The certificate of an authority of before cannot be read.
    #[error("read the authority's certificate")]
    Pem(#[from] rustls::pki_types::pem::Error),
}

/// A certificate authority, and TLS settings for servers on this machine.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key_pem: String,
    server: ServerConfig,
    server_asking_clients: ServerConfig,
}

impl Authority {
    /// Makes a new authority and one server certificate for `localhost`, `127.0.0.1` and `::1`.
    pub fn new() -> Result<Self, AuthorityError> {
        Self::with_server_names(&[])
    }

    /// The same with more names or addresses in the server's certificate.
    pub fn with_server_names(names: &[String]) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let root = root_parameters()?.self_signed(&key)?;
        Self::restore(&root.pem(), &key.serialize_pem(), names)
    }

    /// An authority of before, by its certificate and private key (PEM), with a new server certificate.
    pub fn restore(pem: &str, key_pem: &str, names: &[String]) -> Result<Self, AuthorityError> {
        let root = CertificateDer::from_pem_slice(pem.as_bytes())?;
        let issuer = Issuer::new(root_parameters()?, KeyPair::from_pem(key_pem)?);
        let key = KeyPair::generate()?;
        let names: Vec<String> = SERVER_NAMES.map(String::from).into_iter().chain(names.to_vec()).collect();
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name.push(DnType::CommonName, "hub-emulator");
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = parameters.signed_by(&key, &issuer)?;

        let provider = Arc::new(ring::default_provider());
        let chain = vec![certificate.der().clone(), root];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let versions = rustls::DEFAULT_VERSIONS;
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key.clone_key())?;
        let server_asking_clients = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::new(AnyCertificate { provider }))
            .with_single_cert(chain, key)?;
        let (pem, key_pem) = (pem.to_owned(), key_pem.to_owned());
        Ok(Self { issuer, pem, key_pem, server, server_asking_clients })
    }

    /// The authority's certificate, for clients to trust, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's private key, in PEM: for keeping it across restarts.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// TLS 1.2 and 1.3 settings for a server that asks for no client certificate.
    pub fn server_config(&self) -> ServerConfig {
        self.server.clone()
    }

    /// The same for a server that asks for a client certificate, and takes any or none: whether it is the
    /// right one can only be said once the client has named its device, after the handshake.
    pub fn server_config_asking_clients(&self) -> ServerConfig {
        self.server_asking_clients.clone()
    }

    /// A new client certificate for `common_name` and its private key, both in PEM.
    pub fn client_certificate(&self, common_name: &str) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn root_parameters() -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, "hub-emulator test authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters)
}

/// Accepts any client certificate whose key the client holds.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_certificate_has_its_own_key() {
        let authority = Authority::new().unwrap();
        let (certificate, key) = authority.client_certificate("dev-1").unwrap();
        let (other_certificate, other_key) = authority.client_certificate("dev-1").unwrap();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_ne!(certificate, other_certificate);
        assert_ne!(key, other_key);
    }
}
