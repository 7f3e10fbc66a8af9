//! One setting: its path, flag, default and help text; a row of [`super::table`].

/// When a flag counts. The order is that of `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlagScope {
    /// Chainsmith's own: always, and it overrides the file.
    Own,
    /// kube-proxy's: also beside `--config`.
    BesideFile,
    /// kube-proxy's: ignored when `--config` is given.
    WithoutFile,
    /// Accepted; has no effect in iptables mode.
    NoEffect,
}

/// The form of a flag on the command line. It follows from the setting's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagSyntax {
    /// `--name` or `--name=BOOL`.
    Switch,
    /// `--name VALUE`; the last one counts.
    One,
    /// `--name VALUE`; repeated ones add up.
    Many,
}

/// Everything about a setting except its type and its check.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Path in the file (`iptables.masqueradeBit`); empty: only a flag.
    pub path: &'static str,
    /// Name of the flag, without `--`; empty: only in the file.
    pub flag: &'static str,
    /// The default as `/flagz` shows it.
    pub flag_default: &'static str,
    /// The default as text that the flag takes; `[]` is the empty list.
    pub default: &'static str,
    /// For `--help`.
    pub help: &'static str,
    /// When the flag counts.
    pub scope: FlagScope,
    pub(super) value_name: &'static str,
    pub(super) syntax: FlagSyntax,
    pub(super) shapes_rules: bool,
    pub(super) is_nullable: bool,
    pub(super) ignores_empty_flag: bool,
    pub(super) is_omitted_if_default: bool,
    pub(super) is_dropped: bool,
    pub(super) deprecated: Option<&'static str>,
}

/// A setting of the file.
pub(super) const fn setting(path: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting {
        path,
        flag: "",
        flag_default: default,
        default,
        help,
        scope: FlagScope::WithoutFile,
        value_name: "",
        syntax: FlagSyntax::One,
        shapes_rules: false,
        is_nullable: false,
        ignores_empty_flag: false,
        is_omitted_if_default: false,
        is_dropped: false,
        deprecated: None,
    }
}

/// A setting of another mode of kube-proxy: its type is checked, and setting it is a warning.
pub(super) const fn other_mode(path: &'static str, default: &'static str) -> Setting {
    setting(path, default, "has no effect in iptables mode").without_effect()
}

/// A setting that only a flag can give.
pub(super) const fn flag_only(
    flag: &'static str,
    value_name: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    setting("", default, help).flag(flag, value_name)
}

impl Setting {
    /// `--<flag> <value_name>` sets it too; `BOOL` for a switch.
    pub(super) const fn flag(self, flag: &'static str, value_name: &'static str) -> Setting {
        Setting { flag, value_name, ..self }
    }

    /// The flag overrides the file.
    pub(super) const fn beside_file(self) -> Setting {
        Setting { scope: FlagScope::BesideFile, ..self }
    }

    /// Chainsmith's own setting: the flag overrides the file, where zero is a value.
    pub(super) const fn own(self) -> Setting {
        Setting { scope: FlagScope::Own, ..self }
    }

    /// Accepted and ignored; setting it is a warning.
    pub(super) const fn without_effect(self) -> Setting {
        Setting { scope: FlagScope::NoEffect, ..self }
    }

    /// `render` takes the flag too: it shapes rules.
    pub(super) const fn for_render(self) -> Setting {
        Setting { shapes_rules: true, ..self }
    }

    /// A pointer in v1alpha1: `null` is unset, and zero is a value.
    pub(super) const fn nullable(self) -> Setting {
        Setting { is_nullable: true, ..self }
    }

    /// An empty flag leaves the value as it is.
    pub(super) const fn ignores_empty_flag(self) -> Setting {
        Setting { ignores_empty_flag: true, ..self }
    }

    /// `/flagz` shows this default; the one of the file is different.
    pub(super) const fn flag_default(self, flag_default: &'static str) -> Setting {
        Setting { flag_default, ..self }
    }

    /// `/configz` omits the default.
    pub(super) const fn omitted_if_default(self) -> Setting {
        Setting { is_omitted_if_default: true, ..self }
    }

    /// kube-proxy's conversion loses it in iptables mode: `/configz` shows the default.
    pub(super) const fn dropped(self) -> Setting {
        Setting { is_dropped: true, ..self }
    }

    /// Giving the flag is a warning with this advice.
    pub(super) const fn deprecated(self, advice: &'static str) -> Setting {
        Setting { deprecated: Some(advice), ..self }
    }

    /// The name of the setting: its path, or `--<flag>`.
    pub(super) fn name(&self) -> String {
        if self.path.is_empty() { format!("--{}", self.flag) } else { self.path.to_owned() }
    }

    /// Whether zero or an empty text in the file is a value of its own, and not the default.
    pub(super) fn is_zero_a_value(&self) -> bool {
        self.is_nullable || self.scope == FlagScope::Own
    }
}
