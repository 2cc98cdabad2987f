#!/usr/bin/env bash
# Everything that is measured on a GPU, in under ten minutes, from a source tree: `run.sh --help` says how.
#     OUT=FOLDER tests/gpu/run.sh [MODEL_FOLDER]        COMMIT=... where the tree is no git checkout
#     tests/gpu/run.sh --cpu                            the same script at tiny sizes
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd) || exit 1
export PYTHONPATH="$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1
exec timeout --kill-after=15 "${TOTAL_S:-600}" "${PYTHON:-python3}" -m gpu.run "$@"
