#!/bin/sh
# SPDX-License-Identifier: MIT
# install.sh [--entry-only] ROOT: copy the kernel below ROOT and add its extlinux entry beside those that are there.
# install.sh --remove-entry ROOT: take that entry out again; the configuration is then what it was before.
# Nothing that exists is replaced: the default entry stays the default, the loader is not touched. Run it again freely.
set -eu

verb=install
case ${1:-} in
--entry-only | --remove-entry)
	verb=${1#--}
	shift
	;;
esac
if [ $# -ne 1 ] || [ ! -d "$1" ]; then
	echo "usage: install.sh [--entry-only|--remove-entry] ROOT (the board's root directory, / on the board)" >&2
	exit 2
fi
root=${1%/}
here=$(cd "$(dirname "$0")" && pwd)
entry=$here/extlinux-entry.conf
label=$(sed -n 's/^label //p' "$entry")
release=${label#npulab-}

conf=
for candidate in "$root/boot/extlinux/extlinux.conf" "$root/extlinux/extlinux.conf"; do
	if [ -f "$candidate" ]; then
		conf=$candidate
		break
	fi
done
# a copy that is complete takes the place of the configuration, with its owner and mode; an interrupt leaves the old one
trap 'rm -f "${conf:+$conf.npulab-new}"' EXIT
replace() {
	sync "$conf.npulab-new"
	mv "$conf.npulab-new" "$conf"
}

if [ "$verb" = remove-entry ]; then
	if [ -z "$conf" ] || ! grep -q "^label $label\$" "$conf"; then
		exit 0
	fi
	cp -p "$conf" "$conf.npulab-new"
	# the entry ends at the next label or empty line; the empty line before it came with it
	awk -v label="label $label" '
		function flush() { if (held) print ""; held = 0 }
		$0 == label { inside = 1; held = 0; next }
		inside && (/^label / || /^$/) { inside = 0 }
		inside { next }
		/^$/ { flush(); held = 1; next }
		{ flush(); print }
		END { flush() }
	' "$conf" >"$conf.npulab-new"
	replace
	echo "install.sh: took the entry $label out of $conf"
	exit 0
fi

if [ "$verb" = install ]; then
	cp -R "$here/root/." "$root/"
fi
if [ -d "$root/usr/lib/modules/$release" ] && command -v depmod >/dev/null 2>&1; then
	depmod -b "$root/usr" "$release" || echo "install.sh: depmod failed: run depmod $release on the board" >&2
fi
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
inside=/boot/npulab/
if ! grep -q '^[[:space:]]*\(linux\|kernel\)[[:space:]][[:space:]]*/boot/' "$conf"; then
	inside=/npulab/
fi
cp -p "$conf" "$conf.npulab-new"
{
	echo
	sed -e "s|@ROOT@|$rootdev|" -e "s|/boot/npulab/|$inside|" "$entry"
} >>"$conf.npulab-new"
replace
echo "install.sh: added the entry $label to $conf; choose it in the loader's menu"
