#!/bin/sh
# What stands behind `docker run IMAGE`: a command of quire's, or else a model and flags for serve.
set -eu
case ${1-} in
    serve | check | doctor | keys | chat | complete | bench | version | -h | --help | --version) ;;
    *) set -- serve "$@" ;;
esac
exec quire "$@"
