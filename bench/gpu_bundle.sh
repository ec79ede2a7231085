#!/bin/bash
# Puts built programs and the shared libraries they need, LibTorch's and the system's own apart, into one folder, for a machine
# that has the same LibTorch wheel and a GPU but no MPI, Abseil or glog. On that machine:
#   FOLDER/run.sh TORCH_FOLDER PROGRAM [ARGS ...]      TORCH_FOLDER: .../site-packages/torch
# Open MPI's mpirun is in it, for ranks on that one machine:
#   FOLDER/run.sh TORCH_FOLDER mpirun -np 2 FOLDER/run.sh TORCH_FOLDER PROGRAM [ARGS ...]
# SHARE_GPU=1 before it: the ranks share GPU 0 (each counts as a node of its own).
# Usage: gpu_bundle.sh BUILD FOLDER PROGRAM ...         e.g. gpu_bundle.sh build build/gpu_bundle graft gpu_test
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,8s/^# //p' "$0" >&2; exit 64; }
build=$(realpath "$1")
folder=$2
shift 2
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/lib" "$folder/openmpi"
# Open MPI's plugins, without those for networks.
plugins=$(ompi_info --parsable --path pkglibdir | cut -d: -f3)
for plugin in "$plugins"/mca_*.so; do
  ldd "$plugin" | grep -qE 'lib(fabric|ucp|psm2?|psm_infinipath|ibverbs|oshmem)\.so' || cp "$plugin" "$folder/openmpi"
done
cp -L "$(command -v mpirun)" "$folder/bin/mpirun"
for program in "$@"; do strip -o "$folder/bin/$program" "$build/$program"; done
# LibTorch and NVIDIA's libraries are there already; of libc's family the system's must be used.
{ for program in "$@"; do ldd "$build/$program"; done; ldd "$folder/bin/mpirun" "$folder"/openmpi/*.so; } |
  awk '$3 ~ "^/" {print $3}' |
  { grep -vE '/(torch/lib|nvidia/[^/]+/lib)/|/lib(c|m|dl|rt|pthread|util|gcc_s|stdc\+\+)\.so|/ld-linux' || true; } |
  sort -u | xargs -r cp -Lt "$folder/lib"
cat > "$folder/run.sh" <<'RUN'
#!/bin/bash
# run.sh TORCH_FOLDER PROGRAM [ARGS ...]: runs a program of this folder on LibTorch of that folder.
here=$(dirname "$(realpath "$0")")
torch=$1
program=$2
shift 2
nvidia=$(printf '%s:' "$torch"/../nvidia/*/lib)
export LD_LIBRARY_PATH="$torch/lib:$nvidia$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Open MPI as it is here: its own plugins, ranks on this machine only, by any user.
export OPAL_PREFIX="$here" OMPI_MCA_mca_base_component_path="$here/openmpi" OMPI_MCA_plm=isolated OMPI_MCA_ras=^slurm
export OMPI_MCA_btl=vader,self OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_hwloc_base_binding_policy=none
export PMIX_MCA_pcompress_base_silence_warning=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
if [ -n "${SHARE_GPU:-}" ]; then
  export OMPI_MCA_mpi_yield_when_idle=1 NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_MNNVL_ENABLE=0
  [ -z "${OMPI_COMM_WORLD_RANK:-}" ] || export NCCL_HOSTID="rank $OMPI_COMM_WORLD_RANK"
fi
exec "$here/bin/$program" "$@"
RUN
chmod +x "$folder/run.sh"
du -sh "$folder"
