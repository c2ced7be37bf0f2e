#!/usr/bin/env bash
# Everything that is meant for one GPU, in less than 25 minutes: memory, single trials, packs, kernels, a whole search.
#
#   benchmarks/gpu.sh [--tiny] [--out FOLDER]
#
# Rows go to FOLDER (benchmarks/results when left out), each with GPU, driver, versions and commit. A part whose script is
# not there, or whose libraries cannot be imported, is skipped and says so; one that fails or runs out of its time does
# not stop the others, and the exit status is then 1. --tiny runs every part on the CPU with small models and few rows, to
# prove that it runs; its rows go to a temporary folder unless --out says otherwise.
set -uo pipefail
cd "$(dirname "$0")/.."

tiny=() device=cuda out=""
while [ $# -gt 0 ]; do
    case $1 in
        --tiny) tiny=(--tiny) device=cpu ;;
        --out) out=${2:?--out needs a folder}; shift ;;
        *) echo "gpu.sh: unknown option $1; it knows --tiny and --out FOLDER" >&2; exit 2 ;;
    esac
    shift
done
if [ -z "$out" ]; then
    [ $device = cpu ] && out=$(mktemp -d) || out=benchmarks/results
fi
mkdir -p "$out" || exit 2
export AUTOPEFT_RESULTS=$out HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=$(command -v python || command -v python3) || { echo "gpu.sh: no python on the path" >&2; exit 2; }
if [ $device = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: torch sees no GPU here; --tiny proves the script on a CPU" >&2
    exit 2
fi

failed=() longer=1
[ $device = cpu ] && longer=10
# part SECONDS MODULES SCRIPT ARGUMENTS...: run one script for at most so long on a GPU, if it and the modules are there.
part() {
    local seconds=$1 modules=$2 script=benchmarks/$3 missing began=$SECONDS
    shift 3
    [ -f "$script" ] || { echo "--- $script: not there, skipped"; return; }
    missing=$("$python" - $modules <<'PY'
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        print(name)
PY
    )
    [ -z "$missing" ] || { echo "--- $script: needs $(echo $missing), skipped"; return; }
    echo "--- $script $*"
    timeout $((seconds * longer)) "$python" "$script" "$@" || failed+=("$script ($?)")
    echo "--- $script: $((SECONDS - began)) s"
}

if [ $device = cuda ]; then
    part 200 "transformers peft" memory.py --device cuda --cases 60
    part 240 "peft accelerate" single_trial.py words --model roberta-base --device cuda --epochs 1 --sides guide grouped bf16
    part 100 "peft accelerate" single_trial.py words --model qwen2-1.5b --device cuda --epochs 1 --seeds 1 --rows 128 \
        --batch-size 4 --mean-tokens 128 --max-length 256 --sides guide bf16
    part 160 "peft accelerate" single_trial.py words --model llama-7b --device cuda --epochs 1 --seeds 1 --rows 64 \
        --batch-size 4 --mean-tokens 128 --max-length 256 --sides guide
else
    part 200 "transformers peft" memory.py --device watched --cases 3
    for model in roberta-base qwen2-1.5b llama-7b; do
        part 240 "peft accelerate" single_trial.py words --model $model --tiny --epochs 1 --seeds 1 --rows 64 --sides guide
    done
fi
part 360 "peft" packing.py --device $device "${tiny[@]}"
part 200 "triton" kernels.py --device $device "${tiny[@]}"
part 160 "ray optuna mlflow datasets" whole_search.py --device $device "${tiny[@]}"

echo "rows in $out, after $SECONDS s"
[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}" >&2; exit 1; }
