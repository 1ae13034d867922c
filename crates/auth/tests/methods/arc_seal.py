"""Seals the message on standard input with dkimpy and prints it with the new ARC set in front.

The arguments are the domain, the selector, the file of the RSA key, and the state of the chain so far
("none" for the first set).
"""

import sys
import types

import dkim


class Results:
    """The little of the authres package that dkimpy asks for: one result, that of arc."""

    def __init__(self, text):
        server, _, results = text.partition(":")[2].partition(";")
        self.authserv_id = server.strip()
        found = [part.split("=")[1].split()[0] for part in results.split(";") if part.strip().startswith("arc=")]
        self.results = [types.SimpleNamespace(method="arc", result=result) for result in found]

    @staticmethod
    def parse(text):
        return Results(text)


dkim.authres = types.SimpleNamespace(
    AuthenticationResultsHeader=Results,
    AuthresNotFoundError=Exception,
    core=types.SimpleNamespace(SyntaxError=ValueError),
)

domain, selector, key_file, chain = sys.argv[1:]
with open(key_file, "rb") as file:
    key = file.read()
message = sys.stdin.buffer.read()
results = "spf=pass smtp.mailfrom=a@example.test" + ("" if chain == "none" else "; arc=" + chain)
field = ("Authentication-Results: " + domain + "; " + results + "\r\n").encode()
sealer = dkim.ARC(field + message, linesep=b"\r\n")
fields = sealer.sign(
    selector.encode(), domain.encode(), key, domain.encode(), include_headers=[b"from", b"to", b"subject"]
)
sys.stdout.buffer.write(b"".join(fields) + message)
