#!/bin/sh
# Says kindly that a task needs root: need-root.sh "make test"
[ "$(id -u)" = 0 ] && exit 0
echo "$1 loads programs into the kernel and makes network namespaces and tap devices, so it runs as root."
echo "Try: sudo $1"
exit 77
