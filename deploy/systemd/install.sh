#!/bin/sh
# Installs Quire as a systemd service, or upgrades it. Run again at will: what is as it should be stays untouched, and so
# do /etc/quire, keys and models. Each version gets a directory of its own; `current` is switched when all is in place.
set -eu
umask 022

usage() {
    cat <<'HELP'
Usage: install.sh [OPTION ...]

  --wheel FILE     install this wheel of quire; without it, the checkout that this script lies in
  --locks DIR      exact versions of all it needs (default: the checkout's requirements/)
  --venv DIR       make no environment: use this one, which has quire in it
  --python PROGRAM interpreter for the environment (default: python3)
  --cpu            torch without CUDA also where there is a GPU
  --rollback       back to the version before, and nothing else
  --root DIR       put everything below DIR and leave this machine's systemd alone
  --dry-run        say what would be done
Packages come from where pip is set up to find them; without a network: PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR.
HELP
}

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 2
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(dirname -- "$(dirname -- "$here")")
root='' wheel='' locks='' venv='' python=python3 cpu='' dry='' rollback=''
while [ $# -gt 0 ]; do
    case $1 in
        --wheel | --locks | --venv | --python | --root) [ $# -ge 2 ] || fail "$1 needs a value" ;;
    esac
    case $1 in
        --wheel) wheel=$(realpath -- "$2") && shift ;;
        --locks) locks=$(realpath -- "$2") && shift ;;
        --venv) venv=$(realpath -- "$2") && shift ;;
        --python) python=$2 && shift ;;
        --root) root=$(realpath -m -- "$2") && shift ;;
        --cpu) cpu=yes ;;
        --rollback) rollback=yes ;;
        --dry-run) dry=yes ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && fail "there is no option $1" ;;
    esac
    shift
done
[ "$root" != / ] || root=''
[ -n "$root" ] || [ -n "$dry" ] || [ "$(id -u)" = 0 ] || fail 'run it as root, or with --dry-run'
locks=${locks:-$checkout/requirements}
opt=$root/opt/quire

run() {
    if [ -n "$dry" ]; then printf '%s\n' "$*"; else "$@"; fi
}

# Link $2 to $1 in one step, so that nobody ever finds it missing.
link() {
    [ "$(readlink -- "$2" || true)" = "$1" ] && return
    run ln -sfn -- "$1" "$2.new"
    run mv -fT -- "$2.new" "$2"
}

# Copy $2 to $3 with mode $1, if it is not that already.
copy() {
    if ! cmp -s -- "$2" "$3"; then run install -D -m "$1" -- "$2" "$3"; fi
}

switch_to() {
    before=$(readlink -- "$opt/current" || true)
    [ "$before" = "$1" ] && return
    [ -z "$before" ] || link "$before" "$opt/previous"
    link "$1" "$opt/current"
}

if [ -n "$rollback" ]; then
    previous=$(readlink -- "$opt/previous") || fail 'there is no version before this one'
    switch_to "$previous"
    printf 'Now: %s. Restart the service to run it.\n' "$previous"
    exit 0
fi

# The environment, named after what goes into it

# quire/ holds links to the folders of the tree: by -L the files are listed, and copied, below it.
sources() {
    cd "$checkout" && find -L pyproject.toml README.md LICENSE quire \
        -name __pycache__ -prune -o -type f -print | LC_ALL=C sort
}

# Without a GPU the smaller torch will do, where pip finds it.
torch() {
    if [ -z "$cpu" ] && command -v nvidia-smi >/dev/null; then printf 'cuda\n'; else printf 'cpu\n'; fi
}

