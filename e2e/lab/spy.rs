//! Records the iptables programs that an agent starts: a folder at the head of its PATH holds a script under
//! the name of each, which records the call and becomes the real program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders of the real programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The script. (Linked, never written: another test's child may still hold a just written file open, and
/// the kernel then refuses to run it.)
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/lab/spy.sh");

/// A record of one agent's calls.
#[derive(Debug)]
pub(super) struct Spy {
    programs: PathBuf,
    record: PathBuf,
}

impl Spy {
    /// Puts the scripts into `folder`, once for all agents, and starts a record called `stem`.
    pub(super) fn new(folder: &Path, stem: &str) -> Result<Self> {
        let spy = Self { programs: folder.join("bin"), record: folder.join(format!("{stem}.calls")) };
        fs::write(&spy.record, "").with_context(|| format!("writing {}", spy.record.display()))?;
        if !spy.programs.exists() {
            fs::create_dir(&spy.programs).context("making a folder for the spies")?;
            for stem in ["iptables", "ip6tables"] {
                for implementation in ["", "-nft", "-legacy"] {
                    for suffix in ["", "-save", "-restore"] {
                        symlink(SCRIPT, spy.programs.join(format!("{stem}{implementation}{suffix}")))?;
                    }
                }
            }
        }
        Ok(spy)
    }

    /// The environment variables that make an agent's calls recorded.
    pub(super) fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("PATH", format!("{}:{PATH}", self.programs.display())),
            ("LAB_PATH", PATH.to_owned()),
            ("LAB_CALLS", self.record.to_string_lossy().into_owned()),
        ]
    }

    /// Makes each program run `script` first (shell; `$program` is its name, `$@` its arguments);
    /// `None` ends that.
    pub(super) fn sabotage(&self, script: Option<&str>) -> Result<()> {
        let target = self.record.with_extension("calls.sabotage");
        match script {
            // Atomically: programs are started meanwhile.
            Some(script) => {
                let draft = self.record.with_extension("calls.draft");
                fs::write(&draft, script)?;
                fs::rename(draft, target).context("putting sabotage in place")
            }
            None => match fs::remove_file(target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            },
        }
    }

    /// The output of a script to `$LAB_CALLS.<word>`.
    pub(super) fn note(&self, word: &str) -> Option<String> {
        fs::read_to_string(self.record.with_extension(format!("calls.{word}"))).ok()
    }

    /// The calls so far.
    pub(super) fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.record).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
