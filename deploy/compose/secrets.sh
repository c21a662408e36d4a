#!/bin/sh
# Makes the files that compose.yaml takes its secrets from, as far as they are missing: an API key, a password for
# Grafana, a self-signed certificate to try TLS with, and an empty file for a hub's token, which gated models need.
#
#   deploy/compose/secrets.sh [DIRECTORY [HOST NAME]]      default: ./secrets localhost
#
# The directory is its owner's alone; the files in it may be read by all, because containers get them mounted one by one
# and read them as users of their own.
set -eu
directory=${1:-secrets}
host=${2:-localhost}
umask 077
mkdir -p "$directory"
chmod 700 "$directory"
cd "$directory"

for name in vllm_api_key grafana_password; do
    [ -s "$name" ] || openssl rand -hex 24 > "$name"
done
[ -e hf_token ] || : > hf_token
if [ ! -s tls_certificate.pem ] && [ ! -s tls_key.pem ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 90 -subj "/CN=$host" \
        -addext "subjectAltName=DNS:$host" -keyout tls_key.pem -out tls_certificate.pem 2>/dev/null
fi
chmod 644 vllm_api_key hf_token grafana_password tls_certificate.pem tls_key.pem
echo "$PWD: ready" >&2
