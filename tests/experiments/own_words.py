"""What our commands say on standard error, without what Ray logs there: on a busy machine it logs tracebacks."""

import re

COLOUR = r"(\x1b\[[\d;]*m)*"
RECORD = re.compile(COLOUR + r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+(INFO|WARNING|ERROR|CRITICAL)\s")  # of its logger
REPEATED = re.compile(COLOUR + r"\((raylet|gcs_server|(\w+ )?pid=\d+)")  # a line of one of its processes


def own_words(said: str) -> str:
    """Return the lines that are not Ray's; a traceback right behind a record of its logger is part of the record."""
    own: list[str] = []
    behind_record = in_traceback = False
    for line in said.splitlines(keepends=True):
        if in_traceback:
            in_traceback = line.startswith((" ", "\n"))  # to the error's own line
        elif RECORD.match(line):
            behind_record = True
        elif behind_record and line.startswith("Traceback "):
            behind_record, in_traceback = False, True
        elif not REPEATED.match(line):
            behind_record = False
            own.append(line)
    return "".join(own)
