#!/bin/sh
# Stops the service and removes what install.sh made. Settings, keys, models, caches, logs and the account stay, unless
# --purge takes them too.
set -eu

root='' dry='' purge=''
while [ $# -gt 0 ]; do
    case $1 in
        --root) root=$(realpath -m -- "${2:?--root needs a directory}") && shift ;;
        --dry-run) dry=yes ;;
        --purge) purge=yes ;;
        *)
            echo 'Usage: uninstall.sh [--purge] [--root DIR] [--dry-run]' >&2
            [ "$1" = --help ] || [ "$1" = -h ] || exit 2
            exit 0
            ;;
    esac
    shift
done
[ "$root" != / ] || root=''
if [ -z "$root" ] && [ -z "$dry" ] && [ "$(id -u)" != 0 ]; then
    echo 'uninstall.sh: run it as root, or with --dry-run' >&2
    exit 2
fi

run() {
    if [ -n "$dry" ]; then printf '%s\n' "$*"; else "$@"; fi
}

if [ -z "$root" ]; then
    run systemctl disable --now quire.service || true
    run systemctl stop 'quire@*.service' || true
    # Enabled instances are links that `disable` finds only by their names.
    for wanted in /etc/systemd/system/*.wants/quire@*.service; do
        [ ! -L "$wanted" ] || run systemctl disable "${wanted##*/}"
    done
fi
lib=$root/usr/local/lib
run rm -f -- "$lib/systemd/system/quire.service" "$lib/systemd/system/quire@.service" "$lib/sysusers.d/quire.conf" \
    "$lib/tmpfiles.d/quire.conf" "$root/etc/logrotate.d/quire" "$root/usr/local/bin/quire"
run rm -rf -- "$root/usr/local/share/quire" "$root/opt/quire"
if [ -n "$purge" ]; then
    run rm -rf -- "$root/etc/quire" "$root/var/lib/quire" "$root/var/cache/quire" "$root/var/log/quire"
    run rm -f -- "$root/etc/credstore/quire.VLLM_API_KEY" "$root/etc/credstore/quire.keys" \
        "$root/etc/credstore/quire.HF_TOKEN"
fi
if [ -z "$root" ]; then
    run systemctl daemon-reload
    if [ -n "$purge" ] && getent passwd quire >/dev/null; then run userdel quire; fi
fi
