"""The containment probe's script: it runs in a sandbox of any kind and tries to get out."""

from typing import Final

__all__ = ["ATTEMPTS", "PROBE"]

ATTEMPTS: Final = (
    "user",
    "capabilities",
    "new_privileges",
    "descriptors",
    "network",
    "dns",
    "metadata",
    "gateway",
    "host_services",
    "docker_socket",
    "run_sockets",
    "abstract_sockets",
    "vsock",
    "data_folder",
    "workspaces",
    "home",
    "shadow",
    "write_outside",
    "kernel_settings",
    "devices",
    "host_processes",
    "ptrace",
    "namespaces",
)
"""What the probe tries, in its order: each is told of in one line."""

PROBE: Final = r"""
LC_ALL=C; export LC_ALL
attempt=; reached=; missing=
for program in bash cat head id readlink rm stat timeout tr uname wc; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
# What can't be tried is not shut.
begin() { attempt=$1; reached=${missing:+it must be supposed, programs are missing:$missing}; }
hole() { reached=${reached:+$reached; }$1; }
finish() {
  local result=blocked detail=$reached
  [ -n "$reached" ] && result=reached
  detail=${detail//[^a-zA-Z0-9 .,:;=@()\/_-]/ }
  printf '{"attempt": "%s", "result": "%s", "detail": "%s"}\n' "$attempt" "$result" "${detail:0:300}"
}
# Sets `said` and `code`. A machine that stands still may take seconds for what the kernel says at once, so what did not end is tried
# longer: twice in all, as each address takes that long where there is a network.
patience=2
patiently() {
  said=$(timeout 3 bash -c "$@" 2>&1); code=$?
  if [ "$code" = 124 ] && [ "$patience" -gt 0 ]; then
    patience=$((patience - 1))
    said=$(timeout 12 bash -c "$@" 2>&1); code=$?
  fi
}
# Sets `said` to how a connection ended. Only the kernel's word that there is no way counts as none.
tcp() {
  patiently 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2"
  case $code:$said in
    0:*) said=connected ;;
    124:*) said="no answer" ;;
    *"Network is unreachable"*|*"Cannot assign requested address"*|*"Address family"*"not supported"*) said=unreachable ;;
    *"Connection refused"*) said=refused ;;
    *) said="unclear: $said" ;;
  esac
}
# A program that can make system calls. Prints `ok` for each that worked.
raw() {
  if command -v perl >/dev/null; then perl -e "$1" 2>&1
  elif command -v python3 >/dev/null; then python3 -c "$2" 2>&1
  else echo "ok, it must be supposed: no perl and no python3 to try it with"; fi
}
case $(uname -m) in
  x86_64) n_ptrace=101 n_unshare=272 ;;
  aarch64) n_ptrace=117 n_unshare=97 ;;
  *) n_ptrace=0 n_unshare=0 ;;
esac
status=$(cat /proc/self/status) || status=

begin user
[ "$(id -u)" -gt 0 ] 2>/dev/null || hole "user is root, or unknown"
finish

begin capabilities
for set in CapInh CapPrm CapEff CapAmb; do
  case $status in *"$set:"[[:space:]]0000000000000000[[:space:]]*) ;; *) hole "$set is not empty" ;; esac
done
finish

begin new_privileges
case $status in *"NoNewPrivs:"[[:space:]]"1"[[:space:]]*) ;; *) hole "a setuid program could raise privileges" ;; esac
finish

begin descriptors
for file in /proc/$$/fd/*; do
  if [ -d "$file" ] || [ -b "$file" ]; then hole "$file is a folder or disk"; fi
  if [ "${file##*/}" -gt 2 ] 2>/dev/null && { [ -S "$file" ] || [ -f "$file" ]; }; then hole "$file is an open file or socket"; fi
done
finish

begin network
while read -r device _; do
  case $device in Iface|lo) ;; *) hole "a route by $device" ;; esac
done < <(cat /proc/net/route || echo unknown)
while read -r line; do
  case ${line##* } in lo) ;; *) hole "an IPv6 route by ${line##* }" ;; esac
done < <(cat /proc/net/ipv6_route 2>/dev/null)
finish

begin dns
for server in $PROBE_DNS; do
  patiently 'exec 3<>"/dev/udp/$0/53" || exit 9
    printf "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01" >&3
    timeout 1 head -c 1 <&3 | wc -c' "$server"
  case $server:$code:$said in
    *:9:*"Network is unreachable"*|*:9:*"Cannot assign requested address"*|*:9:*"Address family"*"not supported"*) ;;
    127.*:0:*0|::1:0:*0) ;;
    *) hole "$server: a question left ($said)" ;;
  esac
done
finish

begin metadata
for address in 169.254.169.254 fd00:ec2::254 168.63.129.16 100.100.100.200; do
  tcp "$address" 80; [ "$said" = unreachable ] || hole "$address $said"
done
finish

begin gateway
for address in $PROBE_GATEWAYS; do
  tcp "$address" 80; [ "$said" = unreachable ] || hole "$address $said"
done
finish

begin host_services
for service in $PROBE_SERVICES; do
  address=${service%:*}; tcp "$address" "${service##*:}"
  case $address:$said in
    *:unreachable|127.*:refused|::1:refused) ;;
    *) hole "$service $said" ;;
  esac
done
finish

begin docker_socket
for path in $PROBE_ENGINES /var/run/docker.sock /run/docker.sock /run/containerd/containerd.sock /run/podman/podman.sock \
    /run/crio/crio.sock /run/dbus/system_bus_socket /run/systemd/private; do
  [ -e "$path" ] && hole "$path is there"
done
finish

begin run_sockets
while IFS= read -r path; do
  [ -n "$path" ] && [ -e "$path" ] && hole "$path is there"
done <<< "$PROBE_SOCKETS"
finish

begin abstract_sockets
if [ -n "$PROBE_ABSTRACT" ]; then
  said=$(raw 'use Socket; my $s; socket($s, AF_UNIX, SOCK_STREAM, 0) && connect($s, pack_sockaddr_un("\0$ENV{PROBE_ABSTRACT}")) && print "ok"' \
    'import os, socket
try: socket.socket(socket.AF_UNIX).connect("\0" + os.environ["PROBE_ABSTRACT"]); print("ok")
except OSError: pass')
  [ -z "$said" ] || hole "an abstract socket of the host: $said"
fi
finish

begin vsock
said=$(raw 'use Socket; my $s; socket($s, 40, SOCK_STREAM, 0) && print "ok"' \
  'import socket
try: socket.socket(40, socket.SOCK_STREAM); print("ok")
except OSError: pass')
[ -z "$said" ] || hole "a socket to the hypervisor: $said"
finish

reads() {
  local root
  for root in "" /proc/1/root "/proc/$PPID/root" /proc/self/root; do
    [ "$(cat "$root$1" 2>/dev/null)" = "$PROBE_SECRET" ] && hole "$root$1 can be read"
  done
}
begin data_folder
[ -n "$PROBE_SECRET" ] || hole "no secret was laid out"
[ -n "$PROBE_DATA" ] && reads "$PROBE_DATA"
finish

begin workspaces
[ -n "$PROBE_WORKSPACE" ] && reads "$PROBE_WORKSPACE"
finish

begin home
if [ -n "$PROBE_HOME" ] && [ "$(stat -L -c %d:%i "$PROBE_HOME" 2>/dev/null)" = "$PROBE_HOME_ID" ]; then hole "$PROBE_HOME is there"; fi
finish

begin shadow
for path in /etc/shadow /etc/gshadow /etc/sudoers /proc/1/root/etc/shadow; do
  [ -n "$(head -c 1 "$path" 2>/dev/null | tr '\0' x)" ] && hole "$path can be read"
done
finish

begin write_outside
for folder in / /bin /boot /dev /etc /home /lib /media /mnt /opt /root /run /run/agent /sbin /srv /sys /usr /usr/bin /usr/lib \
    /usr/local /usr/local/bin /var /var/lib "${PROBE_DATA%/*}" "${PROBE_WORKSPACE%/*}" "$PROBE_HOME"; do
  [ -d "${folder:-/}" ] || continue
  file=$folder/.automagik-probe-$$-$RANDOM
  if ( set -C; : > "$file" ) 2>/dev/null; then rm -f "$file"; hole "$folder can be written to"; fi
done
finish

begin kernel_settings
for path in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hotplug /proc/sys/vm/overcommit_memory \
    /proc/sys/fs/binfmt_misc/register /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/uevent_helper /sys/fs/cgroup/*/release_agent \
    /sys/fs/cgroup/cgroup.procs; do
  # Opened for writing, but nothing is written.
  if [ -e "$path" ] && [ "$(readlink -f "$path")" != /dev/null ] && [ ! -c "$path" ] && ( : >> "$path" ) 2>/dev/null
  then hole "$path can be written to"; fi
done
finish

begin devices
for path in /dev/*; do
  if [ -b "$path" ]; then hole "$path is a disk"; fi
done
for path in /dev/mem /dev/kmem /dev/port /dev/kmsg /dev/kvm /dev/fuse /dev/net/tun /dev/vsock /dev/vhost-vsock /dev/uinput; do
  if ( : < "$path" ) 2>/dev/null; then hole "$path can be opened"; fi
done
finish

begin host_processes
for process in $PROBE_PROCESSES; do
  if read -r line < "/proc/${process%:*}/stat" 2>/dev/null; then
    set -- ${line##*) }
    [ "${20}" = "${process#*:}" ] && hole "process ${process%:*} of the host is there"
  fi
done 2>/dev/null
finish

begin ptrace
# PTRACE_SEIZE of this shell, the parent of the one who tries.
said=$(raw "print 'ok' if syscall($n_ptrace, 0x4206, getppid(), 0, 0) == 0" \
  "import ctypes, os
if ctypes.CDLL(None).ptrace(0x4206, os.getppid(), 0, 0) == 0: print('ok')")
[ -z "$said" ] || hole "a parent can be traced: $said"
finish

begin namespaces
said=$(raw "print 'ok' if syscall($n_unshare, 0x10000000) == 0" \
  "import ctypes
if ctypes.CDLL(None).unshare(0x10000000) == 0: print('ok')")
[ -z "$said" ] || hole "a user namespace can be made: $said"
finish
"""
"""For `bash -c`. Needs coreutils, and Perl or Python. Sends nothing where there is no network; writes empty files, which it
removes, only where it may not."""
