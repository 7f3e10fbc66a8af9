//! Configurations as text and their values; helpers for the tests below.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::net::{Cidr, IpFamily, MasqueradeMark, UnixAddress};

/// A file of v1alpha1 with `fields`.
fn file(fields: &str) -> String {
    format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}")
}

/// Flags as they stand on a command line, read by clap.
fn flags(arguments: &[&str]) -> Flags {
    use clap::FromArgMatches;
    let command = <Flags as clap::Args>::augment_args(clap::Command::new("run"));
    let arguments = std::iter::once("run").chain(arguments.iter().copied());
    let arguments = normalise(arguments.map(std::ffi::OsString::from));
    Flags::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
}

fn of_file(fields: &str) -> Config {
    let (config, warnings) = Config::resolve(Some(&file(fields)), &Flags::default()).unwrap();
    assert_eq!(warnings, [], "{fields}");
    config
}

fn of_flags(arguments: &[&str]) -> Config {
    let (config, warnings) = Config::resolve(None, &flags(arguments)).unwrap();
    assert_eq!(warnings, [], "{arguments:?}");
    config
}

fn warnings(text: &str, arguments: &[&str]) -> Vec<String> {
    let file = (!text.is_empty()).then_some(text);
    let (_, warnings) = Config::resolve(file, &flags(arguments)).unwrap();
    warnings.iter().map(ToString::to_string).collect()
}

/// The errors of a file with `fields` and flags beside it.
fn errors(fields: &str, arguments: &[&str]) -> Vec<String> {
    error_texts(Config::resolve(Some(&file(fields)), &flags(arguments)))
}

fn flag_errors(arguments: &[&str]) -> Vec<String> {
    error_texts(Config::resolve(None, &flags(arguments)))
}

fn error_texts(result: Result<(Config, Vec<Warning>), ConfigErrors>) -> Vec<String> {
    let Err(ConfigErrors(errors)) = result else { return Vec::new() };
    errors.iter().map(ToString::to_string).collect()
}

/// The file that kubeadm writes (config.md 10).
const KUBEADM: &str = include_str!("../../testdata/config/kubeadm.yaml");

mod file_syntax;
mod flag_syntax;
mod precedence;
mod shown;
mod validation;

/// `text` as a quoted YAML scalar.
fn yaml(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}
