//! What observers are told.

use super::*;

/// Writes down what it is told.
#[derive(Default)]
pub struct Heard(Mutex<Vec<String>>);

impl Heard {
    fn note(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    /// What it was told since it was last asked; both families sync at the same time.
    fn take(&self) -> Vec<String> {
        let mut heard = std::mem::take(&mut *self.0.lock().unwrap());
        heard.sort();
        heard
    }
}

impl Observer for Heard {
    fn started(&self, families: &[IpFamily]) {
        self.note(format!("started {families:?}"));
    }

    fn changed(&self, news: &News<'_>) {
        let services = news.touched.services.v4.len();
        self.note(format!("changed {services} of IPv4, listed {}", news.is_listed));
    }

    fn queued(&self, family: IpFamily) {
        self.note(format!("queued {family}"));
    }

    fn synced(&self, synced: &Synced<'_>) {
        let report = synced.report;
        assert_eq!((synced.settings.family, synced.view.place.node), (report.family, NODE));
        let (scope, is_ok) = (&report.scope, report.outcome.is_ok());
        self.note(format!("synced {} {scope:?}, success {is_ok}", report.family));
    }
}

#[tokio::test(start_paused = true)]
async fn observers_are_told_of_every_change_request_and_sync() {
    let rig = Rig::start(Config::default(), Patience::CLUSTER);
    rig.change(Change::Node(Some(node("east")))).await;
    rig.change(service("s", 1)).await;
    rig.list().await;
    rig.after(Duration::from_secs(60)).await;
    let expected = [
        "changed 0 of IPv4, listed false",
        "changed 1 of IPv4, listed false",
        "queued IPv4",
        "queued IPv6",
        "started [V4, V6]",
        "synced IPv4 Everything, success true",
        "synced IPv6 Everything, success true",
    ];
    assert_eq!(rig.heard.take(), expected, "the zone asks for a sync at once, Services once all are listed");

    rig.change(service("s", 2)).await;
    rig.after(Duration::from_secs(60)).await;
    let services = r#"Services({ObjectName("ns/s")})"#;
    let expected = [
        "changed 1 of IPv4, listed true".to_owned(),
        "queued IPv4".to_owned(),
        format!("synced IPv4 {services}, success true"),
    ];
    assert_eq!(rig.heard.take(), expected);

    rig.change(service("s", 2)).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.heard.take(), ["changed 0 of IPv4, listed true"], "the same again asks for nothing");
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_next_sync_looks_at_everything() {
    let rig = Rig::settled().await;
    rig.heard.take();
    rig.kernel(|kernel| kernel.failures.push(crate::kernel::RestoreError::Killed(9)));
    rig.change(service("s", 2)).await;
    rig.after(Duration::from_secs(60)).await;
    let synced: Vec<String> =
        rig.heard.take().into_iter().filter(|text| text.starts_with("synced IPv4")).collect();
    let services = r#"Services({ObjectName("ns/s")})"#;
    let expected =
        ["synced IPv4 Everything, success true".to_owned(), format!("synced IPv4 {services}, success false")];
    assert_eq!(synced, expected);
}
