"""What launch/prepare.py is made of: one module per idea, no part of graft's compute path."""
