#!/bin/bash
# One chat from end to end: a key, a token, a server on a free loopback port, a question over the WebSocket, the
# answer as it is generated, a clean stop. Nothing stays behind.
#
# usage: demo.sh TARTLET CHAT.wasm MODEL.gguf [QUESTION]
set -euo pipefail

tartlet=$1 chat=$2 model=$3 question=${4:-Tell me the capital of France.}

dir=$(mktemp -d)
server=
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$dir"
}
trap finish EXIT

"$tartlet" token keygen --out "$dir/key" >/dev/null
"$tartlet" token mint --key "$dir/key" --sub demo --ttl 1h --out "$dir/token"

"$tartlet" serve --model "$model" --listen 127.0.0.1:0 --state "$dir/state" --public-key "$dir/key.pub" \
    >"$dir/out" 2>"$dir/log" &
server=$!

# The server says where it listens once the model is loaded.
url=
for _ in $(seq 600); do
    url=$(sed -n 's/^listening on //p' "$dir/out")
    [[ -n $url ]] && break
    if ! kill -0 "$server" 2>/dev/null; then
        echo "the server did not start:" >&2
        cat "$dir/log" >&2
        exit 1
    fi
    sleep 0.1
done
if [[ -z $url ]]; then
    echo "the server did not say where it listens within a minute:" >&2
    cat "$dir/log" >&2
    exit 1
fi

printf '\n\033[1m%s\033[0m\n' "$question"
"$tartlet" run "$chat" --server "$url" --token-file "$dir/token" -- --user "$question"
printf '\n'

kill "$server"
if wait "$server"; then
    server=
else
    status=$?
    server=
    echo "the server ended with status $status:" >&2
    cat "$dir/log" >&2
    exit 1
fi
