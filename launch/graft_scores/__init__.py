"""Reading and comparing what `graft score` writes; used by score_report.py."""
