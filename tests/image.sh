#!/bin/sh
# Builds the Dockerfile without a container daemon and tries the image as its own user.
#
#   sh tests/image.sh [FOLDER]     FOLDER holds the base system and the image storage; it needs 20 GB (default: a new one under /var/tmp)
#
# Needs root on Debian. It installs buildah and debootstrap where they are missing. The base image is not pulled: it is made with
# debootstrap from the machine's own package mirror and tagged with the name that the Dockerfile asks for. IMAGE_BUILD_ARGS is handed
# to `buildah build`, for example "--volume /opt/wheels:/opt/wheels:ro" where pip finds wheels on the machine.
set -eu

repository=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d /var/tmp/compress-image-XXXXXX)}
base=$(sed -n 's/^FROM \([^ ]*\) AS base$/\1/p' "$repository/Dockerfile")
release=bookworm  # its Python is the 3.11 that the base image's name promises

[ "$(id -u)" = 0 ] || { echo "image.sh: run it as root: debootstrap and buildah's chroot isolation need it" >&2; exit 77; }
[ -n "$base" ] || { echo "image.sh: no line 'FROM ... AS base' in $repository/Dockerfile" >&2; exit 1; }
for program in buildah debootstrap; do
    command -v $program >/dev/null && continue
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah debootstrap
    break
done

mkdir -p "$folder"
image="buildah --root $folder/storage --runroot $folder/run"
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Release: $release" 2>/dev/null | head -n 1)

if ! $image inspect --type image "$base" >/dev/null 2>&1; then
    echo "== base system with debootstrap: $release"
    rm -rf "$folder/base"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv,python-is-python3 \
        $release "$folder/base" ${mirror:+"$mirror"} >"$folder/debootstrap.log" || { tail -n 20 "$folder/debootstrap.log" >&2; exit 1; }
    rm -f "$folder/base"/usr/lib/python3*/EXTERNALLY-MANAGED  # in the real base image pip may install beside the system's Python
    container=$($image from scratch)
    $image add -q "$container" "$folder/base" / >/dev/null
    $image config --cmd python3 --env PIP_ROOT_USER_ACTION=ignore "$container"
    $image commit -q "$container" "$base" >/dev/null
    $image rm "$container" >/dev/null
    rm -rf "$folder/base"
fi

echo "== build"
# word splitting is wanted: the arguments are the operator's own
# shellcheck disable=SC2086
$image build --layers --pull-never --isolation chroot --network host ${IMAGE_BUILD_ARGS:-} -t compress "$repository"

container=$($image from --pull-never compress)
trap '$image rm "$container" >/dev/null' EXIT
try() {
    echo "== as the image's user: $*"
    $image run --isolation chroot --network host "$container" -- "$@"
}
try id -un
try compress --help
try compress --target raspberrypi --dry-run --trials 4 --epochs 1 --seed 0
try compress --target raspberrypi || test $? -eq 14  # 14: the artifact is there, its verdict undecided or over
try sh -c 'ls -l runs/*/artifact/model.onnx'
echo "1 image built: $base -> compress; --help, a dry run and the demo worked inside it as $($image run --isolation chroot --network host "$container" -- id -un)"
