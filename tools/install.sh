#!/usr/bin/env bash
# Installs what is missing on Debian or Ubuntu, and nothing else: `install.sh PURPOSE`, with the name of a target of the Makefile.
# Quick when nothing is missing. Debian's own services are not started by what this installs.
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:-test}
if [ $# -gt 1 ]; then
    echo "install.sh: one purpose at a time, not: $*" >&2
    exit 2
fi

missing=()
need() { # package, then the command that succeeds if it is there
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
has_file() { compgen -G "$1"; }

# To build: OpenSSL, PostgreSQL's grammar (C, bound by bindgen), and PAM.
need build-essential command -v cc
need pkg-config command -v pkg-config
need libssl-dev has_file '/usr/include/openssl/ssl.h'
need libclang-dev has_file '/usr/lib/llvm-*/lib/libclang.so*' # not libclang-cpp, which comes with other packages
need libpam0g-dev has_file '/usr/include/security/pam_appl.h'
# To run: a primary and two standbys.
need postgresql has_file '/usr/lib/postgresql/*/bin/pg_rewind'
case $purpose in
    test)
        need dnsmasq-base command -v dnsmasq
        need slapd has_file '/usr/sbin/slapd'
        need python3-venv python3 -c 'import ensurepip, venv'
        need default-jdk-headless command -v javac
        need libpostgresql-jdbc-java has_file '/usr/share/java/postgresql.jar'
        need etcd-server command -v etcd
        need etcd-client command -v etcdctl
        need libfaketime has_file '/usr/lib/*/faketime/libfaketimeMT.so.1'
        need iproute2 command -v tc
        need nftables has_file '/usr/sbin/nft'
        need e2fsprogs has_file '/usr/sbin/mkfs.ext4'
        need systemd command -v systemd-socket-activate
        need valgrind command -v callgrind_control
        ;;
    compose)
        need debootstrap command -v debootstrap
        need docker.io command -v docker
        need docker-compose sh -c 'docker compose version || docker-compose version'
        need postgresql-client command -v psql
        ;;
    pgbouncer)
        need python3-venv /usr/bin/python3 -c 'import ensurepip, venv'
        need socat command -v socat
        need iptables has_file '/usr/sbin/iptables'
        need iproute2 command -v tc
        need curl command -v curl
        need slapd has_file '/usr/sbin/slapd'
        need ldap-utils command -v ldapsearch
        ;;
    differential)
        need curl command -v curl
        need libevent-dev has_file '/usr/include/event2/event.h'
        ;;
    bench-failover)
        need python3-venv python3 -c 'import ensurepip, venv'
        need etcd-server command -v etcd
        need haproxy has_file '/usr/sbin/haproxy'
        need iproute2 command -v tc
        need nftables has_file '/usr/sbin/nft'
        ;;
    bench) need pgbouncer has_file '/usr/sbin/pgbouncer' ;;
    regress)
        major=$(ls /usr/lib/postgresql 2>/dev/null | awk '$1 >= 15' | sort -n | head -1)
        # Of the very version that is installed, which is not to be upgraded behind its owner's back.
        exact=$(dpkg-query -W -f "=\${Version}" "postgresql-$major" 2>/dev/null || true)
        need "postgresql-server-dev-${major:-all}$exact" has_file "/usr/include/postgresql/$major/server/postgres.h"
        need dpkg-dev command -v dpkg-source
        need libpq-dev has_file '/usr/include/postgresql/libpq-fe.h'
        ;;
