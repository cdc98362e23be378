#!/bin/bash
# Installs the Debian packages that the named purposes need and that are missing, showing progress.
#   install-packages.sh build|demo|test|kernels|packages|browsers|bench ...
set -euo pipefail

declare -A packages=(
  [build]="g++ make python3 pkg-config clang-19 llvm-19 libbpf-dev libelf-dev zlib1g-dev bpftool"
  [demo]="curl iproute2 nftables qemu-system-x86 busybox-static cpio gcc libc6-dev dnsmasq-base kmod"
  [test]="zsh fish iproute2 nftables dnsmasq-base bind9-dnsutils tcpdump ethtool curl openssl nghttp2-client gnutls-bin wget golang-go default-jdk-headless python3-grpcio python3-requests faketime"
  [kernels]="e2fsprogs xz-utils kmod"
  [packages]="mmdebstrap"
  [browsers]="chromium firefox-esr libnss3-tools"
  [bench]="nftables dnsmasq-base dnsperf iperf3 nghttp2-client mitmproxy nginx-light"
)

missing=()
for purpose in "$@"; do
  for package in ${packages[$purpose]}; do
    status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$package")
  done
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing ${#missing[@]} Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
