//! The value of each setting: flag before file before default (config.md 1), with its origin.

use super::diagnostics::{ConfigErrors, Diagnostics, SetBy, Warning, quoted};
use super::effective::{Effective, EffectiveSetting};
use super::file::FileValues;
use super::flags::Flags;
use super::setting::{FlagScope, Setting};
use super::setting_value::SettingValue;
use super::yaml::FileValue;

/// Resolves the settings one by one, and collects everything that is wrong with them.
pub(super) struct Resolver<'a> {
    has_file: bool,
    file: FileValues,
    flags: &'a Flags,
    diagnostics: Diagnostics,
    effective: Effective,
    /// The settings so far.
    table: Vec<Setting>,
    /// Flags that were given and do not count beside a file.
    ignored: Vec<(FlagScope, &'static str)>,
}

impl<'a> Resolver<'a> {
    /// Without `file`, no file was given. `diagnostics` holds the findings about the file's text.
    pub(super) fn new(file: Option<FileValues>, flags: &'a Flags, diagnostics: Diagnostics) -> Resolver<'a> {
        Resolver {
            has_file: file.is_some(),
            file: file.unwrap_or_default(),
            flags,
            diagnostics,
            effective: Effective::default(),
            table: Vec::new(),
            ignored: Vec::new(),
        }
    }

    /// Reads a flag for its errors alone: its value is taken from [`Flags`].
    pub(super) fn declare<T: SettingValue>(&mut self, flag: Setting) {
        let flag = Setting { syntax: T::SYNTAX, ..flag };
        self.table.push(flag);
        self.flag_value::<T>(&flag);
    }

    /// The value of `setting`. A wrong one is reported, and counts as not given.
    pub(super) fn get<T: SettingValue>(&mut self, setting: Setting) -> T {
        self.get_or(setting, T::from_default(setting.default))
    }

    /// As [`Resolver::get`], with a default that depends on other settings.
    pub(super) fn get_or<T: SettingValue>(&mut self, setting: Setting, default: T) -> T {
        let setting = Setting { syntax: T::SYNTAX, ..setting };
        self.table.push(setting);
        let is_unset =
            |value: &T| !setting.is_zero_a_value() && *value == T::default() && default != T::default();
        let file = self.file_value(&setting).filter(|value| !is_unset(value));
        let (value, set_by) = match (self.flag_value::<T>(&setting), file) {
            (Some(flag), file) => (flag.over(file), SetBy::Flag(setting.flag)),
            (None, Some(file)) => (file, SetBy::File),
            (None, None) => (default.clone(), SetBy::Default),
        };
        self.report_no_effect(&setting, set_by, value == default);
        self.record(&setting, set_by, &value, &default);
        value
    }

    /// The value of `setting` as `check` converts it; its error is reported, and the default counts.
    pub(super) fn checked<T: SettingValue, U>(
        &mut self,
        setting: Setting,
        check: impl Fn(T) -> Result<U, String>,
    ) -> U {
        let value = self.get::<T>(setting);
        check(value.clone()).unwrap_or_else(|reason| {
            self.refuse(&setting.name(), value.quoted(), reason);
            check(T::from_default(setting.default)).expect("the default in the table passes its check")
        })
    }

    fn file_value<T: SettingValue>(&mut self, setting: &Setting) -> Option<T> {
        let value = self.file.remove(setting.path)?;
        if value == FileValue::Null && (setting.is_nullable || !T::REFUSES_NULL) {
            return None;
        }
        let read = T::from_file(&value);
        if read.is_none() {
            self.diagnostics.refuse(setting.path, value, format!("must be {}", T::EXPECTED));
        }
        read
    }

    fn flag_value<T: SettingValue>(&mut self, setting: &Setting) -> Option<T> {
        let texts = self.flags.texts(setting.flag);
        let last = texts.last()?;
        if self.has_file && !matches!(setting.scope, FlagScope::Own | FlagScope::BesideFile) {
            self.ignored.push((setting.scope, setting.flag));
            return None;
        }
        let place = format!("--{}", setting.flag);
        if let Some(advice) = setting.deprecated {
            self.diagnostics.warn(&place, format!("deprecated, {advice}"));
        }
        if setting.ignores_empty_flag && last.is_empty() {
            return None;
        }
        let read = T::from_texts(texts);
        if read.is_none() {
            self.diagnostics.refuse(place, quoted(&texts.join(",")), format!("must be {}", T::EXPECTED));
        }
        read
    }

    fn report_no_effect(&mut self, setting: &Setting, set_by: SetBy, is_default: bool) {
        let place = match set_by {
            SetBy::Flag(name) => format!("--{name}"),
            SetBy::File if !is_default => setting.path.to_owned(),
            SetBy::File | SetBy::Default => return,
        };
        if setting.scope == FlagScope::NoEffect {
            self.diagnostics.warn(place, "has no effect in iptables mode, ignored");
        }
    }

    fn record<T: SettingValue>(&mut self, setting: &Setting, set_by: SetBy, value: &T, default: &T) {
        let (value, set_by) = if setting.is_dropped { (default, SetBy::Default) } else { (value, set_by) };
        let is_default = value == default;
        if !(is_default && setting.is_omitted_if_default) {
            let value = value.to_json();
            self.effective.push(EffectiveSetting { path: setting.name(), value, set_by, is_default });
        }
    }

    /// Records that `value`, used instead of the one given at `path`, is in force.
    pub(super) fn replace(&mut self, path: &str, value: impl SettingValue, set_by: SetBy) {
        if let Some(setting) = self.effective.get_mut(path) {
            let value = value.to_json();
            let is_default = setting.is_default && setting.value == value;
            *setting = EffectiveSetting { path: setting.path.clone(), value, set_by, is_default };
        }
    }

    /// Reports that the setting at `path` is wrong, or an element of it (`nodePortAddresses[1]`).
    pub(super) fn refuse(&mut self, path: &str, value: impl std::fmt::Display, reason: impl Into<String>) {
        self.diagnostics.refuse(self.place(path), value, reason);
    }

    /// Warns about the setting at `path`.
    pub(super) fn warn(&mut self, path: &str, note: impl Into<String>) {
        self.diagnostics.warn(self.place(path), note);
    }

    /// The number of errors so far.
    pub(super) fn n_errors(&self) -> usize {
        self.diagnostics.errors.len()
    }

    /// Whether `--<name>` was given with a text.
    pub(super) fn has_flag(&self, name: &str) -> bool {
        self.flags.texts(name).last().is_some_and(|text| !text.is_empty())
    }

    /// Whether a file was given.
    pub(super) fn has_file(&self) -> bool {
        self.has_file
    }

    /// The origin of the setting at `path`; an element of a list or a map (`nodePortAddresses[0]`,
    /// `featureGates.ComponentFlagz`) has that of the whole.
    pub(super) fn set_by(&self, path: &str) -> SetBy {
        let is_it = |setting: &&EffectiveSetting| {
            path.strip_prefix(&*setting.path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.effective.settings().iter().find(is_it).map_or(SetBy::Default, |setting| setting.set_by)
    }

    /// The name of the setting in messages: its flag if that set it, else its path.
    fn place(&self, path: &str) -> String {
        match self.set_by(path) {
            SetBy::Flag(name) => format!("--{name}"),
            SetBy::File | SetBy::Default => path.to_owned(),
        }
    }

    /// The settings in force.
    pub(super) fn take_effective(&mut self) -> Effective {
        std::mem::take(&mut self.effective)
    }

    /// The rows of the table.
    pub(super) fn into_table(self) -> Vec<Setting> {
        self.table
    }

    /// The warnings, or all errors.
    pub(super) fn finish(mut self) -> Result<Vec<Warning>, ConfigErrors> {
        self.ignored.sort_unstable();
        let ignored: Vec<String> = self.ignored.iter().map(|(_, flag)| format!("--{flag}")).collect();
        if !ignored.is_empty() {
            self.diagnostics.warn("", format!("ignored, as --config is given: {}", ignored.join(", ")));
        }
        let Diagnostics { warnings, errors } = self.diagnostics;
        if errors.is_empty() { Ok(warnings) } else { Err(ConfigErrors(errors)) }
    }
}
