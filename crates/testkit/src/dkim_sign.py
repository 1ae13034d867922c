"""Signs the message on standard input and prints the DKIM-Signature header field.

The arguments are the domain, the selector, the algorithm and the file of the private key.
"""

import base64
import sys

import dkim

domain, selector, algorithm, key_file = sys.argv[1:]
with open(key_file, "rb") as file:
    key = file.read()
if algorithm == "ed25519-sha256":
    # dkimpy wants the bare seed, the last 32 octets of the PKCS#8 form (RFC 8410 section 7).
    body = b"".join(line for line in key.splitlines() if not line.startswith(b"-----"))
    key = base64.b64encode(base64.b64decode(body)[-32:])

message = sys.stdin.buffer.read()
signature = dkim.sign(
    message,
    selector.encode(),
    domain.encode(),
    key,
    signature_algorithm=algorithm.encode(),
    canonicalize=(b"relaxed", b"relaxed"),
    include_headers=[b"from", b"to", b"subject", b"date", b"message-id"],
)
sys.stdout.buffer.write(signature)
