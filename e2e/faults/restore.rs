//! Programs that write rules, and fail: rejected, killed, without memory; and a service port that
//! iptables rejects.

use std::time::{Duration, Instant};

use super::kernel::TURNS;
use super::{AT_ONCE, Extent, Finding, Load, SOON, all_is_right};
use crate::cluster::{LOCAL, OWN, WEB, WEB_PODS, own_slice};
use crate::lab::address::Family;
use crate::lab::client::{Host, Protocol};
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long a sync that failed a few times may wait for its retry.
const RETRIED: Duration = Duration::from_secs(20);

/// Failures of restores: a name, the observation, how many restores fail, and the script.
const SABOTAGES: [(&str, &str, &str); 4] = [
    (
        "iptables-restore rejected every second time",
        "each service port is retried alone, and accepted; none is quarantined",
        r#"turn=$LAB_CALLS.$program
           if [ -e "$turn" ]; then rm "$turn"; else
               : > "$turn"; cat > /dev/null; echo "$program: line 2 failed: Invalid argument" >&2; exit 1
           fi"#,
    ),
    (
        "iptables-restore killed in the middle (SIGKILL)",
        "retried after reading the kernel",
        r#"if mkdir "$LAB_CALLS.$program.1" || mkdir "$LAB_CALLS.$program.2"; then
               exec 3<&0; "$program" "$@" <&3 & sleep "0.00$(($$ % 10))"; kill -KILL $!; kill -KILL $$
           fi 2> /dev/null"#,
    ),
    (
        "iptables-restore killed by the out-of-memory killer",
        "retried after reading the kernel",
        r#"mkdir "$LAB_CALLS.$program.1" 2> /dev/null && head -c 200 > /dev/null && kill -KILL $$"#,
    ),
    (
        "iptables-restore without memory (ulimit -v)",
        "retried after reading the kernel",
        r#"mkdir "$LAB_CALLS.$program.1" 2> /dev/null && ulimit -v 3000"#,
    ),
];

/// Runs `script` for restores only, not for requests of the version.
fn only_restores(script: &str) -> String {
    format!("case \"$program $1\" in *-restore\\ -w)\n{script}\n;; esac\n")
}

/// A failed restore costs time; rules in force stay meanwhile.
pub fn failing_restores_are_retried(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let findings = SABOTAGES
        .iter()
        .map(|(fault, observed, script)| {
            let (mut repaired, mut n_tried, mut n_failed) = (Vec::new(), 0, 0);
            let n_times = extent.of(1, 5);
            for _ in 0..n_times {
                // Each begins without the failures of the previous one.
                running.replace_agent(&[AT_ONCE], None).expect("an agent starts");
                let (node, agent) = (running.lab.node(1), &running.agents[0]);
                let to = OWN.cluster_ip(Family::V4);
                let [(address, pod), (other_address, other)] = TURNS;
                running.api.put(own_slice(&[other_address]));
                poll::until("the old endpoint is in force", SOON, || node.tcp(to).pod() == other);
                let load = Load::on(&running.lab, WEB);
                agent.sabotage(Some(&only_restores(script)));
                running.api.put(own_slice(&[address]));
                repaired.push(poll::until(&format!("{fault}: the change is in force"), RETRIED, || {
                    node.tcp(to).pod() == pod
                }));
                agent.sabotage(None);
                let log = agent.log();
                n_failed += log.matches("sync failed").count();
                assert!(!log.contains("service port quarantined"), "{fault}: no service port is the cause");
                let tally = load.stop();
                assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{fault}: {tally}");
                n_tried += tally.n_attempts();
            }
            Finding {
                fault: (*fault).to_owned(),
                n_times,
                observed: format!("{observed}; {n_failed} syncs failed"),
                repaired,
                n_tried,
                n_wrong: 0,
            }
        })
        .collect();
    all_is_right(&running);
    findings
}

/// iptables rejects every line with one address: its service port is quarantined and named, all
/// others are programmed; once iptables accepts it, the next change of the Service restores it.
pub fn only_the_rejected_service_port_is_quarantined(backend: Backend, extent: Extent) -> Vec<Finding> {
    const BAD: &str = "10.128.0.99";
    // A real iptables names the last line that has it, or one near it.
    let script = only_restores(
        r#"input=$(cat)
           line=$(echo "$input" | grep -n '10.128.0.99:8080' | head -n 1 | cut -d: -f1)
           [ -z "$line" ] || { echo "$program: line $line failed: Invalid argument" >&2; exit 1; }
           echo "$input" | "$program" "$@"; exit $?"#,
    );
    let running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let (own, local) = (OWN.cluster_ip(Family::V4), LOCAL.cluster_ip(Family::V4));
    let [(address, pod), _] = TURNS;
    let (mut repaired, mut n_tried) = (Vec::new(), 0);
    let n_times = extent.of(1, 5);
    for turn in 0..n_times {
        let load = Load::on(&running.lab, WEB);
        agent.sabotage(Some(&script));
        let n_said = agent.log().matches("service port quarantined").count();
        let n_calls = agent.programs_started().len();
        running.api.put(own_slice(&[BAD]));
        // Both ports of the Service have the endpoint.
        poll::until("both ports are named", SOON, || {
            agent.log().matches("service port quarantined").count() == n_said + 2
        });
        poll::until("the sync is over", SOON, || {
            let log = agent.log();
            let (_, since) = log.rsplit_once("service port quarantined").expect("it was logged");
            since.contains("] \"synced\" ")
        });
        let n_restores = restores(&agent.programs_started()[n_calls..]);
        // A change of another Service is programmed meanwhile.
        running.api.delete("Service", Some("default"), LOCAL.name);
        poll::until("others are programmed", SOON, || {
            node.attempt(Protocol::Udp, local, Duration::from_millis(200)).outcome
                == crate::lab::client::Outcome::Unreachable
        });
        running.api.put_yaml(crate::cluster::OBJECTS);
        running.api.put(own_slice(&[BAD]));
        poll::until("others are programmed", SOON, || {
            matches!(
                node.attempt(Protocol::Udp, local, Duration::from_millis(200)).outcome,
                crate::lab::client::Outcome::Answered { .. }
            )
        });
        agent.sabotage(None);
        let start = Instant::now();
        running.api.put(own_slice(&[address]));
        poll::until("it is served again", SOON, || {
            let attempt = node.attempt(Protocol::Tcp, own, Duration::from_millis(100));
            matches!(attempt.outcome, crate::lab::client::Outcome::Answered { pod: found, .. } if found == pod)
        });
        repaired.push(start.elapsed());
        let log = agent.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("service port quarantined")).collect();
        assert!(lines.iter().all(|line| line.contains("default/own:")), "{lines:#?}");
        assert!(n_restores <= 12, "{n_restores} restores");
        let tally = load.stop();
        assert_eq!(tally.n_wrong(&WEB_PODS), 0, "turn {turn}: {tally}");
        n_tried += tally.n_attempts();
    }
    all_is_right(&running);
    vec![Finding {
        fault: "one service port rejected by iptables".to_owned(),
        n_times,
        observed: "it alone is quarantined, and named; served again when it changes".to_owned(),
        repaired,
        n_tried,
        n_wrong: 0,
    }]
}

/// How many of `calls` wrote rules.
fn restores(calls: &[String]) -> usize {
    calls.iter().filter(|call| call.contains("-restore -w")).count()
}
