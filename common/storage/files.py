"""The file functions of kohort/files.py, for the two sides.

They are written there because the `kohort` distribution imports nothing of the application.
"""

from kohort.files import atomic_write, file_digest, read_capped, sync_folder, write_new

__all__ = ["atomic_write", "file_digest", "read_capped", "sync_folder", "write_new"]
