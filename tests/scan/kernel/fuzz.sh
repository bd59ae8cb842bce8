#!/usr/bin/env bash
# Fuzz the kernel for so many seconds, under AddressSanitizer and UndefinedBehaviorSanitizer. Needs clang and its runtime
# (Debian: clang, libclang-rt-dev). What it finds is kept in .fuzz/, with the corpus.
set -euo pipefail
cd "$(dirname "$0")/../../.."
seconds=${1:-60}
clang=${CLANG:-$(command -v clang || compgen -c clang- | grep -E '^clang-[0-9]+$' | sort -V | tail -1 || true)}
[ -n "$clang" ] || { echo "fuzzing needs clang and libclang-rt" >&2; exit 1; }

mkdir -p .fuzz/corpus
flags=(-std=c11 -g -O1 -Wall -Wextra -Werror -Ioptimizer/scan -fno-sanitize-recover=all)
"$clang" "${flags[@]}" -fsanitize=fuzzer-no-link,address,undefined -c optimizer/scan/kernel/prune.c -o .fuzz/prune.o
"$clang" "${flags[@]}" -fsanitize=address,undefined -DRP_PLAIN -Drp_feed=plain_feed -Drp_finish=plain_finish \
    -Drp_pending=plain_pending -Drp_variant=plain_variant -c optimizer/scan/kernel/prune.c -o .fuzz/plain.o
"$clang" "${flags[@]}" -fsanitize=fuzzer,address,undefined tests/scan/kernel/fuzz.c .fuzz/prune.o .fuzz/plain.o -o .fuzz/fuzz
exec .fuzz/fuzz -max_total_time="$seconds" -timeout=10 -max_len=4096 -dict=tests/scan/kernel/json.dict \
    -artifact_prefix=.fuzz/ -print_final_stats=1 .fuzz/corpus tests/scan/kernel/seeds
