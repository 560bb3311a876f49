#!/bin/sh
# Runs in each guest: writes a numbered line into the next slot (512 bytes) of the disk `data`,
# as the boot that it is, and says so on the console once the disk has it. It goes on behind the
# last slot that was written, so what is on the disk tells who wrote when: each slot once, each
# boot without a gap, and nothing between that another boot wrote.

for serial in /sys/block/vd*/serial; do
    [ "$(cat "$serial")" = data ] && disk=${serial%/serial}
done
disk=/dev/${disk##*/}
read -r boot </proc/sys/kernel/random/boot_id
last=$(tr -d '\0' <"$disk" | tail -n 1)
n=${last%% *}
n=${n:-0}
while :; do
    n=$((n + 1))
    printf '%-511s\n' "$n $boot" | dd of="$disk" bs=512 seek=$n conv=notrunc,fsync 2>/dev/null
    [ $? = 0 ] && said=BEAT || said=NO-BEAT
    echo "$said $n $boot" >/dev/ttyS0
    usleep 300000
done
