//! A process's key, and TLS that goes by one raw public key instead of certificates (RFC 7250).

use std::fmt;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};

use super::OPERATION;
use crate::error::{Error, ErrorKind, Result};
use crate::model::PeerKey;

/// Of an Ed25519 key in a `SubjectPublicKeyInfo` (RFC 8410): what stands before its 32 bytes.
const SPKI_OF_ED25519: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// So that nothing else that the key signs can be taken for a ticket, nor a ticket for that.
const CONTEXT: &[u8] = b"novacron ticket 1\0";

/// A key of this process's own, for as long as it lives.
pub(crate) struct Identity {
    pair: Ed25519KeyPair,
    tls: Arc<dyn SigningKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.key()).finish()
    }
}

fn internal(what: impl fmt::Display) -> Error {
    let message = format!("no key could be made: {what}");
    Error::new(ErrorKind::Internal, OPERATION, message)
}

impl Identity {
    pub(super) fn generate() -> Result<Self> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(internal)?;
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).map_err(internal)?;
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_ref());
        let tls = rustls::crypto::ring::sign::any_eddsa_type(&der).map_err(internal)?;
        Ok(Self { pair, tls })
    }

    pub(super) fn key(&self) -> PeerKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        PeerKey(key)
    }

    pub(super) fn sign(&self, text: &str) -> Vec<u8> {
        let signed = [CONTEXT, text.as_bytes()].concat();
        self.pair.sign(&signed).as_ref().to_vec()
    }

    /// TLS 1.3 as the one who is asked.
    pub(super) fn server(&self) -> Result<Arc<ServerConfig>> {
        let spki = CertificateDer::from(spki(self.key()));
        let certified = CertifiedKey::new(vec![spki], Arc::clone(&self.tls));
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(internal)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(
                certified,
            ))));
        Ok(Arc::new(config))
    }
}

/// Whether the holder of the key signed the text.
pub(super) fn is_signed(key: PeerKey, text: &str, signature: &[u8]) -> bool {
    let signed = [CONTEXT, text.as_bytes()].concat();
    let key = UnparsedPublicKey::new(&ED25519, key.0);
    key.verify(&signed, signature).is_ok()
}

/// TLS 1.3 to the holder of this key, and to nobody else.
pub(super) fn client(key: PeerKey) -> Result<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(internal)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OneKey {
            spki: spki(key),
            provider: provider(),
        }))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn spki(key: PeerKey) -> Vec<u8> {
    [&SPKI_OF_ED25519[..], &key.0].concat()
}

/// Takes one key, which the store announced.
#[derive(Debug)]
struct OneKey {
    spki: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OneKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity.as_ref() == self.spki {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(
            "it does not have the key that the store announces".to_owned(),
        ))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    #[tokio::test]
    async fn only_the_holder_of_the_key_is_talked_to() {
        let (owner, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        for (expected, fits) in [(owner.key(), true), (other.key(), false)] {
            let (near, far) = tokio::io::duplex(4096);
            let connector = TlsConnector::from(client(expected).unwrap());
            let acceptor = TlsAcceptor::from(owner.server().unwrap());
            let name = ServerName::try_from("novacron").unwrap();
            let (asked, accepted) =
                tokio::join!(connector.connect(name, near), acceptor.accept(far));
            assert_eq!((asked.is_ok(), accepted.is_ok()), (fits, fits));
            if let Err(error) = asked {
                assert!(error.to_string().contains("the store announces"), "{error}");
            }
        }
    }
}
