//! `etcd` and `kube-apiserver` as processes: their arguments, files, logs and end.

#![allow(clippy::disallowed_methods, reason = "starts programs and writes their files")]

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// The bearer token that the API server accepts.
pub const TOKEN: &str = "chainsmith-test";

/// Children that are killed and reaped when dropped.
#[derive(Debug, Default)]
pub struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        // The API server first, or it would log errors about its etcd.
        for child in self.0.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Processes {
    /// Starts `name` of the folder `programs`; its log is in `folder`.
    ///
    /// # Errors
    /// It cannot be started; programs started before keep running.
    pub fn start(
        &mut self,
        programs: &Path,
        name: &str,
        arguments: &[String],
        folder: &Path,
    ) -> anyhow::Result<()> {
        let log =
            File::create(log_file(folder, name)).with_context(|| format!("making the log of {name}"))?;
        let program = programs.join(name);
        let child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        self.0.push(child);
        Ok(())
    }
}

/// The command line of `etcd`: its data in `folder`, one member.
pub fn etcd_arguments(folder: &Path, client_url: &str, peer_url: &str) -> Vec<String> {
    vec![
        format!("--data-dir={}", folder.join("etcd-data").display()),
        format!("--listen-client-urls={client_url}"),
        format!("--advertise-client-urls={client_url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=default={peer_url}"),
        "--unsafe-no-fsync".to_owned(),
    ]
}

/// The command line of `kube-apiserver`; makes the files that it reads in `folder`.
///
/// # Errors
/// A file cannot be made.
pub fn api_arguments(
    folder: &Path,
    etcd_url: &str,
    address: SocketAddr,
    reachable: IpAddr,
) -> anyhow::Result<Vec<String>> {
    let key = folder.join("service-account.key");
    make_key(&key)?;
    let tokens = folder.join("tokens.csv");
    std::fs::write(&tokens, format!("{TOKEN},test,test,\"system:masters\"\n")).context("writing tokens")?;
    // The family of the first service range is IPv4, and this address must be of the same.
    let advertised = match reachable {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::LOCALHOST,
    };
    Ok(vec![
        format!("--etcd-servers={etcd_url}"),
        format!("--cert-dir={}", folder.join("certificates").display()),
        format!("--bind-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        format!("--advertise-address={advertised}"),
        // The test itself sets the endpoints.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--token-auth-file={}", tokens.display()),
        "--authorization-mode=AlwaysAllow".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", key.display()),
        format!("--service-account-signing-key-file={}", key.display()),
        "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/108".to_owned(),
        // Pods of tests have no service account, and no controller would make one.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ])
}

fn make_key(path: &Path) -> anyhow::Result<()> {
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(path).arg("2048").output();
    let made = made.context("starting openssl for the service account key")?;
    if !made.status.success() {
        bail!("openssl made no key: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(())
}

fn log_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

/// The end of a program's log, for an error message.
pub fn last_words(folder: &Path, name: &str) -> String {
    let log = std::fs::read(log_file(folder, name)).unwrap_or_default();
    let end = String::from_utf8_lossy(&log[log.len().saturating_sub(3000)..]).into_owned();
    format!("--- end of the log of {name} ---\n{end}\n")
}
