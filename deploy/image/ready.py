"""The image's health check: exit code 0 where the server is ready, whatever its port and TLS.

Asks the Unix socket in the run directory (app/probe.py). Imports nothing of the service: it runs every few seconds.
"""

import os
import socket
import sys

probe = socket.socket(socket.AF_UNIX)
probe.settimeout(4)
try:
    probe.connect(os.environ["QUIRE_RUN_DIR"] + "/probe.sock")
    probe.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
    reply = probe.makefile("rb").read().decode()
except OSError as error:
    sys.exit(f"no answer: {error}")
print(reply.rpartition("\r\n")[2])
sys.exit(" 200 " not in reply.partition("\r\n")[0])
