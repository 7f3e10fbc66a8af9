//! Tables in memory that reject what iptables or the kernel rejects. For tests; strict, so that a plan that
//! passes here passes in the kernel.

use std::collections::BTreeMap;

use super::{Backend, Dump, DumpedChain, Iptables, Outline, Readable, RestoreError};
use crate::iptables::parse::{self, Line};
use crate::iptables::{ChainContent, ChainName, Digest, Fingerprint, Jump, Rule, Ruleset, Table, write};
use crate::net::IpFamily;
use crate::plan::{InputExcerpt, Limits, Restore, RestoreInput};

/// The longest path of user-defined chains that nf_tables takes.
const MAX_DEPTH: usize = 15;

/// The tables of one family in memory.
#[derive(Clone, Debug)]
pub struct FakeIptables {
    family: IpFamily,
    backend: Backend,
    /// What [`Iptables::limits`] returns; the limits of the back-end, unless a test sets others.
    pub limits: Limits,
    /// The tables.
    pub ruleset: Ruleset,
    /// The inputs of all restores so far, failed ones included.
    pub inputs: Vec<String>,
    /// The tables after each commit; recorded if a test sets it.
    pub history: Option<Vec<Ruleset>>,
    /// Lines with one of these texts are rejected.
    pub rejected_texts: Vec<String>,
    /// Whether a rejection names the line of the `COMMIT`, as nft may, instead of the rejected line.
    pub is_vague: bool,
    /// Inputs of more bytes fail as too large, as in a user namespace.
    pub max_bytes: usize,
    /// Errors of the next restores, which then change nothing; the last one first.
    pub failures: Vec<RestoreError>,
    /// Whether `iptables-save` fails.
    pub is_save_broken: bool,
    /// What [`Iptables::readable`] returns.
    pub readable: Readable,
    /// Calls of `iptables-save` so far.
    pub n_saves: usize,
    /// What another process makes of the tables right before the call of this number (from 1).
    pub replaced_at_save: BTreeMap<usize, Ruleset>,
    /// Whether dumps over netlink fail.
    pub is_dump_broken: bool,
    /// Whether reading the generation fails.
    pub is_generation_broken: bool,
    /// Dumps over netlink so far.
    pub n_dumps: usize,
    /// Whether `iptables -C` fails.
    pub is_check_broken: bool,
    /// Calls of `iptables -C` so far.
    pub n_jump_checks: usize,
    /// Commits so far, which is the generation. A test raises it for a commit of another process.
    pub n_commits: u32,
}

impl FakeIptables {
    /// Empty tables.
    pub fn new(family: IpFamily, backend: Backend) -> FakeIptables {
        FakeIptables {
            family,
            backend,
            limits: backend.limits(),
            ruleset: Ruleset::with_built_in_chains(),
            inputs: Vec::new(),
            history: None,
            failures: Vec::new(),
            max_bytes: usize::MAX,
            rejected_texts: Vec::new(),
            is_vague: false,
            is_save_broken: false,
            readable: Readable::Rules,
            n_saves: 0,
            replaced_at_save: BTreeMap::new(),
            is_dump_broken: false,
            is_generation_broken: false,
            n_dumps: 0,
            is_check_broken: false,
            n_jump_checks: 0,
            n_commits: 0,
        }
    }

    /// Tables that hold what `iptables-save` printed.
    pub fn holding(
        family: IpFamily,
        backend: Backend,
        save: &str,
    ) -> Result<FakeIptables, parse::ParseError> {
        let mut fake = FakeIptables::new(family, backend);
        for (table, chains) in parse::save(family, save)?.tables {
            fake.ruleset.tables.entry(table).or_default().extend(chains);
        }
        Ok(fake)
    }

