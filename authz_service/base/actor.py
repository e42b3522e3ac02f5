"""Who is calling: the result of authentication, carried with the call and the transaction."""

from dataclasses import dataclass

from authz_service.base.errors import PermissionDenied


# A value that nobody changes; `frozen` would triple what making one costs, once a call.
@dataclass(slots=True)
class Actor:
    """An authenticated caller.

    Attributes:
        kind: SERVICE_CREDENTIAL, CERTIFICATE, OIDC, SCIM_DIRECTORY or SYSTEM, as events name it.
        id: The credential's id, or the name the kind gives (``first`` for the configured one).
        scopes: What the caller may do (product.md C12); ``admin`` implies all.
        organization_ids: The organizations of a restricted credential; empty = unrestricted.
        on_behalf_of_user_id: As the caller said it, recorded and never used to decide (C13).
        request_id: The call's id, echoed and recorded.
    """

    kind: str
    id: str
    scopes: frozenset[str] = frozenset()
    organization_ids: frozenset[str] = frozenset()
    on_behalf_of_user_id: str = ""
    request_id: str = ""

    def has_scope(self, scope: str) -> bool:
        """True if the credential carries the scope, or ``admin``."""
        return scope in self.scopes or "admin" in self.scopes

    def may_see(self, organization_id: str) -> bool:
        """True unless the credential is restricted to other organizations (C16)."""
        return not self.organization_ids or organization_id in self.organization_ids

    def require_unrestricted(self) -> None:
        """Refuses a credential that is restricted to organizations (C16).

        Raises:
            PermissionDenied: ORGANIZATION_RESTRICTED.
        """
        if self.organization_ids:
            raise PermissionDenied(
                "ORGANIZATION_RESTRICTED", "the credential is restricted to organizations"
            )


SYSTEM = Actor(kind="SYSTEM", id="system", scopes=frozenset({"admin"}))
