#!/bin/bash
# Ray's head, by the command that is given (with --block), and Quire beside it. It ends as soon as one of them does, and
# the other with its container, which is then started anew. SIGTERM is for Quire alone: it drains while Ray stays.
set -u

"$@" &
ray=$!
until ray health-check >/dev/null 2>&1; do
    kill -0 "$ray" 2>/dev/null || exit 1
done

quire serve &
quire=$!
trap 'kill -TERM "$quire"' TERM
trap 'kill -HUP "$quire"' HUP
ended=
while [ -z "${ended-}" ]; do  # a signal ends `wait` too, and then it names nobody
    wait -n -p ended "$ray" "$quire"
    code=$?
done
[ "$ended" = "$quire" ] || code=1
exit "$code"
