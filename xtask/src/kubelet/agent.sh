# Runs "$@" where the fixed places of a kubelet are its own: /var/lib/kubelet (device plugins),
# /var/log/containers (links to logs) and the kernel's settings that it changes. Mounts below the
# root directory, which is shared, are seen by all.
set -eu
for place in /var/lib /var/log /proc/sys; do
    mount --make-private "$(findmnt --noheadings --output TARGET --target "$place" | tail -n 1)"
done
settings="vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes"
mount -t tmpfs -o mode=755 own /var/lib
mount -t tmpfs -o mode=755 own /var/log
for setting in $settings; do
    copy=/var/lib/$(echo "$setting" | tr / -)
    cat "/proc/sys/$setting" > "$copy"
    mount --bind "$copy" "/proc/sys/$setting"
done
exec "$@"
