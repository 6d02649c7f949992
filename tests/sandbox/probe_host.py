"""A host in a network of its own, for holes that let a sandbox out: run as `unshare --net python3 probe_host.py COMMAND...`.

It has the addresses that the probe tries, on its loopback, so that no packet leaves this machine; something listens there.
"""

import os
import socket
import subprocess
import sys

__all__ = ["ABSTRACT", "GATEWAY", "NAME_SERVER", "SERVICE"]

GATEWAY = "203.0.113.1"
NAME_SERVER = "203.0.113.53"
SERVICE = "127.0.0.1:8641"
ABSTRACT = "automagik-probe-host"


def main() -> int:
    ip = "/usr/sbin/ip"
    subprocess.run([ip, "link", "set", "lo", "up"], check=True)
    for address in ("169.254.169.254/32", f"{GATEWAY}/24", f"{NAME_SERVER}/32"):
        subprocess.run([ip, "address", "add", address, "dev", "lo"], check=True)
    subprocess.run([ip, "link", "add", "out", "type", "veth", "peer", "name", "in"], check=True)
    subprocess.run([ip, "address", "add", "198.51.100.1/24", "dev", "out"], check=True)
    for end in ("out", "in"):
        subprocess.run([ip, "link", "set", end, "up"], check=True)
    listening = [socket.socket(), socket.socket(socket.AF_UNIX)]
    listening[0].bind(("127.0.0.1", int(SERVICE.rpartition(":")[2])))
    listening[1].bind("\0" + ABSTRACT)
    for one in listening:
        one.listen(8)
    return subprocess.run(sys.argv[1:], close_fds=False, env=dict(os.environ), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
