"On PYTHONPATH, this refuses every connection that leaves the machine: the book must run without a network."

import socket

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo
_HERE = ("127.", "localhost", "::1")


def _refuse(host):
    raise OSError(f"no network in tests: a connection to {host!r} was refused")


def _local(sock, address):
    return sock.family == getattr(socket, "AF_UNIX", None) or str(address[0]).startswith(_HERE)


def _guarded(connect):
    def call(sock, address):
        return connect(sock, address) if _local(sock, address) else _refuse(address)

    return call


def _guarded_lookup(host, *args, **kwargs):
    if host is None or str(host).startswith(_HERE) or str(host) in ("", "0.0.0.0"):
        return _getaddrinfo(host, *args, **kwargs)
    _refuse(host)


socket.socket.connect, socket.socket.connect_ex = _guarded(_connect), _guarded(_connect_ex)
socket.getaddrinfo = _guarded_lookup
