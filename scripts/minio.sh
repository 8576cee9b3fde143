#!/usr/bin/env bash
# A real S3 server for the tests: MinIO on the loopback, with one bucket.
#
#   eval "$(scripts/minio.sh start)"   starts it, sets LITEFS_TEST_S3_URL, _KEY, _SECRET
#   scripts/minio.sh stop              stops it and removes its data
#   scripts/minio.sh binary            only finds or builds the binary, prints its path
#
# The binary: $LITEFS_MINIO, else `minio` on PATH, else built once by Go from the module
# proxy into target/tools. Its place: $LITEFS_MINIO_DIR, else target/minio.
set -euo pipefail
cd "$(dirname "$0")/.."

# The last release before the repository was archived. Releases are no semantic
# versions, so this is the pseudo-version of RELEASE.2025-09-07T16-13-09Z.
version=v0.0.0-20250907161309-07c3a429bfed
tools=$PWD/target/tools
dir=${LITEFS_MINIO_DIR:-$PWD/target/minio}
bucket=litefs-test
key=litefs-test-key
secret=litefs-test-secret

say() { echo "minio.sh: $*" >&2; }

binary() {
    if [ -n "${LITEFS_MINIO:-}" ]; then
        echo "$LITEFS_MINIO"
    elif command -v minio; then
        return
    elif [ -x "$tools/minio" ]; then
        echo "$tools/minio"
    elif command -v go >/dev/null; then
        say "building $version with go (a few minutes, once)"
        mkdir -p "$tools"
        GOBIN=$tools GOFLAGS=-trimpath go install -ldflags '-s -w' "github.com/minio/minio@$version" >&2
        echo "$tools/minio"
    else
        say "there is no minio: put one on PATH, name it in LITEFS_MINIO, or install Go >= 1.24 to build it"
        return 1
    fi
}

alive() { [ -e "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; }

# Whether something answers on a port of the loopback.
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
    if alive; then
        cat "$dir/environment"
        return
    fi
    local minio port
    minio=$(binary)
    rm -rf "$dir"
    # A directory of the drive is a bucket.
    mkdir -p "$dir/data/$bucket"
    for _ in 1 2 3 4 5; do
        port=$((20000 + RANDOM % 12000))
        if answers "$port" || answers $((port + 1)); then continue; fi
        MINIO_ROOT_USER=$key MINIO_ROOT_PASSWORD=$secret MINIO_BROWSER=off MINIO_UPDATE=off MINIO_CALLHOME_ENABLE=off \
            setsid "$minio" server --quiet --address "127.0.0.1:$port" --console-address "127.0.0.1:$((port + 1))" \
            "$dir/data" >"$dir/log" 2>&1 </dev/null &
        echo $! >"$dir/pid"
        for _ in $(seq 600); do
            if ! alive; then break; fi
            if curl --silent --fail --output /dev/null "http://127.0.0.1:$port/minio/health/ready"; then
                cat >"$dir/environment" <<END
export LITEFS_TEST_S3_URL='s3://$bucket?endpoint=http://127.0.0.1:$port&region=us-east-1'
export LITEFS_TEST_S3_KEY=$key
export LITEFS_TEST_S3_SECRET=$secret
END
                say "minio $(cat "$dir/pid") on 127.0.0.1:$port"
                cat "$dir/environment"
                return
            fi
            sleep 0.1
        done
        stop_process
    done
    say "minio did not start; its last words:"
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
        say "usage: scripts/minio.sh start | stop | binary"
        exit 2
        ;;
esac
