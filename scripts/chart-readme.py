#!/usr/bin/env python3
"""Writes charts/packetboat/README.md from the comments of values.yaml; with --check only tells whether it is true.

A comment belongs to the key below it. Values in flow style, and empty ones, are told as they stand.
"""
import pathlib
import re
import sys

CHART = pathlib.Path(__file__).resolve().parent.parent / "charts" / "packetboat"
KEY = re.compile(r"^( *)([A-Za-z0-9]+):(?: (.*))?$")

HEAD = """# Packetboat

{description}.

```
helm install packetboat charts/packetboat -n mail --create-namespace --set hostname=mx.example.org
helm test packetboat -n mail
```

`docs/install.md` goes through an installation step by step. `ci/` has values for a small, a highly available and a
multi-tenant one. Every value is checked: a key that is not in the table is an error.

## Values

| key | default | meaning |
|---|---|---|
"""


def rows(text):
    """Key, default and meaning of every value, in order; the default of a section is empty."""
    path, comment, found = [], [], []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip()[1:].strip())
            continue
        match = KEY.match(line)
        if not match:
            if line.strip():
                sys.exit(f"values.yaml: this line is neither a comment nor a key with a value: {line}")
            comment = []
            continue
        indent, key, value = len(match[1]) // 2, match[2], match[3]
        path = path[:indent] + [key]
        meaning = " ".join(comment)
        comment = []
        if value is None and not meaning:
            continue
        found.append((".".join(path), value or "", meaning))
    return found


def cell(text):
    return text.replace("|", "\\|")


def readme():
    chart = (CHART / "Chart.yaml").read_text()
    description = re.search(r"^description: (.*)$", chart, re.M)[1]
    lines = [HEAD.format(description=description)]
    for key, default, meaning in rows((CHART / "values.yaml").read_text()):
        default = f"`{cell(default)}`" if default else ""
        lines.append(f"| `{key}` | {default} | {cell(meaning)} |\n")
    return "".join(lines)


def main():
    target = CHART / "README.md"
    text = readme()
    if sys.argv[1:] == ["--check"]:
        if not target.exists() or target.read_text() != text:
            sys.exit("charts/packetboat/README.md is not what values.yaml says: make chart")
        return
    target.write_text(text)


main()
