//! Well-formed objects: valid fields, hostile ones, very many of one kind.

use serde_json::{Map, Value, json};

use super::hostile::{full_node, full_service, full_slice, texts};
use super::served::{check, cluster, defaults, read};
use super::texts::family;
use super::{Dice, Trial};

/// Several objects, one JSON document each.
pub fn make(dice: &mut Dice) -> Trial {
    let mut input = String::new();
    for _ in 0..1 + dice.below(3) {
        let service = service(dice);
        input += &format!("{service}\n");
        for _ in 0..dice.below(3) {
            input += &format!("{}\n", slice(dice, &service));
        }
    }
    if dice.once_in(4) {
        let node = hostile_object(dice, "v1", "Node", full_node());
        input += &format!("{node}\n");
    }
    let family = family(dice);
    let claim = move |input: &[u8]| {
        let (outcome, objects) = read(input);
        // An integer in place of a text costs the object, and nothing else.
        let is_fair = outcome.problems.iter().all(|problem| problem.object.is_some());
        if !is_fair || outcome.n_objects != objects.len() {
            return Err(format!("well-formed objects are lost: {outcome:?}"));
        }
        check(&cluster(&objects)?, &defaults(family))
    };
    Trial { input: input.into_bytes(), claim: Box::new(claim) }
}

fn service(dice: &mut Dice) -> Value {
    let mut object = full_service();
    object["metadata"]["name"] = format!("s{}", dice.below(4)).into();
    let spec = &mut object["spec"];
    let addresses = [address(dice), address(dice)];
    spec["clusterIP"] = addresses[0].clone();
    spec["clusterIPs"] = addresses[..1 + dice.below(2)].to_vec().into();
    spec["type"] = (*dice.pick(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])).into();
    spec["externalIPs"] = many(dice, address);
    spec["loadBalancerSourceRanges"] = many(dice, range);
    spec["sessionAffinity"] = (*dice.pick(&["None", "ClientIP"])).into();
    spec["internalTrafficPolicy"] = (*dice.pick(&["Cluster", "Local"])).into();
    spec["externalTrafficPolicy"] = (*dice.pick(&["Cluster", "Local"])).into();
    spec["ports"] = many(dice, |dice| {
        json!({
            "name": format!("p{}", dice.below(6)),
            "protocol": dice.pick(&["TCP", "UDP", "SCTP"]),
            "port": number(dice),
            "nodePort": number(dice),
        })
    });
    hostile_object(dice, "v1", "Service", object)
}

fn slice(dice: &mut Dice, service: &Value) -> Value {
    let mut object = full_slice();
    let name = service["metadata"]["name"].clone();
    object["metadata"]["labels"]["kubernetes.io/service-name"] = name.clone();
    object["metadata"]["name"] = format!("{}-{}", name.as_str().unwrap_or("x"), dice.below(3)).into();
    object["addressType"] = (*dice.pick(&["IPv4", "IPv6", "IPv4", "FQDN"])).into();
    object["ports"] = many(
        dice,
        |dice| json!({"name": format!("p{}", dice.below(6)), "protocol": "TCP", "port": number(dice)}),
    );
    object["endpoints"] = many(dice, |dice| {
        json!({
            "addresses": [address(dice)],
            "nodeName": dice.pick(&["node-1", "node-2"]),
            "conditions": {"ready": dice.once_in(2), "serving": dice.once_in(2), "terminating": dice.once_in(2)},
            "hints": {"forZones": [{"name": dice.pick(&["a", "b"])}]},
        })
    });
    hostile_object(dice, "discovery.k8s.io/v1", "EndpointSlice", object)
}

/// None, a few, and rarely very many.
fn many(dice: &mut Dice, mut one: impl FnMut(&mut Dice) -> Value) -> Value {
    let n = if dice.once_in(300) { dice.below(1_000) } else { dice.below(4) };
    (0..n).map(|_| one(dice)).collect()
}

fn address(dice: &mut Dice) -> Value {
    let n = dice.number();
    match dice.below(12) {
        0 => dice.hostile().into(),
        1..=4 => json!(format!("fd00::{:x}", n % 32)),
        5 => json!(dice.pick(&[
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "255.255.255.255",
            "::ffff:10.0.0.1",
            "fe80::1%eth0"
        ])),
        _ => json!(format!("10.{}.0.{}", n % 3, n / 8 % 32)),
    }
}

fn range(dice: &mut Dice) -> Value {
    match dice.below(8) {
        0 => dice.hostile().into(),
        1 => json!(dice.pick(&["0.0.0.0/0", "::/0", "10.0.0.1/33", "10.0.0.0/-1", " 10.0.0.0/8 "])),
        _ => json!(format!("{}/{}", address(dice).as_str().unwrap_or_default(), dice.below(40))),
    }
}

fn number(dice: &mut Dice) -> Value {
    match dice.below(12) {
        0 => json!(dice.pick(&[0, -1, 65_536, i32::MAX, i32::MIN])),
        _ => json!(1 + dice.below(6) + 30_000),
    }
}

/// `object` with its kind and up to two of its texts replaced, or a value of another type.
fn hostile_object(dice: &mut Dice, version: &str, kind: &str, mut object: Value) -> Value {
    let mut paths = Vec::new();
    texts(&object, String::new(), &mut paths);
    for _ in 0..dice.below(3) {
        let path = dice.pick(&paths).clone();
        let value = match dice.below(10) {
            0 => json!(dice.number()),
            1 => Value::Null,
            2 => json!({"a": [dice.hostile()]}),
            _ => dice.hostile().into(),
        };
        if let Some(text) = object.pointer_mut(&path) {
            *text = value;
        }
    }
    let mut whole =
        Map::from_iter([("apiVersion".to_owned(), version.into()), ("kind".to_owned(), kind.into())]);
    whole.extend(object.as_object_mut().map(std::mem::take).unwrap_or_default());
    Value::Object(whole)
}
