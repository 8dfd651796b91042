"""Whether a port is free, asked before a model is loaded.

SGLang binds its port only when the model is loaded. Where another socket has it, SGLang 0.5.16 and 0.5.23 go on to ask
that socket for /model_info: one that accepts and stays silent holds the start for 12 minutes.
"""

from __future__ import annotations

import errno
import socket


def why_not_bound(host: str, port: int) -> str:
    """Why SGLang's HTTP server could not listen on ``host:port``, or an empty string; tried by binding as it will."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return "it is in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
    return ""
