"""Verifies every DKIM-Signature of the message on standard input, and prints the results as JSON.

Each argument is NAME=TXT, the DNS answers there are; nothing else is asked.
"""

import json
import re
import sys

import dkim

answers = dict(argument.split("=", 1) for argument in sys.argv[1:])


def txt(name, timeout=5):
    """The TXT record of a name, as dkimpy wants its resolver."""
    name = name.decode() if isinstance(name, bytes) else name
    answer = answers.get(name.rstrip("."))
    return answer.encode() if answer is not None else None


def tags(value):
    """The tags of a DKIM-Signature value, without white space."""
    pairs = (part.split("=", 1) for part in value.split(";") if "=" in part)
    return {key.strip(): re.sub(r"\s+", "", text) for key, text in pairs}


message = sys.stdin.buffer.read()
head = message.split(b"\r\n\r\n", 1)[0].decode("utf-8", "replace")
fields = re.sub(r"\r\n[ \t]+", " ", head).split("\r\n")
signatures = [tags(f.split(":", 1)[1]) for f in fields if f.lower().startswith("dkim-signature:")]

results = []
for index, signature in enumerate(signatures):
    error = None
    try:
        valid = dkim.DKIM(message).verify(idx=index, dnsfunc=txt)
        if not valid:
            error = "the signature does not match"
    except Exception as failure:  # whatever is wrong with the message is a result, not a crash
        valid = False
        error = f"{type(failure).__name__}: {failure}"
    results.append(
        {
            "domain": signature.get("d", ""),
            "selector": signature.get("s", ""),
            "algorithm": signature.get("a", ""),
            "headers": [name.lower() for name in signature.get("h", "").split(":") if name],
            "has_length": "l" in signature,
            "valid": bool(valid),
            "error": error,
        }
    )
json.dump(results, sys.stdout)
