"""Write bench/result.schema.json, the JSON Schema of all result files, from what reads them.

With --check nothing is written and the exit code is 1 if the file is not what it should be.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from slidesparse.bench.kinds import result_schema

SCHEMA = Path(__file__).resolve().parent.parent / "bench" / "result.schema.json"


def main() -> int:
    """Write or check the schema."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    arguments = parser.parse_args()
    made = json.dumps(result_schema(), indent=1) + "\n"
    if SCHEMA.is_file() and SCHEMA.read_text(encoding="utf-8") == made:
        return 0
    if arguments.check:
        print(f"{SCHEMA.name} is not what the records say; run python scripts/result_schema.py")
        return 1
    SCHEMA.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
