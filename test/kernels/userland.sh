#!/bin/sh
# userland.sh IMAGE: the disk of the kernels' guests, an ext4 image made of this machine's own programs and the built tree.
# Nothing is fetched: node and the tools that the tests call, with the libraries that ldd names, under their own paths; the
# tree under /enforcer. Made anew when anything of it is newer.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
mkdir -p "$(dirname "$1")"
image=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
root=$image.root
exec 9> "$image.lock" # several runs may want it at the same time; one makes it, the others wait
flock 9
commands="node bpftool sh bash ip tc bridge nft ss ethtool dnsmasq dig tcpdump curl busybox modprobe flock make hostname mount umount
	unshare nsenter sysctl setpriv timeout ps kill xargs env cat rm cp mv mkdir rmdir ls ln readlink sed grep awk mawk tr head tail
	sort uniq wc cut find stat id uname date sleep seq tee touch chmod chown dd df stty true false test expr printf echo"

cd "$tree"
parts="bin bpf/build data dist native/index.js native/index.d.ts native/package.json native/build/Release/enforcer_native.node
	node_modules package.json scripts src test tsconfig.json vitest.config.ts demo docs"
present=
for part in $parts; do [ ! -e "$part" ] || present="$present $part"; done
if [ -f "$image" ] && [ -z "$(find $present -path test/kernels/build -prune -o -path test/vm/build -prune -o -type f -newer "$image" -print -quit)" ]; then
	exit 0
fi

rm -rf "$root"
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64" "$root/enforcer" "$root/root" "$root/etc" "$root/var/lib" "$root/var/tmp"
for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
for folder in proc sys dev tmp run; do mkdir "$root/$folder"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > "$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' > "$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' > "$root/etc/hosts"
echo 'nameserver 127.0.0.1' > "$root/etc/resolv.conf"
cp -L /etc/protocols /etc/services /etc/nsswitch.conf "$root/etc/" 2>/dev/null || true
mkdir -p "$root/etc/iproute2"
cp -rL /etc/iproute2/. "$root/etc/iproute2/" 2>/dev/null || true

# Libraries that are opened by name and not linked.
files=$(ls /usr/lib/*/libnss_files.so.2 /usr/lib/*/libnss_dns.so.2 /usr/lib/*/xtables/*.so 2>/dev/null || true)
for command in $commands; do
	path=$(command -v "$command" || true)
	case $path in /*) files="$files $path" ;; *) files="$files $(ls /usr/bin/$command 2>/dev/null || true)" ;; esac
done
libraries() {
	ldd "$@" 2>/dev/null | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (0x.*/\1/p' | sort -u
}
for file in $files $(libraries $files native/build/Release/enforcer_native.node $(find node_modules -name '*.node')); do
	case $file in /bin/* | /sbin/* | /lib/* | /lib64/*) to=$root/usr$file ;; *) to=$root$file ;; esac
	[ ! -e "$to" ] || continue
	mkdir -p "$(dirname "$to")"
	cp -L "$file" "$to"
done
tar -c --exclude=test/kernels/build --exclude=test/vm/build $present | tar -x -C "$root/enforcer"
node "$here/bundle.mjs" "$root/enforcer"

size=$(($(du -sm "$root" | cut -f 1) * 12 / 10 + 300))
rm -f "$image.tmp"
mkfs.ext4 -q -F -L enforcer -O ^has_journal -E root_owner=0:0 -d "$root" "$image.tmp" "${size}M"
mv "$image.tmp" "$image"
rm -rf "$root"
