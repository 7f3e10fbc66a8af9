//! Which cluster an operator's command is about, by kubectl's rules: `--kubeconfig`, else the files in
//! `KUBECONFIG`, else `~/.kube/config`, else the service account of the pod.

#![allow(clippy::disallowed_methods, reason = "reads kubeconfigs and the environment that names them")]

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use super::kubeconfig::{proxy_of_server, service_account_config};
use crate::model::nearest;

/// The cluster that the flags of a command name; without flags kubectl's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterChoice {
    /// `--kubeconfig`: exactly this file.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`, in place of the current context.
    pub context: Option<String>,
}

/// A cluster, and where its address and credentials come from.
#[derive(Clone, Debug)]
pub struct ChosenCluster {
    /// Address, certificates, credentials, proxy.
    pub config: Config,
    /// The context's namespace, for names without one; `default` unless set.
    pub namespace: String,
    /// For messages: `context "prod" of /root/.kube/config`, or `the pod's service account`.
    pub origin: String,
}

impl ClusterChoice {
    /// Reads the kubeconfig or the service account. Sends no request.
    ///
    /// Errors name the file and the context at fault; without any file, where one was looked for.
    pub async fn resolve(&self) -> anyhow::Result<ChosenCluster> {
        let files = self.files();
        let (kubeconfig, shown) = self.merge(&files)?;
        match kubeconfig {
            Some(kubeconfig) => self.in_kubeconfig(kubeconfig, &shown).await,
            None if self.context.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
                let mut config = service_account_config()?;
                config.proxy_url = proxy_of_server(&config, None)?;
                let namespace = config.default_namespace.clone();
                Ok(ChosenCluster { config, namespace, origin: "the pod's service account".to_owned() })
            }
            None => {
                let looked: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
                let looked = if looked.is_empty() { "no HOME".to_owned() } else { looked.join(", ") };
                bail!(
                    "no kubeconfig found ({looked}), and this is not a pod; name one with --kubeconfig or \
                     KUBECONFIG"
                )
            }
        }
    }

    /// The files that may name the cluster, in order of precedence.
    fn files(&self) -> Vec<PathBuf> {
        if let Some(file) = &self.kubeconfig {
            return vec![file.clone()];
        }
        let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
        let listed: Vec<PathBuf> =
            std::env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty()).collect();
        if !listed.is_empty() {
            return listed;
        }
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        home.map(|home| PathBuf::from(home).join(".kube/config")).into_iter().collect()
    }

    /// The files as one kubeconfig, and their paths for messages; `None` when there is no file. As in kubectl, a
    /// missing file is an error only if `--kubeconfig` names it.
    fn merge(&self, files: &[PathBuf]) -> anyhow::Result<(Option<Kubeconfig>, String)> {
        let mut merged: Option<Kubeconfig> = None;
        let mut shown = Vec::new();
        for file in files {
            if self.kubeconfig.is_none() && !file.exists() {
                continue;
            }
            let reading = || match self.kubeconfig {
                Some(_) => format!("--kubeconfig: cannot read kubeconfig {}", file.display()),
                None => format!("cannot read kubeconfig {}", file.display()),
            };
            let next = Kubeconfig::read_from(file).with_context(reading)?;
            merged = Some(match merged {
                Some(merged) => merged.merge(next).with_context(reading)?,
                None => next,
            });
            shown.push(file.display().to_string());
        }
        Ok((merged, shown.join(", ")))
    }

    async fn in_kubeconfig(&self, kubeconfig: Kubeconfig, shown: &str) -> anyhow::Result<ChosenCluster> {
        let names: Vec<&str> = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
        let name = match (&self.context, &kubeconfig.current_context) {
            (Some(name), _) | (None, Some(name)) if !name.is_empty() => name.clone(),
            _ => bail!(
                "kubeconfig {shown} has no current context; name one with --context: {}",
                or_none(&names.join(", "))
            ),
        };
        if !names.contains(&name.as_str()) {
            let flag = if self.context.is_some() { "--context: " } else { "" };
            let hint = match nearest(&name, names.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("it has: {}", or_none(&names.join(", "))),
            };
            bail!("{flag}kubeconfig {shown} has no context {name:?}; {hint}");
        }
        let origin = format!("context {name:?} of {shown}");
        let context = kubeconfig.contexts.iter().find(|context| context.name == name);
        let context = context.and_then(|context| context.context.as_ref());
        let cluster = context.and_then(|context| {
            kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()
        });
        let cluster = cluster.ok_or_else(|| anyhow!("{origin} names no cluster"))?;
        let own_proxy = cluster.proxy_url.clone().filter(|proxy| !proxy.is_empty());
        let options = KubeConfigOptions { context: Some(name), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(|| format!("cannot use {origin}"))?;
        config.proxy_url = proxy_of_server(&config, own_proxy).with_context(|| format!("in {origin}"))?;
        Ok(ChosenCluster { namespace: config.default_namespace.clone(), config, origin })
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

#[cfg(test)]
mod tests;
