"""The one family of errors: what went wrong, in the gateway's own terms and with plain values.

An error becomes an answer in exactly one place (`envelopes.render`). Its message is a constant text with
figures in it: nothing that a client or an upstream sent may ever stand in one.
"""

from collections.abc import Mapping
from typing import ClassVar

from gateway.core.records import Refusal


class GatewayError(Exception):
    """A refusal or failure that a client is told about, in its protocol's own envelope."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "api_error"
    """The protocol-neutral name of the error; Anthropic's `error.type`."""
    should_retry: ClassVar[bool | None] = None
    """What `x-should-retry` says; `None`: the header is left out and the SDK's own rule holds."""

    def __init__(
        self,
        message: str,
        *,
        refusal: Refusal | None = None,
        retry_after_seconds: int | None = None,
        resets_at_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.refusal = refusal
        self.retry_after_seconds = retry_after_seconds
        self.resets_at_seconds = resets_at_seconds
        """When a used-up budget has room again, in seconds since 1970; `None`: never, or nothing is used up."""
        self.headers = dict(headers or {})


class BadRequest(GatewayError):
    status = 400
    kind = "invalid_request_error"


class NeverFits(BadRequest):
    """The request alone is larger than a budget of its key."""


class InvalidKey(GatewayError):
    """No key, an unknown one, or one that is disabled or expired."""

    status = 401
    kind = "authentication_error"
    should_retry = False


class ModelNotAllowed(GatewayError):
    status = 403
    kind = "permission_error"
    should_retry = False


class UnknownPath(GatewayError):
    status = 404
    kind = "not_found_error"


class ModelNotServed(GatewayError):
    """No upstream of the protocol serves the model. Clients know a 404 whose text begins so (PROTOCOLS A.6)."""

    status = 404
    kind = "not_found_error"


class MethodNotAllowed(GatewayError):
    status = 405
    kind = "invalid_request_error"


class RequestTimeout(GatewayError):
    """The body of a request does not arrive, or too slowly."""

    status = 408
    kind = "timeout_error"


class BodyTooLarge(GatewayError):
    status = 413
    kind = "request_too_large"


class UnsupportedBody(GatewayError):
    status = 415
    kind = "invalid_request_error"


class HeadTooLarge(GatewayError):
    """The headers of a request are longer than any client's."""

    status = 431
    kind = "invalid_request_error"


class LimitExceeded(GatewayError):
    """A limit that gives back by itself within a minute, or as soon as a running request ends."""

    status = 429
    kind = "rate_limit_error"


class BudgetExceeded(GatewayError):
    """A budget is used up, or too full for this request: waiting a moment does not help."""

    status = 429
    kind = "billing_error"
    should_retry = False


class ClientLeft(GatewayError):
    """The client closed the connection; nobody hears this error, but the ledger tells of it."""

    status = 499


class Unavailable(GatewayError):
    """The gateway cannot meter just now: it is stopping, or its ledger cannot be written."""

    status = 503
    kind = "overloaded_error"


class UpstreamUnreachable(GatewayError):
    """No byte of the request was processed: the connection was refused, or its answer made no sense."""

    status = 502


class UpstreamBroke(GatewayError):
    """The upstream went away after it had the request and before its answer began."""

    status = 502


class UpstreamCredentialRefused(GatewayError):
    """The upstream refused the operator's credential; the client's key is not to blame."""

    status = 502
    should_retry = False


class UpstreamTimeout(GatewayError):
    status = 504
    kind = "timeout_error"


class SettingsError(Exception):
    """A setting that makes no sense; the message is for the operator and names the setting."""
