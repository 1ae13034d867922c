"""Verifies every DKIM-Signature of each message, a line of JSON on standard input, with the keys that the name
server it names tells at that moment; prints a line of JSON for each.
"""

import json
import re
import sys

import dkim
import dns.flags
import dns.message
import dns.query
import dns.rdatatype


def asking(server, port):
    """A resolver as dkimpy wants it, which asks this name server and no other."""

    def txt(name, timeout=5):
        name = name.decode() if isinstance(name, bytes) else name
        question = dns.message.make_query(name, "TXT", use_edns=0, payload=4096)
        question.flags &= ~dns.flags.RD
        answer = dns.query.udp(question, server, port=port, timeout=timeout)
        if answer.flags & dns.flags.TC:
            answer = dns.query.tcp(question, server, port=port, timeout=timeout)
        for records in answer.answer:
            if records.rdtype == dns.rdatatype.TXT:
                return b"".join(records[0].strings)
        return None

    return txt


def tags(value):
    """The tags of a DKIM-Signature value, without white space."""
    pairs = (part.split("=", 1) for part in value.split(";") if "=" in part)
    return {key.strip(): re.sub(r"\s+", "", text) for key, text in pairs}


def judge(message, resolver):
    """What is so of each signature, in the order of the header."""
    head = message.split(b"\r\n\r\n", 1)[0].decode("utf-8", "replace")
    fields = re.sub(r"\r\n[ \t]+", " ", head).split("\r\n")
    signatures = [tags(f.split(":", 1)[1]) for f in fields if f.lower().startswith("dkim-signature:")]
    for index, signature in enumerate(signatures):
        error = None
        try:
            valid = dkim.DKIM(message).verify(idx=index, dnsfunc=resolver)
            if not valid:
                error = "the signature does not match"
        except Exception as failure:  # whatever is wrong with the message is a result, not a crash
            valid = False
            error = f"{type(failure).__name__}: {failure}"
        yield {
            "domain": signature.get("d", ""),
            "selector": signature.get("s", ""),
            "algorithm": signature.get("a", ""),
            "headers": [name.lower() for name in signature.get("h", "").split(":") if name],
            "has_length": "l" in signature,
            "valid": bool(valid),
            "error": error,
        }


for line in sys.stdin:
    question = json.loads(line)
    resolver = asking(question["server"], question["port"])
    verdicts = list(judge(question["message"].encode(), resolver))
    print(json.dumps(verdicts), flush=True)
