"""The fault suite: kills, full disks, damage and rivals, recorded: `python -m pytest -m faults`."""