esac

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Packages that bring a service start it when they are installed; policy-rc.d is Debian's way to say no.
install_missing() {
    if ! command -v apt-get >/dev/null; then
        echo "install.sh: missing: $* (this is not Debian or Ubuntu: please install them)" >&2
        exit 1
    fi
    echo "install.sh: installing $*"
    local policy=/usr/sbin/policy-rc.d ours=no
    if [ ! -e $policy ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    fi
    local failed=0
    as_root apt-get update -qq || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || failed=$?
    [ $ours = no ] || as_root rm -f $policy
    return $failed
}
[ ${#missing[@]} = 0 ] || install_missing "${missing[@]}"

if ! command -v cargo >/dev/null; then
    echo "install.sh: cargo is missing: install Rust from https://rustup.rs" >&2
    exit 1
fi

# What merges counts of what runs how often (tools/optimized.sh).
if [ "$purpose" = optimized ]; then
    profdata=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-profdata
    if [ ! -x "$profdata" ]; then
        echo "install.sh: llvm-tools of the Rust toolchain"
        if ! { command -v rustup && rustup component add llvm-tools; } >/dev/null 2>&1; then
            echo "install.sh: no llvm-tools: 'rustup component add llvm-tools' has to work" >&2
            exit 1
        fi
    fi
fi

# Python drivers and a newer PostgreSQL, pinned, in a folder of their own.
if [ "$purpose" = test ]; then
    venv=.cache/venv
    wanted=$(cat tools/requirements.txt tools/requirements-alone.txt)
    if [ "$wanted" != "$(cat $venv/installed.txt 2>/dev/null)" ]; then
        echo "install.sh: Python packages into $venv"
        rm -rf $venv
        python3 -m venv $venv
        $venv/bin/pip install --quiet --disable-pip-version-check -r tools/requirements.txt
        $venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r tools/requirements-alone.txt
        echo "$wanted" >$venv/installed.txt
    fi
fi

# Patroni, where the account of PostgreSQL's processes can be given a copy of it.
if [ "$purpose" = test ] || [ "$purpose" = bench-failover ]; then
    patroni=.cache/patroni
    if ! cmp -s tools/patroni.txt $patroni/installed.txt; then
        echo "install.sh: Patroni into $patroni"
        rm -rf $patroni .cache/pip
        python3 -m venv .cache/pip
        .cache/pip/bin/pip install --quiet --disable-pip-version-check --target $patroni -r tools/patroni.txt
        rm -rf .cache/pip
        cp tools/patroni.txt $patroni/installed.txt
    fi
fi

# PostgreSQL's own regression suite is in its source package; the machine's list of sources may not name any.
regression_suite() {
    local version=$1 apt=$PWD/.cache/apt tree=.cache/regress
    rm -rf "$apt" $tree
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/sources" $tree
    local list
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        [ -f "$list" ] && grep -qE 'debian\.org|ubuntu\.com' "$list" || continue
        sed -E 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$list" >"$apt/sources/$(basename "$list")"
    done
    local options=(-o "Dir::Etc::sourcelist=-" -o "Dir::Etc::sourceparts=$apt/sources" -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root -qq)
    apt-get "${options[@]}" update
    # Not every mirror has every version that it lists; any minor version of the suite will do.
    local minor
    for minor in $(apt-cache "${options[@]}" showsrc "postgresql-$version" | awk '$1 == "Version:" { print $2 }'); do
        (cd $tree && apt-get "${options[@]}" source --download-only "postgresql-$version=$minor") && break
    done
    tar -xf $tree/*.orig.tar.bz2 -C $tree --strip-components=1 --wildcards '*/src/test/regress' '*/COPYRIGHT'
    rm -rf $tree/postgresql-*.{dsc,tar.*} "$apt"
    local suite=$tree/src/test/regress server
    server=$("/usr/lib/postgresql/$version/bin/pg_config" --includedir-server)
    cc -O1 -fPIC -shared -I"$server" $suite/regress.c -o $suite/regress.so
    cp "/usr/lib/postgresql/$version/lib/"{autoinc,refint}.so $suite/
    echo "$version" >$tree/version
}
if [ "$purpose" = regress ]; then
    version=$(ls /usr/lib/postgresql | awk '$1 >= 15' | sort -n | head -1)
    if [ "$(cat .cache/regress/version 2>/dev/null)" != "$version" ]; then
        echo "install.sh: the regression suite of PostgreSQL $version"
        regression_suite "$version"
    fi
fi