# A newer Python, or a GPU whose driver came later, makes another environment.
digest() {
    {
        (cd "$locks" && sha256sum ./*.txt)
        printf '%s %s\n' "$python" "$(torch)"
        "$python" -c 'import sys; print(sys.base_prefix, sys.version_info[:2])'
        if [ -n "$wheel" ]; then
            sha256sum <"$wheel"
        else
            sources | (cd "$checkout" && xargs -d '\n' sha256sum)
        fi
    } | sha256sum | cut -c 1-12
}

version() {
    if [ -n "$wheel" ]; then
        basename -- "$wheel" | cut -d - -f 2
    else
        sed -n 's/^version = "\(.*\)"$/\1/p' "$checkout/pyproject.toml"
    fi
}

locked() {
    run "$release/bin/python" -m pip install --disable-pip-version-check --quiet --quiet --no-deps --require-hashes -r "$1"
}

# The service sees neither /home nor /root.
visible() {
    [ -z "$root" ] || return 0
    case $(realpath -- "$1") in
        /home/* | /root/*) fail "$(realpath -- "$1") is hidden from the service; name another with $2" ;;
    esac
}

build() {
    "$python" -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
        fail "$python must be Python 3.10 to 3.13 with venv (Debian, Ubuntu: python3-venv); or --python PROGRAM"
    visible "$("$python" -c 'import sys; print(sys.base_prefix)')" --python
    printf 'Setting up %s\n' "$release"
    run rm -rf -- "$release"
    run mkdir -p -- "$opt/releases"
    run "$python" -m venv "$release"
    locked "$locks/base.txt"
    if [ "$(torch)" = cuda ] || ! locked "$locks/torch-cpu.txt" 2>/dev/null; then
        locked "$locks/torch.txt"
        locked "$locks/cuda.txt"
    fi
    locked "$locks/model.txt"
    what=$wheel
    if [ -z "$wheel" ]; then # from a copy: building leaves traces
        what=$release/source
        run mkdir -- "$what"
        [ -n "$dry" ] || sources | (cd "$checkout" && xargs -d '\n' cp --parents -t "$what")
    fi
    run "$release/bin/python" -m pip install --disable-pip-version-check --quiet --quiet --no-deps --no-build-isolation \
        --no-index "$what"
    [ -n "$wheel" ] || run rm -rf -- "$what"
    run touch -- "$release/complete"
}

run mkdir -p -- "$opt"
if [ -n "$venv" ]; then
    [ -x "$venv/bin/quire" ] || fail "$venv has no bin/quire"
    visible "$venv" --venv
    visible "$venv/bin/python" --venv
    switch_to "$venv"
else
    [ -z "$wheel" ] || [ -f "$wheel" ] || fail "$wheel is no file"
    [ -f "$locks/base.txt" ] || fail "$locks has no base.txt; name the folder of locks with --locks"
    name=$(version)-$(digest)
    release=$opt/releases/$name
    [ -e "$release/complete" ] || build
    switch_to "releases/$name"
fi

# Versions that neither `current` nor `previous` names
for old in "$opt"/releases/*; do
    kept="$(readlink -- "$opt/current" || true) $(readlink -- "$opt/previous" || true)"
    case " $kept " in
        *" releases/${old##*/} "*) ;;
        *) [ ! -d "$old" ] || [ -n "$dry" ] || rm -rf -- "$old" ;;
    esac
done

# systemd's files, and those that belong to the operator from then on

lib=$root/usr/local/lib
copy 644 "$here/quire.service" "$lib/systemd/system/quire.service"
copy 644 "$here/quire.service" "$lib/systemd/system/quire@.service"
copy 644 "$here/quire.sysusers.conf" "$lib/sysusers.d/quire.conf"
copy 644 "$here/quire.tmpfiles.conf" "$lib/tmpfiles.d/quire.conf"
copy 644 "$here/quire.logrotate" "$root/etc/logrotate.d/quire"
for example in "$here"/*.example "$here"/drop-ins/*.conf; do
    copy 644 "$example" "$root/usr/local/share/quire/${example##*/}"
done
run mkdir -p -- "$root/usr/local/bin"
link /opt/quire/current/bin/quire "$root/usr/local/bin/quire"
if [ -z "$root" ]; then
    run systemd-sysusers quire.conf
    run systemd-tmpfiles --create quire.conf
    run systemctl daemon-reload
fi
[ -e "$root/etc/quire/quire.env" ] || run install -D -m 640 -- "$here/quire.env.example" "$root/etc/quire/quire.env"

[ -z "$dry" ] || exit 0
cat <<'NEXT'
Installed. Then:
  a key:     (umask 077; openssl rand -hex 24 >/etc/credstore/quire.VLLM_API_KEY)
  settings:  /etc/quire/quire.env; examples and drop-ins in /usr/local/share/quire
  start:     systemctl enable --now quire; journalctl -fu quire
  upgraded:  systemctl restart quire; back again: install.sh --rollback
NEXT