    fn run(&mut self, input: &str) -> Result<(), RestoreError> {
        let mut open: Option<(Table, BTreeMap<ChainName, ChainContent>)> = None;
        let mut pending_rejection = None;
        for (n, text) in input.lines().enumerate() {
            let rejected =
                |message: String| RestoreError::Refused { line: n + 1, text: Some(text.to_owned()), message };
            if self.rejected_texts.iter().any(|rejected| text.contains(rejected.as_str())) {
                match self.is_vague {
                    false => return Err(rejected("rejected by the test".to_owned())),
                    true => pending_rejection = Some("rejected by the test".to_owned()),
                }
            }
            match (parse::line(self.family, text).map_err(|e| rejected(e.to_string()))?, &mut open) {
                (Line::Blank, _) => {}
                (Line::Table(word), None) => {
                    let table = Table::parse(&word).ok_or_else(|| rejected("no such table".to_owned()))?;
                    open = Some((table, self.ruleset.tables.get(&table).cloned().unwrap_or_default()));
                }
                (Line::Commit, Some((table, chains))) => {
                    if let Some(message) = pending_rejection.take() {
                        return Err(rejected(message));
                    }
                    self.check_depth(chains).map_err(rejected)?;
                    self.ruleset.tables.insert(*table, std::mem::take(chains));
                    open = None;
                    self.n_commits += 1;
                    if let Some(history) = &mut self.history {
                        history.push(self.ruleset.clone());
                    }
                }
                (line, Some((_, chains))) => apply_line(line, chains).map_err(rejected)?,
                (_, None) => return Err(rejected("outside of a table".to_owned())),
            }
        }
        match open {
            None => Ok(()),
            Some(_) => Err(RestoreError::Failed { status: 2, message: "no COMMIT".to_owned() }),
        }
    }

    fn check_depth(&self, chains: &BTreeMap<ChainName, ChainContent>) -> Result<(), String> {
        let mut known = BTreeMap::new();
        for (name, chain) in chains {
            let deepest = depth(name, chains, &mut known, 0)?;
            if self.backend == Backend::Nft && chain.policy.is_some() && deepest > MAX_DEPTH {
                return Err("Too many links".to_owned());
            }
        }
        Ok(())
    }
}

/// The longest path of chains below `name`.
fn depth(
    name: &ChainName,
    chains: &BTreeMap<ChainName, ChainContent>,
    known: &mut BTreeMap<ChainName, usize>,
    level: usize,
) -> Result<usize, String> {
    if level > chains.len() {
        return Err(format!("a loop through {name}"));
    }
    if let Some(depth) = known.get(name) {
        return Ok(*depth);
    }
    let mut deepest = 0;
    for callee in chains.get(name).into_iter().flat_map(|chain| chain.rules.iter().filter_map(Rule::callee)) {
        deepest = deepest.max(1 + depth(&callee, chains, known, level + 1)?);
    }
    known.insert(*name, deepest);
    Ok(deepest)
}

fn apply_line(line: Line, chains: &mut BTreeMap<ChainName, ChainContent>) -> Result<(), String> {
    match line {
        Line::Declaration(name, policy) => {
            let chain = chains.entry(name).or_default();
            match (policy, chain.policy) {
                (Some(policy), Some(_)) => chain.policy = Some(policy),
                (Some(_), None) => return Err(format!("{name} has no policy")),
                // Without --noflush a built-in chain would be emptied; with it only a user's is.
                (None, _) => chain.rules.clear(),
            }
        }
        Line::Append(name, rule) => {
            check_callee(&rule, chains)?;
            chains.get_mut(&name).ok_or_else(|| format!("no chain {name}"))?.rules.push(rule);
        }
        Line::Insert(name, rule) => {
            check_callee(&rule, chains)?;
            chains.get_mut(&name).ok_or_else(|| format!("no chain {name}"))?.rules.insert(0, rule);
        }
        Line::Delete(name) => {
            let chain = chains.get(&name).ok_or_else(|| format!("no chain {name}"))?;
            if chain.policy.is_some() || !chain.rules.is_empty() {
                return Err(format!("{name} is not empty, or built in"));
            }
            if chains.values().flat_map(|chain| &chain.rules).any(|rule| rule.callee() == Some(name)) {
                return Err(format!("{name} is in use"));
            }
            chains.remove(&name);
        }
        Line::Table(_) | Line::Commit | Line::Blank => return Err("a table is open".to_owned()),
        // The planner writes none of these.
        Line::InsertAt(..) | Line::RemoveRule(..) | Line::RemoveAt(..) => {
            return Err("not supported".to_owned());
        }
        Line::Flush(_) | Line::Create(_) | Line::SetPolicy(..) => return Err("not supported".to_owned()),
    }
    Ok(())
}

fn check_callee(rule: &Rule, chains: &BTreeMap<ChainName, ChainContent>) -> Result<(), String> {
    match rule.callee() {
        Some(callee) if chains.get(&callee).is_none_or(|chain| chain.policy.is_some()) => {
            Err(format!("chain {callee} does not exist"))
        }
        _ => Ok(()),
    }
}

