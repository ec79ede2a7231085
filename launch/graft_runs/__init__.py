"""Reading what a run leaves in its output folder; used by report.py, track.py and ask.py."""
