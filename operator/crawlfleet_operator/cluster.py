"""The calls to the API server, as plain documents: few verbs, a time-out each. Watching is kopf's.

The generated models of the client are not used: fields that they do not know would be lost, and a missing one in an answer
be an error. What is wanted is applied (server-side apply) under one field manager.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from crawlfleet.errors import CrawlfleetError
from crawlfleet.manifests import API_VERSION
from crawlfleet_operator.build import MANAGER, Document
from crawlfleet_operator.sight import BATCHES, JOBS, SOURCES

TIMEOUT_S = 20
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


class Refused(CrawlfleetError):
    """The API server answered, and not with what was asked for. The message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_gone(self) -> bool:
        """There is no such thing, or no longer."""
        return self.status == 404

    @property
    def is_conflict(self) -> bool:
        """It is not what we took it for: somebody has changed it, or made another one of that name."""
        return self.status == 409


class Unanswered(CrawlfleetError):
    """The API server, or something on the way there, did not answer as one does."""


class Cluster:
    """One connection pool to the API server. Raises Refused, or Unanswered."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> Cluster:
        """As the service account of this pod, or else by the kubeconfig."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # the client types nothing here
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # likewise
        return cls(client.ApiClient(configuration))

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]  # likewise

    async def list(self, plural: str, namespace: str | None, **query: str) -> list[Document]:
        """All objects of a kind, of one namespace or of all; pods and events only with a selector."""
        found = await self._call("GET", _path(plural, namespace), query=query)
        items: list[Document] = found["items"]
        return items

    async def get(self, plural: str, namespace: str, name: str) -> Document:
        return await self._call("GET", _path(plural, namespace, name))

    async def apply(self, plural: str, document: Document) -> Document:
        """Make it so, whether it is there or not."""
        metadata = document["metadata"]
        path = _path(plural, metadata["namespace"], metadata["name"])
        return await self._call("PATCH", path, document, kind=APPLY, query=_FORCED)

    async def apply_status(self, plural: str, document: Document) -> Document:
        """The same for the status alone."""
        metadata = document["metadata"]
        path = _path(plural, metadata["namespace"], metadata["name"]) + "/status"
        return await self._call("PATCH", path, document, kind=APPLY, query=_FORCED)

    async def patch(self, plural: str, namespace: str, name: str, change: Document) -> Document:
        path = _path(plural, namespace, name)
        return await self._call("PATCH", path, change, kind=MERGE, query={"fieldManager": MANAGER})

    async def try_out(self, plural: str, namespace: str, document: Document) -> None:
        """Ask whether it would be taken; nothing is created."""
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        await self._call("POST", _path(plural, namespace), document, query=query)

    async def create(self, plural: str, namespace: str, document: Document) -> None:
        await self._call("POST", _path(plural, namespace), document)

    async def delete(self, plural: str, namespace: str, name: str, **only: str) -> None:
        """With all that it owns; nothing happens if it is gone already, or is not of that `uid` or `resourceVersion`."""
        options: Document = {"propagationPolicy": "Background"}
        if only:
            options["preconditions"] = only
        try:
            await self._call("DELETE", _path(plural, namespace, name), options)
        except Refused as exc:
            if not (exc.is_gone or exc.is_conflict):
                raise

    async def _call(
        self,
        method: str,
        path: str,
        body: Document | None = None,
        *,
        kind: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Document:
        headers = {"Accept": "application/json", "Content-Type": kind}
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = await self._api.call_api(*request, _request_timeout=TIMEOUT_S)
            content = json.loads(await answer.read())  # type: ignore[no-untyped-call]  # likewise
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise Unanswered(f"{method} {path}: {type(exc).__name__}: {exc}") from exc
        if answer.status >= 400:
            raise Refused(answer.status, content.get("message", ""))
        document: Document = content
        return document


_FORCED = {"fieldManager": MANAGER, "force": "true"}
_GROUPS = {
    BATCHES: f"/apis/{API_VERSION}",
    SOURCES: f"/apis/{API_VERSION}",
    JOBS: "/apis/batch/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "events": "/api/v1",
}


def _path(plural: str, namespace: str | None, name: str | None = None) -> str:
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{_GROUPS[plural]}{scope}/{plural}" + (f"/{name}" if name else "")


def in_namespace(namespace: str, document: Document) -> Document:
    """The document with its namespace, as an apply wants it."""
    return {**document, "metadata": {**document["metadata"], "namespace": namespace}}


def status_of(kind: str, document: Document, status: Mapping[str, Any]) -> Document:
    """A status to be applied to that version of it: the uid would not keep it from another one of that name."""
    metadata = {key: document["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "status": dict(status)}
