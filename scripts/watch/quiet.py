"""What watches a training must not kill it."""

import sys
import time
import traceback
from contextlib import suppress


class Quiet:
    """Runs the parts of a watch and counts their seconds. What fails is said once, with its traceback; from then on nothing is run."""

    def __init__(self):
        self.silent, self.seconds = False, 0.0

    def __call__(self, part, *args):
        """What `part` returns; None once the watch is silent."""
        if self.silent:
            return None
        began = time.perf_counter()
        try:
            return part(*args)
        except Exception as error:
            self.silent = True
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            with suppress(OSError):  # nobody reads what the training prints
                traceback.print_exc()
                say(f"health: the watch itself failed ({what}); the training goes on without it")
        finally:
            self.seconds += time.perf_counter() - began


def say(line):
    """Past the Trainer's bars, which share the terminal."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()
