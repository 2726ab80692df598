#!/usr/bin/env bash
# Installs what the build needs besides Rust: CMake, C++ and Fortran compilers for Faiss, OpenBLAS for its products (reference BLAS makes it
# several times slower). Does nothing where they are.
set -euo pipefail

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v cmake >/dev/null || missing+=(cmake)
command -v gfortran >/dev/null || missing+=(gfortran)
echo 'int main(){}' | c++ -x c++ - -o /dev/null -lopenblas 2>/dev/null || missing+=(libopenblas-dev)
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "setup: please install ${missing[*]} with the package manager of this system" >&2
  exit 1
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
