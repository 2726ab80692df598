#!/usr/bin/env bash
# Puts NVIDIA's compiler and libraries, from their PyPI packages, where the CUDA build finds them; for machines without the CUDA toolkit.
#   scripts/setup_cuda.sh [FOLDER]     (work/cuda)
# Prints the environment that the build needs. With a driver installed, its libcuda is linked; else a stub made here, with which the
# programs build, and say at the start that there is no device.
set -euo pipefail

folder=$(realpath -m "${1:-work/cuda}")
version=13.0
packages=(nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-nvrtc nvidia-nvvm nvidia-cuda-cccl nvidia-cublas)
mkdir -p "$folder"
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install --quiet --disable-pip-version-check "${packages[@]/%/==$version.*}" nvidia-curand
home=$(echo "$folder"/python/lib/python3*/site-packages/nvidia/cu13)

ln -sfn lib "$home/lib64"
for library in "$home"/lib/lib*.so.*; do
  ln -sf "$(basename "$library")" "${library%%.so.*}.so"
done
if ! ldconfig -p | grep -q 'libcuda\.so '; then
  # Every function that the header names; telling the linker to allow missing symbols would hide other mistakes.
  # 100 is CUDA_ERROR_NO_DEVICE.
  grep -ohE '\bcu[A-Z][A-Za-z0-9_]+' "$home"/include/cuda.h | sort -u | sed 's/.*/int &(void) { return 100; }/' >"$folder/stub.c"
  cc -w -shared -Wl,-soname,libcuda.so.1 -o "$home/lib/libcuda.so.1" "$folder/stub.c"
  ln -sf libcuda.so.1 "$home/lib/libcuda.so"
fi

echo "export CUDA_HOME=$home"
echo "export PATH=\$CUDA_HOME/bin:\$PATH"
echo "export LIBRARY_PATH=\$CUDA_HOME/lib LD_LIBRARY_PATH=\$CUDA_HOME/lib"
echo "export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}"
