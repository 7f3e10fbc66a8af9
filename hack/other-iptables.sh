#!/bin/bash
# Runs a command with the iptables of another Debian release first in its PATH, since the output and the
# cost of iptables differ between releases. debootstrap installs the release in a folder; its programs run
# outside of that folder, in the namespaces of their caller.
#
#   hack/other-iptables.sh RELEASE COMMAND [ARGUMENT...]
#   hack/other-iptables.sh bullseye cargo test --test real_iptables --test e2e
#   hack/other-iptables.sh trixie cargo bench --bench scale -- --changes 5 5000x10
#   OTHER_IPTABLES=DIR    where installed releases are kept; default: target/other-iptables
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

[ $# -ge 2 ] || { sed -n 's/^# \{0,1\}//; 6,9p' "$0" >&2; exit 2; }
release=$1
shift
kept=${OTHER_IPTABLES:-$(dirname "$0")/../target/other-iptables}
mkdir -p "$kept"
root=$(realpath "$kept")/$release

if [ ! -e "$root.made" ]; then
    command -v debootstrap > /dev/null || { echo "install debootstrap" >&2; exit 1; }
    rm -rf "$root"
    debootstrap --variant=minbase --include=iptables "$release" "$root" > "$root.log" \
        || { tail -n 20 "$root.log" >&2; exit 1; }
    touch "$root.made"
fi

# The release's own loader starts each program under its own name, since the kernel reports commits with it.
# A shell script passes the program's path to the loader.
loader=$(find "$root/usr/lib" "$root/lib/" -type f \( -name 'ld-linux-*.so.*' -o -name 'ld-[0-9]*.so' \) -print -quit)
libraries=$(dirname "$(find "$root/usr/lib" -name 'libxtables.so.*' -print -quit)")
plugins=$(find "$root/usr/lib" -type d -name xtables -print -quit)
mkdir -p "$root/as-is" "$root/outside"
for program in {iptables,ip6tables}{,-nft,-legacy}{,-save,-restore}; do
    cp -f "$loader" "$root/as-is/$program"
    case $program in
        *-nft* | *-legacy*) target=$root/usr/sbin/$program ;;
        *) target=$root/usr/sbin/${program/tables/tables-nft} ;;
    esac
    cat > "$root/outside/$program" << END
#!/bin/sh
XTABLES_LIBDIR=$plugins exec $root/as-is/$program --library-path $libraries:$(dirname "$loader") $target "\$@"
END
    chmod 755 "$root/outside/$program"
done

export PATH="$root/outside:$PATH"
echo "$release: $(iptables --version)" >&2
exec "$@"
