//! The release of kube-proxy that Chainsmith replaces, for `--version`, `/metrics` and `/statusz`.

/// Major, minor and patch.
pub const KUBERNETES: &str = "1.36.2";

/// Major and minor.
pub fn major_minor() -> (&'static str, &'static str) {
    let (major, rest) = KUBERNETES.split_once('.').unwrap_or((KUBERNETES, ""));
    (major, rest.split('.').next().unwrap_or_default())
}

/// `<major>.<minor>`.
pub(super) fn minor_release() -> String {
    let (major, minor) = major_minor();
    format!("{major}.{minor}")
}

/// The release, followed by Chainsmith's own; dashboards compare it with the version of kubelets.
pub(super) fn git_version() -> String {
    format!("v{KUBERNETES}+chainsmith.{}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::metrics::{Metrics, exposition, pages};

    #[test]
    fn metrics_and_statusz_show_the_same_release() {
        assert_eq!(major_minor(), ("1", "36"));
        let registry = prometheus::Registry::new();
        Metrics::register(&registry).unwrap().show_build(std::iter::empty()).unwrap();
        let metrics = exposition(&registry).unwrap();
        let shown = metrics.lines().find(|line| line.starts_with("kubernetes_build_info{")).unwrap();
        for label in [
            format!(r#"git_version="v{KUBERNETES}+chainsmith."#),
            r#"major="1""#.to_owned(),
            r#"minor="36""#.to_owned(),
        ] {
            assert!(shown.contains(&label), "{label} in {shown}");
        }
        let page = pages::statusz_text(SystemTime::UNIX_EPOCH, 0, &[]);
        for line in ["Binary version: 1.36\n", "Emulation version: 1.36\n"] {
            assert!(page.contains(line), "{page}");
        }
    }
}
