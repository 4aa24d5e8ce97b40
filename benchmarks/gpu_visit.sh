# All that waits for a GPU, by one command: bash benchmarks/gpu_visit.sh [SECONDS] [STEPS] [options of gpu.py]
#
# For a machine that is lent for some minutes and has no network. It ends by itself within SECONDS
# (560). STEPS (tests,fit,rows,teacher) run in the order in which they are given:
#
#   tests    the Triton programs on the card, against torch in float64          at most 75 seconds
#   fit      the fit of the full-size generator                                 at most 60
#   rows     benchmarks/gpu.py: rows that are missing or changed ($OLDER)       a share of the rest
#   teacher  examples/train_teacher.py: the emoji generator, from where it was  likewise
#   paper    examples/reproduce_paper.py --scale card, the arms that are left   likewise
#
# NAME=SECONDS gives a step its time: tests,rows=200,teacher.
#
# Recipe
# 1. Where PyPI is reached:    rm examples/teachers/*.safetensors examples/demo.safetensors
#                              bash benchmarks/gpu_wheels.sh PYTHON emoji256.zip
#    With the large examples more than 62 MiB would travel; git restore examples brings them back after
#    the visit. One that the teacher starts from is copied elsewhere before, and named after PYTHON.
#    gpu_wheels.sh fills .gpu/ and counts what travels. The files after PYTHON are for teacher and
#    paper: a zip of pictures, and what an earlier visit left (paper.tar.gz, the *.safetensors that
#    collect wrote).
# 2. There, with .gpu carried:  bash benchmarks/gpu_visit.sh 560
#    While the machine is warm a second call goes on: bash benchmarks/gpu_visit.sh 250 rows,teacher
#    Start files that are too large for .gpu may come with it as .gpu-start/*.safetensors.
# 3. Here, with the files that came back in FOLDER:
#    cp FOLDER/gpu.json benchmarks/results/ && python benchmarks/gpu_report.py
#    cp FOLDER/fit.json benchmarks/results/full_size_fit_card.json
#    python examples/train_teacher.py collect FOLDER teacher
#    tar xzf FOLDER/paper.tar.gz -C runs     # the statistics of all arms, and their table
#
# $OUT (out/) gets at most eight files, each while its step runs: visit.log, fit.json, gpu.json,
# paper.tar.gz and four parts of the teacher. What a second call goes on from is in $VISIT
# (~/dsconvert-visit). DEVICE=cpu tries all of it in small, without wheels, by the environment of $PYTHON.
set -u -o pipefail
cd "$(dirname "$0")/.."
total=${1:-560} steps=${2:-tests,fit,rows,teacher}
shift $(($# < 2 ? $# : 2))
options=("$@")
device=${DEVICE:-cuda} python=${PYTHON:-python3} visit=${VISIT:-$HOME/dsconvert-visit}
older=${OLDER:-'*deployed;*lean;kernel*;paper*;fast*;*, TF32*;*, BF16*;*, train *'}
export OUT=${OUT:-out} PYTHONUNBUFFERED=1
workers=8 fit=() rows=() teacher=() paper=()
if [ "$device" = cpu ]; then
    workers=1 fit=(--ngf 2) rows=(--small)
    teacher=(--ngf 2 --batch 4 --discs 1 --every 0.016 --evaluate 4 --final 4 --reserve 10 --limit 64)
    paper=(--ngf 2 --batch 2 --kimg 0.004 --tick 0.002 --snap 1 --evaluate 2 --discs 1 --seeds 0)
fi
for step in ${steps//,/ }; do
    case "${step%%=*}" in
        tests | fit | rows | teacher | paper) ;;
        *) echo "error: there is no step ${step%%=*}; name some of tests,fit,rows,teacher,paper." >&2; exit 2 ;;
    esac
done

left() { echo $((total - SECONDS)); } # bash's own clock, since the start of this script

limited() { timeout --signal=INT --kill-after=5 "$limit" "$@"; }

set_up() {
    mkdir -p "$OUT" "$visit"
    if [ "$device" != cpu ]; then
        nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || return
        site=$(mktemp -d)
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
            --target "$site" .gpu/whl/*.whl || return
        export PYTHONPATH="$site"
    fi
    data=${DATA:-$(compgen -G '.gpu/*.zip' | head -n 1)}
    commit=$(head -n 1 .gpu/commit 2> /dev/null)
    echo "dsconvert $commit: $steps within $total s, ready after $SECONDS s"
}

run_tests() {
    local ended passed failed log="$visit/tests.log"
    limited "$python" -m pytest tests/kernels/test_on_card.py -v -n $workers --tb=line -p no:cacheprovider 2>&1 |
        tee "$log" | grep --line-buffered -v ' PASSED \|^tests/'
    ended=${PIPESTATUS[0]}
    case $ended in 124 | 137) # no failure by itself: what has not run is left for another visit
        passed=$(grep -c ' PASSED ' "$log") failed=$(grep -c ' \(FAILED\|ERROR\) ' "$log")
        echo "$passed passed, $failed failed, cut by the time"
        if [ "$passed" -gt 0 ] && [ "$failed" -eq 0 ]; then ended=0; fi
    esac
    return $ended
}

run_fit() {
    limited "$python" benchmarks/full_size_fit.py new --device "$device" --preset balanced --out "$OUT/fit.json" "${fit[@]}"
}

run_rows() {
    for from in "$visit" benchmarks/results; do
        if [ ! -e "$OUT/gpu.json" ] && [ -e "$from/gpu.json" ]; then cp "$from/gpu.json" "$OUT/"; fi
    done
    # Its end is given by the clock, since torch takes seconds to import.
    limited "$python" benchmarks/gpu.py $((limit - 3)) --end $(($(date +%s) + limit - 3)) --device "$device" \
        --out "$OUT/gpu" --older "$older" "${rows[@]}" "${options[@]}"
    local ended=$?
    if [ -e "$OUT/gpu.json" ]; then cp "$OUT/gpu.json" "$visit/"; fi
    # The table is made anew of the JSON; another card's rows stay in benchmarks/results.
    cat "$OUT/gpu.md" && rm -f "$OUT"/gpu.md "$OUT"/gpu-*.json
    return $ended
}

run_teacher() {
    local start
    mapfile -t start < <(compgen -G '.gpu/*.safetensors'; compgen -G '.gpu-start/*.safetensors')
    # Its clock starts when everything is imported.
    limited "$python" examples/train_teacher.py train "$data" --seconds $((limit - 12)) --out "$OUT" \
        --run "$visit/teacher" --device "$device" --commit "$commit" --start "${start[@]}" "${teacher[@]}"
}

run_paper() {
    if [ -e .gpu/paper.tar.gz ] && [ ! -d "$visit/paper" ]; then tar xzf .gpu/paper.tar.gz -C "$visit"; fi
    limited "$python" examples/reproduce_paper.py --scale card --data "$(basename "$data" .zip)=$data" --out "$visit/paper" \
        --seconds $((limit - 3)) --archive "$OUT/paper.tar.gz" --device "$device" "${paper[@]}"
}

# The steps that share the rest: all without a time of their own.
shares() { case "$1" in *=* | tests | fit) return 1 ;; esac; }

time_of() {
    local most=$(($(left) - 3)) wanted
    case "$1" in
        *=*) wanted=${1#*=} ;;
        tests) wanted=75 ;;
        fit) wanted=60 ;;
        *) wanted=$((most / sharing)) ;;
    esac
    echo $((wanted < most ? wanted : most))
}

visit() {
    local failed=0 sharing=0 step name limit began ended
    set_up || return
    for step in ${steps//,/ }; do if shares "$step"; then sharing=$((sharing + 1)); fi; done
    for step in ${steps//,/ }; do
        name=${step%%=*} limit=$(time_of "$step") began=$SECONDS ended=0
        if shares "$step"; then sharing=$((sharing - 1)); fi
        if [ "$limit" -lt 10 ]; then
            echo "== $name: left out, $(left) s are left"
            continue
        fi
        case "$name" in teacher | paper)
            if [ -z "$data" ]; then
                echo "== $name: left out, there is no zip of pictures in .gpu"
                failed=1
                continue
            fi
        esac
        echo "== $name: at most $limit s"
        "run_$name" || ended=$?
        if [ $ended -ne 0 ]; then failed=1; fi
        echo "== $name: ended with $ended after $((SECONDS - began)) s, $(left) s left"
    done
    ls -l "$OUT"
    return $failed
}
mkdir -p "$OUT"
visit 2>&1 | tee -a "$OUT/visit.log"
