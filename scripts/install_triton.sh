#!/usr/bin/env bash
# Make build/triton/: a real Triton server with a Python of its own, for the tests of `nrd-trt package` and for
# `make triton-proof`. Where it cannot be made this says so and succeeds: those tests skip then.
#
#     scripts/install_triton.sh [PYTHON]
#
# NVIDIA's pytriton carries a server that runs on a CPU. Its Python backend reads arrays of NumPy 1 only, hence the
# environment of its own; of pytriton itself nothing is used, so its requirements are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
target=build/triton
python=${1:-python3}

give_up() {
    echo "No Triton server was installed ($1); its tests skip."
    exit 0
}

[ "$(uname -sm)" = "Linux x86_64" ] || give_up "the wheel of its server is for Linux on x86-64"
rm -rf "$target"
"$python" -m venv "$target" || give_up "$python makes no environment"
pip=("$target/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check --retries 1 --timeout 20)
"$target/bin/python" - > "$target/requirements.txt" << 'END'
import configparser

setup = configparser.ConfigParser()
setup.read("setup.cfg")
print(setup["options"]["install_requires"], "numpy<2", "tritonclient[grpc,http]>=2.50,<3", sep="\n")
END
"${pip[@]}" --requirement "$target/requirements.txt" || give_up "what the toolkit needs cannot be installed with NumPy 1"
"${pip[@]}" --no-deps 'nvidia-pytriton==0.7.0' || give_up "nvidia-pytriton 0.7.0 cannot be installed"

read -r site libraries version < <("$target/bin/python" -c '
import sys, sysconfig
print(sysconfig.get_path("purelib"), sysconfig.get_config_var("LIBDIR"), "%d.%d" % sys.version_info[:2])')
echo "$PWD" > "$site/nrd_trt.pth"
server=$site/pytriton/tritonserver
backend=$target/backends/python
stub=$server/python_backend_stubs/$version/triton_python_backend_stub
[ -f "$stub" ] || give_up "it has no Python backend for Python $version"
mkdir -p "$backend"
cp "$server"/backends/python/*.{so,py} "$stub" "$backend"
chmod +x "$backend/triton_python_backend_stub" "$server/bin/tritonserver"
# The Python backend runs in the Python that it finds on PATH, and takes its library where the loader finds it.
cat > "$target/bin/tritonserver" << END
#!/bin/sh
export PATH="$PWD/$target/bin:\$PATH"
export LD_LIBRARY_PATH="$site/nvidia_pytriton.libs:$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$server/bin/tritonserver" "--backend-directory=$PWD/$target/backends" "\$@"
END
! LD_LIBRARY_PATH="$site/nvidia_pytriton.libs:$libraries" ldd "$backend/triton_python_backend_stub" | grep "not found" ||
    give_up "its Python backend lacks these libraries"
chmod +x "$target/bin/tritonserver"
