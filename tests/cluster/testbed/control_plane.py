"""etcd, the API server, the controllers and the scheduler: which processes, and what they are told."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from cluster.testbed.certificates import Authority, Pair
from cluster.testbed.daemons import Daemon
from cluster.testbed.place import (
    API_ADDRESS,
    API_PORT,
    API_URL,
    AUDIT_LOG,
    AUTHORITY,
    CERTIFICATES,
    CONTROLLERS_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    MANIFESTS,
    POD_RANGE,
    PROXY_HEALTH_PORT,
    PROXY_METRICS_PORT,
    SCHEDULER_PORT,
    SERVICE_RANGE,
    STATE,
    NodePlace,
)

READY_S = 60
Command = list[str | Path]


class ControlPlane:
    """Its processes; what fails in a real one, a test does to them."""

    def __init__(self) -> None:
        self.etcd = Daemon("etcd")
        self.api_server = Daemon("kube-apiserver")
        self.controllers = Daemon("kube-controller-manager")
        self.scheduler = Daemon("kube-scheduler")
        self.proxy = Daemon("kube-proxy")

    def define(self, programs: Path, etcd: Path, authority: Authority) -> None:
        """What each is told; none is started."""
        tokens = authority.signing_key("service-accounts")
        self.etcd.define(_etcd(etcd, authority))
        self.api_server.define(_api_server(programs, authority, tokens))
        self.controllers.define(_controllers(programs, authority, tokens))

    def define_for_nodes(self, programs: Path, authority: Authority) -> None:
        """The same for those that a cluster without nodes has not."""
        self.scheduler.define(_scheduler(programs, authority))
        self.proxy.define(_proxy(programs, authority))

    def start(self) -> None:
        """etcd, the API server until it is ready, its controllers: what runs already goes on."""
        self.etcd.start()
        self.api_server.start()
        self.api_server.wait_until(_answers, timeout_s=READY_S)
        self.controllers.start()


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


def _etcd(program: Path, authority: Authority) -> Command:
    """Only for who has a certificate: whoever writes to it is root of the machine."""
    client, peer = f"https://127.0.0.1:{ETCD_PORT}", f"https://127.0.0.1:{ETCD_PEER_PORT}"
    serving = authority.server("etcd", "127.0.0.1")
    return [
        program,
        f"--data-dir={STATE / 'etcd'}",
        "--enable-grpc-gateway=false",  # it would need a certificate of a client, too
        "--unsafe-no-fsync",  # nobody needs the data after a power cut
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        *_etcd_tls(serving, ""),
        *_etcd_tls(serving, "peer-"),
    ]


def _etcd_tls(serving: Pair, of: str) -> list[str]:
    return [
        f"--{of}cert-file={serving.certificate}",
        f"--{of}key-file={serving.key}",
        f"--{of}trusted-ca-file={AUTHORITY}",
        f"--{of}client-cert-auth",
    ]


def _api_server(programs: Path, authority: Authority, tokens: Path) -> Command:
    serving, to_etcd = authority.api_server(), authority.client("kube-apiserver-etcd")
    to_kubelets = authority.client("kube-apiserver-kubelet", "system:masters")
    return [
        programs / "kube-apiserver",
        f"--etcd-servers=https://127.0.0.1:{ETCD_PORT}",
        f"--etcd-cafile={AUTHORITY}",
        f"--etcd-certfile={to_etcd.certificate}",
        f"--etcd-keyfile={to_etcd.key}",
        f"--bind-address={API_ADDRESS}",
        f"--advertise-address={API_ADDRESS}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--kubelet-preferred-address-types=InternalIP",  # a node's name is in no DNS
        f"--client-ca-file={AUTHORITY}",
        # Components wait for this, and say so each second; there is no proxy that may name its users.
        f"--requestheader-client-ca-file={AUTHORITY}",
        "--requestheader-allowed-names=nobody",
        *_tls(serving),
        f"--kubelet-client-certificate={to_kubelets.certificate}",
        f"--kubelet-client-key={to_kubelets.key}",
        f"--service-account-issuer={API_URL}",
        f"--service-account-signing-key-file={tokens}",
        f"--service-account-key-file={tokens}",
        f"--audit-policy-file={MANIFESTS / 'audit.yaml'}",
        f"--audit-log-path={AUDIT_LOG}",
    ]


def _controllers(programs: Path, authority: Authority, tokens: Path) -> Command:
    kubeconfig = authority.kubeconfig("system:kube-controller-manager")
    return [
        programs / "kube-controller-manager",
        *_alone(kubeconfig, CONTROLLERS_PORT),
        f"--root-ca-file={AUTHORITY}",
        f"--service-account-private-key-file={tokens}",
        "--use-service-account-credentials",
    ]


def _scheduler(programs: Path, authority: Authority) -> Command:
    kubeconfig = authority.kubeconfig("system:kube-scheduler")
    return [programs / "kube-scheduler", *_alone(kubeconfig, SCHEDULER_PORT)]


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
                "hostnameOverride": NodePlace(0).name,
                "bindAddress": API_ADDRESS,
                "healthzBindAddress": f"{API_ADDRESS}:{PROXY_HEALTH_PORT}",
                "metricsBindAddress": f"{API_ADDRESS}:{PROXY_METRICS_PORT}",
                "nodePortAddresses": [f"{API_ADDRESS}/32"],
                "conntrack": {"maxPerCore": 0, "min": 0},  # the host's own settings stay
                # All pods leave from one address, as through a NAT gateway: what a shop sees of them.
                "nftables": {"masqueradeAll": True},
            }
        )
    )
    return [programs / "kube-proxy", f"--config={config}"]


def _alone(kubeconfig: Path, port: int) -> list[str]:
    """What a component is told that has no second one to agree with."""
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
        f"--bind-address={API_ADDRESS}",
        f"--secure-port={port}",
        f"--cert-dir={CERTIFICATES}",
    ]


def _tls(pair: Pair) -> list[str]:
    return [f"--tls-cert-file={pair.certificate}", f"--tls-private-key-file={pair.key}"]
