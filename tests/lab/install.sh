#!/bin/sh
# Install what the lab needs from Debian, when it is missing and this is root; say what is missing otherwise.
# The kernels themselves are not installed: `python -m tests.lab.packages` unpacks them into a cache.
set -eu

wanted="qemu-system-x86 qemu-system-arm gcc-aarch64-linux-gnu binutils-aarch64-linux-gnu device-tree-compiler busybox-static kmod lz4 acpica-tools gcc libseccomp2 xfsprogs"
missing=""
for package in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "the lab needs:$missing (as root: apt-get install$missing)" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Another apt may hold the lock for a while on a shared machine.
if ! { apt-get -q update && apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "apt could not install:$missing" >&2
    exit 1
fi
