# Chainsmith as an image that takes kube-proxy's place in a DaemonSet. For any architecture that Debian
# and Rust have: none is named here.
#
# hack/image-check.sh runs the steps of the last stage in a folder and Chainsmith in it; it knows FROM
# debian:<release>-slim, RUN, COPY --from=build, ENV and ENTRYPOINT, and refuses anything else there.

# One release for both stages, so that the C library is not older where the program runs.
ARG DEBIAN=bookworm

FROM rust:1-slim-${DEBIAN} AS build
WORKDIR /chainsmith
# Dependencies change seldom: a layer of their own, built around an empty program.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches && touch src/lib.rs benches/pipeline.rs benches/scale.rs && echo 'fn main() {}' > src/main.rs
RUN cargo build --release --locked --bin chainsmith
COPY src src
# Cargo compares times, and files keep theirs when they are copied.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked --bin chainsmith

FROM debian:${DEBIAN}-slim
# iptables: both back-ends; kmod: the legacy one loads ip_tables with modprobe, from the node's
# /lib/modules; ca-certificates: for a kubeconfig that names no certificate authority.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates iptables kmod \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
COPY --from=build /chainsmith/target/release/chainsmith /usr/local/bin/chainsmith
RUN ln -s chainsmith /usr/local/bin/kube-proxy
ENTRYPOINT ["/usr/local/bin/kube-proxy"]
