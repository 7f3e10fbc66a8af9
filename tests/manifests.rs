//! The files of manifests/ and the Dockerfile are consistent with the API, with Chainsmith and with each
//! other. One test needs root, since it runs the agent.
#![allow(clippy::disallowed_methods, reason = "tests read files and start programs")]

#[path = "manifests/monitoring.rs"]
mod monitoring;
#[path = "manifests/promql.rs"]
mod promql;
#[path = "manifests/rights.rs"]
mod rights;
#[path = "manifests/shadow.rs"]
mod shadow;
#[path = "manifests/strict.rs"]
mod strict;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use chainsmith::config::{Config, Flags};
use serde_json::{Value, json};

use strict::check_known;

/// The repository's root.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The YAML documents in a text.
fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The one document of a file below manifests/.
fn object(path: &str) -> Value {
    let mut all = documents(&read(Path::new("manifests").join(path)));
    assert_eq!(all.len(), 1, "{path}");
    all.remove(0)
}

/// Every file below manifests/.
fn files() -> Vec<PathBuf> {
    let mut folders = vec![root().join("manifests")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

fn is_kustomization(path: &Path) -> bool {
    path.ends_with("kustomization.yaml")
}

/// The container `kube-proxy` of a DaemonSet.
fn container(daemon_set: &Value) -> &Value {
    let containers = &daemon_set["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().expect("containers").len(), 1);
    assert_eq!(containers[0]["name"], "kube-proxy");
    &containers[0]
}

fn image() -> String {
    format!("chainsmith:{}", env!("CARGO_PKG_VERSION"))
}

#[test]
fn every_object_has_known_fields_only() {
    let mut n_objects = 0;
    for path in files() {
        if is_kustomization(&path) || path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for object in documents(&read(&path)) {
            check_known(object).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
            n_objects += 1;
        }
    }
    assert!(n_objects > 10, "{n_objects}");
}

/// The paths in a kustomization, relative to it.
fn named(kustomization: &Value) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().map(|text| text.as_str().expect("a path").to_owned()).collect()
    };
    let mut paths = texts(&kustomization["resources"]);
    for patch in kustomization["patches"].as_array().map(Vec::as_slice).unwrap_or_default() {
        paths.push(patch["path"].as_str().expect("patches are files").to_owned());
    }
    for generator in kustomization["configMapGenerator"].as_array().map(Vec::as_slice).unwrap_or_default() {
        for file in texts(&generator["files"]) {
            paths.push(file.split_once('=').map_or(file.clone(), |(_, path)| path.to_owned()));
        }
    }
    paths
}

#[test]
fn kustomizations_name_every_file_beside_them_and_nothing_else() {
    let known = ["apiVersion", "kind", "resources", "patches", "configMapGenerator"];
    let mut named_files = BTreeSet::new();
    for path in files().into_iter().filter(|path| is_kustomization(path)) {
        let kustomization = documents(&read(&path)).remove(0);
        for key in kustomization.as_object().expect("a mapping").keys() {
            assert!(known.contains(&key.as_str()), "{}: {key}: unknown to this test", path.display());
        }
        let folder = path.parent().expect("a folder");
        for name in named(&kustomization) {
            let target = folder.join(&name).canonicalize();
            let target = target.unwrap_or_else(|error| panic!("{}: {name}: {error}", path.display()));
            if target.is_dir() {
                assert!(target.join("kustomization.yaml").exists(), "{}: {name}", path.display());
            } else {
                named_files.insert(target);
            }
        }
    }
    let all: BTreeSet<PathBuf> = files().into_iter().filter(|path| !is_kustomization(path)).collect();
    assert_eq!(named_files, all);
}

/// The objects that `kubectl kustomize` builds from a folder; `None` without kubectl.
fn built(folder: &Path) -> Option<Vec<Value>> {
    // No cluster is contacted, so none has to be configured.
    let output = Command::new("kubectl").arg("kustomize").arg(folder).env("KUBECONFIG", "/dev/null").output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("no kubectl: {} is not built", folder.display());
            return None;
        }
        Err(error) => panic!("kubectl: {error}"),
    };
    assert!(output.status.success(), "{}: {}", folder.display(), String::from_utf8_lossy(&output.stderr));
    Some(documents(std::str::from_utf8(&output.stdout).expect("text")))
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

#[test]
fn objects_built_by_kubectl_have_known_fields_and_one_image() {
    for (folder, n_objects) in [("base", 4), ("overlays/least-privilege", 5), ("overlays/prometheus", 7)] {
        let Some(objects) = built(&root().join("manifests").join(folder)) else { return };
        assert_eq!(objects.len(), n_objects, "{folder}");
        for object in &objects {
            check_known(object.clone()).unwrap_or_else(|problem| panic!("{folder}: {problem}"));
        }
        let pod =
            &find(&objects, "DaemonSet", "kube-proxy").expect("a DaemonSet")["spec"]["template"]["spec"];
        for list in ["containers", "initContainers"] {
            for container in pod[list].as_array().map(Vec::as_slice).unwrap_or_default() {
                assert_eq!(container["image"], image(), "{folder}: {list}");
            }
        }
        let has_binding = find(&objects, "ClusterRoleBinding", "kubeadm:node-proxier").is_some();
        assert_eq!(has_binding, folder != "overlays/least-privilege", "{folder}");
    }
}

