#!/bin/sh
# Takes a kernel, and drivers that the cloud kernel of the other guest has not (QEMU's
# watchdog i6300esb, SATA), out of the distribution's own package, which is downloaded
# and never installed.
#
#   generic-kernel.sh DIR   makes DIR with vmlinuz and the modules below
#
# Runs on amd64 Debian, with fresh package lists. Ubuntu's package names are known
# too, but it was not tried there.

set -eu
export LC_ALL=C
[ $# = 1 ] || { echo "usage: generic-kernel.sh DIR" >&2; exit 2; }

# In the order in which they are loaded.
modules='watchdog i6300esb scsi_common scsi_mod libata libahci ahci cdrom sr_mod isofs'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/out" "$work/packages"

newest() {
    apt-cache depends --no-recommends --no-suggests "$1" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

image=$(newest linux-image-amd64)
[ -n "$image" ] || image=$(newest linux-image-generic)
[ -n "$image" ] || { echo "generic-kernel.sh: no kernel in the package lists; run apt-get update" >&2; exit 1; }
packages=$image
for more in "linux-modules-${image#linux-image-}" "linux-modules-extra-${image#linux-image-}"; do
    if apt-cache show "$more" >/dev/null 2>&1; then packages="$packages $more"; fi
done
# shellcheck disable=SC2086 # a list of names
(cd "$work/packages" && apt-get download -q $packages)
for package in "$work"/packages/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work" --wildcards \
        './boot/vmlinuz-*' './lib/modules/*.ko*' 2>/dev/null || true
done
cp "$work"/boot/vmlinuz-* "$work/out/vmlinuz"
for module in $modules; do
    file=$(find "$work/lib" -name "$module.ko*" | head -n 1)
    case $file in
        *.zst) zstd -q -d -o "$work/out/$module.ko" "$file" ;;
        *.xz) xz -dc "$file" >"$work/out/$module.ko" ;;
        *.ko) cp "$file" "$work/out/$module.ko" ;;
        *) echo "generic-kernel.sh: $packages: no $module.ko in it" >&2; exit 1 ;;
    esac
done
rm -rf "$1"
mkdir -p "$(dirname "$1")"
mv "$work/out" "$1"
