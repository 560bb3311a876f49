#!/bin/sh
# Builds a small bootable guest from the distribution's own packages, without
# root: packages are downloaded and taken apart, never installed, and the disk is
# written as a file, never mounted.
#
#   build.sh OUTPUT.qcow2 [CACHE_DIR]   a disk that boots by BIOS and by UEFI
#   build.sh --direct DIR [CACHE_DIR]   only DIR/vmlinuz and DIR/initrd.img
#
# CACHE_DIR keeps the packages, by default ~/.cache/novacron/guest. Results appear
# by rename, so a reader or a second build never meets half a file.
# NOVACRON_GUEST_MINIMAL=1 leaves out the guest agent and e2fsprogs.
#
# Runs on amd64 Debian, with fresh package lists (apt-get update). Ubuntu's package
# names are known too, but no build was tried there.
#
# apt: mtools qemu-utils

set -eu
umask 022
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=disk.sh
. "$here/disk.sh"
disk_mib=64
cmdline='console=ttyS0 quiet'

# Kernel modules, in the order in which the guest loads them.
modules='
    virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci
    virtio_mmio virtio_blk failover net_failover virtio_net virtio_console
    virtio_balloon virtio-rng evdev button pvpanic pvpanic-mmio
    scsi_common scsi_mod cdrom sr_mod sd_mod virtio_scsi libata ata_piix isofs
    efivarfs
'

die() {
    echo "build.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '/^#   build/s/^#   /usage: /p' "$0" >&2
    exit 2
}

check_tools() {
    missing=
    while read -r tool package; do
        command -v "$tool" >/dev/null && continue
        case "$missing " in
            *" $package "*) ;;
            *) missing="$missing $package" ;;
        esac
    done <<-END
		apt-get apt
		dpkg-deb dpkg
		gzip gzip
		mformat mtools
		mcopy mtools
		qemu-img qemu-utils
	END
    [ -z "$missing" ] || die "missing tools; install with: apt-get install$missing"
    [ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"
}

# Prints those of the named packages that the package lists know.
known() { apt-cache --no-all-versions show "$@" 2>/dev/null | sed -n 's/^Package: //p'; }

dependencies() {
    apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "$@"
}

# Debian's cloud kernel, else Ubuntu's virtual kernel with its modules. The named
# packages are empty and depend on the newest real one.
kernel_packages() {
    meta=$(known linux-image-cloud-amd64 linux-image-virtual | head -n 1)
    [ -n "$meta" ] || die "no cloud kernel in the package lists; run apt-get update"
    image=$(dependencies "$meta" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    echo "$image"
    known "linux-modules-${image#linux-image-}"
}

# The guest's dynamically linked programs and every library they may load.
program_packages() {
    programs=$(known qemu-guest-agent e2fsprogs)
    [ -n "$programs" ] || return 0
    echo "$programs"
    # shellcheck disable=SC2046,SC2086 # lists of names
    known $({
        dependencies $programs
        dependencies --recurse --no-pre-depends $programs
    } | grep -oE '\<z?lib[a-z0-9.+-]+' | sort -u)
}

# Prints `file algorithm:hash` for every package that the guest is made of.
resolve() {
    names=$(
        kernel_packages
        known busybox-static syslinux shim-signed grub-efi-amd64-signed
        [ -n "${NOVACRON_GUEST_MINIMAL-}" ] || program_packages
    )
    # From an empty directory: apt leaves out what it finds in the current one.
    # shellcheck disable=SC2086 # a list of names
    (cd "$parts" && apt-get download --print-uris $names) | cut -d' ' -f2,4 | grep . ||
        die "apt finds no source for: $(echo "$names" | xargs)"
}

# Prints the name of the current list, made anew when apt's lists have changed.
package_list() {
    list=$cache/packages${NOVACRON_GUEST_MINIMAL:+-minimal}
    if [ ! -s "$list" ] ||
        [ -n "$(find /var/lib/apt/lists "$here/build.sh" -maxdepth 1 -newer "$list")" ]; then
        resolve >"$work/packages"
        publish "$work/packages" "$list"
    fi
    echo "$list"
}

# verify ALGORITHM:HASH FILE
verify() {
    [ -e "$2" ] || return 1
    case $1 in
        SHA256:*) sum=sha256sum ;;
        SHA512:*) sum=sha512sum ;;
        *) die "apt names no strong hash for ${2##*/}" ;;
    esac
    [ "${1#*:}" = "$($sum <"$2" | cut -d' ' -f1)" ]
}

