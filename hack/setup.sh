#!/bin/bash
# Installs the packages for building and testing Chainsmith on Debian, without questions. Does nothing if
# all of them are installed.
set -euo pipefail

export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:$HOME/.cargo/bin"

# Required programs, and their Debian packages.
packages=()
need() {
    command -v "$1" > /dev/null || packages+=("$2")
}
need cc build-essential
need ip iproute2
need bridge iproute2
need iptables-nft-restore iptables
need iptables-legacy-restore iptables
need ip6tables-nft-restore iptables
need conntrack conntrack
need ipset ipset
need nft nftables
need setpriv util-linux
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        echo "setup: not root and no sudo; run as root: $*" >&2
        exit 1
    fi
}

if [ ${#packages[@]} -gt 0 ]; then
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    echo "setup: installing ${packages[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

if ! command -v cargo > /dev/null; then
    echo "setup: no Rust toolchain found; see https://rustup.rs (Cargo.toml says which version)" >&2
    exit 1
fi

# A minimal toolchain lacks the linters.
if [ "${1:-}" = lint ]; then
    for part in fmt clippy; do
        cargo "$part" --version > /dev/null 2>&1 || rustup component add "${part/#fmt/rustfmt}"
    done
fi

# Nodes and pods are network namespaces with netfilter; report now if they cannot be created.
if ! as_root unshare --net --mount iptables-nft -t nat -L -n > /dev/null; then
    echo "setup: cannot create a network namespace with iptables" >&2
    exit 1
fi
