#!/bin/sh
# kernel.sh PACKAGE DIRECTORY: vmlinuz and initramfs.cpio of a Debian kernel package, in DIRECTORY.
# The package is fetched with apt-get download and unpacked there; nothing is installed. A package that only depends on a
# kernel (linux-image-cloud-amd64) stands for the kernel it depends on. The initramfs holds busybox, ./init and the modules
# of network, virtio and ext4; the rest of the guest is the disk that userland.sh makes. Does nothing when all of it is there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
wanted=$1
mkdir -p "$2"
directory=$(cd "$2" && pwd)
busybox=$(command -v busybox) || { echo "busybox is missing: apt-get install busybox-static" >&2; exit 1; }
package=$(apt-cache depends "$wanted" 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
[ -n "$package" ] || package=$wanted

if [ "$(cat "$directory/package" 2>/dev/null)" != "$package" ]; then
	rm -rf "$directory"
	mkdir -p "$directory/fetch" "$directory/root"
	chmod 777 "$directory/fetch" # apt fetches as its own user where it can
	(cd "$directory/fetch" && apt-get -qq download "$package" 2> apt.err) || {
		cat "$directory/fetch/apt.err" >&2
		echo "$wanted comes from Debian 12's main, bookworm-security or bookworm-backports: are they in apt's sources, and was apt-get update run?" >&2
		exit 1
	}
	dpkg-deb -x "$directory"/fetch/*.deb "$directory/root"
	mv "$directory"/root/boot/vmlinuz-* "$directory/vmlinuz"
	release=$(basename "$directory"/root/lib/modules/*)
	modules=$directory/modules/lib/modules/$release
	mkdir -p "$modules/kernel"
	for part in fs/ext4 fs/jbd2 fs/mbcache.ko fs/mbcache.ko.xz net drivers/net drivers/virtio drivers/block/virtio_blk.ko drivers/block/virtio_blk.ko.xz lib crypto arch; do
		from=$directory/root/lib/modules/$release/kernel/$part
		[ -e "$from" ] || continue
		mkdir -p "$modules/kernel/$(dirname "$part")"
		cp -r "$from" "$modules/kernel/$part"
	done
	rm -rf "$modules"/kernel/drivers/net/ethernet "$modules"/kernel/net/sunrpc
	find "$modules" -name '*.ko.xz' -exec xz -d {} +
	cp "$directory/root/lib/modules/$release"/modules.builtin* "$directory/root/lib/modules/$release/modules.order" "$modules/"
	depmod -b "$directory/modules" "$release"
	modprobe -C /dev/null -d "$directory/modules" -S "$release" --show-depends virtio_pci > "$directory/order"
	modprobe -C /dev/null -d "$directory/modules" -S "$release" --show-depends virtio_blk >> "$directory/order"
	modprobe -C /dev/null -d "$directory/modules" -S "$release" --show-depends ext4 >> "$directory/order" # says so where it is built in
	sed -n "s|^insmod $directory/modules\([^ ]*\).*|\1|p" "$directory/order" | awk '!seen[$0]++' > "$directory/modules/order"
	rm -rf "$directory/fetch" "$directory/root"
	echo "$package" > "$directory/package"
fi

if [ ! -f "$directory/initramfs.cpio" ] || [ "$here/init" -nt "$directory/initramfs.cpio" ]; then
	rm -rf "$directory/initramfs"
	mkdir -p "$directory/initramfs/bin"
	cp "$busybox" "$directory/initramfs/bin/busybox"
	cp -r "$directory/modules" "$directory/initramfs/modules"
	cp "$here/init" "$directory/initramfs/init"
	chmod 755 "$directory/initramfs/init"
	(cd "$directory/initramfs" && find . | cpio --quiet -o -H newc) > "$directory/initramfs.tmp"
	mv "$directory/initramfs.tmp" "$directory/initramfs.cpio"
	rm -rf "$directory/initramfs"
fi