#[test]
fn the_base_runs_in_the_pod_that_kubeadm_creates() {
    // Source: the DaemonSet of kubeadm 1.36.
    let kubeadm = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system", "labels": {"k8s-app": "kube-proxy"}},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": "kube-proxy"}},
            "updateStrategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {"labels": {"k8s-app": "kube-proxy"}},
                "spec": {
                    "priorityClassName": "system-node-critical",
                    "hostNetwork": true,
                    "serviceAccountName": "kube-proxy",
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": "kube-proxy",
                        "image": image(),
                        "imagePullPolicy": "IfNotPresent",
                        "command": [
                            "/usr/local/bin/kube-proxy",
                            "--config=/var/lib/kube-proxy/config.conf",
                            "--hostname-override=$(NODE_NAME)",
                        ],
                        "env": [
                            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                        ],
                        "securityContext": {"privileged": true},
                        "volumeMounts": [
                            {"name": "kube-proxy", "mountPath": "/var/lib/kube-proxy"},
                            {"name": "xtables-lock", "mountPath": "/run/xtables.lock"},
                            {"name": "lib-modules", "mountPath": "/lib/modules", "readOnly": true},
                        ],
                    }],
                    "volumes": [
                        {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
                        {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
                        {"name": "lib-modules", "hostPath": {"path": "/lib/modules"}},
                    ],
                },
            },
        },
    });
    assert_eq!(object("base/daemonset.yaml"), kubeadm);
}

#[test]
fn the_kubeadm_patch_changes_the_image_and_nothing_else() {
    let patch = object("overlays/kubeadm/patch.yaml");
    let expected = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
        "spec": {"template": {"spec": {"containers": [{"name": "kube-proxy", "image": image()}]}}},
    });
    assert_eq!(patch, expected);

    let folder = tempfile::tempdir().expect("a folder");
    let before =
        read("manifests/base/daemonset.yaml").replace(&image(), "registry.k8s.io/kube-proxy:v1.36.0");
    std::fs::write(folder.path().join("daemonset.yaml"), &before).expect("written");
    // Kustomize takes relative paths only.
    let component = folder.path().join("component");
    std::fs::create_dir(&component).expect("made");
    for name in ["kustomization.yaml", "patch.yaml"] {
        std::fs::copy(root().join("manifests/overlays/kubeadm").join(name), component.join(name))
            .expect("copied");
    }
    let kustomization = "resources: [daemonset.yaml]\ncomponents: [component]\n";
    std::fs::write(folder.path().join("kustomization.yaml"), kustomization).expect("written");
    if let Some(objects) = built(folder.path()) {
        assert_eq!(objects, [object("base/daemonset.yaml")]);
    }
}

#[test]
fn resources_that_grow_with_the_cluster_are_not_limited() {
    for path in files().into_iter().filter(|path| path.ends_with("daemonset.yaml")) {
        let pod = &documents(&read(&path))[0]["spec"]["template"]["spec"];
        assert!(pod["resources"].is_null(), "{}", path.display());
        for list in ["containers", "initContainers"] {
            for container in pod[list].as_array().map(Vec::as_slice).unwrap_or_default() {
                assert!(container["resources"].is_null(), "{}", path.display());
            }
        }
    }
}

#[test]
fn least_privilege_keeps_two_capabilities_and_writes_nothing() {
    let (base, patch) = (object("base/daemonset.yaml"), object("overlays/least-privilege/daemonset.yaml"));
    let expected = json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(container(&patch)["securityContext"], expected);

    let init = &patch["spec"]["template"]["spec"]["initContainers"];
    assert_eq!(init.as_array().expect("containers").len(), 1);
    assert_eq!(init[0]["image"], container(&base)["image"]);
    assert_eq!(init[0]["env"], container(&base)["env"]);
    let mut command = container(&base)["command"].as_array().expect("a command").clone();
    command.push(json!("--init-only"));
    assert_eq!(init[0]["command"], json!(command));
    assert_eq!(init[0]["securityContext"]["privileged"], true);
}

/// The text of a ConfigMap's `config.conf`.
fn configuration(path: &str) -> String {
    object(path)["data"]["config.conf"].as_str().expect("a text").to_owned()
}

#[test]
fn the_configurations_are_accepted_without_a_warning() {
    for path in ["base/configmap.yaml", "overlays/prometheus/configmap.yaml"] {
        let (config, warnings) = Config::resolve(Some(&configuration(path)), &Flags::default()).expect(path);
        assert!(
            warnings.is_empty(),
            "{path}: {:?}",
            warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
        let kubeconfig = config.client.kubeconfig.expect("a kubeconfig");
        assert_eq!(kubeconfig, Path::new("/var/lib/kube-proxy/kubeconfig.conf"), "{path}");
    }
    let kubeconfig =
        object("base/configmap.yaml")["data"]["kubeconfig.conf"].as_str().expect("a text").to_owned();
    let (_, ignored) =
        strict::read::<kube::config::Kubeconfig>(documents(&kubeconfig).remove(0)).expect("a kubeconfig");
    assert_eq!(ignored, [""; 0]);
}

#[test]
fn the_image_is_called_as_the_daemon_set_calls_it_and_names_no_architecture() {
    let dockerfile = read("Dockerfile");
    let command = object("base/daemonset.yaml");
    let program = container(&command)["command"][0].as_str().expect("a program");
    assert!(dockerfile.lines().any(|line| line == format!("ENTRYPOINT [{program:?}]")), "{program}");
    for name in ["amd64", "x86_64", "arm64", "aarch64", "--platform"] {
        assert!(!dockerfile.contains(name), "{name}");
    }
    let manifest: Vec<String> = read("Cargo.toml").lines().map(str::to_owned).collect();
    for (i, line) in manifest.iter().enumerate().filter(|(_, line)| *line == "[[bench]]") {
        let name = manifest[i + 1].trim_start_matches("name = ").trim_matches('"');
        assert!(
            dockerfile.contains(&format!("benches/{name}.rs")),
            "{line} {name}: cargo looks for its file"
        );
    }
}
