#!/usr/bin/env python3
"""Writes a CycloneDX bill of materials of what the binary is compiled from, for a target (the triple is the argument).

`cargo tree` tells it: unlike `cargo metadata` it takes only the features that this binary is built with, and neither
what is only for tests or for building nor procedural macros.
"""
import json
import subprocess
import sys

tree = subprocess.run(
    ["cargo", "tree", "--locked", "--package", "packetboat", "--target", sys.argv[1]]
    + ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}|{l}|"],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
).stdout


def component(line):
    package, licence, _ = line.split("|")
    name, version, *origin = package.split(" ")
    reference = f"pkg:cargo/{name}@{version.removeprefix('v')}"
    told = {"type": "library", "name": name, "version": version.removeprefix("v"), "bom-ref": reference}
    # Our own crates have a folder, others come from the registry.
    if not origin:
        told["purl"] = reference
    if licence:
        told["licenses"] = [{"expression": licence.replace("/", " OR ")}]
    return told


root, *others = (component(line) for line in tree.splitlines() if line)
components = {one["bom-ref"]: one for one in others if one["bom-ref"] != root["bom-ref"]}
json.dump(
    {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": root | {"type": "application"}},
        "components": [components[reference] for reference in sorted(components)],
    },
    sys.stdout,
    indent=1,
)
