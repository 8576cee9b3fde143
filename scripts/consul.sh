#!/usr/bin/env bash
# A real Consul for the tests: an agent in development mode on the loopback.
#
#   eval "$(scripts/consul.sh start)"   starts it, sets LITEFS_TEST_CONSUL and _BINARY
#   scripts/consul.sh stop              stops it and removes its data
#   scripts/consul.sh binary            only finds or builds the binary, prints its path
#
# The binary: $LITEFS_CONSUL, else `consul` on PATH, else built once by Go from the module
# proxy into target/tools. Its place: $LITEFS_CONSUL_DIR, else target/consul.
set -euo pipefail
cd "$(dirname "$0")/.."

# The last line of releases under the Mozilla Public License that builds as a module of
# others: later ones need parts of their own repository that are no modules.
version=v1.14.11
tools=$PWD/target/tools
dir=${LITEFS_CONSUL_DIR:-$PWD/target/consul}

say() { echo "consul.sh: $*" >&2; }

binary() {
    if [ -n "${LITEFS_CONSUL:-}" ]; then
        echo "$LITEFS_CONSUL"
    elif command -v consul; then
        return
    elif [ -x "$tools/consul" ]; then
        echo "$tools/consul"
    elif command -v go >/dev/null; then
        build >&2
        echo "$tools/consul"
    else
        say "there is no consul: put one on PATH, name it in LITEFS_CONSUL, or install Go >= 1.20 to build it"
        return 1
    fi
}

# `go install` refuses a module with replacements; as a dependency of an empty module it
# is built with the published versions instead.
build() {
    say "building $version with go (about 10 minutes, once)"
    mkdir -p "$tools"
    local work
    work=$(mktemp -d)
    (
        cd "$work"
        go mod init consul-build
        go get "github.com/hashicorp/consul@$version"
        CGO_ENABLED=0 GOFLAGS=-mod=mod go build -trimpath -ldflags '-s -w' -o "$tools/consul.new" \
            github.com/hashicorp/consul
    )
    rm -rf "$work"
    mv "$tools/consul.new" "$tools/consul"
}

alive() { [ -e "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; }

# Whether something answers on a port of the loopback.
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
    if alive; then
        cat "$dir/environment"
        return
    fi
    local consul port ports
    consul=$(binary)
    rm -rf "$dir"
    mkdir -p "$dir"
    for _ in 1 2 3 4 5; do
        port=$((20000 + RANDOM % 12000))
        ports="-http-port=$port -server-port=$((port + 1)) -serf-lan-port=$((port + 2)) -serf-wan-port=-1"
        if answers "$port" || answers $((port + 1)) || answers $((port + 2)); then continue; fi
        # shellcheck disable=SC2086
        setsid "$consul" agent -dev -bind=127.0.0.1 -client=127.0.0.1 -log-level=warn -disable-host-node-id \
            $ports -dns-port=-1 -grpc-port=-1 -grpc-tls-port=-1 -hcl='disable_update_check = true' \
            >"$dir/log" 2>&1 </dev/null &
        echo $! >"$dir/pid"
        for _ in $(seq 600); do
            if ! alive; then break; fi
            # It has elected itself.
            if curl --silent --fail "http://127.0.0.1:$port/v1/status/leader" | grep -q :; then
                cat >"$dir/environment" <<END
export LITEFS_TEST_CONSUL=http://127.0.0.1:$port
export LITEFS_TEST_CONSUL_BINARY='$consul'
END
                say "consul $(cat "$dir/pid") on 127.0.0.1:$port"
                cat "$dir/environment"
                return
            fi
            sleep 0.1
        done
        stop_process
    done
    say "consul did not start; its last words:"
    tail -n 20 "$dir/log" >&2
    return 1
}

stop_process() {
    if alive; then
        kill "$(cat "$dir/pid")"
        for _ in $(seq 100); do
            if ! alive; then break; fi
            sleep 0.1
        done
        if alive; then kill -9 "$(cat "$dir/pid")"; fi
    fi
    rm -f "$dir/pid"
}

case "${1:-}" in
    start) start ;;
    stop)
        stop_process
        rm -rf "$dir"
        ;;
    binary) binary ;;
    *)
        say "usage: scripts/consul.sh start | stop | binary"
        exit 2
        ;;
esac
