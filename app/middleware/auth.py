"""Who may do what: every path needs a key, where the server has any, save the few that are named public.

/metrics and /admin have rules of their own. With an admin port they are there and nowhere else, and /metrics is open;
without one they need a key with the admin right. Nobody administers a server that has no keys. Each use of /admin where
it is goes into the audit log first; where it is not, strangers could fill that.
"""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.app.errors import ApiError
from quire.app.keys.key import ANYONE, Key
from quire.app.keys.ring import KeyRing
from quire.app.telemetry.audit import AuditError, AuditLog
from quire.app.telemetry.record import RequestRecord

log = structlog.get_logger(__name__)


class AuthMiddleware:
    """`admin_port` as bound; None: there is none."""

    def __init__(self, app: ASGIApp, keys: KeyRing, audit: AuditLog, public: frozenset[str],
                 admin_port: int | None) -> None:
        self._app = app
        self._keys = keys
        self._audit = audit
        self._public = public
        self._admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            record = scope["state"]["record"]
            if _is_admin(record.path) and (self._admin_port is None or self._on_admin_port(scope)):
                self._admit_audited(scope, record)
            elif record.path not in self._public:
                self._admit(scope, record)
        await self._app(scope, receive, send)

    def _admit_audited(self, scope: Scope, record: RequestRecord) -> None:
        """As _admit, with a line in the audit log."""
        refusal = None
        try:
            self._admit(scope, record)
        except ApiError as error:
            refusal = error
        try:
            self._audit.write(f"{record.method} {record.path[:200]}", "allowed" if refusal is None else "refused",
                              key=record.key.name, client=record.client, request_id=record.request_id)
        except AuditError as error:
            if refusal is None:
                raise no_audit(error) from None
        if refusal is not None:
            raise refusal

    def _admit(self, scope: Scope, record: RequestRecord) -> None:
        """Notes whose request it is. Raises ApiError (401, 403, 404)."""
        is_metrics = record.path == "/metrics"
        on_admin_port = self._on_admin_port(scope)
        if is_metrics and on_admin_port:
            return
        key = self._key(Headers(scope=scope)) if self._keys.required else ANYONE
        record.key = key.limits
        scope["state"]["key"] = key
        needs_admin = is_operators(record.path)
        if self._admin_port is not None and needs_admin is not on_admin_port:
            raise ApiError(404, f"There is no {record.path[:200]} on this port.")
        if not needs_admin or key.admin or (is_metrics and key is ANYONE):
            return
        if key is ANYONE:
            raise ApiError(403, "This server has no API keys, and so nobody who may administer it; set VLLM_API_KEY.")
        raise ApiError(403, f"The API key {key.name} may not do this: it has no admin right.")

    def _on_admin_port(self, scope: Scope) -> bool:
        return self._admin_port is not None and (scope.get("server") or ("", None))[1] == self._admin_port

    def _key(self, headers: Headers) -> Key:
        """The presented key. Raises ApiError (401)."""
        for secret in _secrets(headers):
            # Starlette reads bytes as latin-1; a key is whatever its UTF-8 bytes are.
            key = self._keys.find(secret.strip().encode("latin-1").decode("utf-8", "surrogateescape"))
            if key is not None:
                return key
        raise ApiError(401, "A valid API key is needed, as the header `Authorization: Bearer KEY` or `x-api-key: KEY`.",
                       headers={"www-authenticate": "Bearer"})


def _secrets(headers: Headers) -> Iterator[str]:
    """As OpenAI's clients send it, and as Anthropic's may. Either will do: some send both, one of them another's."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield secret
    if (secret := headers.get("x-api-key", "")):
        yield secret


def _is_admin(path: str) -> bool:
    return path == "/admin" or path.startswith("/admin/")


def is_operators(path: str) -> bool:
    """Whether it has rules of its own."""
    return path == "/metrics" or _is_admin(path)


def no_audit(error: AuditError) -> ApiError:
    log.error("audit log cannot be written", reason=str(error))
    return ApiError(503, "The audit log (--audit-log) cannot be written, and nothing is done without it.")
