#!/bin/bash
# Run as a service on the bare machine (run.mjs): installs the packages, and tries what a host's administrator does with them.
# Each trial is one line on standard output, "ok WHAT" or "not ok WHAT: OUTPUT"; "end" is the last line.
cd /root
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin

# try WHAT COMMAND...; fails WHAT COMMAND...: the same for what has to be refused
try() { what=$1; shift; if output=$("$@" 2>&1); then echo "ok $what"; else echo "not ok $what: $(tail -n 3 <<< "$output" | tr '\n' ' ')"; fi; }
fails() { what=$1; shift; if output=$("$@" 2>&1); then echo "not ok $what: $(tail -n 3 <<< "$output" | tr '\n' ' ')"; else echo "ok $what"; fi; }
unit() { systemctl show -p "$1" --value enforcer-agent; }
holds() { enforcer list | grep -q "^$1 .*enforced"; }
back() { for _ in $(seq 600); do enforcer list > /dev/null 2>&1 && return; sleep 0.1; done; return 1; }

fails "no compiler is here" sh -c 'command -v gcc || command -v cc || command -v clang'
fails "no node is here" sh -c 'command -v node'
fails "without a Node.js the package does not install" apt-get install -y --no-install-recommends ./enforcer_*.deb
try "both packages install" apt-get install -y --no-install-recommends ./enforcer_*.deb ./enforcer-node_*.deb
fails "the unit is not started by itself" systemctl is-active enforcer-agent
try "enforcer doctor" enforcer doctor
try "the example policies are understood" sh -c 'for file in /usr/share/doc/enforcer/examples/*.yaml; do enforcer policy check "$file" || exit; done'
try "the manual page" sh -c 'man -w enforcer && zcat /usr/share/man/man8/enforcer.8.gz | grep -q "enforcer attach"'
try "the completion" bash -c '. /usr/share/bash-completion/completions/enforcer; complete -p enforcer'

ip tuntap add tap0 mode tap
ip addr add 172.30.0.1/30 dev tap0
ip link set tap0 up

enforcer attach tap0 --guest-ip 172.30.0.2 > alone 2>&1 &
alone=$!
for _ in $(seq 600); do grep -q '^enforcing tap0' alone && break; sleep 0.1; done
try "enforcer attach without an agent" grep '^enforcing tap0' alone
kill -TERM $alone
wait $alone

try "systemctl enable --now enforcer-agent" systemctl enable --now enforcer-agent
try "it is running" systemctl is-active enforcer-agent
try "enforcer attach" enforcer attach tap0 --guest-ip 172.30.0.2 --guest-mac 02:fc:00:00:00:02
try "the tap is held" holds tap0
try "its settings are set through the sandbox" sh -c '[ "$(sysctl -n net.ipv4.conf.tap0.rp_filter)" = 1 ]'
ip netns add jail
ip -n jail tuntap add tap7 mode tap
ip -n jail link set tap7 up
ip -n jail addr add 172.31.0.1/30 dev tap7
try "a tap in a namespace that is younger than the agent" enforcer attach tap7 --netns jail --guest-ip 172.31.0.2
try "systemctl reload enforcer-agent" systemctl reload enforcer-agent
cp /etc/enforcer/agent.yaml kept.yaml
echo 'nonsense: 1' >> /etc/enforcer/agent.yaml
fails "a reload with an error in the file is refused" systemctl reload enforcer-agent
cp kept.yaml /etc/enforcer/agent.yaml
try "and the agent runs on" holds tap0

before=$(unit MainPID)
systemctl kill -s KILL enforcer-agent
try "after kill -9 it comes back" back
try "as another process" test "$before" != "$(unit MainPID)"
try "and holds the tap" holds tap0
try "and the one in the namespace" holds jail/tap7
# What a process leaves that was killed while a link changed; only a process that may write there takes it back.
short=/sys/kernel/rcu_expedited
try "short grace periods can be left behind" sh -c "echo 6647398 > $short && grep -q 6647398 $short"
try "systemctl restart enforcer-agent" systemctl restart enforcer-agent
try "it holds the tap as before" holds tap0
try "it takes short grace periods back, so it may write there" grep -qx 0 $short
fails "but nowhere else in /sys/kernel" nsenter --target "$(unit MainPID)" --mount sh -c 'echo 0 > /sys/kernel/rcu_normal'
try "an upgrade replaces the agent" apt-get install -y --reinstall ./enforcer_*.deb
back
try "and it holds the tap as before" holds tap0

# In the foreground it would not return.
systemctl restart --no-block enforcer-agent
try "enforcer attach while the agent is restarted" timeout 60 enforcer attach tap8 --wait
try "has the agent wait for the tap" enforcer detach tap8
ip netns del jail
try "a namespace that is deleted goes, and what was in force there" timeout 60 sh -c 'until ! enforcer list | grep -q jail && ! ls /sys/fs/bpf/enforcer | grep -q @; do sleep 0.2; done'

capabilities=$(sed -n 's/^CapEff:\s*//p' "/proc/$(unit MainPID)/status")
try "it has the six capabilities of its unit and no other ($capabilities)" test "$capabilities" = 000000c000281400
try "no core dumps" sh -c "grep -q 'core file size *0 *0' /proc/$(unit MainPID)/limits"
try "no warnings" sh -c '! journalctl -u enforcer-agent -p warning --no-pager | grep enforcer:'
score=$(systemd-analyze security enforcer-agent --no-pager | sed -n 's/.*Overall exposure level.*: \([0-9.]*\) .*/\1/p')
try "systemd-analyze security: $score" sh -c "awk 'BEGIN { exit !($score <= 3) }'"

try "the package is removed" apt-get remove -y enforcer
fails "nothing runs" systemctl is-active enforcer-agent
try "and the kernel goes on enforcing" test -d /sys/fs/bpf/enforcer
try "the configuration is kept" test -f /etc/enforcer/agent.yaml
try "and purged" apt-get purge -y enforcer
fails "with it the configuration goes" test -e /etc/enforcer
echo end
systemctl poweroff --force
