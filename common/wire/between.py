"""How a server says that it is up and serves no study: a status, and a header beside it.

A proxy or a restart gives the same status without the header, and means something else.
"""

from __future__ import annotations

STATUS = 503
HEADER = "kohort-state"
VALUE = "between-studies"
