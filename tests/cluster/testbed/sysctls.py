"""Settings of the host's kernel that a kubelet, kube-proxy and we change: noted before, put back at the end."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from cluster.testbed.place import STATE

_SYSCTLS = Path("/proc/sys")
_BOOT = _SYSCTLS / "kernel/random/boot_id"
_NOTE = STATE / "sysctls.json"
_CHANGED = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


def note() -> None:
    """What they are now."""
    found = {name: (_SYSCTLS / name).read_text() for name in _CHANGED if (_SYSCTLS / name).exists()}
    _NOTE.write_text(json.dumps({"boot": _BOOT.read_text(), "found": found}))


def put_back() -> None:
    """As they were noted, unless the machine has been started anew since."""
    with suppress(FileNotFoundError):
        noted = json.loads(_NOTE.read_text())
        if noted["boot"] == _BOOT.read_text():
            for name, value in noted["found"].items():
                (_SYSCTLS / name).write_text(value)
