"""Sends small datagrams as fast as it can: ``python flood.py TARGET PORT SOURCE SOURCE_PORT``.

It prints ``flooding`` when it has begun, and after SIGTERM how many it sent.
"""

import ctypes
import os
import signal
import socket
import sys

SIZE, BATCH = 64, 256


class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class MessageHeader(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(IoVec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class Message(ctypes.Structure):
    _fields_ = [("header", MessageHeader), ("length", ctypes.c_uint)]


def main(target: str, port: str, source: str, source_port: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    payload = ctypes.create_string_buffer(SIZE)
    piece = IoVec(ctypes.addressof(payload), SIZE)
    batch = (Message * BATCH)(
        *[Message(MessageHeader(iov=ctypes.pointer(piece), iov_count=1))] * BATCH
    )
    sent, stopped = 0, []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.bind((source, int(source_port)))
        out.connect((target, int(port)))
        while not stopped:
            taken = libc.sendmmsg(out.fileno(), batch, BATCH, 0)
            if taken < 0 and ctypes.get_errno() not in (11, 105, 111):
                sys.exit(os.strerror(ctypes.get_errno()))
            if sent == 0:
                print("flooding", flush=True)
            sent += max(taken, 0)
    print(sent, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
