#!/bin/sh
# Stands for an iptables program (its own name): writes down the call and becomes the real one.
program=${0##*/}
echo "$program $*" >> "$LAB_CALLS"
PATH=$LAB_PATH
# What a test put there to make programs fail (`Agent::sabotage`).
[ -e "$LAB_CALLS.sabotage" ] && . "$LAB_CALLS.sabotage"
exec "$program" "$@"
