"""etcd, the API server, the controllers and the scheduler: which processes, and what they are told."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from cluster.testbed.certificates import Authority, Pair
from cluster.testbed.daemons import Daemon
from cluster.testbed.place import API_ADDRESS, API_PORT, API_URL, AUTHORITY, POD_RANGE, SERVICE_RANGE, STATE

ETCD_PORT = 23790
"""On loopback, beside a host's own etcd."""
CONTROLLERS_PORT = 10257
SCHEDULER_PORT = 10259
READY_S = 60
Command = list[str | Path]


class ControlPlane:
    """Its processes; what fails in a real one, a test does to them."""

    etcd = Daemon("etcd")
    api_server = Daemon("kube-apiserver")
    controllers = Daemon("kube-controller-manager")
    scheduler = Daemon("kube-scheduler")
    proxy = Daemon("kube-proxy")

    @classmethod
    def define(cls, programs: Path, etcd: Path, authority: Authority) -> None:
        """What each is told; none is started."""
        tokens = authority.signing_key("service-accounts")
        cls.etcd.define(_etcd(etcd))
        cls.api_server.define(_api_server(programs, authority, tokens))
        cls.controllers.define(_controllers(programs, authority, tokens))

    @classmethod
    def define_for_nodes(cls, programs: Path, authority: Authority) -> None:
        """The same for those that a cluster without nodes has not."""
        cls.scheduler.define(_scheduler(programs, authority))
        cls.proxy.define(_proxy(programs, authority))

    def start(self) -> None:
        """etcd, the API server, its controllers: what runs already goes on."""
        self.etcd.start()
        self.api_server.start()
        self.await_api()
        self.controllers.start()

    def await_api(self) -> None:
        """Until it says that it is ready."""
        self.api_server.wait_until(_answers, timeout_s=READY_S)


def _answers() -> bool:
    trusted = ssl.create_default_context(cafile=str(AUTHORITY))
    try:
        with urllib.request.urlopen(f"{API_URL}/readyz", context=trusted, timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as exc:
        exc.close()
        return False
    except OSError:
        return False


def _etcd(program: Path) -> Command:
    client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PORT + 1}"
    return [
        program,
        f"--data-dir={STATE / 'etcd'}",
        "--unsafe-no-fsync",  # nobody needs the data after a power cut
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]


def _api_server(programs: Path, authority: Authority, tokens: Path) -> Command:
    serving, to_kubelets = (
        authority.api_server(),
        authority.client("kube-apiserver-kubelet", "system:masters"),
    )
    return [
        programs / "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
        f"--bind-address={API_ADDRESS}",
        f"--advertise-address={API_ADDRESS}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--kubelet-preferred-address-types=InternalIP",  # a node's name is in no DNS
        f"--client-ca-file={authority.certificate}",
        f"--requestheader-client-ca-file={authority.certificate}",  # components wait for it, and say so each second
        *_tls(serving),
        f"--kubelet-client-certificate={to_kubelets.certificate}",
        f"--kubelet-client-key={to_kubelets.key}",
        f"--service-account-issuer={API_URL}",
        f"--service-account-signing-key-file={tokens}",
        f"--service-account-key-file={tokens}",
    ]


def _controllers(programs: Path, authority: Authority, tokens: Path) -> Command:
    kubeconfig = authority.kubeconfig("system:kube-controller-manager")
    return [
        programs / "kube-controller-manager",
        *_of_one(kubeconfig, CONTROLLERS_PORT),
        f"--root-ca-file={authority.certificate}",
        f"--service-account-private-key-file={tokens}",
        "--use-service-account-credentials",
    ]


def _scheduler(programs: Path, authority: Authority) -> Command:
    kubeconfig = authority.kubeconfig("system:kube-scheduler")
    return [programs / "kube-scheduler", *_of_one(kubeconfig, SCHEDULER_PORT)]


def _proxy(programs: Path, authority: Authority) -> Command:
    """One for both nodes, since they share the host's network."""
    config = STATE / "kube-proxy.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "nftables",
                "clientConnection": {"kubeconfig": str(authority.kubeconfig("system:kube-proxy"))},
                "clusterCIDR": POD_RANGE,
                "hostnameOverride": "node-0",
                "bindAddress": API_ADDRESS,
                "healthzBindAddress": f"{API_ADDRESS}:10256",
                "metricsBindAddress": f"{API_ADDRESS}:10249",
                "nodePortAddresses": [f"{API_ADDRESS}/32"],
                "conntrack": {"maxPerCore": 0, "min": 0},  # the host's own settings stay
                "nftables": {
                    "masqueradeAll": True
                },  # all pods leave from one address, as through a NAT gateway
            }
        )
    )
    return [programs / "kube-proxy", f"--config={config}"]


def _of_one(kubeconfig: Path, port: int) -> list[str]:
    """What a component is told that has no second one to agree with."""
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
        f"--bind-address={API_ADDRESS}",
        f"--secure-port={port}",
        f"--cert-dir={STATE / 'certificates'}",
    ]


def _tls(pair: Pair) -> list[str]:
    return [f"--tls-cert-file={pair.certificate}", f"--tls-private-key-file={pair.key}"]
