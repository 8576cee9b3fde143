#!/usr/bin/env bash
# A second S3 server for the tests, of other origin than MinIO: ministack (PyPI) on the
# loopback, with one bucket.
#
#   eval "$(scripts/ministack.sh start)"   starts it, sets LITEFS_TEST_S3_SECOND_URL, _KEY, _SECRET
#   scripts/ministack.sh stop              stops it and removes its data
#
# Installed once, with pip, into target/tools. Its place: $LITEFS_MINISTACK_DIR, else
# target/ministack.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.5.33
venv=$PWD/target/tools/ministack
dir=${LITEFS_MINISTACK_DIR:-$PWD/target/ministack}
bucket=litefs-test

say() { echo "ministack.sh: $*" >&2; }

install() {
    if [ -x "$venv/bin/ministack" ]; then return; fi
    say "installing ministack $version with pip"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check "ministack==$version" >&2
}

alive() { [ -e "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; }

# Whether something answers on a port of the loopback.
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
    if alive; then
        cat "$dir/environment"
        return
    fi
    install
    local port
    rm -rf "$dir"
    mkdir -p "$dir"
    for _ in 1 2 3 4 5; do
        port=$((20000 + RANDOM % 12000))
        if answers "$port"; then continue; fi
        BIND_HOST=127.0.0.1 GATEWAY_PORT=$port EDGE_PORT=$port SERVICES=s3 setsid "$venv/bin/ministack" >"$dir/log" 2>&1 </dev/null &
        echo $! >"$dir/pid"
        for _ in $(seq 600); do
            if ! alive; then break; fi
            if curl --silent --fail --output /dev/null --request PUT "http://127.0.0.1:$port/$bucket"; then
                cat >"$dir/environment" <<END
export LITEFS_TEST_S3_SECOND_URL='s3://$bucket?endpoint=http://127.0.0.1:$port&region=us-east-1'
export LITEFS_TEST_S3_SECOND_KEY=test
export LITEFS_TEST_S3_SECOND_SECRET=test
END
                say "ministack $(cat "$dir/pid") on 127.0.0.1:$port"
                cat "$dir/environment"
                return
            fi
            sleep 0.1
        done
        stop_process
    done
    say "ministack did not start; its last words:"
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
    *)
        say "usage: scripts/ministack.sh start | stop"
        exit 2
        ;;
esac
