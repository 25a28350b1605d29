"""The store's bucket: a job of manifests/base/store makes it, by `python -m cluster.bucket s3://BUCKET`."""

import sys

from arnas import objects
from arnas.errors import InvalidInput, Unreachable


def main(place: str) -> int:
    """Make the bucket if there is none; waits for the store to come up. Returns the exit status."""
    try:
        bucket = objects.Bucket(place)
        made = bucket.make()
    except (InvalidInput, Unreachable) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 4
    print(f"Bucket {bucket.name} {'is made' if made else 'was there'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
