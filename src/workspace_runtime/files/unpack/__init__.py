"""The readers of archives, and what they share. `files/extract.py` is the way in."""
