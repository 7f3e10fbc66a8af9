//! Decoding JSON of API objects: to the complete API types, as in earlier releases, and to our own types
//! with only the fields that rules need.

use std::hint::black_box;

use chainsmith::model::decode::{self, ApiService, ApiSlice, Interner};
use criterion::{BenchmarkId, Criterion, Throughput};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cluster;

/// Endpoints of each slice.
const N_ENDPOINTS: usize = 10;
/// Objects of each kind.
const N_OBJECTS: usize = 500;

/// The JSON of Services and slices.
struct Texts {
    services: Vec<String>,
    slices: Vec<String>,
}

impl Texts {
    fn n_bytes(&self) -> usize {
        self.services.iter().chain(&self.slices).map(String::len).sum()
    }
}

/// A way to decode the texts, with its name; it returns a count, so that nothing is optimized away.
type Way = (&'static str, fn(&Texts) -> usize);

const WAYS: [Way; 4] = [
    ("whole types, by way of a Value (before)", |texts| {
        whole(texts, by_value::<Service>, by_value::<EndpointSlice>)
    }),
    ("whole types, at once", |texts| whole(texts, at_once::<Service>, at_once::<EndpointSlice>)),
    ("fields that rules need", |texts| whole(texts, at_once::<ApiService>, at_once::<ApiSlice>)),
    ("fields that rules need, and checked: the model", model),
];

fn by_value<T: DeserializeOwned>(text: &str) -> usize {
    let value: Value = serde_json::from_str(text).expect("it is JSON");
    size_of_val(black_box(&T::deserialize(&value).expect("an object")))
}

fn at_once<T: DeserializeOwned>(text: &str) -> usize {
    size_of_val(black_box(&serde_json::from_str::<T>(text).expect("an object")))
}

fn whole(texts: &Texts, service: fn(&str) -> usize, slice: fn(&str) -> usize) -> usize {
    let services = texts.services.iter().map(|text| service(text));
    services.chain(texts.slices.iter().map(|text| slice(text))).sum()
}

fn model(texts: &Texts) -> usize {
    let mut interner = Interner::default();
    let mut n = 0;
    for text in &texts.services {
        let object = serde_json::from_str(text).expect("an object");
        n += black_box(decode::service(&object, &mut interner)).problems.len();
    }
    for text in &texts.slices {
        let object = serde_json::from_str(text).expect("an object");
        n += black_box(decode::slice(&object, &mut interner)).problems.len();
    }
    n
}

/// CPU time of this thread so far, in ns. The kernel updates it at each of its ticks.
#[allow(clippy::disallowed_methods, reason = "a bench reads its own clock")]
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with schedstat");
    text.split(' ').next().and_then(|word| word.parse().ok()).expect("nanoseconds come first")
}

/// Prints CPU time and memory of each way, then measures them with criterion.
pub fn bench(c: &mut Criterion) {
    let texts = Texts {
        services: (0..N_OBJECTS).map(|n| cluster::service(n).to_string()).collect(),
        slices: (0..N_OBJECTS).map(|n| cluster::slice(n, N_ENDPOINTS, 0).to_string()).collect(),
    };
    let n_bytes = texts.n_bytes();
    println!(
        "| {N_OBJECTS} Services and slices x {N_ENDPOINTS}, {} kB of JSON | CPU, us an object | allocations an object | bytes allocated an object | bytes held for one object |",
        n_bytes / 1_000
    );
    println!("|---|--:|--:|--:|--:|");
    let n_objects = 2 * N_OBJECTS as u64;
    let one = Texts { services: Vec::new(), slices: vec![texts.slices[0].clone()] };
    for (name, read) in WAYS {
        let used = allocation_counter::measure(|| _ = black_box(read(&texts)));
        let of_one = allocation_counter::measure(|| _ = black_box(read(&one)));
        const N_ROUNDS: u64 = 100;
        let before = cpu_ns();
        for _ in 0..N_ROUNDS {
            black_box(read(&texts));
        }
        let cpu_us = (cpu_ns() - before) as f64 / 1_000. / (N_ROUNDS * n_objects) as f64;
        println!(
            "| {name} | {cpu_us:.1} | {} | {} | {} |",
            used.count_total / n_objects,
            used.bytes_total / n_objects,
            of_one.bytes_max,
        );
    }
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(n_bytes as u64)).sample_size(20);
    for (name, read) in WAYS {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| read(black_box(&texts)))
        });
    }
}
