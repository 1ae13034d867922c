"""Seals the message on standard input and prints the ARC header fields of the new set.

The arguments are the domain, the selector, the authentication server id and the file of the RSA key;
the rest are the public keys as name=record, for the chain so far.
"""

import sys

import dkim

domain, selector, server, key_file = sys.argv[1:5]
records = dict(argument.split("=", 1) for argument in sys.argv[5:])


def lookup(name, timeout=5):
    return records.get(name.decode().rstrip("."), "").encode() or None


with open(key_file, "rb") as file:
    key = file.read()
message = sys.stdin.buffer.read()
lines = dkim.ARC(message, linesep=b"\r\n").sign(
    selector.encode(), domain.encode(), key, server.encode(), include_headers=[b"from", b"to", b"subject"]
) if not records else None
if lines is None:
    sealer = dkim.ARC(message, linesep=b"\r\n")
    chain = sealer.verify(dnsfunc=lookup)
    print(chain[0], file=sys.stderr)
    lines = sealer.sign(
        selector.encode(), domain.encode(), key, server.encode(), include_headers=[b"from", b"to", b"subject"]
    )
sys.stdout.buffer.write(b"".join(lines))
