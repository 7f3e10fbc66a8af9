#!/bin/sh
# Runs under the name of an iptables program: records the call and becomes the real program.
program=${0##*/}
echo "$program $*" >> "$LAB_CALLS"
PATH=$LAB_PATH
# A script with which a test makes programs fail (`Agent::sabotage`).
[ -e "$LAB_CALLS.sabotage" ] && . "$LAB_CALLS.sabotage"
exec "$program" "$@"
