//! Authentication of requests (bearer tokens, client certificates), and kubeconfigs with credentials.

use std::fmt::Write;
use std::path::PathBuf;

use data_encoding::BASE64;

use super::tls::ClientCertificate;

/// The credentials that requests need; without any, every request is accepted.
#[derive(Debug, Default)]
pub struct Access {
    /// The bearer token.
    pub token: Option<String>,
    /// Client certificates; one of them is enough.
    pub certificates: Option<Vec<ClientCertificate>>,
}

impl Access {
    /// Whether a request with this `Authorization` header, on a connection with this client
    /// certificate, is authenticated.
    pub fn lets_in(&self, authorization: Option<&str>, certificate: Option<&[u8]>) -> bool {
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let is_known =
            |known: &Vec<ClientCertificate>| known.iter().any(|one| Some(&one.der[..]) == certificate);
        (self.token.is_none() && self.certificates.is_none())
            || self.token.is_some() && self.token.as_deref() == token
            || self.certificates.as_ref().is_some_and(is_known)
    }
}

/// The credentials of a kubeconfig.
#[derive(Clone, Debug, Default)]
pub enum User {
    /// None.
    #[default]
    Anonymous,
    /// A bearer token.
    Token(String),
    /// A file with a bearer token.
    TokenFile(PathBuf),
    /// Files with a certificate and its key.
    Certificate(PathBuf, PathBuf),
}

/// How a client with a kubeconfig verifies the server.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Plain http: nothing to verify.
    Plain,
    /// https without verification.
    Unverified,
    /// With this authority (PEM).
    Authority(String),
    /// With the authority in this file.
    File(PathBuf),
}

/// A kubeconfig for `server` (a URL).
pub fn kubeconfig(server: &str, trust: &Trust, user: &User) -> String {
    let trust = match trust {
        Trust::Plain => String::new(),
        Trust::Unverified => ", insecure-skip-tls-verify: true".to_owned(),
        Trust::Authority(pem) => format!(", certificate-authority-data: {}", BASE64.encode(pem.as_bytes())),
        Trust::File(path) => format!(", certificate-authority: {:?}", path.display().to_string()),
    };
    let mut fields = String::new();
    // Writing to a String cannot fail.
    let _ = match user {
        User::Anonymous => Ok(()),
        User::Token(token) => write!(fields, "token: {token:?}"),
        User::TokenFile(file) => write!(fields, "tokenFile: {:?}", file.display().to_string()),
        User::Certificate(certificate, key) => write!(
            fields,
            "client-certificate: {:?}, client-key: {:?}",
            certificate.display().to_string(),
            key.display().to_string()
        ),
    };
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- name: test\n  cluster: {{server: {server:?}{trust}}}\n\
         users:\n- name: test\n  user: {{{fields}}}\n\
         contexts:\n- name: test\n  context: {{cluster: test, user: test}}\n"
    )
}
