"""What a model file costs and how well it answers, measured on the file itself.

Nothing is imported here: `pastille.measure.fresh` is timed from its first line.
"""
