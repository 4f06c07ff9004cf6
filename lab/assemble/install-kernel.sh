#!/bin/sh
# SPDX-License-Identifier: MIT
# install.sh [--entry-only] ROOT: copy the kernel below ROOT and add its extlinux entry beside those that are there.
# Nothing that exists is replaced: the default entry stays the default, the loader is not touched. Run it again freely.
set -eu

entry_only=no
if [ "${1:-}" = --entry-only ]; then
	entry_only=yes
	shift
fi
if [ $# -ne 1 ] || [ ! -d "$1" ]; then
	echo "usage: install.sh [--entry-only] ROOT (the board's root directory, / on the board itself)" >&2
	exit 2
fi
root=${1%/}
here=$(cd "$(dirname "$0")" && pwd)
entry=$here/extlinux-entry.conf
label=$(sed -n 's/^label //p' "$entry")

if [ "$entry_only" = no ]; then
	cp -R "$here/root/." "$root/"
fi

conf=
for candidate in "$root/boot/extlinux/extlinux.conf" "$root/extlinux/extlinux.conf"; do
	if [ -f "$candidate" ]; then
		conf=$candidate
		break
	fi
done
if [ -z "$conf" ]; then
	echo "install.sh: there is no extlinux.conf below $root/: files are in place, add the entry to your loader yourself:" >&2
	cat "$entry" >&2
	exit 0
fi
if grep -q "^label $label\$" "$conf"; then
	echo "install.sh: $conf has the entry $label already"
	exit 0
fi
# the root device of the entry that boots today
rootdev=$(sed -n 's/^[[:space:]]*append[[:space:]].*root=\([^[:space:]]*\).*/\1/p' "$conf" | head -n 1)
if [ -z "$rootdev" ]; then
	echo "install.sh: $conf does not say which root device it boots: nothing was changed in it" >&2
	exit 1
fi
# a /boot partition of its own: the loader's paths start inside it
own_partition=no
if ! grep -q '^[[:space:]]*\(linux\|kernel\)[[:space:]][[:space:]]*/boot/' "$conf"; then
	own_partition=yes
fi
cp "$conf" "$conf.npulab-new"
{
	echo
	if [ "$own_partition" = yes ]; then
		sed -e "s|@ROOT@|$rootdev|" -e "s|/boot/npulab/|/npulab/|" "$entry"
	else
		sed -e "s|@ROOT@|$rootdev|" "$entry"
	fi
} >>"$conf.npulab-new"
mv "$conf.npulab-new" "$conf"
echo "install.sh: added the entry $label to $conf; choose it in the loader's menu"
