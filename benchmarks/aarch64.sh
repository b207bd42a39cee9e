#!/bin/sh
# Whether the probe's worker does its work on an aarch64 system with an older onnxruntime: benchmarks/aarch64.py under emulation.
#
#     PYTHON=.venv/bin/python sh benchmarks/aarch64.sh FOLDER [ONNXRUNTIME_VERSION ...]
#
# FOLDER gets an arm64 Python out of the system's own package sources, and the wheels; what lies there is used again. Needs root
# on Debian or one of its kin, for a registration in the kernel that lets arm64 programs start; it is taken back at the end.
# Needs qemu-user-static, and openssh-server for the half that goes through ssh. Nothing is timed: an emulator has no figures.
set -eu

[ $# -ge 1 ] || { echo "usage: $0 FOLDER [ONNXRUNTIME_VERSION ...]" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
[ $# -ge 1 ] || set -- 1.15.1 1.17.3 1.21.0 1.22.1
export QEMU_CPU="${QEMU_CPU:-cortex-a72}" # that of a Raspberry Pi 4
numpy=1.26.4 # the last one before 2, which onnxruntime before 1.19 does not import
python=${PYTHON:-python3}
project=$(cd "$(dirname "$0")/.." && pwd)
root=$folder/root
binfmt=/proc/sys/fs/binfmt_misc
name=compress-aarch64

[ "$(uname -m)" != aarch64 ] || { echo "this machine is one: run benchmarks/aarch64.py" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 2; }
qemu=$(command -v qemu-aarch64-static) || { echo "apt-get install qemu-user-static" >&2; exit 2; }

# A state and a cache of apt's own, so that this system's is left alone; with nothing installed, all that Python needs is fetched.
arm64() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$folder/apt" \
        -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt" "$@"
}

if [ ! -e "$root" ]; then
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial"
    : >"$folder/apt/status"
    arm64 update
    arm64 install --yes --download-only --no-install-recommends python3 libstdc++6
    rm -rf "$root.part"
    for package in "$folder"/apt/archives/*.deb; do
        dpkg -x "$package" "$root.part"
    done
    mv "$root.part" "$root"
fi

mounted='' registered=''
restore() {
    [ -z "$registered" ] || echo -1 >"$binfmt/$name"
    [ -z "$mounted" ] || umount "$binfmt"
}
trap restore EXIT
trap 'exit 130' INT TERM HUP
if [ ! -e "$binfmt/register" ]; then
    mount -t binfmt_misc binfmt_misc "$binfmt"
    mounted=yes
fi
if ! grep -qs '^enabled' "$binfmt"/qemu-aarch64 "$binfmt/$name"; then
    # an ELF header of 64 bits, little-endian, for machine 183; F: the emulator is opened now
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":$name:M::$magic:$mask:$qemu:F" >"$binfmt/register"
    registered=yes
fi

interpreter=$(readlink -f "$root/usr/bin/python3")
tag=$(QEMU_LD_PREFIX=$root "$interpreter" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
failed=0
for version; do
    packages=$folder/python$tag-numpy$numpy-onnxruntime$version
    if [ ! -e "$packages" ]; then
        rm -rf "$packages.part"
        "$python" -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$tag" \
            --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
            --target "$packages.part" "numpy==$numpy" "onnxruntime==$version"
        mv "$packages.part" "$packages"
    fi
    PYTHONPATH="$project:$project/tests" "$python" "$project/benchmarks/aarch64.py" \
        "$interpreter" "$packages" "$version" --prefix "$root" || failed=1
done
exit $failed
