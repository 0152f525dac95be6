# shellcheck shell=bash
# What scripts/run and scripts/test share: what they say, Debian's packages, the virtual environment. Sourced, never run.
#
# Sets $checkout and $venv. A caller that may use sudo for packages sets as_root=(sudo).

checkout=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
venv=${SYNTHFS_VENV:-$checkout/.venv}
python=${PYTHON:-python3}
as_root=()
((EUID == 0)) && as_root=(env)
# A user's PATH often lacks sbin, where mkfs, losetup and their like live.
PATH=$PATH:/usr/sbin:/sbin

# pyfuse3 has no wheels: it is compiled here, against libfuse.
BUILD_PACKAGES=(ca-certificates python3 python3-venv python3-dev gcc libc6-dev pkg-config libfuse3-dev)

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Runs a command and shows its output only if it fails, which ends the script.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        die "this failed, and its output is above: $*"
    fi
    rm -f "$log"
}

# Installs those of the packages that are missing; without root, says which they are and goes on.
need_packages() {
    local package missing=()
    if ! command -v dpkg-query apt-get >/dev/null; then
        say "this is neither Debian nor Ubuntu; assuming that you have installed: $*"
        return
    fi
    for package; do
        # shellcheck disable=SC2016  # dpkg's own variable
        [[ $(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null) == ?i* ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((${#as_root[@]} == 0)); then
        say "not root, so these are not installed; if they are needed: apt-get install ${missing[*]}"
        return
    fi
    if [[ -z ${package_lists_are_new-} ]]; then
        say "fetching the package lists"
        quietly "${as_root[@]}" apt-get -qq update
        package_lists_are_new=yes
    fi
    say "installing packages: ${missing[*]}"
    quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}"
}

# The virtual environment with this checkout in it and what else pip is asked for; does nothing where that is done.
need_venv() {
    local key stamp=$venv/.synthfs-set-up
    key=$({ printf '%s\n' "$checkout" "$@" && cat "$checkout/pyproject.toml"; } | sha256sum | cut -d ' ' -f 1)
    if grep -qsx "$key" "$stamp" && _has_this_checkout; then
        return
    fi
    need_packages "${BUILD_PACKAGES[@]}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "$python is missing or too old; 3.11 or newer is needed, and PYTHON=/path/to/python names another"
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        [[ ! -e $venv || -f $venv/pyvenv.cfg || -z $(ls -A "$venv") ]] || die "$venv is there and no virtual environment"
        say "making a virtual environment in $venv"
        quietly "$python" -m venv --clear "$venv"
    fi
    say "installing synthfs and the Python packages that it needs into $venv"
    quietly "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "$@"
    # Two scripts ask for different things, which add up; a changed pyproject.toml or checkout begins anew.
    echo "$key" >>"$stamp"
}

_has_this_checkout() {
    local code='import os, sys, synthfs; sys.exit(os.path.dirname(os.path.dirname(synthfs.__file__)) != sys.argv[1])'
    "$venv/bin/python" -I -B -c "$code" "$checkout" 2>/dev/null
}
