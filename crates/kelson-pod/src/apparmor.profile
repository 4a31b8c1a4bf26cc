# The default profile of containers: what namespaces, capabilities and masked paths do not already keep
# from a process, should one of them fail.
profile kelson-default flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  unix,
  umount,

  # Processes of containers with this profile, and the runtime from outside.
  ptrace (read, readby, trace, tracedby) peer=kelson-default,
  signal (receive) peer=unconfined,
  signal (receive, send) peer=kelson-default,

  deny mount,
  deny remount,
  deny pivot_root,

  # Of /proc only what belongs to a process is written to, and the kernel's shared memory limits.
  deny /proc/[^0-9]* w,
  deny /proc/{acpi,asound,bus,driver,dynamic_debug,fs,irq,mpt,scsi,tty}/** w,
  deny /proc/sys/{abi,debug,dev,fs,sunrpc,user,vm}/** w,
  deny /proc/sys/kernel/[^ms]** w,
  deny /proc/sys/kernel/s[^he]** w,
  deny /proc/kcore rwklx,
  deny /proc/kmem rwklx,
  deny /proc/mem rwklx,
  deny /proc/sysrq-trigger rwklx,

  # Of /sys only control groups are written to.
  deny /sys/{block,bus,class,dev,devices,firmware,hypervisor,kernel,module,power}/** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
