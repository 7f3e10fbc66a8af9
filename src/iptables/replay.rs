//! The ruleset that a whole text leaves on a node without rules: the output of `iptables-save`, or inputs of
//! `iptables-restore --noflush`, one after the other.
//!
//! Looser than the kernel where a part of a node's rules is given: a chain that no line declares exists from
//! the first rule that is added to it, and a jump may lead to a chain of another text.

use super::parse::{self, Line, ParseError};
use super::{ChainContent, ChainName, Policy, Ruleset, Table};
use crate::net::IpFamily;

/// A line at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct ReplayError {
    /// Its number, from 1.
    pub line: usize,
    /// Its text, and the reason.
    pub error: ParseError,
}

/// Reads `text`, applies its lines in order to empty tables, and returns the result. Built-in chains that
/// no line declares have the policy ACCEPT. Lines of tables other than mangle, filter and nat are skipped.
///
/// ```
/// use chainsmith::iptables::{ChainName, Table, replay};
/// use chainsmith::net::IpFamily;
///
/// let input = "*nat\n:WEB - [0:0]\n-A WEB -j ACCEPT\n-I OUTPUT -j WEB\n-D OUTPUT 1\n-F WEB\n-X WEB\nCOMMIT\n";
/// let ruleset = replay::text(IpFamily::V4, input)?;
/// assert_eq!(ruleset.chain(Table::Nat, &ChainName::literal("WEB")), None);
/// # Ok::<(), replay::ReplayError>(())
/// ```
pub fn text(family: IpFamily, text: &str) -> Result<Ruleset, ReplayError> {
    let mut replayed = Replayed::default();
    let mut last = (0, "");
    for (n, text) in text.lines().enumerate() {
        let fault = |error| ReplayError { line: n + 1, error };
        let line = parse::line(family, text).map_err(fault)?;
        replayed
            .apply(line)
            .map_err(|what| fault(ParseError { text: text.to_owned(), what: what.to_owned() }))?;
        last = (n + 1, text);
    }
    if replayed.open.is_some() {
        let error = ParseError { text: last.1.to_owned(), what: "no COMMIT behind this line".to_owned() };
        return Err(ReplayError { line: last.0, error });
    }
    Ok(replayed.ruleset)
}

#[derive(Default)]
struct Replayed {
    ruleset: Ruleset,
    /// The table that the last line belongs to; the inner one is `None` for a table that is skipped.
    open: Option<Option<Table>>,
}

type Reason = &'static str;

impl Replayed {
    fn apply(&mut self, line: Line) -> Result<(), Reason> {
        match (line, self.open) {
            (Line::Blank, _) => {}
            (Line::Table(_), Some(_)) => return Err("no COMMIT before this line"),
            (Line::Table(word), None) => {
                let table = Table::parse(&word);
                if let Some(table) = table {
                    self.open(table);
                }
                self.open = Some(table);
            }
            (_, None) => return Err("outside of a table"),
            (Line::Commit, Some(_)) => self.open = None,
            (_, Some(None)) => {}
            (line, Some(Some(table))) => return self.edit(table, line),
        }
        Ok(())
    }

    fn open(&mut self, table: Table) {
        for name in table.built_in() {
            self.ruleset.chain_mut(table, ChainName::literal(name)).policy.get_or_insert(Policy::Accept);
        }
    }

    fn edit(&mut self, table: Table, line: Line) -> Result<(), Reason> {
        let ruleset = &mut self.ruleset;
        match line {
            Line::Declaration(name, policy) => declare(ruleset.chain_mut(table, name), policy)?,
            Line::SetPolicy(name, policy) => declare(ruleset.chain_mut(table, name), Some(policy))?,
            Line::Create(name) => drop(ruleset.chain_mut(table, name)),
            Line::Append(name, rule) => ruleset.chain_mut(table, name).rules.push(rule),
            Line::Insert(name, rule) => ruleset.chain_mut(table, name).rules.insert(0, rule),
            Line::InsertAt(name, number, rule) => {
                let rules = &mut ruleset.chain_mut(table, name).rules;
                if number > rules.len() + 1 {
                    return Err("the chain has fewer rules");
                }
                rules.insert(number - 1, rule);
            }
            Line::RemoveRule(name, rule) => {
                let rules = &mut ruleset.chain_mut(table, name).rules;
                rules.remove(
                    rules.iter().position(|known| *known == rule).ok_or("the chain has no such rule")?,
                );
            }
            Line::RemoveAt(name, number) => {
                let rules = &mut ruleset.chain_mut(table, name).rules;
                if number > rules.len() {
                    return Err("the chain has fewer rules");
                }
                rules.remove(number - 1);
            }
            Line::Flush(Some(name)) => ruleset.chain_mut(table, name).rules.clear(),
            Line::Flush(None) => {
                ruleset.tables.entry(table).or_default().values_mut().for_each(|chain| chain.rules.clear());
            }
            Line::Delete(name) => {
                let chains = ruleset.tables.entry(table).or_default();
                if chains.get(&name).is_some_and(|chain| chain.policy.is_some()) {
                    return Err("a built-in chain cannot be deleted");
                }
                chains.remove(&name);
            }
            Line::Table(_) | Line::Commit | Line::Blank => {}
        }
        Ok(())
    }
}

