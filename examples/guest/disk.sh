# Sourced by build.sh and debian.sh: a raw disk whose first partition boots Linux by
# BIOS (syslinux) and by UEFI, written as a file, never mounted. With the loaders that
# Microsoft and the distribution have signed (shim, GRUB) it boots under Secure Boot, too.
#
#   sectors   0        2048 ...             boot_mib          ... disk_mib
#             MBR      FAT: boot loaders,   | ext4 or nothing: the caller's
#                      vmlinuz, initrd.img
#
# The caller sets $parts, a folder in which the packages syslinux and either shim-signed
# with grub-efi-amd64-signed or systemd-boot-efi lie unpacked, and $work, a scratch folder.
# shellcheck shell=sh disable=SC2154 # parts and work are the caller's

partition_start=2048 # in sectors of 512 bytes

# Prints the one file that matches in $parts, wherever the release keeps it.
part() { find "$parts" -path "$parts/$1" | head -n 1; }

# partition_entry FLAG TYPE START SIZE: the 16 bytes of an MBR partition, START and SIZE
# in sectors. CHS fields hold the value for "out of range".
partition_entry() {
    for byte in "$1" 254 255 255 "$2" 254 255 255 \
        $(($3 & 255)) $(($3 >> 8 & 255)) $(($3 >> 16 & 255)) $(($3 >> 24)) \
        $(($4 & 255)) $(($4 >> 8 & 255)) $(($4 >> 16 & 255)) $(($4 >> 24)); do
        # shellcheck disable=SC2059 # the format is the byte
        printf "\\$(printf %o "$byte")"
    done
}

# boot_disk FILE DISK_MIB BOOT_MIB KERNEL INITRD CMDLINE: what lies behind BOOT_MIB
# becomes the second partition, if anything does.
boot_disk() {
    truncate -s "$2M" "$1"
    boot_sectors=$(($3 * 2048 - partition_start))
    {
        dd if="$(part '*/mbr.bin')" bs=440 count=1 conv=sync
        head -c 6 /dev/zero
        # Active, FAT32 by LBA.
        partition_entry 128 12 $partition_start $boot_sectors
        if [ "$2" -gt "$3" ]; then
            partition_entry 0 131 $(($3 * 2048)) $((($2 - $3) * 2048))
        else
            head -c 16 /dev/zero
        fi
        head -c 32 /dev/zero
        printf '\125\252'
    } 2>/dev/null | dd of="$1" conv=notrunc status=none

    fat=$1@@$((partition_start * 512))
    mformat -i "$fat" -v NOVACRON -T $boot_sectors -h 64 -s 32 -H $partition_start ::
    "$(part '*bin/syslinux')" --install -t $((partition_start * 512)) "$1"

    cat >"$work/syslinux.cfg" <<-END
		DEFAULT linux
		PROMPT 0
		TIMEOUT 1
		LABEL linux
		    LINUX /vmlinuz
		    INITRD /initrd.img
		    APPEND $6
	END
    mcopy -i "$fat" "$4" ::/vmlinuz
    mcopy -i "$fat" "$5" ::/initrd.img
    mcopy -i "$fat" "$work/syslinux.cfg" ::

    shim=$(part '*/shimx64.efi.signed')
    grub=$(part '*/grubx64.efi.signed')
    if [ -n "$shim" ] && [ -n "$grub" ]; then
        mmd -i "$fat" ::/EFI ::/EFI/BOOT ::/EFI/debian ::/EFI/ubuntu
        mcopy -i "$fat" "$shim" ::/EFI/BOOT/BOOTX64.EFI
        mcopy -i "$fat" "$grub" ::/EFI/BOOT/grubx64.efi
        printf 'linux /vmlinuz %s\ninitrd /initrd.img\nboot\n' "$6" >"$work/grub.cfg"
        # Where the distribution's GRUB looks.
        mcopy -i "$fat" "$work/grub.cfg" ::/EFI/debian/
        mcopy -i "$fat" "$work/grub.cfg" ::/EFI/ubuntu/
        return 0
    fi
    loader=$(part '*/systemd-bootx64.efi')
    [ -n "$loader" ] || return 0
    printf 'timeout 0\ndefault linux.conf\n' >"$work/loader.conf"
    cat >"$work/linux.conf" <<-END
		title Linux
		linux /vmlinuz
		initrd /initrd.img
		options $6
	END
    mmd -i "$fat" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
    mcopy -i "$fat" "$loader" ::/EFI/BOOT/BOOTX64.EFI
    mcopy -i "$fat" "$work/loader.conf" ::/loader/
    mcopy -i "$fat" "$work/linux.conf" ::/loader/entries/
}

# Moves $1 to $2 so that $2 is at no moment incomplete.
publish() {
    cp --sparse=always "$1" "$2.tmp.$$"
    mv "$2.tmp.$$" "$2"
}
