#!/bin/sh
# Makes an ISO file that boots, by BIOS, what a disk of build.sh boots: the disk lies in
# it as the image of a hard disk (El Torito).
#
#   iso.sh DISK FILE WORD   FILE boots DISK, with WORD on the kernel's command line

set -eu
[ $# = 3 ] || { echo "usage: iso.sh DISK FILE WORD" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/iso"
disk=$work/iso/disk.img

qemu-img convert -O raw "$1" "$disk"
mcopy -n -i "$disk@@1M" ::/syslinux.cfg "$work/"
sed -i "s/ quiet/ quiet $3/" "$work/syslinux.cfg"
mcopy -o -i "$disk@@1M" "$work/syslinux.cfg" ::/
# It warns that the disk's geometry is none of a real disk's.
genisoimage -quiet -r -o "$2" -hard-disk-boot -b disk.img "$work/iso" 2>"$work/words" ||
    { cat "$work/words" >&2; exit 1; }
