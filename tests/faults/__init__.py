"""The fault suite: commands are killed, disks full, files damaged. See `python -m tests.faults --help`."""
