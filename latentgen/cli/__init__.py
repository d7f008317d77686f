"""The command line: one file per command, and the front door in `app.py`."""
