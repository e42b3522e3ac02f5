"""The decision front: gRPC over HTTP/2 in pure Python, for unary decisions and health."""

from authz_service.rpc.fronts.h2.front import Front, Settings

__all__ = ["Front", "Settings"]
