#!/bin/sh
# SPDX-License-Identifier: MIT
# First process of an entry on trial (init=): before anything else the loader's configuration becomes what it was, so
# that every further start, however it comes about, is the old entry's. Then a guard restarts the board unless somebody
# vouches for it in time, and the system's own init goes on. Words in @ are filled in when the entry is made.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
conf=@CONF@
say() { echo "npulab: $1" >/dev/kmsg 2>/dev/null; }

mount -o remount,rw / 2>/dev/null
[ -z "@BOOTDEV@" ] || mount -t "@BOOTTYPE@" "@BOOTDEV@" /boot
if [ -f "$conf.npulab-before" ]; then
	cp -p "$conf.npulab-before" "$conf.npulab-new" && sync && mv "$conf.npulab-new" "$conf" && sync &&
		say "the entry before this one is the default again" || say "the default entry could not be restored"
	# a loader that counts starts has nothing to count any more: its mark is the fourth byte
	[ ! -f /boot/failures ] || dd if=/dev/zero of=/boot/failures bs=1 seek=3 count=1 conv=notrunc 2>/dev/null
	sync
	# what the loader reads must not stand in the journal only
	fsfreeze -f "@MOUNT@" 2>/dev/null && fsfreeze -u "@MOUNT@"
fi
[ -z "@BOOTDEV@" ] || umount /boot
[ "@ROOTMODE@" = rw ] || mount -o remount,ro / 2>/dev/null

(
	left=@SECONDS@
	while [ "$left" -gt 0 ]; do
		[ ! -e "/dev/@ALIVE@" ] || exit 0
		sleep 1
		left=$((left - 1))
	done
	say "nobody vouched for this start within @SECONDS@ s: restarting"
	sync
	echo b >/proc/sysrq-trigger || reboot -f
) </dev/null >/dev/null 2>&1 &

for next in @INIT@ /sbin/init /etc/init /bin/init /bin/sh; do
	[ ! -x "$next" ] || exec "$next" "$@"
done
