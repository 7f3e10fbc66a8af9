//! Text from which API objects are read.

use chainsmith::model::decode::manifest::Object;

use super::dice::SEEDS;
use super::hostile::{full_node, full_service, full_slice};
use super::served::{GOOD, NEIGHBOUR, check, cluster, defaults, is_neighbours, is_one_line, read};
use super::{Dice, Trial};
use chainsmith::model::decode::{ApiObject, Interner, change, require_usable};
use chainsmith::net::IpFamily;

/// One of the two.
pub fn family(dice: &mut Dice) -> IpFamily {
    *dice.pick(&IpFamily::BOTH)
}

/// A text between two good ones, all in one file.
pub fn manifest(dice: &mut Dice) -> Trial {
    let (text, family) = (dice.mutated(&SEEDS.objects), family(dice));
    let before = if dice.once_in(2) { "" } else { "---\n# nothing\n---" };
    let input =
        [before.as_bytes(), NEIGHBOUR.as_bytes(), b"\n---\n", &text, b"\n---\n", NEIGHBOUR.as_bytes()];
    let claim = move |input: &[u8]| {
        let (outcome, objects) = read(input);
        // In YAML a lone carriage return ends a line, too.
        let n_lines = input.iter().filter(|byte| b"\n\r".contains(byte)).count() + 1;
        for problem in &outcome.problems {
            is_one_line(&problem.to_string())?;
            if !(1..=n_lines).contains(&problem.line) {
                return Err(format!("line {} of {n_lines}: {problem}", problem.line));
            }
        }
        if outcome.n_objects != objects.len() {
            return Err(format!("{} objects counted, {} returned", outcome.n_objects, objects.len()));
        }
        let is_there = |objects: &[Object]| objects == &GOOD[..];
        let n_good = GOOD.len();
        let enough = objects.len() >= 2 * n_good;
        if !enough || !is_there(&objects[..n_good]) || !is_there(&objects[objects.len() - n_good..]) {
            return Err(format!("a neighbour is lost: {outcome:?}"));
        }
        check(&cluster(&objects[n_good..objects.len() - n_good])?, &defaults(family))
    };
    Trial { input: input.concat(), claim: Box::new(claim) }
}

/// A text in place of an object from an API server.
pub fn watched(dice: &mut Dice) -> Trial {
    let kind = dice.below(3);
    let good = [full_service, full_slice, full_node][kind]().to_string();
    let (input, family) = (dice.mutated(&[good]), family(dice));
    let claim = move |input: &[u8]| {
        let object = match kind {
            0 => typed(input).map(|object| Object::Service(Box::new(object))),
            1 => typed(input).map(|object| Object::Slice(Box::new(object))),
            _ => typed(input).map(|object| Object::Node(Box::new(object))),
        };
        let Some(object) = object else { return Ok(()) };
        if change(&object, &mut Interner::default()).0.is_some_and(|change| is_neighbours(&change)) {
            return Err("nothing here is the neighbour's".to_owned());
        }
        check(&cluster(&[object])?, &defaults(family))
    };
    Trial { input, claim: Box::new(claim) }
}

/// An object as the watch decodes it.
fn typed<T: ApiObject>(text: &[u8]) -> Option<T> {
    require_usable(serde_json::from_slice(text).ok()?).ok()
}
