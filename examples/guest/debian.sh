#!/bin/sh
# Builds a Debian 12 with cloud-init and the guest agent, as a disk that boots by BIOS
# and by UEFI:
#
#   debian.sh OUTPUT.qcow2
#
# Nothing is mounted and no loop device is needed: mmdebstrap makes the tree, mke2fs
# writes it into the disk's second partition. Run by root, mmdebstrap works in a plain
# chroot; run by anybody else, in a user namespace, which takes the packages uidmap and
# fakeroot and a range in /etc/subuid. Downloads about 150 MB and takes some minutes.
#
# The kernel lies on the boot partition, which the system does not mount: this is a
# disk to test with, not one that upgrades its own kernel.
#
# apt: mmdebstrap mtools qemu-utils e2fsprogs

set -eu
umask 022
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=disk.sh
. "$here/disk.sh"

boot_mib=128
disk_mib=2048 # the root file system grows into whatever disk it is copied to
packages=linux-image-cloud-amd64,systemd-sysv,udev,dbus,cloud-init,cloud-guest-utils
packages=$packages,qemu-guest-agent,netplan.io,iproute2,openssh-server,syslinux,systemd-boot-efi

die() {
    echo "debian.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] || { sed -n '/^#   debian/s/^#   /usage: /p' "$0" >&2; exit 2; }
output=$1
missing=
for tool in mmdebstrap:mmdebstrap mformat:mtools qemu-img:qemu-utils mkfs.ext4:e2fsprogs; do
    command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
as_root=
if [ "$(id -u)" != 0 ]; then
    as_root=fakeroot
    for tool in newuidmap:uidmap fakeroot:fakeroot; do
        command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
    done
fi
[ -z "$missing" ] || die "missing tools; install with: apt-get install$missing"

work=$(mktemp -d "${TMPDIR:-/tmp}/novacron-debian.XXXXXX")
trap 'rm -rf "$work" "$output.tmp.$$"' EXIT
trap 'exit 1' HUP INT TERM
parts=$work/root

# shellcheck disable=SC2016 # $1 is the hook's, the tree
mmdebstrap --variant=apt --include=$packages \
    --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='echo debian >"$1/etc/hostname"' \
    --customize-hook='echo "LABEL=root / ext4 defaults 0 1" >"$1/etc/fstab"' \
    --customize-hook='echo "datasource_list: [ NoCloud, None ]" >"$1/etc/cloud/cloud.cfg.d/90_dpkg.cfg"' \
    --customize-hook='echo "locale: false" >"$1/etc/cloud/cloud.cfg.d/91_no_locales.cfg"' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    bookworm "$work/root.tar"

mkdir "$parts"
tar -xf "$work/root.tar" -C "$parts" --wildcards './boot/*' './usr/bin/syslinux' './usr/lib/SYSLINUX/*' \
    './usr/lib/systemd/boot/*'
boot_disk "$work/disk.raw" $disk_mib $boot_mib \
    "$(part 'boot/vmlinuz-*')" "$(part 'boot/initrd.img-*')" 'root=LABEL=root ro console=ttyS0 quiet'
rm -r "$parts"

# The unpacking and the writing see the same owners: the real ones, or fakeroot's.
# shellcheck disable=SC2016 # expanded by the inner shell
$as_root sh -ec '
    mkdir "$1/root"
    tar --numeric-owner -xf "$1/root.tar" -C "$1/root"
    mkfs.ext4 -q -L root -d "$1/root" -E "offset=$(($2 << 20))" "$1/disk.raw" "$3M"
' - "$work" $boot_mib $((disk_mib - boot_mib))
qemu-img convert -c -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
publish "$work/disk.qcow2" "$output"
