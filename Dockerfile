# An image of Chainsmith that replaces kube-proxy in a DaemonSet, for any architecture that Debian and Rust
# support: it names none.
#
# hack/image-check.sh runs the steps of the last stage in a folder, and Chainsmith in it. It supports only
# FROM debian:<release>-slim, RUN, COPY --from=build, ENV and ENTRYPOINT there.

# The same release for both stages, so that the C library at run time is not older than at build time.
ARG DEBIAN=bookworm

FROM rust:1-slim-${DEBIAN} AS build
WORKDIR /chainsmith
# Dependencies change rarely: they get a layer of their own, built with an empty program.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches && touch src/lib.rs benches/inspect.rs benches/pipeline.rs benches/scale.rs && echo 'fn main() {}' > src/main.rs
RUN cargo build --release --locked --bin chainsmith
COPY src src
# Cargo compares modification times, which COPY preserves.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked --bin chainsmith

FROM debian:${DEBIAN}-slim
# iptables: both back-ends; kmod: the legacy back-end loads ip_tables with modprobe, from the node's
# /lib/modules; ca-certificates: for a kubeconfig without a certificate authority.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates iptables kmod \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
COPY --from=build /chainsmith/target/release/chainsmith /usr/local/bin/chainsmith
RUN ln -s chainsmith /usr/local/bin/kube-proxy
ENTRYPOINT ["/usr/local/bin/kube-proxy"]
