#!/bin/bash
# Runs the steps of the Dockerfile's last stage in a folder (debootstrap in place of FROM), then runs
# Chainsmith there as the DaemonSet does, with both iptables back-ends, with all privileges and with
# those of manifests/least-privilege. No container engine is needed. Everything is in one folder and
# in private namespaces; both are removed at the end.
#
#   hack/image-check.sh [PROGRAM]     PROGRAM: the source of `COPY --from=build`; default: the
#                                     newest of target/{release,debug}/chainsmith
#   IMAGE_CHECK_PACKAGES=DIR          cache for Debian packages
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

fail() {
    echo "image-check: $*" >&2
    exit 1
}

# --- the Dockerfile -------------------------------------------------------------------------------

# The instructions of the stage that begins with FROM number $1, one a line: without comments, with
# continued lines joined, and with ARGs before the first FROM substituted.
stage() {
    awk -v stage="$1" '
        /^[ \t]*(#|$)/ { next }
        { sub(/^[ \t]+/, ""); line = line $0 }
        line ~ /\\$/ { sub(/\\$/, "", line); next }
        {
            if (line ~ /^ARG / && !n) { split(substr(line, 5), part, "="); value[part[1]] = part[2] }
            if (line ~ /^FROM /) {
                n++
                for (name in value) gsub("\\$\\{" name "\\}", value[name], line)
            }
            if (n == stage) print line
            line = ""
        }' Dockerfile
}

from() {
    local release=${1#debian:}
    release=${release%-slim}
    [ "$1" = "debian:$release-slim" ] || fail "FROM $1: debootstrap makes debian:<release>-slim only"
    echo "FROM $1: debootstrap"
    local keep=()
    [ -z "${IMAGE_CHECK_PACKAGES:-}" ] || keep=(--cache-dir="$(mkdir -p "$IMAGE_CHECK_PACKAGES" && realpath "$IMAGE_CHECK_PACKAGES")")
    debootstrap --variant=minbase "${keep[@]}" "$release" "$root" > "$work/debootstrap.log" \
        || { tail -n 20 "$work/debootstrap.log" >&2; fail "debootstrap failed"; }
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    mount -t proc proc "$root/proc"
}

# The prefix for a program that runs in the folder, with only the environment of the image.
environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
inside() {
    env -i "${environment[@]}" chroot "$root" "$@"
}

step() {
    local instruction=${1%% *} rest=${1#* }
    case $instruction in
        FROM) from "$rest" ;;
        RUN)
            echo "RUN $rest"
            inside env DEBIAN_FRONTEND=noninteractive /bin/sh -c "$rest" > "$work/run.log" 2>&1 \
                || { tail -n 20 "$work/run.log" >&2; fail "failed: RUN $rest"; }
            ;;
        COPY)
            local option source target more
            read -r option source target more <<< "$rest"
            [ "$option" = --from=build ] && [ "${source##*/}" = chainsmith ] && [ -z "$more" ] \
                || fail "COPY $rest: only the program comes from elsewhere"
            echo "COPY $program $target"
            install -D -m 755 "$program" "$root$target"
            ;;
        ENV) environment+=("$rest") ;;
        ENTRYPOINT)
            entrypoint=$(sed -n 's/^\["\([^"]*\)"\]$/\1/p' <<< "$rest")
            [ -n "$entrypoint" ] || fail "ENTRYPOINT $rest: one program, without arguments, is expected"
            ;;
        *) fail "$instruction: this script does not know it" ;;
    esac
}

# The steps of the first stage up to the first `cargo build`: with an empty program, cargo must accept the
# package and its lock file.
check_build_stage() {
    local package=$work/package line
    mkdir "$package"
    while IFS= read -r line; do
        case $line in
            FROM\ * | WORKDIR\ *) ;;
            "COPY Cargo.toml Cargo.lock ./") cp Cargo.toml Cargo.lock "$package" ;;
            RUN\ cargo\ build*) break ;;
            RUN\ *) (cd "$package" && sh -c "${line#RUN }") ;;
            *) fail "$line: this script does not know it before the first cargo build" ;;
        esac
    done < <(stage 1)
    (cd "$package" && cargo metadata --locked --no-deps --format-version 1 > /dev/null) \
        || fail "the package of the dependencies' layer is none"
    [ -f "$package/src/main.rs" ] || fail "no layer for dependencies"
    echo "build stage: cargo reads the package of the dependencies' layer"
}

# --- Chainsmith in it -----------------------------------------------------------------------------

# Waits until the rules of $1 (nft or legacy) contain the address of the example's Service.
await_rules() {
    local backend=$1 n
    for ((n = 0; n < 100; n++)); do
        if inside "iptables-$backend-save" -t nat | grep -- "-A KUBE-SERVICES -d 10.96.0.10/32 .* -j KUBE-SVC-" > /dev/null; then
            return
        fi
        kill -0 "$agent" 2> /dev/null || break
        sleep 0.1
    done
    tail -n 20 "$work/agent.log" >&2
    fail "no rules of $backend came into force"
}

