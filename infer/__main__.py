import os
import sys


def run() -> int:
    try:
        from infer.generate import main

        return main()
    except KeyboardInterrupt:  # while importing
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    # A compilation cannot be called off, and ending around it crashes: leave at once.
    if code == 130:
        os._exit(code)
    sys.exit(code)
