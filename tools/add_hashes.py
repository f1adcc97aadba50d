"""For `make sbom`: the bill of what is installed, with the hashes and sources that the lock knows.

    add_hashes.py INSTALLED LOCKED BILL

A package that is not in both stops it: then the bill would not tell of what is pinned, or not of what runs.
"""

import json
import sys
from pathlib import Path


def main(installed: str, locked: str, target: str) -> int:
    bill = json.loads(Path(installed).read_text(encoding="utf-8"))
    lock = json.loads(Path(locked).read_text(encoding="utf-8"))
    sources = {package["purl"]: package["externalReferences"] for package in lock["components"]}
    listed = {package["purl"] for package in bill["components"]}
    if listed != sources.keys():
        sys.stderr.write(f"installed or locked, but not both: {' '.join(sorted(listed ^ sources.keys()))}\n")
        return 1
    for package in bill["components"]:
        package["externalReferences"] = sources[package["purl"]] + package.get("externalReferences", [])
    bill["metadata"]["component"] = {"bom-ref": "opusmax", "name": "opusmax", "type": "application"}
    Path(target).write_text(json.dumps(bill, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
