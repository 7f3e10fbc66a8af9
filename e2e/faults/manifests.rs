//! Folders of manifests whose files are written in place, as a shell's `>` does.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use super::{AT_ONCE, Extent, Finding, Load, SOON, all_is_right};
use crate::cluster::{OBJECTS, OWN};
use crate::lab::address::Family;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// The pods that may answer.
const PODS: [&str; 2] = ["web-1", "web-3"];

/// A Service that shows which version of a file is in force.
fn marker(name: &str, ip: &str) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

/// While a file is empty or half written, all that it held is served; other files change
/// meanwhile.
pub fn files_written_in_place_disturb_no_connection(backend: Backend, extent: Extent) -> Vec<Finding> {
    let folder = tempfile::TempDir::new().expect("a folder can be made");
    let (objects, other) = (folder.path().join("objects.yaml"), folder.path().join("other.yaml"));
    fs::write(&objects, OBJECTS).expect("a file can be written");
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let flag = format!("--manifests={}", folder.path().display());
    running.replace_agent(&[AT_ONCE, &flag], Some(String::new())).expect("an agent starts");
    let node = running.lab.node(1);
    let is_in_force = |name: &str| {
        let rules = node.netfilter().save(Family::V4).expect("rules can be read");
        rules.contains(&format!("default/{name} "))
    };
    let n_times = extent.of(2, 10);
    let load = Load::on(&running.lab, OWN);
    let mut repaired = Vec::new();
    for i in 0..n_times {
        let text = format!("{OBJECTS}\n{}", marker(&format!("written-{i}"), "10.96.200.1"));
        let mut file = File::create(&objects).expect("a file can be truncated");
        for (at, part) in text.as_bytes().chunks(text.len() / 2 + 1).enumerate() {
            let name = format!("other-{i}-{at}");
            fs::write(&other, marker(&name, "10.96.200.2")).expect("a file can be written");
            poll::until("a change of another file is in force", SOON, || is_in_force(&name));
            std::thread::sleep(Duration::from_millis(1500));
            file.write_all(part).expect("a file can be written");
        }
        drop(file);
        let closed = Instant::now();
        poll::until("the file is in force", SOON, || is_in_force(&format!("written-{i}")));
        repaired.push(closed.elapsed());
    }
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&PODS), 0, "{tally}");
    all_is_right(&running);
    vec![Finding {
        fault: "a manifest is empty or half written for 3 s, in place".to_owned(),
        n_times: u32::try_from(n_times).expect("a small number"),
        observed: "its last state is served until it is closed; other files are followed".to_owned(),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }]
}
