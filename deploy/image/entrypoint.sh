#!/bin/sh
# What stands behind `docker run IMAGE`: a command of quire's, or else a model and flags for serve. In the variant `ray`
# also `ray ...`, a node of a cluster; Quire runs beside the head.
set -eu
case ${1-} in
    serve | check | doctor | models | pull | keys | chat | complete | bench | run-batch | simulate | top | version | -h | --help | --version) ;;
    ray)
        case " $* " in *" --head "*) exec "${0%/*}/ray-head.sh" "$@" ;; esac
        exec "$@"
        ;;
    *) set -- serve "$@" ;;
esac
exec quire "$@"
