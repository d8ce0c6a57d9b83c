import os
import sys


def run() -> int:
    try:
        if sys.argv[1:2] == ["plan"]:
            from infer.plan_command import main as plan

            return plan(sys.argv[2:])
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
