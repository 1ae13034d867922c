#!/usr/bin/env python3
"""Turns `cargo metadata` into a CycloneDX bill of materials of what the binary is built from."""
import json
import sys

metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
root = next(p["id"] for p in metadata["packages"] if p["name"] == "packetboat" and p["source"] is None)

# What is only for tests or for building is not in the binary.
reached, waiting = set(), [root]
while waiting:
    node = waiting.pop()
    if node in reached:
        continue
    reached.add(node)
    for dependency in nodes[node]["deps"]:
        if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
            waiting.append(dependency["pkg"])


def component(package):
    reference = f"pkg:cargo/{package['name']}@{package['version']}"
    told = {"type": "library", "name": package["name"], "version": package["version"], "bom-ref": reference}
    if package["source"]:
        told["purl"] = reference
    if package.get("license"):
        told["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    return told


components = sorted((component(packages[i]) for i in reached if i != root), key=lambda c: c["bom-ref"])
json.dump(
    {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(packages[root]) | {"type": "application"}},
        "components": components,
    },
    sys.stdout,
    indent=1,
)