impl Restore for FakeIptables {
    type Error = RestoreError;

    fn begin(&mut self) {
        self.inputs.push(String::new());
    }

    fn write(&mut self, text: &str) {
        self.inputs.last_mut().expect("begin comes before write").push_str(text);
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        if let Some(failure) = self.failures.pop() {
            return Err(failure);
        }
        let input = self.inputs.last().expect("begin comes before end").clone();
        if input.len() > self.max_bytes {
            return Err(RestoreError::TooLarge("sendmsg() failed: Message too long".to_owned()));
        }
        self.run(&input)
    }
}

impl Iptables for FakeIptables {
    fn family(&self) -> IpFamily {
        self.family
    }

    fn take_input(&mut self) -> Option<InputExcerpt> {
        let mut input = RestoreInput::default();
        input.push(self.inputs.last()?);
        Some(input.excerpt(None))
    }

    fn backend(&self) -> Backend {
        self.backend
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn shrink_limits(&mut self) -> bool {
        let less = self.limits.halved();
        self.limits = less.unwrap_or(self.limits);
        less.is_some()
    }

    fn readable(&mut self, _: Table) -> anyhow::Result<Readable> {
        Ok(self.readable)
    }

    fn save(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.n_saves += 1;
        if let Some(ruleset) = self.replaced_at_save.remove(&self.n_saves) {
            self.ruleset = ruleset;
        }
        if self.is_save_broken {
            anyhow::bail!("iptables-save is broken");
        }
        let mut one = self.ruleset.clone();
        one.tables.retain(|name, _| *name == table);
        write::save(self.family, &one).lines().for_each(each);
        Ok(())
    }

    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        self.n_jump_checks += 1;
        if self.is_check_broken {
            anyhow::bail!("iptables -C is broken");
        }
        Ok(self.ruleset.chain(jump.table, &jump.from).is_some_and(|chain| chain.rules.contains(&jump.rule)))
    }

    fn chain_names(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let chains = self.ruleset.tables.get(&table).into_iter().flatten();
        chains.for_each(|(name, _)| each(name.as_str()));
        Ok(())
    }

    fn fingerprints(&mut self, table: Table, only: Option<&[ChainName]>) -> anyhow::Result<Option<Dump>> {
        self.n_dumps += 1;
        if self.is_dump_broken {
            anyhow::bail!("the dump is broken");
        }
        let dumped = |name: &ChainName, chain: Option<&ChainContent>| {
            let rules = chain.into_iter().flat_map(|chain| &chain.rules);
            let n_rules = chain.map_or(0, |chain| chain.rules.len()) as u32;
            let fingerprint = Fingerprint::new(
                rules.fold(1, |hash, rule| (hash ^ Digest::rule(rule)).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            );
            DumpedChain { name: *name, fingerprint, n_rules }
        };
        let mut chains: Vec<DumpedChain> = match only {
            Some(only) => only.iter().map(|name| dumped(name, self.ruleset.chain(table, name))).collect(),
            None => {
                let all = self.ruleset.tables.get(&table).into_iter().flatten();
                all.map(|(name, chain)| dumped(name, Some(chain))).collect()
            }
        };
        chains.sort_unstable_by_key(|chain| chain.name);
        let generation = self.generation()?;
        Ok(Some(Dump { generation, chains }))
    }

    fn outline(&mut self, table: Table) -> anyhow::Result<Option<Outline>> {
        if self.is_dump_broken {
            anyhow::bail!("the dump is broken");
        }
        let chains = self.ruleset.tables.get(&table).into_iter().flatten();
        let n_entries = chains.map(|(_, chain)| 1 + chain.rules.len() as u32).sum();
        let outline = Outline { hooks: [None; 5], policies: [0; 5], n_entries, n_bytes: 0 };
        Ok((self.backend == Backend::Legacy).then_some(outline))
    }

    fn generation(&mut self) -> anyhow::Result<Option<u32>> {
        if self.is_generation_broken {
            anyhow::bail!("the generation cannot be had");
        }
        Ok((self.backend == Backend::Nft).then_some(self.n_commits))
    }

    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()> {
        self.ruleset.chain_mut(table, chain);
        Ok(())
    }

    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool> {
        Ok(self.ruleset.chain(table, &chain).is_some())
    }
}
