#!/bin/sh
# Makes what the test guest boots from, in build/ beside this script: vmlinuz and initramfs.gz.
# The kernel comes out of Debian's package (fetched with apt-get download and unpacked here; nothing is installed), the
# initramfs holds busybox, the probe, curl with the libraries that it needs, and the kernel's virtio_net modules. Does nothing when both are newer than their parts.
# KERNEL_PACKAGE chooses another kernel package than the one that linux-image-cloud-amd64 depends on.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$here/build
probe=$here/../tools/build/probe
busybox=$(command -v busybox) || { echo "busybox is missing: apt-get install busybox-static" >&2; exit 1; }
curl=$(command -v curl) || { echo "curl is missing: apt-get install curl" >&2; exit 1; }
[ -x "$probe" ] || make -s -C "$here/../tools" build/probe
mkdir -p "$build"

# Several test runs may want it at the same time; one builds, the others wait.
exec 9> "$build/lock"
flock 9

if [ -z "${KERNEL_PACKAGE:-}" ] && [ -f "$build/kernel-package" ]; then
	package=$(cat "$build/kernel-package")
else
	package=${KERNEL_PACKAGE:-$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)}
	if [ -z "$package" ]; then
		echo "vm: apt knows no linux-image-cloud-amd64: run apt-get update" >&2
		exit 1
	fi
fi

if [ ! -f "$build/vmlinuz" ] || [ "$(cat "$build/kernel-package" 2>/dev/null)" != "$package" ]; then
	echo "vm: fetching kernel $package"
	rm -rf "$build/fetch" "$build/root"
	mkdir -p "$build/fetch" "$build/root"
	chmod 777 "$build/fetch" # apt fetches as its own user where it can
	(cd "$build/fetch" && apt-get -qq download "$package" 2> apt.err) || { cat "$build/fetch/apt.err" >&2; exit 1; }
	dpkg-deb -x "$build"/fetch/*.deb "$build/root"
	mv "$build"/root/boot/vmlinuz-* "$build/vmlinuz"
	# In the order in which they need each other; those built into the kernel are not there.
	rm -rf "$build/modules"
	mkdir -p "$build/modules"
	: > "$build/modules/order"
	for name in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net; do
		file=$(find "$build/root" -name "$name.ko*" | head -n 1)
		[ -n "$file" ] || continue
		case $file in
		*.xz) xz -dc "$file" > "$build/modules/$name.ko" ;;
		*.zst) zstd -qdc "$file" > "$build/modules/$name.ko" ;;
		*) cp "$file" "$build/modules/$name.ko" ;;
		esac
		echo "$name.ko" >> "$build/modules/order"
	done
	rm -rf "$build/fetch" "$build/root" "$build/initramfs.gz"
	echo "$package" > "$build/kernel-package"
fi

if [ ! -f "$build/initramfs.gz" ] || [ "$here/init" -nt "$build/initramfs.gz" ] || [ "$here/build.sh" -nt "$build/initramfs.gz" ] || [ "$probe" -nt "$build/initramfs.gz" ]; then
	echo "vm: making the initramfs"
	rm -rf "$build/initramfs"
	mkdir -p "$build/initramfs/bin"
	cp "$busybox" "$build/initramfs/bin/busybox"
	cp "$probe" "$build/initramfs/bin/probe"
	# curl, its loader and libraries where it looks for them; names are looked up by the C library's own resolver.
	cp -L "$curl" "$build/initramfs/bin/curl"
	ldd "$curl" | grep -o '/[^ )]*' | while read -r file; do
		mkdir -p "$build/initramfs$(dirname "$file")"
		cp -L "$file" "$build/initramfs$file"
	done
	mkdir -p "$build/initramfs/etc"
	echo "nameserver 8.8.8.8" > "$build/initramfs/etc/resolv.conf"
	echo "hosts: files dns" > "$build/initramfs/etc/nsswitch.conf"
	cp -r "$build/modules" "$build/initramfs/modules"
	cp "$here/init" "$build/initramfs/init"
	chmod 755 "$build/initramfs/init" "$build/initramfs/bin/"*
	strip "$build/initramfs/bin/probe" 2>/dev/null || true
	(cd "$build/initramfs" && find . | cpio --quiet -o -H newc | gzip -1) > "$build/initramfs.tmp"
	mv "$build/initramfs.tmp" "$build/initramfs.gz"
	rm -rf "$build/initramfs"
fi