# Brings every package in the list $1 into the cache.
fetch() {
    missing=
    while read -r file hash; do
        verify "$hash" "$cache/$file" || missing="$missing ${file%%_*}"
    done <"$1"
    [ -n "$missing" ] || return 0

    incoming=$cache/incoming.$$
    mkdir "$incoming"
    # shellcheck disable=SC2086 # a list of names
    (cd "$incoming" && apt-get -qq -o APT::Sandbox::User=root download $missing) ||
        die "download failed:$missing"
    while read -r file hash; do
        if [ -e "$incoming/$file" ]; then
            verify "$hash" "$incoming/$file" || die "$file: wrong hash"
            mv "$incoming/$file" "$cache/$file"
        fi
    done <"$1"
    rmdir "$incoming"
}

# Takes the packages in the list $1 apart below $parts.
unpack() {
    while read -r file _; do
        dpkg-deb -x "$cache/$file" "$parts"
    done <"$1"
}

add_modules() {
    mkdir -p "$root/lib/modules"
    for module in $modules; do
        file=$(part "*/kernel/*/$module.ko*")
        case $file in
            *.ko) cp "$file" "$root/lib/modules/" ;;
            *.ko.zst) zstd -dq "$file" -o "$root/lib/modules/$module.ko" ;;
            *.ko.xz) xz -dc "$file" >"$root/lib/modules/$module.ko" ;;
            *)
                # modules.builtin writes some names with - and some with _.
                grep -qE "/$(echo "$module" | tr _- ..)\.ko$" "$(part '*/modules.builtin')" ||
                    die "the kernel has no module $module"
                continue
                ;;
        esac
        echo "$module" >>"$root/etc/modules"
    done
}

# Copies a dynamically linked program with its loader and libraries. The loader
# that was unpacked is asked, so nothing depends on what this host has installed.
add_program() {
    program=$(part "*bin/$1")
    [ -n "$program" ] || return 0
    loader=$(part '*/ld-linux-x86-64.so.2')
    libraries=$parts/lib/x86_64-linux-gnu:$parts/usr/lib/x86_64-linux-gnu
    cp "$program" "$root/sbin/"
    mkdir -p "$root/lib64" "$root/lib/x86_64-linux-gnu"
    cp -L "$loader" "$root/lib64/"
    "$loader" --library-path "$libraries" --list "$program" |
        grep -o "$parts/[^ ]*\.so[^ ]*" | while read -r library; do
        cp -L "$library" "$root/lib/x86_64-linux-gnu/"
    done
}

# Writes the initramfs to $1.
make_initramfs() {
    root=$work/root
    cp -R "$here/rootfs" "$root"
    chmod -R u=rwX,go=rX "$root"
    mkdir -p "$root/bin" "$root/root"
    chmod 700 "$root/root"

    cp "$(part '*bin/busybox')" "$root/bin/"
    add_modules
    add_program qemu-ga
    add_program mke2fs
    add_program e2fsck
    if [ -e "$root/sbin/mke2fs" ]; then
        ln "$root/sbin/mke2fs" "$root/sbin/mkfs.ext4"
        cp "$parts/etc/mke2fs.conf" "$root/etc/"
    fi

    (cd "$root" && find . | sort | bin/busybox cpio -o -H newc -R 0:0 2>/dev/null) | gzip -n >"$1"
}

direct=
case ${1-} in
    --direct) direct=1; shift ;;
    -*) usage ;;
esac
case $# in
    1 | 2) ;;
    *) usage ;;
esac
output=$1
cache=${2:-${XDG_CACHE_HOME:-$HOME/.cache}/novacron/guest}

check_tools
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/novacron-guest.XXXXXX")
trap 'rm -rf "$work" "$cache/incoming.$$" "$output.tmp.$$"' EXIT
trap 'exit 1' HUP INT TERM
parts=$work/parts
mkdir "$parts"

packages=$(package_list)
fetch "$packages"
unpack "$packages"
cp "$(part 'boot/vmlinuz-*')" "$work/vmlinuz"
make_initramfs "$work/initrd.img"

if [ -n "$direct" ]; then
    mkdir -p "$output"
    publish "$work/vmlinuz" "$output/vmlinuz"
    publish "$work/initrd.img" "$output/initrd.img"
else
    boot_disk "$work/disk.raw" $disk_mib $disk_mib "$work/vmlinuz" "$work/initrd.img" "$cmdline"
    qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
    publish "$work/disk.qcow2" "$output"
fi
