//! TLS as on a real server: a certificate for every address that a client connects to, by an authority
//! made at start, and certificates of clients.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};

/// The certificate authority of the server and of its clients.
#[derive(Debug)]
pub struct Authority {
    now: Mutex<Certified>,
}

/// One authority, and its certificates for the server.
#[derive(Debug)]
struct Certified {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    servers: BTreeMap<IpAddr, Arc<ServerConfig>>,
}

/// A certificate of a client, with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
    /// As in a handshake.
    pub der: Vec<u8>,
}

impl Authority {
    /// A new authority.
    pub fn new() -> Authority {
        Authority { now: Mutex::new(Certified::new()) }
    }

    /// Its certificate, as `certificate-authority` of a kubeconfig needs it.
    pub fn pem(&self) -> String {
        self.lock().pem.clone()
    }

    /// Replaces it by another authority; open connections stay.
    pub fn replace(&self) {
        *self.lock() = Certified::new();
    }

    /// The TLS settings for connections to `address`.
    pub fn server(&self, address: IpAddr) -> Arc<ServerConfig> {
        let mut now = self.lock();
        let Certified { issuer, servers, .. } = &mut *now;
        Arc::clone(servers.entry(address).or_insert_with(|| server(issuer, address)))
    }

    /// A certificate for a client called `name`.
    pub fn client(&self, name: &str) -> ClientCertificate {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.lock().issuer).expect("a certificate can be made");
        ClientCertificate {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Certified> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Certified {
    fn new() -> Certified {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        let pem = params.self_signed(&key).expect("a certificate can be made").pem();
        Certified { pem, issuer: Issuer::new(params, key), servers: BTreeMap::new() }
    }
}

fn server(issuer: &Issuer<'static, KeyPair>, address: IpAddr) -> Arc<ServerConfig> {
    let mut params = CertificateParams::new(vec![address.to_string()]).expect("an address is a good name");
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().expect("a key can be made");
    let certificate = params.signed_by(&key, issuer).expect("a certificate can be made");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key of our own making");
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(AnyClient(Arc::clone(&provider)));
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("ring has them").with_client_cert_verifier(verifier);
    let mut config =
        config.with_single_cert(vec![certificate.der().clone()], key).expect("the key is the certificate's");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Requests a client certificate and accepts any, or none: like a real server, the simulator rejects
/// requests (401), not connections.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
