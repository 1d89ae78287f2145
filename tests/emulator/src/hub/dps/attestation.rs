//! Who may register: what a device shows against the enrollments.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use rustls::pki_types::CertificateDer;

use super::enrollment::{Attestation, Certificates, Enrollment, Keys};
use super::{Provisioning, Refusal};
use crate::hub::certificates::{Authorities, common_name, thumbprints};
use crate::hub::clock;
use crate::hub::identity::Authentication;
use crate::hub::sas::Token;

/// What a device shows to prove who it is.
#[derive(Debug, Clone, Copy)]
pub(in crate::hub) struct Proof<'a> {
    pub registration_id: &'a str,
    /// A shared access signature; empty for a device with a certificate.
    pub password: &'a str,
    /// The certificates of its TLS connection, its own first.
    pub chain: &'a [CertificateDer<'static>],
}

/// A device that is who it says.
pub(super) struct Attested<'a> {
    pub enrollment: &'a Enrollment,
    /// The group's name, if it came in by one.
    pub group: Option<&'a str>,
    /// How it will prove to the hub who it is.
    pub authentication: Authentication,
}

impl Provisioning {
    /// Finds the enrollment by which the device may register. An individual one goes before all groups.
    pub(super) fn attest(&self, proof: &Proof) -> Result<Attested<'_>, Refusal> {
        let individual = self.enrollments.iter();
        let mut individual = individual.filter(|(id, _)| id.eq_ignore_ascii_case(proof.registration_id));
        let found = if let Some((_, enrollment)) = individual.next() {
            let authentication = self.accepts(enrollment, proof);
            authentication.map(|authentication| Attested { enrollment, group: None, authentication })
        } else {
            self.groups.iter().find_map(|(name, group)| {
                let authentication = self.group_accepts(group, proof)?;
                Some(Attested { enrollment: group, group: Some(name), authentication })
            })
        };
        found.ok_or_else(Refusal::unauthorized)
    }

    fn accepts(&self, enrollment: &Enrollment, proof: &Proof) -> Option<Authentication> {
        match &enrollment.attestation {
            Attestation::SymmetricKey { symmetric_key } => self.accepts_token(symmetric_key.clone(), proof),
            Attestation::X509 { x509: Certificates::ClientCertificates(pair) } => {
                let own = own_certificate(proof)?;
                pair.ders().contains(own).then(|| by_thumbprint(own))
            }
            Attestation::X509 { .. } => None,
        }
    }

    fn group_accepts(&self, group: &Enrollment, proof: &Proof) -> Option<Authentication> {
        match &group.attestation {
            Attestation::SymmetricKey { symmetric_key } => {
                let derived = |key: &str| derived_key(key, proof.registration_id);
                let keys = Keys {
                    primary_key: derived(&symmetric_key.primary_key)?,
                    secondary_key: derived(&symmetric_key.secondary_key)?,
                };
                self.accepts_token(keys, proof)
            }
            Attestation::X509 { x509: Certificates::SigningCertificates(pair) } => {
                let own = own_certificate(proof)?;
                Authorities::from(pair.ders()).have_signed(proof.chain).then(|| by_thumbprint(own))
            }
            Attestation::X509 { .. } => None,
        }
    }

    fn accepts_token(&self, keys: Keys, proof: &Proof) -> Option<Authentication> {
        let token = Token::parse(proof.password)?;
        let signed = token.is_signed_with(&keys.primary_key) || token.is_signed_with(&keys.secondary_key);
        let good = signed
            && clock::until(token.expiry).is_some()
            && token.is_for(std::slice::from_ref(&self.id_scope))
            && token.covers(&format!("registrations/{}", proof.registration_id));
        good.then_some(Authentication::Sas { primary: keys.primary_key, secondary: keys.secondary_key })
    }
}

/// The certificate that the device showed, if it is for the registration id.
fn own_certificate<'a>(proof: &Proof<'a>) -> Option<&'a CertificateDer<'static>> {
    let own = proof.chain.first()?;
    let name = common_name(own)?;
    name.eq_ignore_ascii_case(proof.registration_id).then_some(own)
}

fn by_thumbprint(certificate: &CertificateDer) -> Authentication {
    let [_, sha256] = thumbprints(certificate);
    Authentication::SelfSigned { primary: Some(sha256), secondary: None }
}

/// A device's key, made of its group's.
pub(super) fn derived_key(group_key: &str, registration_id: &str) -> Option<String> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(group_key).ok()?);
    Some(STANDARD.encode(hmac::sign(&key, registration_id.as_bytes())))
}
