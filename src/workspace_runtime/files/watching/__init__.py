"""The parts of the watcher. `files/watch.py` is the way in."""