# One run with back-end $1, called as the DaemonSet does; the arguments after $1 are the prefix of the
# program.
live() {
    local backend=$1 status=0 answer
    shift
    env -i "${environment[@]}" chroot "$root" \
        "$@" "$entrypoint" --config=/var/lib/kube-proxy/config.conf --hostname-override=node-1 \
        --manifests=/objects --iptables-backend="$backend" > "$work/agent.log" 2>&1 &
    agent=$!
    await_rules "$backend"
    # No server listens at the endpoint's address: the counter of its rule is checked.
    exec 3<> /dev/udp/10.96.0.10/53 && echo question >&3 && exec 3>&-
    answer=$(inside "iptables-$backend-save" -c -t nat | sed -n 's/^\[\([0-9]*\):.* --to-destination 10\.128\.0\.5:5353$/\1/p')
    [ "${answer:-0}" -gt 0 ] || fail "a packet to the Service met no rule of its endpoint ($backend)"
    kill -TERM "$agent"
    wait "$agent" || status=$?
    [ "$status" = 0 ] || { tail -n 20 "$work/agent.log" >&2; fail "ended with status $status ($backend)"; }
    inside "iptables-$backend-save" -t nat | grep -- "-j KUBE-SVC-" > /dev/null || fail "the rules did not stay ($backend)"
}

# In private namespaces (network, processes, mounts): one run with back-end $1, with all privileges or with
# those of least-privilege.
check_programs() {
    local backend=$1 privileges=$2 capabilities before=() name version
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    # Modules are loaded in the machine's kernel; the image may load more, as on a node.
    if [ -d /lib/modules ]; then
        mount --bind -o ro /lib/modules "$root/lib/modules"
    fi
    # The node's address, and a route for packets to Services, which ends here.
    ip link set lo up
    ip address add 192.0.2.1/32 dev lo
    ip route add 10.0.0.0/8 dev lo

    if [ "$privileges" = least ]; then
        # As the kubelet sets it up: only the lock is writable.
        mount -o remount,ro,bind "$root"
        mount -t tmpfs tmpfs "$root/run"
        touch "$root/run/xtables.lock"
        mount --bind "$root/run/xtables.lock" "$root/run/xtables.lock"
        mount -o remount,ro,bind "$root/run"
        mount --bind "$root/proc/sys" "$root/proc/sys"
        mount -o remount,ro,bind "$root/proc/sys"
        capabilities=$(sed -n 's/^ *add: \[\(.*\)\]$/\1/p' manifests/overlays/least-privilege/daemonset.yaml)
        [ -n "$capabilities" ] || fail "least-privilege adds no capabilities"
        capabilities=$(tr -d ' ' <<< "${capabilities,,}")
        before=(setpriv --no-new-privs --bounding-set="-all,+${capabilities//,/,+}")
    fi
    for name in chainsmith kube-proxy "$entrypoint"; do
        version=$(inside "${before[@]}" "$name" --version)
        [ -n "$version" ] || fail "$name --version says nothing"
    done
    if inside ldd /usr/local/bin/chainsmith | grep "not found"; then
        fail "a library is missing"
    fi
    live "$backend" "${before[@]}"
    echo "$backend, $privileges privileges: $version; rules in force, a packet met them, they stayed after SIGTERM"
}

# --- from here to the end ---------------------------------------------------------------------------

case ${1:-} in
    --in-mounts) # Mounts are removed with this process.
        work=$2 program=$3 root=$2/root
        mount --bind "$root" "$root"
        while IFS= read -r line; do step "$line"; done < <(stage 2)
        umount "$root/proc"
        [ -n "${entrypoint:-}" ] || fail "no ENTRYPOINT"
        rm "$root/etc/resolv.conf"
        echo "size: $(du -sxm "$root" | cut -f1) MB, of which Chainsmith $(du -m "$program" | cut -f1) MB"
        # The configuration that kubeadm writes.
        mkdir -p "$root/var/lib/kube-proxy" "$root/objects" "$root/lib/modules"
        cp testdata/config/kubeadm.yaml "$root/var/lib/kube-proxy/config.conf"
        cp hack/image-check.yaml "$root/objects/objects.yaml"
        export entrypoint work root
        for privileges in all least; do
            for backend in nft legacy; do
                unshare --net --pid --fork --kill-child --mount \
                    "$0" --in-network "$backend" "$privileges" "${environment[@]}"
            done
        done
        exit
        ;;
    --in-network)
        backend=$2 privileges=$3
        shift 3
        environment=("$@")
        check_programs "$backend" "$privileges"
        exit
        ;;
esac

[ "$(id -u)" = 0 ] || exec sudo --preserve-env=PATH,IMAGE_CHECK_PACKAGES "$0" "$@"
program=$(realpath "${1:-$(ls -t target/{release,debug}/chainsmith 2> /dev/null | head -n 1)}")
[ -x "$program" ] || fail "no program; cargo build, or name one"
if ! command -v debootstrap > /dev/null; then
    echo "image-check: installing debootstrap"
    DEBIAN_FRONTEND=noninteractive apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap > /dev/null
fi
work=$(mktemp -d /tmp/image-check.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT
mkdir "$work/root"
[ "$(grep -c '^FROM ' Dockerfile)" = 2 ] || fail "the Dockerfile has not two stages"
check_build_stage
unshare --mount --propagation private "$0" --in-mounts "$work" "$program"
echo "image-check: passed"
