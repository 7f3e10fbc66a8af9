//! The version that Chainsmith replaces, and the feature gates: fixed for the life of the process.

use super::define::Definer;
use super::release;

/// Defines the build information and the feature gates, each with its name, stage (`ALPHA`, `BETA` or empty) and
/// whether it is on.
pub(super) fn define_build<'a>(
    define: &Definer<'_>,
    gates: impl Iterator<Item = (&'a str, &'static str, bool)>,
) -> anyhow::Result<()> {
    let (platform, git_version) = (platform(), release::git_version());
    let (major, minor) = release::major_minor();
    let labels = [
        ("build_date", ""),
        ("compiler", "rustc"),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("git_version", &*git_version),
        ("go_version", ""),
        ("major", major),
        ("minor", minor),
        ("platform", &*platform),
    ];
    let help = "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";
    define
        .gauges("kubernetes_build_info", help, &labels.map(|(label, _)| label))?
        .with_label_values(&labels.map(|(_, value)| value))
        .set(1.0);
    let help = "[BETA] This metric records the data about the stage and enablement of a k8s feature.";
    let features = define.gauges("kubernetes_feature_enabled", help, &["name", "stage"])?;
    for (name, stage, is_on) in gates {
        features.with_label_values(&[name, stage]).set(f64::from(u8::from(is_on)));
    }
    Ok(())
}

/// This platform as Go calls it.
fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    };
    format!("{}/{architecture}", std::env::consts::OS)
}