/// A user-defined chain that is declared again is flushed; a built-in one keeps its rules, as under
/// `--noflush`.
fn declare(chain: &mut ChainContent, policy: Option<Policy>) -> Result<(), Reason> {
    match (policy, chain.policy) {
        (Some(policy), Some(_)) => chain.policy = Some(policy),
        (Some(_), None) => return Err("only a built-in chain has a policy"),
        (None, None) => chain.rules.clear(),
        (None, Some(_)) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::write;

    fn replayed(text: &str) -> String {
        write::save(IpFamily::V4, &super::text(IpFamily::V4, text).expect(text))
    }

    /// Lines of the nat table, and what they leave beside the declarations of built-in chains.
    fn check(lines: &str, left: &[&str]) {
        let saved = replayed(&format!("*nat\n{lines}\nCOMMIT\n"));
        let rules: Vec<&str> =
            saved.lines().filter(|line| line.starts_with("-A") || line.starts_with(":K")).collect();
        assert_eq!(rules, left, "{lines}");
    }

    #[test]
    fn lines_are_applied_in_order() {
        check(":K - [0:0]\n-A K -j ACCEPT\n:K - [0:0]", &[":K - [0:0]"]);
        check("-N K\n-A K -j ACCEPT\n-F K\n-X K", &[]);
        check("-A OUTPUT -j DROP\n-I OUTPUT -j ACCEPT", &["-A OUTPUT -j ACCEPT", "-A OUTPUT -j DROP"]);
        check(
            "-A OUTPUT -j DROP\n-I OUTPUT 2 -j RETURN\n-I OUTPUT 1 -j ACCEPT",
            &["-A OUTPUT -j ACCEPT", "-A OUTPUT -j DROP", "-A OUTPUT -j RETURN"],
        );
        check("-A OUTPUT -d 10.0.0.1 -j DROP\n-D OUTPUT -d 10.0.0.1/32 -j DROP", &[]);
        check("-A OUTPUT -j DROP\n-D OUTPUT 1\n-A INPUT -j DROP\n-F", &[]);
        // As with --noflush, which a built-in chain's declaration does not flush.
        check("-A OUTPUT -j DROP\n:OUTPUT ACCEPT [0:0]", &["-A OUTPUT -j DROP"]);
    }

    #[test]
    fn several_inputs_follow_each_other() {
        let text = "*nat\n:K - [0:0]\n-A K -j ACCEPT\nCOMMIT\n*filter\n:FORWARD DROP [3:4]\nCOMMIT\n\
                    *raw\n-A PREROUTING -j CT --notrack\nCOMMIT\n*nat\n-A K -j DROP\n-P OUTPUT DROP\nCOMMIT\n";
        let saved = replayed(text);
        assert!(saved.contains("-A K -j ACCEPT\n-A K -j DROP\n"), "{saved}");
        assert!(saved.contains(":FORWARD DROP [0:0]\n") && saved.contains(":OUTPUT DROP [0:0]\n"), "{saved}");
        assert!(!saved.contains("raw"), "{saved}");
    }

    #[test]
    fn what_was_saved_is_what_a_restore_leaves() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                     :POSTROUTING ACCEPT [0:0]\n:K - [0:0]\n-A OUTPUT -d 10.0.0.1/32 -j K\n-A OUTPUT -j K\n\
                     -A K -j ACCEPT\nCOMMIT\n";
        assert_eq!(replayed(saved), saved);
        let ruleset = text(IpFamily::V4, saved).unwrap();
        assert_eq!(replayed(&write::restore(IpFamily::V4, &ruleset)), saved);
    }

    #[test]
    fn an_error_names_the_line_and_quotes_it() {
        let check = |text: &str, error: &str| {
            assert_eq!(super::text(IpFamily::V4, text).expect_err(text).to_string(), error);
        };
        check(
            "*nat\n-A OUTPUT -s x -j DROP\nCOMMIT\n",
            "line 2: not an address of the family: \"-A OUTPUT -s x -j DROP\"",
        );
        check("-A OUTPUT -j DROP\n", "line 1: outside of a table: \"-A OUTPUT -j DROP\"");
        check("*nat\n-A OUTPUT -j DROP", "line 2: no COMMIT behind this line: \"-A OUTPUT -j DROP\"");
        check("*nat\n*filter\n", "line 2: no COMMIT before this line: \"*filter\"");
        check(
            "*nat\n-I OUTPUT 2 -j DROP\nCOMMIT",
            "line 2: the chain has fewer rules: \"-I OUTPUT 2 -j DROP\"",
        );
        check(
            "*nat\n-I OUTPUT 0 -j DROP\nCOMMIT",
            "line 2: not the number of a rule: \"-I OUTPUT 0 -j DROP\"",
        );
        check("*nat\n-D OUTPUT 1\nCOMMIT", "line 2: the chain has fewer rules: \"-D OUTPUT 1\"");
        check("*nat\n-D OUTPUT -j DROP\nCOMMIT", "line 2: the chain has no such rule: \"-D OUTPUT -j DROP\"");
        check("*nat\n-X OUTPUT\nCOMMIT", "line 2: a built-in chain cannot be deleted: \"-X OUTPUT\"");
        check("*nat\n:K DROP [0:0]\nCOMMIT", "line 2: only a built-in chain has a policy: \":K DROP [0:0]\"");
        check("*nat\n-P OUTPUT QUEUE\nCOMMIT", "line 2: not a policy: \"-P OUTPUT QUEUE\"");
        check("<html>", "line 1: not a line of iptables: \"<html>\"");
    }
}
