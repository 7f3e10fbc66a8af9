//! Configuration files, flags and host files.

use std::ffi::OsString;
use std::sync::LazyLock;

use chainsmith::config::{Config, FLAGS, Flags, normalise};
use chainsmith::model::Node;
use chainsmith::model::host::Host;
use chainsmith::net::IpFamily;
use chainsmith::rules::Settings;
use clap::{Args, Command, FromArgMatches};

use super::dice::SEEDS;
use super::served::{check, cluster, is_one_line};
use super::texts::family;
use super::{Dice, Trial};

/// A file, or none, with flags.
pub fn config(dice: &mut Dice) -> Trial {
    let file = (!dice.once_in(4)).then(|| dice.mutated(&SEEDS.configs));
    let n_flags = if file.is_some() { dice.below(3) } else { dice.below(8) };
    let given: Vec<(&str, String)> = (0..n_flags)
        .map(|_| {
            let setting = dice.pick(&FLAGS);
            (setting.flag, flag_text(dice, setting.flag_default))
        })
        .collect();
    let (family, by_command_line) = (family(dice), dice.once_in(8));
    let mut input = file.clone().unwrap_or_default();
    given.iter().for_each(|(name, text)| input.extend(format!("\n--{name}={text}").bytes()));
    let claim = move |_: &[u8]| {
        let flags = if by_command_line { parsed(&given) } else { Some(with(&given)) };
        let Some(flags) = flags else { return Ok(()) };
        let file = file.as_deref().map(String::from_utf8_lossy);
        match Config::resolve(file.as_deref(), &flags) {
            Ok((config, warnings)) => {
                warnings.iter().try_for_each(|warning| is_one_line(&warning.to_string()))?;
                usable(&config, family)
            }
            Err(errors) if errors.0.is_empty() => Err("refused without a reason".to_owned()),
            Err(errors) => errors.0.iter().try_for_each(|error| is_one_line(&error.to_string())),
        }
    };
    Trial { input, claim: Box::new(claim) }
}

/// The default with a change, a value of another flag, or anything.
fn flag_text(dice: &mut Dice, default: &str) -> String {
    match dice.below(6) {
        0 => dice.hostile(),
        1 => dice.number().to_string(),
        2 => dice.pick(&FLAGS).flag_default.to_owned(),
        3 => default.to_owned(),
        4 => (*dice.pick(&[
            "true",
            "0",
            "-1",
            "1e9h",
            "10.0.0.0/8,fd00::/8",
            "0.0.0.0/0",
            "primary",
            "NodeCIDR",
            "BridgeInterface",
            "a+",
            "[::]:80",
            ":80",
            "9999999h",
            "x=true,y",
            "IPVS",
            "31",
            "32",
            "1.35",
            "classic",
            "/tmp",
        ]))
        .to_owned(),
        _ => {
            let seed = [default.to_owned()];
            String::from_utf8_lossy(&dice.mutated(&seed)).into_owned()
        }
    }
}

fn with(given: &[(&str, String)]) -> Flags {
    given.iter().fold(Flags::default(), |flags, (name, text)| flags.with(name, text))
}

/// The same through a command line; `None` when it is rejected.
fn parsed(given: &[(&str, String)]) -> Option<Flags> {
    static COMMAND: LazyLock<Command> = LazyLock::new(|| Flags::augment_args(Command::new("chainsmith")));
    let flags =
        given.iter().map(|(name, text)| OsString::from(format!("--{}={text}", name.replace('-', "_"))));
    let arguments = normalise([OsString::from("chainsmith")].into_iter().chain(flags));
    let matches = COMMAND.clone().try_get_matches_from(arguments).ok()?;
    Flags::from_arg_matches(&matches).ok()
}

/// Claims that accepted settings can be written, read back, and make good rules.
fn usable(config: &Config, family: IpFamily) -> Result<(), String> {
    let text = config.effective.to_file();
    let (again, _) = Config::resolve(Some(&text), &Flags::default())
        .map_err(|errors| format!("its own file is refused: {errors}\n{text}"))?;
    // In a file 0 or an absent value means the default, which a flag can state: but not where it affects rules.
    let shape = |config: &Config| {
        let Config { cluster_cidrs, detect_local, node_port_addresses, mark, masquerade_all, .. } =
            config.clone();
        let rest = (config.localhost_node_ports, config.allow_external_ips, config.manifests.clone());
        (cluster_cidrs, detect_local, node_port_addresses, mark, masquerade_all, rest)
    };
    if shape(&again) != shape(config) {
        return Err(format!("its own file makes other rules:\n{again:?}\n{text}"));
    }
    let once_more = Config::resolve(Some(&again.effective.to_file()), &Flags::default());
    let once_more = once_more.map_err(|errors| format!("its own file is refused: {errors}"))?.0;
    if (Config { effective: again.effective.clone(), ..once_more.clone() }) != again {
        return Err(format!("its own file is read otherwise:\n{once_more:?}\nand not\n{again:?}"));
    }
    let node = Node::unknown("node-1".into());
    check(&cluster(&[])?, &Settings::new(config, Some(&node), &Host::of_node(&[]), family))
}

/// A host file.
pub fn host(dice: &mut Dice) -> Trial {
    let (input, family) = (dice.mutated(&SEEDS.hosts), family(dice));
    let claim = move |input: &[u8]| match Host::parse(&String::from_utf8_lossy(input)) {
        Ok(host) => {
            static CONFIG: LazyLock<Config> = LazyLock::new(Config::default);
            check(&cluster(&[])?, &Settings::new(&CONFIG, None, &host, family))
        }
        Err(error) if error.to_string().is_empty() => Err("refused without a reason".to_owned()),
        Err(_) => Ok(()),
    };
    Trial { input, claim: Box::new(claim) }
}
