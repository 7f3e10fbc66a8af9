//! A network namespace with its own `/run`, and its tables.

use std::io::Write;
use std::process::{Command, Stdio};

use chainsmith::iptables::Table;
use chainsmith::kernel::programs::Programs;
use chainsmith::kernel::{Backend, nfacct};
use chainsmith::net::IpFamily;
use chainsmith::rules::fixed;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in new namespaces with a free xtables lock and the counters that rules refer to.
pub fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_FS)
                .expect("root may create namespaces");
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
                .expect("a mount in our namespace");
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), nothing)
                .expect("a /run of our own");
            for counter in [fixed::INVALID_COUNTER, fixed::LOCALHOST_COUNTER] {
                nfacct::ensure(counter).expect("the kernel has nfacct");
            }
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Loads the output of `iptables-save` into the tables.
pub fn load(family: IpFamily, backend: Backend, rules: &str) {
    let mut command = Command::new(Programs::new(family, Some(backend)).restore);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("iptables-restore runs");
    child.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success());
}

/// The output of `iptables-save` for our tables.
pub fn saved(family: IpFamily, backend: Backend) -> String {
    let save = Programs::new(family, Some(backend)).save;
    let table = |table: Table| {
        let output = Command::new(save).args(["-t", table.as_str()]).output().expect("iptables-save runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    Table::ALL.map(table).concat()
}

/// Each back-end with each family.
pub fn everywhere(test: impl Fn(IpFamily, Backend) + Sync) {
    for backend in [Backend::Nft, Backend::Legacy] {
        for family in IpFamily::BOTH {
            in_namespace(|| test(family, backend));
        }
    }
}
