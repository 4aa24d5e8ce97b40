# benchmarks/gpu.py on a machine without internet: bash benchmarks/gpu.sh [SECONDS] [options of gpu.py]
#
# Run `bash benchmarks/gpu_wheels.sh` first, where PyPI is reached, and bring .gpu/ along. Results go
# to $OUT (default out/): gpu.json and gpu.md. Results of an earlier run in benchmarks/results/ are
# continued: copy $OUT/gpu.* there afterwards.
set -e
cd "$(dirname "$0")/.."
total=${1:-480}
shift || true
export OUT=${OUT:-out} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .gpu/whl/*.whl
export PYTHONPATH="$site"
for kind in json md; do
    if [ ! -e "$OUT/gpu.$kind" ] && [ -e "benchmarks/results/gpu.$kind" ]; then
        cp "benchmarks/results/gpu.$kind" "$OUT/"
    fi
done
# $SECONDS: bash's own clock, since the start of this script.
python3 benchmarks/gpu.py $((total - SECONDS)) --out "$OUT/gpu" "$@" 2>&1 | tee -a "$OUT/gpu.log"
cat "$OUT/gpu.md"
