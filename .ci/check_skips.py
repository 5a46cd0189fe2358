"""Fails if a test skipped for a reason that is not on the list: a skip must not hide a gap."""

import re
import sys
import xml.etree.ElementTree as ElementTree

ALLOWED = [
    r"this CPU has no F16C",
    r"no CUDA card",
    r"no ray: pip install m40llm\[ray\]",  # too large for every developer
    r"no Chromium",  # .ci/run installs it wherever apt-get can
]


def main(path: str) -> int:
    reasons = [
        (f"{case.get('classname')}.{case.get('name')}", skipped.get("message", ""))
        for case in ElementTree.parse(path).iter("testcase")
        for skipped in case.iter("skipped")
    ]
    strays = [(n, r) for n, r in reasons if not any(re.search(a, r) for a in ALLOWED)]
    for name, reason in strays:
        print(f"error: {name} skipped: {reason}", file=sys.stderr)
    print(f"{len(reasons)} skips, {len(strays)} of them not allowed")
    return 1 if strays else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
