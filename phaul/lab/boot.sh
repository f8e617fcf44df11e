#!/bin/sh
# The first program of a lab host, as PID 1 of new namespaces: builds the host's file system, pivots into it, says
# "ready" and becomes phaul/lab/init.py. Run by phaul/lab/host.py, which passes the LAB_* variables. Everything it
# mounts is in the host's own mount namespace, and is gone with the last process of the host.
set -eu

# Changed files live in memory beside nobody else's: no directory of the machine has to be cleaned up afterwards.
disk=$LAB_DIRECTORY
mount -t tmpfs -o mode=0755 lab-disk "$disk"
mkdir "$disk/upper" "$disk/work" "$disk/root"
mount -t overlay -o "lowerdir=$LAB_IMAGE/root,upperdir=$disk/upper,workdir=$disk/work" lab-root "$disk/root"
cd "$disk/root"

mount --bind "$LAB_SOURCE" opt/phaul/src/phaul
mount -o remount,bind,ro opt/phaul/src/phaul
mount --bind "$LAB_IMAGE/pycache" var/cache/phaul/pycache
# Stands for the storage that real hosts share: what a workload writes to has to be the same file on both.
mkdir srv/shared
mount --bind "$LAB_SHARED" srv/shared

mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
if [ -n "$LAB_CGROUP" ]; then
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
fi

# A /dev of our own: CRIU refuses descriptors on mounts that it cannot see from inside.
mount -t tmpfs -o mode=0755,nosuid lab-dev dev
mkdir dev/pts dev/shm dev/net
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mknod -m 666 dev/net/tun c 10 200
while read -r minor name; do
    case $name in
    userfaultfd) mknod -m 600 dev/userfaultfd c 10 "$minor" ;;
    esac
done </proc/misc
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev lab-shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr

# /run has to be a tmpfs: only there does CRIU keep what it has found out about the kernel.
mount -t tmpfs -o mode=0755,nosuid,nodev lab-run run
mount -t tmpfs -o mode=1777,nosuid,nodev lab-tmp tmp
mkdir -m 1777 run/lock

printf '%s\n' "$LAB_HOSTNAME" >proc/sys/kernel/hostname
printf '%s\n' "$LAB_HOSTNAME" >etc/hostname
printf '%s\n' "$LAB_HOSTS" >etc/hosts
printf '%s\n' "$LAB_MACHINE_ID" >etc/machine-id

pivot_root . mnt
cd /
umount -l /mnt

# These are settings of the network namespace. BBR, which some machines default to, is slow over a veth. Outside the
# machine's own namespace the kernel takes only what the machine allows there (tcp_allowed_congestion_control): always Reno.
for control in cubic reno; do
    if { echo $control >/proc/sys/net/ipv4/tcp_congestion_control; } 2>/dev/null; then break; fi
done
# An IPv6 address must be usable at once, without the second that duplicate address detection takes.
if [ -d /proc/sys/net/ipv6/conf ]; then
    echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
fi
# Each host counts its PIDs from another number, so that those of a restored workload are free.
echo $((LAB_FIRST_PID - 1)) >/proc/sys/kernel/ns_last_pid

echo ready
exec env -i "PATH=$PATH" /usr/bin/python3 -I -S /opt/phaul/src/phaul/lab/init.py </dev/null >/dev/null 2>&1
