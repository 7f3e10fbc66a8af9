//! The texts that show the settings in force.

use super::*;

#[test]
fn configz_is_kube_proxys_byte_for_byte() {
    let recorded = include_str!("../../../testdata/config/configz.json").trim_end();
    let text = file(
        "clusterCIDR: 10.128.0.0/14,fd00:10:128::/48\nconntrack:\n  maxPerCore: 0\nhostnameOverride: node-1\niptables:\n  minSyncPeriod: 0s\n  syncPeriod: 30s\nmode: iptables\nclientConnection: {kubeconfig: /mnt/kubeconfig}\n",
    );
    let (config, _) = Config::resolve(Some(&text), &flags(&["--v=2"])).unwrap();
    let ours = config.effective.configz();
    let end = ours.find(",\"chainsmith\":").unwrap();
    assert_eq!(format!("{}}}", &ours[..end]), recorded);
    assert!(ours.ends_with("\"chainsmith\":{\"manifests\":[],\"iptablesBackend\":\"auto\",\"layout\":\"auto\",\"auditPeriod\":\"5m0s\",\"connectionMetrics\":\"off\",\"debugBindAddress\":\"\",\"agentSocket\":\"@chainsmith\"}}"));
}

#[test]
fn a_written_file_reads_back_the_same() {
    let arguments = [
        "--cluster-cidr=10.0.0.0/8",
        "--nodeport-addresses=10.1.0.0/16,fd00::/8",
        "--iptables-masquerade-bit=0",
        "--conntrack-max-per-core=0",
        "--kube-api-qps=0.5",
        "--feature-gates=ComponentFlagz=false",
        "--vmodule=a*=1",
        "--hostname-override=on",
        "--manifests=/a b",
        "--layout=compact",
    ];
    let config = of_flags(&arguments);
    let text = config.effective.to_file();
    assert!(
        text.starts_with("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nbindAddress: \"0.0.0.0\"\n"),
        "{text}"
    );
    let (again, warnings) = Config::resolve(Some(&text), &Flags::default()).unwrap();
    assert_eq!(warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [] as [&str; 0], "{text}");
    assert_eq!(again, Config { effective: again.effective.clone(), ..config });
}

#[test]
fn differences_are_the_settings_away_from_the_defaults_with_their_origins() {
    let text = file(
        "iptables: {masqueradeBit: 3, masqueradeAll: false, syncPeriod: 0s}\nnodePortAddresses: [primary]\n",
    );
    let flags =
        flags(&["--config=/c", "--layout=compact", "--master=https://m", "--v=0", "--masquerade-all"]);
    let (config, _) = Config::resolve(Some(&text), &flags).unwrap();
    let shown = |s: &&EffectiveSetting| format!("{}={} ({})", s.path, s.value, s.set_by);
    let expected = [
        "--master=\"https://m\" (flag --master)",
        "iptables.masqueradeBit=3 (file)",
        "nodePortAddresses=[\"primary\"] (file)",
        "chainsmith.layout=\"compact\" (flag --layout)",
    ];
    assert_eq!(config.differences().iter().map(shown).collect::<Vec<_>>(), expected);
    assert!(Config::default().differences().is_empty());
}
