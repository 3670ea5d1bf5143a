#!/bin/busybox sh
# First process of the guest, twice: in the initramfs it puts the host's file system together, in the
# new root it runs the command. The control directory of the host is the only way back besides the console.
bb=/bin/busybox
ctl=/run/xtask/ctl

assemble() {
    $bb mount -t proc proc /proc
    $bb mount -t sysfs sysfs /sys
    $bb mount -t devtmpfs devtmpfs /dev
    for module in $($bb cat /modules/order); do
        $bb insmod "/modules/$module" || $bb echo "xtask: cannot load $module" > /dev/kmsg
    done

    nine=trans=virtio,version=9p2000.L,msize=512000
    $bb mount -t 9p -o $nine,ro,cache=loose host /host
    $bb mount -t tmpfs -o mode=755 tmpfs /writes
    $bb mkdir /writes/upper /writes/work
    $bb mount -t overlay -o lowerdir=/host,upperdir=/writes/upper,workdir=/writes/work overlay /root

    cd /root || return
    $bb mkdir -p proc sys dev run tmp var/tmp boot "lib/modules/$($bb uname -r)"
    $bb mount -t tmpfs -o mode=755 tmpfs run
    $bb mkdir -p run/xtask/ctl run/netns
    $bb cp $bb /init run/xtask/
    $bb mount -t 9p -o $nine,cache=none ctl run/xtask/ctl
    $bb mount -t 9p -o $nine,ro,cache=loose modules "lib/modules/$($bb uname -r)"
    $bb cp /config "boot/config-$($bb uname -r)"
    if [ -e run/xtask/ctl/share ]; then
        share=$($bb cat run/xtask/ctl/share)
        $bb mkdir -p "/root$share"
        $bb mount -t 9p -o $nine,cache=mmap,access=any share "/root$share"
    fi

    for dir in proc sys dev; do $bb mount --move /$dir $dir; done
    $bb mkdir -p dev/pts dev/shm
    $bb mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
    $bb mount -t tmpfs tmpfs dev/shm
    $bb mount -t bpf bpf sys/fs/bpf
    $bb mount -t cgroup2 cgroup2 sys/fs/cgroup
    $bb mount -t debugfs debugfs sys/kernel/debug
    $bb mount -t tracefs tracefs sys/kernel/tracing
    $bb ln -s /proc/self/fd dev/fd
    $bb ln -s fd/0 dev/stdin
    $bb ln -s fd/1 dev/stdout
    $bb ln -s fd/2 dev/stderr
    $bb ifconfig lo 127.0.0.1 up
    $bb hostname guest
    # The process changes its own root: then the kernel's calls of modprobe see the new one, too.
    exec $bb switch_root /root /run/xtask/busybox sh /run/xtask/init run < dev/null > dev/hvc0 2>&1
}

run() {
    bb=/run/xtask/busybox
    $bb stty raw -F /dev/hvc0
    $bb sh $ctl/command
    status=$?
    $bb sync
    $bb echo "$status" > $ctl/status
}

if [ "$1" = run ]; then run; else assemble; fi
$bb sync
$bb poweroff -f
