#!/bin/sh
# Makes the tests' disk appear where it was made, and runs what is written there. Nothing is left to
# be saved, so the end is abrupt.
word() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^kelson\.$1=//p"; }
root=$(word root)
ip link add eth0 type dummy && ip link set eth0 up
ip address add 192.0.2.10/24 dev eth0 && ip route add default via 192.0.2.1
if [ "$(word shell)" ]; then
    exec < /dev/ttyS0 > /dev/ttyS0 2>&1
else
    # As it is written, without carriage returns.
    stty -opost < /dev/ttyS1
    exec > /dev/ttyS1 2>&1
fi
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin KELSON_TEST_SLOW="$(word slow)"
modprobe virtio_blk
mkdir -p "$root" && mount /dev/vda "$root" && cd "$root" || poweroff --force --force
if [ "$(word shell)" ]; then
    echo "The tests are here: target/machine-guest machine --inside runs them. Leave with exit."
    TERM=linux setsid --ctty --wait bash -i
else
    xargs -d '\n' target/machine-guest < target/machine-arguments
    echo "machine: ended with $?"
fi
poweroff --force --force
