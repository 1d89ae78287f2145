//! Devices that show a certificate signed by an authority of the hub.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair};
use rumqttc::mqttbytes::v4::ConnectReturnCode::{self, NotAuthorized, Success};

use hub_emulator::hub::Hub;

use crate::client::{ID, hub};
use crate::raw::{self, Device, connect};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}

fn ca_parameters(name: &str) -> CertificateParams {
    let mut parameters = parameters(name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters
}

pub fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(ca_parameters(name), KeyPair::generate().unwrap()).unwrap()
}

pub fn below(issuer: &Issuer<'static, KeyPair>, name: &str) -> Ca {
    CertifiedIssuer::signed_by(ca_parameters(name), KeyPair::generate().unwrap(), issuer).unwrap()
}

/// A certificate for `name` and its key, in PEM.
pub fn leaf(issuer: &Issuer<'static, KeyPair>, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (parameters(name).signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

async fn code(hub: &Hub, chain: &str, key: &str) -> ConnectReturnCode {
    let stream = raw::open(hub, hub.mqtt_port(), Some((chain, key))).await;
    Device::over(stream).connect(connect(ID, "")).await.unwrap().code
}

#[tokio::test]
async fn a_chain_counts_if_it_ends_in_an_authority_of_the_hub() {
    let hub = hub().await;
    hub.add_ca_device(ID);
    let (root, stranger) = (root("root"), root("stranger"));
    let intermediate = below(&root, "intermediate");
    let (direct, key) = leaf(&root, ID);
    assert_eq!(code(&hub, &direct, &key).await, NotAuthorized);

    hub.add_ca(&root.pem()).unwrap();
    assert_eq!(code(&hub, &direct, &key).await, Success);
    assert_eq!(hub.twin(ID)["authenticationType"], "certificateAuthority");
    let (low, low_key) = leaf(&intermediate, ID);
    assert_eq!(code(&hub, &format!("{low}{}", intermediate.pem()), &low_key).await, Success);

    assert_eq!(code(&hub, &low, &low_key).await, NotAuthorized, "the chain has a gap");
    let (other, other_key) = leaf(&root, "dev-2");
    assert_eq!(code(&hub, &other, &other_key).await, NotAuthorized, "it is for another device");
    let (strange, strange_key) = leaf(&stranger, ID);
    assert_eq!(code(&hub, &strange, &strange_key).await, NotAuthorized, "nobody trusts who signed it");
    assert!(hub.add_ca("no certificate").unwrap_err().to_string().contains("PEM"));
}
