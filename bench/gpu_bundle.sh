#!/bin/bash
# Puts built programs and the shared libraries they need, LibTorch's and the system's own apart, into one folder, for a machine
# that has the same LibTorch wheel and a GPU but no MPI, Abseil or glog. On that machine:
#   FOLDER/run.sh TORCH_FOLDER PROGRAM [ARGS ...]      TORCH_FOLDER: .../site-packages/torch
# Usage: gpu_bundle.sh BUILD FOLDER PROGRAM ...         e.g. gpu_bundle.sh build build/gpu_bundle graft gpu_test
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 64; }
build=$(realpath "$1")
folder=$2
shift 2
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/lib"
for program in "$@"; do
  strip -o "$folder/bin/$program" "$build/$program"
  # LibTorch and NVIDIA's libraries are there already; of libc's family the system's must be used.
  ldd "$build/$program" | awk '$3 ~ "^/" {print $3}' |
    { grep -vE '/(torch/lib|nvidia/[^/]+/lib)/|/lib(c|m|dl|rt|pthread|util|gcc_s|stdc\+\+)\.so|/ld-linux' || true; }
done | sort -u | xargs -r cp -Lt "$folder/lib"
cat > "$folder/run.sh" <<'RUN'
#!/bin/bash
# run.sh TORCH_FOLDER PROGRAM [ARGS ...]: runs a program of this folder on LibTorch of that folder.
here=$(dirname "$(realpath "$0")")
torch=$1
program=$2
shift 2
nvidia=$(printf '%s:' "$torch"/../nvidia/*/lib)
export LD_LIBRARY_PATH="$torch/lib:$nvidia$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/bin/$program" "$@"
RUN
chmod +x "$folder/run.sh"
du -sh "$folder"
