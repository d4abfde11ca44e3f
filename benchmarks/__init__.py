"""The timing harness behind `xent bench`: what is timed, against whom, and how the results are shown.

Each framework has a process of its own, in which xent and its rivals take turns, round by round; a rival is compared
with xent by the ratio of their times in the same round.
"""
