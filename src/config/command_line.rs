//! The command line of the agent: the flags of the table as clap's arguments.
//!
//! The syntax is pflag's: a boolean takes no separate argument (`--masquerade-all=false`), a list is comma
//! separated or repeated.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::flags::Flags;
use super::setting::{FlagScope, FlagSyntax, Setting};
use super::table::SETTINGS;

/// Every setting that has a flag, by scope, then by name.
pub static FLAGS: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    let mut flags: Vec<Setting> =
        SETTINGS.iter().filter(|setting| !setting.flag.is_empty()).copied().collect();
    flags.sort_by_key(|setting| (setting.scope, setting.flag));
    flags
});

fn arg(setting: &Setting) -> Arg {
    let name = setting.flag;
    let arg = Arg::new(name).long(name).help(setting.help).action(ArgAction::Append);
    let arg = arg.value_name(setting.value_name);
    let arg = match setting.syntax {
        FlagSyntax::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        FlagSyntax::One | FlagSyntax::Many => arg.num_args(1).allow_hyphen_values(true),
    };
    let arg = if name == "v" { arg.short('v') } else { arg };
    match setting.scope {
        FlagScope::Own => arg.help_heading("Chainsmith"),
        FlagScope::BesideFile => arg.help_heading("kube-proxy"),
        FlagScope::WithoutFile => arg.help_heading("kube-proxy, ignored when --config is given"),
        FlagScope::NoEffect => arg.help_heading("kube-proxy, without effect here").hide_short_help(true),
    }
}

impl Flags {
    /// As if `--<name>=<text>` stood on the command line; for tests, and for callers without a
    /// command line. Panics for an unknown name.
    pub fn with(mut self, name: &str, text: &str) -> Flags {
        let setting = FLAGS.iter().find(|setting| setting.flag == name).expect("the flag is in the table");
        self.push(setting.flag, text.to_owned());
        self
    }

    /// Every flag, with its text or its default, by name, for `/flagz` and the log.
    pub fn all(&self) -> Vec<(&'static str, String)> {
        let value = |setting: &Setting| match (self.texts(setting.flag), setting.syntax) {
            ([], _) => setting.flag_default.to_owned(),
            (texts, FlagSyntax::Many) if setting.flag_default == "[]" => format!("[{}]", texts.join(",")),
            (texts, FlagSyntax::Many) => texts.join(","),
            ([.., text], _) => text.clone(),
        };
        let mut all: Vec<_> = FLAGS.iter().map(|setting| (setting.flag, value(setting))).collect();
        // Both end the program before anything shows them.
        all.extend([("help", "false".to_owned()), ("version", "false".to_owned())]);
        all.sort();
        all
    }

    fn from_matches<'a>(matches: &ArgMatches, flags: impl Iterator<Item = &'a Setting>) -> Flags {
        let mut given = Flags::default();
        for setting in flags {
            for text in matches.get_many::<String>(setting.flag).into_iter().flatten() {
                given.push(setting.flag, text.clone());
            }
        }
        given
    }
}

/// The flags that shape rules: `render` takes these of the agent's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleFlags(pub Flags);

/// Implements clap's traits for `$type`, whose flags are `$settings` (the table, not a struct with 60 fields, is
/// the list).
macro_rules! clap_args {
    ($type:ident, $settings:expr, $from_flags:expr) => {
        impl clap::Args for $type {
            fn augment_args(command: Command) -> Command {
                command.args($settings.map(arg))
            }

            fn augment_args_for_update(command: Command) -> Command {
                $type::augment_args(command)
            }
        }

        impl clap::FromArgMatches for $type {
            fn from_arg_matches(matches: &ArgMatches) -> Result<$type, clap::Error> {
                Ok($from_flags(Flags::from_matches(matches, $settings)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = $type::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}
clap_args!(Flags, FLAGS.iter(), |flags| flags);
clap_args!(RuleFlags, FLAGS.iter().filter(|setting| setting.shapes_rules), RuleFlags);

/// `argv` with `_` replaced by `-` in the names of long flags, as kube-proxy reads them; to be called before
/// clap parses `argv`. Arguments after `--` stay.
pub fn normalise(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_flags = true;
    let normalise = |argument: OsString| {
        is_flags &= argument != "--";
        match argument.to_str() {
            Some(text) if is_flags && text.starts_with("--") => {
                let end = text.find('=').unwrap_or(text.len());
                OsString::from(format!("{}{}", text[..end].replace('_', "-"), &text[end..]))
            }
            _ => argument,
        }
    };
    argv.into_iter().map(normalise).collect()
}
